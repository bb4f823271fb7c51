"""What happens to hidden tokens: the one place where it is applied.

*drop*: the encoder never sees them (MAE). *replace*: a fill stands in their place (SimMIM, GMML, GraphMAE).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.masking.base import Mask


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, D) `values` at (B, K) `index`: (B, K, D)."""
    batch, count, _ = values.shape
    rows = index + torch.arange(0, batch * count, count, device=index.device)[:, None]
    # whole rows are copied: on CPUs several times faster than a gather of numbers, and back with no atomic additions
    return F.embedding(rows, values.flatten(0, 1))


def drop(values: Tensor, mask: Mask) -> Tensor:
    """Keep the visible tokens only: (B, N, D) to (B, V, D)."""
    return take(values, mask.visible)


def replace(values: Tensor, mask: Mask, fill: Tensor) -> Tensor:
    """Put `fill` (D,) or (B, N, D) in place of hidden tokens: (B, N, D)."""
    return torch.where(mask.hidden.unsqueeze(-1), fill.to(values.dtype), values)


def restore(visible: Tensor, mask: Mask, fill: Tensor) -> Tensor:
    """Bring visible tokens (B, V, D) back to their places, with `fill` (D,) where tokens are hidden: (B, N, D)."""
    batch, _, width = visible.shape
    fills = fill.to(visible.dtype).expand(batch, mask.masked.shape[1], width)
    return take(torch.cat([visible, fills], dim=1), mask.restore)
