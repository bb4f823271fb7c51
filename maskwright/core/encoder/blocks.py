"""Pre-norm transformer blocks. Parameter names follow timm (`attn.qkv`, `mlp.fc1`, ...)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.positions import rotate
from maskwright.core.errors import ConfigError
from maskwright.core.masking.hide import take


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) to (B, H, N, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ConfigError where a width does not divide into heads."""
    if num_heads < 1 or dim % num_heads:
        raise ConfigError(f"embed_dim={dim} does not divide into num_heads={num_heads}.")


QkvBias = bool | Literal["qv"]
"""Biases of the query, key and value projections: of all, of none, or of query and value (BEiT, CAE)."""


class Attention(nn.Module):
    """Self-attention over (B, N, D) with an optional additive bias (1 or B, H, N, N) and rotary angles.

    With `context` (B, K) only those tokens are keys and values, and the bias is (1 or B, H, N, K); without angles then.
    A bias of the keys adds the same number to all scores of a query, so that "qv" computes what true computes.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: QkvBias = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias is True)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, angles: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        qkv_bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if context is None:
            parts = F.linear(x, self.qkv.weight, qkv_bias).chunk(3, dim=-1)
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            weights = self.qkv.weight.split(sizes)
            biases = (None, None) if qkv_bias is None else qkv_bias.split(sizes)
            keys = F.linear(take(x, context), weights[1], biases[1])
            parts = (F.linear(x, weights[0], biases[0]), *keys.chunk(2, dim=-1))
        q, k, v = (split_heads(part, self.num_heads) for part in parts)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        bias = bias if bias is None else bias.to(q.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of (B, Q, D) to (B, K, D) with an optional additive bias (1 or B, H, Q, K)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        q = split_heads(self.q(x), self.num_heads)
        k, v = split_heads(self.k(context), self.num_heads), split_heads(self.v(context), self.num_heads)
        bias = bias if bias is None else bias.to(q.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear D to `hidden`, GELU, linear back."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Residual(nn.Module):
    """What a block adds to its input: scaled by a trained factor a channel, and left out of some samples in training.

    Args:
        dim: width D.
        layer_scale: initial factor (CaiT, Touvron et al. 2021); None for no factor at all.
        drop_path: share of the samples whose addition is left out, the others are scaled up (Huang et al. 2016).
    """

    def __init__(self, dim: int, layer_scale: float | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path={drop_path} is outside [0, 1).")
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.gamma is None else x * self.gamma
        if self.drop_path and self.training:
            kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.drop_path
            x = x * (kept.to(x.dtype) / (1 - self.drop_path))
        return x


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to `highest` at the last."""
    return [highest * number / max(depth - 1, 1) for number in range(depth)]


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); `layer_scale` and `drop_path` as in `Residual`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: QkvBias = True,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.residual1 = Residual(dim, layer_scale, drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.residual2 = Residual(dim, layer_scale, drop_path)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, angles: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        x = x + self.residual1(self.attn(self.norm1(x), bias, angles, context))
        return x + self.residual2(self.mlp(self.norm2(x)))


class CrossBlock(nn.Module):
    """Self-attention, then attention to a context, then the MLP, each with its own residual.

    One norm serves both streams of the cross-attention, as in CROMA's fusion encoder.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = True, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm_cross = nn.LayerNorm(dim, eps=norm_eps)
        self.cross_attn = CrossAttention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, context: Tensor, self_bias: Tensor | None = None, cross_bias: Tensor | None = None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), self_bias)
        x = x + self.cross_attn(self.norm_cross(x), self.norm_cross(context), cross_bias)
        return x + self.mlp(self.norm2(x))
