"""An encoder of Conformer blocks over frames, with two ways to make steps of frames (w2v-BERT)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Embedding, Encoder
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid
from maskwright.core.masking.spans import within
from maskwright.core.sample import Batch, TensorSpec
from maskwright.speech.conformer import ConformerBlock, NormKind, RelativeKind
from maskwright.speech.encoders import QUERIES, Frames, frames_of, mean_of

FrontKind = Literal["convolution", "stacking"]


class ConvolutionFront(nn.Module):
    """Two 3 x 3 convolutions of stride 2 with ReLU: a step for every 4 frames, ceil(F / 4) * `channels` numbers each.

    The paper gives the strides alone; kernels are those of the Conformer's subsampling, 128 channels are our choice.
    """

    stride, back, ahead = 4, 3, 3
    """Frames from one step to the next, and frames that a step sees before and behind its first."""

    def __init__(self, in_chans: int, channels: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.out_dim = channels * -(-in_chans // 4)

    def forward(self, frames: Frames) -> Frames:
        x, lengths = frames.values[:, None], frames.lengths
        for conv in (self.conv1, self.conv2):
            x, lengths = F.relu(conv(x)), (lengths + 1) // 2
            # what the bias makes of padded frames must not reach true ones
            x = torch.where(within(lengths, x.shape[2])[:, None, :, None], x, 0)
        return Frames(x.transpose(1, 2).flatten(2), Grid((x.shape[2],)), lengths)


class StackingFront(nn.Module):
    """`stack` frames beside each other are a step, layer-normalised; those that make no whole step are left out."""

    back = 0

    def __init__(self, in_chans: int, stack: int = 2) -> None:
        super().__init__()
        if stack < 1:
            raise ConfigError(f"method.stack={stack} must be 1 or more frames.")
        self.stride, self.ahead, self.out_dim = stack, stack - 1, in_chans * stack
        self.norm = nn.LayerNorm(self.out_dim)

    def forward(self, frames: Frames) -> Frames:
        values = F.pad(frames.values, (0, 0, 0, max(0, self.stride - frames.values.shape[1])))
        count = values.shape[1] // self.stride
        lengths = (frames.lengths // self.stride).clamp(min=1)
        x = self.norm(values[:, : count * self.stride].unflatten(1, (count, self.stride)).flatten(2))
        return Frames(torch.where(within(lengths, count)[..., None], x, 0), Grid((count,)), lengths)


class ConformerEncoder(Encoder):
    """Steps of frames, projected, then Conformer blocks. Defaults are w2v-BERT XL, 0.6 billion parameters.

    Padded frames are zeroed on the way in, after each convolution, in every convolution module and among the keys, and
    are left out of the statistics of batch norms, so that they change nothing.

    Args:
        in_chans: bins F of a frame.
        embed_dim: width D.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: width of the feed-forward modules over D.
        kernel: steps of the depthwise convolutions.
        front: "convolution", a step for every 4 frames as in the paper, or "stacking" of frames as in fairseq2.
        front_chans: channels of the convolutions in front.
        stack: frames that are stacked.
        positions: sinusoid (Transformer-XL), shaw or none; see `RelativeAttention`.
        conv_norm: norm inside the convolution modules, "batch" or "layer".
        causal: convolution modules see no later step.
        dropout: rate, in training.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read.

    Shapes:
        input (B, F, T); tokens (B, N, P), the steps' features in front of the projection; output (B, N, D). Token
        embeddings behind a sample's length are zero.
    """

    hides = frozenset({"replace"})

    def __init__(
        self,
        in_chans: int = 80,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        kernel: int = 5,
        front: FrontKind = "convolution",
        front_chans: int = 128,
        stack: int = 2,
        positions: RelativeKind = "sinusoid",
        conv_norm: NormKind = "batch",
        causal: bool = False,
        dropout: float = 0.0,
        normalization: NormalizationKind = "standard",
        input_name: str = "frames",
    ) -> None:
        super().__init__()
        if front not in ("convolution", "stacking"):
            raise ConfigError(f'method.front="{front}" is neither convolution nor stacking.')
        self.embed_dim, self.input_name = embed_dim, input_name
        self.inputs = {input_name: TensorSpec("C T", in_chans, variable=True)}
        self.add_normalizers(normalization)
        self.front: ConvolutionFront | StackingFront = (
            ConvolutionFront(in_chans, front_chans) if front == "convolution" else StackingFront(in_chans, stack)
        )
        self.step_embed = nn.Linear(self.front.out_dim, embed_dim)
        self.blocks = nn.ModuleList(
            ConformerBlock(embed_dim, num_heads, mlp_ratio, kernel, positions, conv_norm, causal, dropout)
            for _ in range(depth)
        )

    def tokenize(self, batch: Batch) -> Frames:
        return self.front(frames_of(self, batch, self.input_name))

    def hidden_states(
        self, steps: Frames, hidden: Tensor | None = None, fill: Tensor | None = None, layers: int | None = None
    ) -> list[Tensor]:
        """What comes out of each block: tensors (B, N, D).

        Args:
            hidden: (B, N) bool, steps in whose place `fill` (D,) stands after the projection.
            layers: how many blocks; all without it.
        """
        count = steps.values.shape[1]
        x = self.step_embed(steps.values)
        if hidden is not None and fill is not None:
            x = torch.where(hidden[..., None], fill.to(x.dtype), x)
        if not self.training:
            x = F.pad(x, (0, 0, 0, -count % QUERIES))
        real = within(steps.lengths, x.shape[1])
        x = torch.where(real[..., None], x, 0)
        states = []
        for block in self.blocks[:layers]:
            x = block(x, real)
            states.append(x[:, :count])
        return states

    def forward(self, tokens: Frames, mask: None = None) -> Tensor:  # type: ignore[override]
        return self.hidden_states(tokens)[-1]

    def embed_batch(self, batch: Batch) -> Embedding:
        steps = self.tokenize(batch)
        x = torch.where(steps.real[..., None], self(steps), 0)
        return Embedding(mean_of(x, steps.lengths), x, steps.grid)

    def seen_frames(self, steps: Tensor, count: int) -> Tensor:
        """Which of `count` frames the steps in (B, N) bool are made of: (B, count) bool."""
        front = self.front
        at = torch.zeros(len(steps), steps.shape[1], front.stride, device=steps.device)
        at[..., 0] = steps
        flags = F.pad(at.flatten(1), (0, max(0, count - at[0].numel())))
        seen = F.max_pool1d(F.pad(flags, (front.ahead, front.back)), front.ahead + front.back + 1, stride=1)
        return seen[:, :count] > 0
