"""Undoing the standardisation of patches for a picture, without a look at what was hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.core.masking.base import Grid, Mask


def visible_patch_statistics(values: Tensor, mask: Mask, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation to give each patch, from visible patches weighted by inverse squared distance.

    Args:
        values: (B, N, P). Hidden ones have a weight of zero.

    Returns:
        two tensors (B, N, 1).
    """
    at = grid.coordinates(values.device)
    near = 1 / (torch.cdist(at, at) ** 2 + 1e-3)
    visible = (~mask.hidden).to(values.dtype)[..., None]
    mean = values.mean(-1, keepdim=True)
    var = values.var(-1, keepdim=True) if values.shape[-1] > 1 else torch.zeros_like(mean)
    total = near @ visible
    return near @ (visible * mean) / total, (near @ (visible * var) / total).sqrt()
