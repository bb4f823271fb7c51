"""Conformer blocks with relative positions, for sequences that differ in length (Gulati et al., Interspeech 2020)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import check_heads, split_heads
from maskwright.core.errors import ConfigError
from maskwright.speech.encoders import interleaved_sincos, padded_keys

RelativeKind = Literal["sinusoid", "shaw", "none"]
NormKind = Literal["batch", "layer"]
LEFT, RIGHT = 64, 8
"""Distances beyond which Shaw's relative positions are alike, as in w2v-BERT 2.0."""


class RelativeAttention(nn.Module):
    """Self-attention (B, T, D) that knows the distance of query and key.

    "sinusoid": a projected sine-cosine table of distances, with two learned biases of the query (Transformer-XL, Dai et
    al. 2019, section 3.3; the Conformer, w2v-BERT in fairseq2). "shaw": a learned vector for each distance from 64 back
    to 8 ahead, added to the key (Shaw et al. 2018; w2v-BERT 2.0). "none": no positions at all.
    """

    def __init__(self, dim: int, num_heads: int, positions: RelativeKind = "sinusoid", dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if positions not in ("sinusoid", "shaw", "none"):
            raise ConfigError(f'method.positions="{positions}" is none of sinusoid, shaw, none.')
        self.num_heads, self.positions, self.dropout = num_heads, positions, dropout
        width = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        if positions == "sinusoid":
            self.distance_proj = nn.Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, width))
            self.distance_bias = nn.Parameter(torch.zeros(num_heads, 1, width))
        elif positions == "shaw":
            self.distance_embed = nn.Embedding(LEFT + RIGHT + 1, width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """`real` (B, T) bool says which steps are there."""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        bias: Tensor = real[:, None, None]
        if self.positions == "sinusoid":
            scores = self._sinusoid_scores(q + self.distance_bias)
            bias = torch.where(bias, scores / q.shape[-1] ** 0.5, float("-inf"))
            q = q + self.content_bias
        elif self.positions == "shaw":
            bias = torch.where(bias, self._shaw_scores(q) / q.shape[-1] ** 0.5, float("-inf"))
        k, v, bias = padded_keys(k, v, bias, self.training)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _sinusoid_scores(self, q: Tensor) -> Tensor:
        """(B, H, T, T) products of queries with their distance to each key."""
        count = q.shape[2]
        distance = torch.arange(count - 1, -count, -1, device=q.device, dtype=torch.float32)[:, None]
        table = interleaved_sincos(distance, self.distance_proj.in_features).to(q.dtype)
        scores = q @ split_heads(self.distance_proj(table)[None], self.num_heads).transpose(
            -1, -2
        )  # (B, H, T, 2 T - 1)
        # row i is to begin at distance i, T - 1 - i numbers into it: one number more in each row shifts them so
        shifted = F.pad(scores, (1, 0)).flatten(2)[..., count:].unflatten(-1, (count, 2 * count - 1))
        return shifted[..., :count]

    def _shaw_scores(self, q: Tensor) -> Tensor:
        at = torch.arange(q.shape[2], device=q.device)
        distance = (at - at[:, None]).clamp(-LEFT, RIGHT) + LEFT
        scores = q @ self.distance_embed.weight.T  # (B, H, T, 73)
        return scores.gather(-1, distance.expand(*scores.shape[:2], -1, -1))


class FeedForward(nn.Module):
    """Norm, linear, Swish, linear: the half-step modules of a Conformer."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.silu(self.fc1(self.norm(x))))))


class TrueStepBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, T, C) whose statistics are those of the steps that are there."""

    def forward(self, x: Tensor, real: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(x).masked_scatter(real[..., None].expand_as(x), super().forward(x[real]).to(x.dtype))


class ConvolutionModule(nn.Module):
    """Norm, pointwise, GLU, depthwise over time, norm, Swish, pointwise; no biases. Padded steps are zero throughout.

    Args:
        kernel: steps of the depthwise convolution, odd.
        norm: "batch", or "layer" as in w2v-BERT 2.0.
        causal: each step sees itself and earlier ones only.
    """

    def __init__(
        self, dim: int, kernel: int, norm: NormKind = "batch", causal: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"method.kernel={kernel} must be an odd number of steps.")
        if norm not in ("batch", "layer"):
            raise ConfigError(f'method.conv_norm="{norm}" is neither batch nor layer.')
        self.around = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.norm = nn.LayerNorm(dim)
        self.pointwise1 = nn.Linear(dim, 2 * dim, bias=False)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)
        self.middle_norm: nn.Module = TrueStepBatchNorm(dim) if norm == "batch" else nn.LayerNorm(dim)
        self.pointwise2 = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = torch.where(real[..., None], self.norm(x), 0)
        x = F.glu(self.pointwise1(x), dim=-1)
        x = self.depthwise(F.pad(x.transpose(1, 2), self.around)).transpose(1, 2)
        batch = isinstance(self.middle_norm, TrueStepBatchNorm)
        x = self.middle_norm(x, real) if batch else self.middle_norm(x)
        return self.dropout(self.pointwise2(F.silu(x)))


class ConformerBlock(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, each added to its input; a norm.

    Args:
        dim: width D.
        num_heads: attention heads.
        mlp_ratio: width of the feed-forward modules over D.
        kernel, norm, causal: see `ConvolutionModule`.
        positions: see `RelativeAttention`.

    Shapes:
        (B, T, D) and `real` (B, T) bool to (B, T, D).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        kernel: int = 31,
        positions: RelativeKind = "sinusoid",
        norm: NormKind = "batch",
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.mlp1 = FeedForward(dim, hidden, dropout)
        self.norm_attn = nn.LayerNorm(dim)
        self.attn = RelativeAttention(dim, num_heads, positions, dropout)
        self.conv = ConvolutionModule(dim, kernel, norm, causal, dropout)
        self.mlp2 = FeedForward(dim, hidden, dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = x + 0.5 * self.mlp1(x)
        x = x + self.dropout(self.attn(self.norm_attn(x), real))
        x = x + self.conv(x, real)
        x = x + 0.5 * self.mlp2(x)
        return self.norm(x)
