"""Layers of Swin transformers on two or three axes: windows, shifts, merging (Liu et al., ICCV 2021).

They carry timm's names. A second version of the attention (Swin V2) would replace `WindowAttention` and where
`SwinBlock` puts its norms; windows, shifts and merging are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Mlp, Residual, check_heads

NORM_EPS = 1e-5


# windows ------------------------------------------------------------------------------------------------------------


def partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut (B, *size, C) into windows that divide it: (B, W, prod(window), C), both in raster order."""
    split = [length for size, w in zip(x.shape[1:-1], window, strict=True) for length in (size // w, w)]
    axes = range(len(window))
    order = [0, *(1 + 2 * axis for axis in axes), *(2 + 2 * axis for axis in axes), 1 + 2 * len(window)]
    return x.reshape(len(x), *split, x.shape[-1]).permute(order).reshape(len(x), -1, math.prod(window), x.shape[-1])


def join(windows: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """Undo `partition`: (B, W, prod(window), C) to (B, *size, C)."""
    counts = [length // w for length, w in zip(size, window, strict=True)]
    x = windows.reshape(len(windows), *counts, *window, windows.shape[-1])
    ndim = len(window)
    order = [
        0,
        *(axis for pair in zip(range(1, 1 + ndim), range(1 + ndim, 1 + 2 * ndim), strict=True) for axis in pair),
    ]
    return x.permute(*order, 1 + 2 * ndim).reshape(len(windows), *size, windows.shape[-1])


def relative_index(window: Sequence[int]) -> Tensor:
    """Which entry of a table over all offsets each pair of positions of a window has: (N, N), N = prod(window).

    Offsets run from -(w - 1) to w - 1 along each axis, in raster order.
    """
    at = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing="ij"), -1).flatten(0, -2)
    offset = at[:, None] - at[None, :] + torch.tensor([w - 1 for w in window])
    index = torch.zeros(len(at), len(at), dtype=torch.long)
    for axis, w in enumerate(window):
        index = index * (2 * w - 1) + offset[..., axis]
    return index


def allowed_pairs(
    size: Sequence[int], window: Sequence[int], shift: Sequence[int], mask_padding: bool, device: torch.device
) -> Tensor | None:
    """Which pairs within a window may attend to each other, (W, N, N) bool; None where all may.

    After the cyclic shift a window may hold what lies at opposite ends of the map; with `mask_padding` what fills the
    map up to whole windows is kept apart as well (padding attends to padding only).

    Args:
        size: of the map before it is filled up.
    """
    padded = [-(-length // w) * w for length, w in zip(size, window, strict=True)]
    fills = mask_padding and list(size) != padded
    if not any(shift) and not fills:
        return None
    region = torch.zeros(1, *padded, 1, dtype=torch.long, device=device)
    for axis, (length, full, s) in enumerate(zip(size, padded, shift, strict=True)):
        at = (torch.arange(full, device=device) + s) % full  # where what is here after the shift was before it
        part = (at < s).long()  # came around from the other end
        if fills:
            part = torch.where(at < length, part, 2)
        region = region * 3 + part.view(1, *[-1 if other == axis else 1 for other in range(len(size))], 1)
    if fills:
        digits = torch.stack([region // 3**power % 3 for power in range(len(size))])
        region = torch.where((digits == 2).any(0), -1, region)  # all padding is one region
    parts = partition(region, window)[0, ..., 0]
    return parts[:, :, None] == parts[:, None, :]


# layers -------------------------------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Self-attention within windows with a learned bias for each offset and head: (B, W, N, C) to the same."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: Sequence[int], qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        offsets = math.prod(2 * w - 1 for w in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, num_heads))
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)

    def bias(self) -> Tensor:
        """(heads, N, N), added to the scaled scores."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed` (W, N, N) says which pairs may attend to each other."""
        batch, windows, count, dim = x.shape
        # windows of a batch are one axis, or, where each has a bias of its own, windows and heads are
        lead, heads = (batch * windows, self.num_heads) if allowed is None else (batch, windows * self.num_heads)
        parts = self.qkv(x).view(batch, windows, count, 3, self.num_heads, dim // self.num_heads)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5).reshape(3, lead, heads, count, dim // self.num_heads)
        bias = self.bias().to(q.dtype)
        if allowed is not None:
            bias = torch.where(allowed[:, None], bias, -torch.inf).flatten(0, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x.reshape(batch, windows, self.num_heads, count, -1).transpose(2, 3).flatten(3)
        return self.proj(x)


class SwinBlock(nn.Module):
    """x + attention(norm1(x)) in windows, then x + mlp(norm2(x)): (B, *size, C) to the same.

    Args:
        shift: positions by which windows are shifted along each axis; an axis of a single window is never shifted.
        mask_padding: keep what fills a map up to whole windows out of the attention.
        drop_path: see `Residual`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        mask_padding: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window, self.shift, self.mask_padding = tuple(window), tuple(shift), mask_padding
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = WindowAttention(dim, num_heads, window, qkv_bias)
        self.residual1 = Residual(dim, drop_path=drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.residual2 = Residual(dim, drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.residual1(self.attend(self.norm1(x)))
        return x + self.residual2(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        size, axes = x.shape[1:-1], tuple(range(1, x.ndim - 1))
        pads = [-length % w for length, w in zip(size, self.window, strict=True)]
        if any(pads):  # at the ends, after the norm, with zeros
            x = F.pad(x, [0, 0, *itertools.chain(*((0, pad) for pad in reversed(pads)))])
        padded = x.shape[1:-1]
        shift = [0 if w >= full else s for w, full, s in zip(self.window, padded, self.shift, strict=True)]
        if any(shift):
            x = x.roll([-s for s in shift], axes)
        allowed = allowed_pairs(size, self.window, shift, self.mask_padding, x.device)
        x = join(self.attn(partition(x, self.window), allowed), padded, self.window)
        if any(shift):
            x = x.roll(shift, axes)
        return x[(slice(None), *(slice(length) for length in size))] if any(pads) else x


class PatchMerging(nn.Module):
    """2 neighbours along each axis become one position of twice the width: (B, *size, C) to (B, *size / 2, 2 C).

    Odd maps are filled up with zeros at their ends. Neighbours are concatenated with the first axis running fastest.
    """

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2**axes * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(2**axes * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:-1]
        if any(length % 2 for length in size):
            x = F.pad(x, [0, 0, *itertools.chain(*((0, length % 2) for length in reversed(size)))])
        split = [part for length in x.shape[1:-1] for part in (length // 2, 2)]
        ndim = len(size)
        cells, inside = [1 + 2 * axis for axis in range(ndim)], [2 + 2 * axis for axis in range(ndim)]
        x = x.reshape(len(x), *split, x.shape[-1]).permute(0, *cells, *reversed(inside), 1 + 2 * ndim)
        return self.reduction(self.norm(x.flatten(1 + ndim)))


class SwinStage(nn.Module):
    """Merging of patches, in all stages but the first, then blocks of which every second one is shifted."""

    def __init__(self, downsample: PatchMerging | None, blocks: Sequence[SwinBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


def init_swin(module: nn.Module) -> None:
    """Swin's initialisation: linear weights and tables of biases N(0, 0.02) cut off at +-2, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, WindowAttention):
            nn.init.trunc_normal_(child.relative_position_bias_table, std=0.02)
