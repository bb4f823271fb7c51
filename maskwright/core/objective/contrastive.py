"""Symmetric InfoNCE over the batch of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def _gather(x: Tensor, with_gradient: bool) -> tuple[Tensor, int]:
    """Rows of all processes, (W * B, D), and where our own begin. Alone, `x` itself."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return (x if with_gradient else x.detach()), 0
    offset = dist.get_rank() * len(x)
    if with_gradient:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(x))), offset
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.detach().contiguous())
    return torch.cat(rows), offset


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, detach_keys: bool = False) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021): half the cross-entropy a to b plus half that of b to a.

    Args:
        a, b: (B, D) features of the same B things; normalised here.
        scale: factor on cosine similarities, that is one over the temperature.
        detach_keys: send gradient through the queries only, never through the side that is gathered, as in CROMA's
            released code.

    Returns:
        Scalar.
    """
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    all_b, offset = _gather(b, not detach_keys)
    all_a, _ = _gather(a, not detach_keys)
    label = torch.arange(len(a), device=a.device) + offset
    return (F.cross_entropy(scale * a @ all_b.T, label) + F.cross_entropy(scale * b @ all_a.T, label)) / 2
