"""Learning an order instead of values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_ranking(prediction: Tensor, value: Tensor) -> Tensor:
    """Logistic loss on all ordered pairs of a row (HPM, Wang et al. 2023: which patch is harder to reconstruct).

    Args:
        prediction: (B, N) scores whose differences should have the sign of those of `value`.
        value: (B, N), a constant.

    Returns:
        Scalar: mean of the binary cross-entropy of sigmoid(s_i - s_j) and [v_i > v_j] over pairs with v_i != v_j.
    """
    value = value.detach()
    difference = prediction[:, :, None] - prediction[:, None, :]
    sign = (value[:, :, None] - value[:, None, :]).sign()
    loss = F.softplus(-difference * sign) * (sign != 0)
    return loss.sum() / (sign != 0).sum().clamp_min(1)
