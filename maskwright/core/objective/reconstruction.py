"""Masked reconstruction: errors of hidden tokens only."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Mask
from maskwright.core.masking.hide import take

ReconstructionKind = Literal["mse", "l1", "smooth_l1"]


def standardise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """(x - mean) / sqrt(var + eps) within each patch, variance unbiased (MAE, "norm_pix"): (B, N, P) to (B, N, P).

    Raises:
        ConfigError: patches of a single number have no variance.
    """
    count = patches.shape[-1]
    if count < 2:
        raise ConfigError(
            "Patches of one number cannot be standardised. Use a larger patch_size, or standardise=False."
        )
    # layer norm divides by the biased variance: var = biased / share
    share = (count - 1) / count
    return F.layer_norm(patches, (count,), eps=eps * share) * math.sqrt(share)


def masked_reconstruction(
    prediction: Tensor,
    target: Tensor,
    mask: Mask | None,
    kind: ReconstructionKind = "mse",
    standardise: bool = False,
    beta: float = 1.0,
) -> Tensor:
    """Mean error over the hidden tokens: the sum over tokens of each token's mean, over their number in the batch.

    Visible tokens are never read, so they get a gradient of exactly zero.

    Args:
        prediction, target: (B, N, P).
        mask: which tokens are scored; None scores all.
        kind: mse, l1 or smooth_l1 (with `beta`, the width of its quadratic part).
        standardise: standardise each target patch first.

    Returns:
        Scalar; 0 where nothing is hidden.
    """
    if mask is not None:
        prediction, target = take(prediction, mask.masked), take(target, mask.masked)
    if prediction.numel() == 0:
        return prediction.sum()
    target = standardise_patches(target) if standardise else target
    if kind == "mse":
        return F.mse_loss(prediction, target)
    if kind == "l1":
        return F.l1_loss(prediction, target)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target, beta=beta)
    raise ConfigError(f'loss kind "{kind}" is none of mse, l1, smooth_l1.')
