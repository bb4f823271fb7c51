"""Errors of single values that were altered, wherever they lie."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cells(prediction: Tensor, target: Tensor, selected: Tensor, kind: Literal["l1", "mse"] = "l1") -> Tensor:
    """Mean error over all selected values of the batch together: samples with more of them weigh more.

    Other values are never read, so that they get a gradient of exactly zero.

    Args:
        prediction, target: tensors of one shape.
        selected: bool of that shape.

    Returns:
        Scalar; 0 where nothing is selected.
    """
    loss = F.l1_loss if kind == "l1" else F.mse_loss
    error = loss(prediction, target, reduction="none")
    return torch.where(selected, error, 0).sum() / selected.sum().clamp(min=1)
