"""The small post-norm transformer over frames that TERA and Mockingjay use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Embedding, Encoder, Tokens, sincos
from maskwright.core.encoder.blocks import check_heads, split_heads
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid
from maskwright.core.masking.spans import within
from maskwright.core.sample import Batch, TensorSpec

KEYS, QUERIES = 512, 32
"""Steps are handled in multiples of these in evaluation, so that not a bit of a result hangs on how much is padded."""


@dataclass(frozen=True, eq=False)
class Frames(Tokens):
    """Tokens (B, T, P) of sequences that differ in length; those behind `lengths` (B,) are zero and nobody's."""

    lengths: Tensor

    @property
    def real(self) -> Tensor:
        """(B, T) bool, True where a token is there."""
        return within(self.lengths, self.values.shape[1])


def frames_of(encoder: Encoder, batch: Batch, name: str) -> Frames:
    """The frames of a batch's input (B, F, T), normalised, time first, with zeros behind each sample's own length."""
    values = encoder.normalize(batch)[name].transpose(1, 2)
    lengths = batch.lengths.get(name, torch.full((len(values),), values.shape[1])).to(values.device)
    real = within(lengths, values.shape[1])[..., None]
    return Frames(torch.where(real, values, 0), Grid((values.shape[1],)), lengths)


def padded_keys(k: Tensor, v: Tensor, bias: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, H, K, d) and a mask or bias (..., K) of them, in evaluation filled up to a multiple of 512.

    Sums over keys are cut into blocks that follow from their number, which changes the last bits. With keys in whole
    blocks an utterance alone and among longer ones gives the same bits.
    """
    missing = 0 if training else -k.shape[2] % KEYS
    if not missing:
        return k, v, bias
    absent = False if bias.dtype == torch.bool else float("-inf")
    return F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=absent)


def mean_of(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean of (B, T, D) over the true steps of each row: (B, D)."""
    real = within(lengths, x.shape[1])[..., None]
    return torch.where(real, x, 0).sum(1) / lengths[:, None]


class PostNormLayer(nn.Module):
    """LN(x + attention(x)), then LN(x + mlp(x)), as in the first transformer (Vaswani et al. 2017)."""

    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, T, D) to the same; keys are those of `real` (B, 1, 1, T)."""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        k, v, real = padded_keys(k, v, real, self.training)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real, dropout_p=rate)
        x = self.norm1(x + self._drop(self.proj(attended.transpose(1, 2).flatten(2))))
        return self.norm2(x + self._drop(self.fc2(F.gelu(self.fc1(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class FrameTransformer(Encoder):
    """Frames, projected, plus sine-cosine positions, then post-norm layers. Defaults are TERA's base configuration.

    Padding changes nothing: padded frames are zeroed on the way in and are nobody's keys. In evaluation an utterance
    alone and filled up beside longer ones gives the same bits in single precision on CPUs, as far as the rows of a
    matrix product do not depend on each other there; in training the last bits may differ.

    Args:
        in_chans: bins F of a frame.
        embed_dim: width D.
        depth: layers.
        num_heads: attention heads.
        mlp_ratio: width of the MLPs over D.
        dropout: rate after the input, after each sub-layer and on attention, in training.
        layer: what `embed` gives: the "last" layer, or a weighted mean of "all" and the input of the first, whose
            weights start equal and are learned in fine-tuning alone.
        max_frames: longer utterances are embedded in equal pieces, each with positions from 0; the longest of training.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read.

    Shapes:
        input (B, F, T); tokens (B, T, F); output (B, T, D). Token embeddings behind a sample's length are zero.
    """

    hides = frozenset({"replace"})

    def __init__(
        self,
        in_chans: int = 80,
        embed_dim: int = 768,
        depth: int = 3,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        layer: Literal["last", "all"] = "last",
        max_frames: int = 1500,
        normalization: NormalizationKind = "standard",
        input_name: str = "frames",
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"method.dropout={dropout} is outside [0, 1).")
        if max_frames < 1:
            raise ConfigError(f"method.max_frames={max_frames} must be 1 or more frames.")
        if layer not in ("last", "all"):
            raise ConfigError(f'method.layer="{layer}" is neither last nor all.')
        self.embed_dim, self.input_name, self.dropout, self.max_frames = embed_dim, input_name, dropout, max_frames
        self.inputs = {input_name: TensorSpec("C T", in_chans, variable=True)}
        self.add_normalizers(normalization)
        self.frame_embed = nn.Linear(in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        hidden = int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            PostNormLayer(embed_dim, num_heads, hidden, dropout, norm_eps) for _ in range(depth)
        )
        self.layer_weights = nn.Parameter(torch.zeros(depth + 1), requires_grad=False) if layer == "all" else None
        self.apply(init_bert)

    def tokenize(self, batch: Batch) -> Frames:
        return frames_of(self, batch, self.input_name)

    def hidden_states(self, frames: Frames) -> list[Tensor]:
        """What goes into the first layer and what comes out of each: depth + 1 tensors (B, T, D)."""
        count = frames.values.shape[1]
        values = frames.values if self.training else F.pad(frames.values, (0, 0, 0, -count % QUERIES))
        grid = Grid((values.shape[1],))
        positions = interleaved_sincos(grid.coordinates(values.device), self.embed_dim)
        x = self.norm(self.frame_embed(values) + positions.to(values.dtype))
        states = [F.dropout(x, self.dropout, self.training)]
        real = within(frames.lengths, grid.count)[:, None, None]
        for block in self.blocks:
            states.append(block(states[-1], real))
        return [state[:, :count] for state in states]

    def forward(self, tokens: Frames, mask: None = None) -> Tensor:  # type: ignore[override]
        return self.hidden_states(tokens)[-1]

    def features(self, frames: Frames) -> Tensor:
        """The last layer, or the weighted mean of all: (B, T, D)."""
        states = self.hidden_states(frames)
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(0)
        return sum((weight * state for weight, state in zip(weights, states, strict=True)), torch.zeros_like(states[0]))

    def embed_batch(self, batch: Batch) -> Embedding:
        frames = self.tokenize(batch)
        if int(frames.lengths.max()) <= self.max_frames:
            x = self.features(frames)
        else:
            x = torch.stack([self._in_pieces(*row) for row in zip(frames.values, frames.lengths.tolist(), strict=True)])
        x = torch.where(frames.real[..., None], x, 0)
        return Embedding(mean_of(x, frames.lengths), x, frames.grid)

    def _in_pieces(self, values: Tensor, length: int) -> Tensor:
        """Features (T, D) of one utterance, read in as few equal pieces as `max_frames` allows."""
        pieces = -(-length // self.max_frames)
        size = -(-length // pieces)
        lengths = [min(size, length - start) for start in range(0, length, size)]
        cut = F.pad(values[:length], (0, 0, 0, size * len(lengths) - length)).unflatten(0, (len(lengths), size))
        x = self.features(Frames(cut, Grid((size,)), torch.tensor(lengths, device=values.device)))
        return F.pad(x.flatten(0, 1)[:length], (0, 0, 0, len(values) - length))


def interleaved_sincos(coordinates: Tensor, dim: int) -> Tensor:
    """Sine on even and cosine on odd numbers, base 10000: coordinates (N, 1) to (N, dim)."""
    return sincos(coordinates, dim).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def init_bert(module: nn.Module) -> None:
    """Linear weights N(0, 0.02), not truncated, with zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
