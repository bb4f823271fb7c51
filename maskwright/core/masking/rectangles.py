"""Many rectangles for each sample at once: which is the first to cover a place, and what area the first few cover."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 126
"""Rectangles that `first_cover` can tell apart: the powers of 4 that fit into float32."""


def first_cover(starts: Tensor, stops: Tensor, size: Sequence[int]) -> Tensor:
    """Index of the first rectangle that covers each place: (B, prod(size)) int32, raster order; K where none does.

    Rectangle k weighs 4**-k, times a constant. A place that lies in rectangle f first holds a sum from 4**-f to below
    4**-f * 4/3, so that the exponent of the sum tells f, whatever the rounding; and the sums over all rectangles are
    one product of their indicators along the first axis and along the others.

    Args:
        starts: (B, K, d) first places inside, K <= 126.
        stops: (B, K, d) first places beyond.
        size: places along each of the d axes.
    """
    batch, count, _ = starts.shape
    inside = []
    for axis, length in enumerate(size):
        at = torch.arange(length, device=starts.device)
        inside.append(((at >= starts[..., axis, None]) & (at < stops[..., axis, None])).float())
    # powers of 4, largest first, written as biased exponents: `pow` may be off by the last bit on some devices
    exponents = 253 - 2 * torch.arange(count, device=starts.device, dtype=torch.int32)
    weights = (exponents << 23).view(torch.float32)
    rest = weights[:, None].expand(batch, count, 1)
    for indicator in inside[1:]:
        rest = (rest[..., None] * indicator[:, :, None]).flatten(2)
    with torch.autocast(starts.device.type, enabled=False):  # half precision has too few exponents
        sums = torch.bmm(inside[0].transpose(1, 2), rest).flatten(1)
    # what the first rectangle f leaves is 253 - 2 f; where none covers, it is 0
    exponent = sums.view(torch.int32).bitwise_right_shift_(23)
    return exponent.neg_().add_(253).bitwise_right_shift_(1).clamp_(max=count)


def union_areas(first: Tensor, area: Tensor, most: int) -> Tensor:
    """Area of the union of each sample's first 0, 1, ... `most` rectangles: (B, most + 1) int64.

    Args:
        first: (B, N) from `first_cover`; `most` where no rectangle covers a place.
        area: (N,) integer area of each place.
    """
    # places are counted by rectangle and size, as weighted counts would be floating point and not deterministic on GPUs
    sizes, kind = area.unique(return_inverse=True)
    bins = len(sizes) * (most + 1)
    row = torch.arange(0, len(first) * bins, bins, device=first.device, dtype=first.dtype)[:, None]
    place = (first + (kind * (most + 1)).to(first.dtype)).add_(row)
    counts = torch.bincount(place.flatten(), minlength=len(first) * bins)
    gained = (counts.view(len(first), len(sizes), most + 1) * sizes[:, None]).sum(1)[:, :most]
    return torch.nn.functional.pad(gained.cumsum(1), (1, 0))
