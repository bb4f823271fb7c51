"""Learning an order instead of values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_ranking(prediction: Tensor, value: Tensor, eps: float = 0.0) -> Tensor:
    """Logistic loss on all ordered pairs of a row (HPM, Wang et al. 2023: which patch is harder to reconstruct).

    Args:
        prediction: (B, N) scores whose differences should have the sign of those of `value`.
        value: (B, N), a constant.
        eps: added inside the logarithm, which caps what one pair in the wrong order costs: HPM's code has 1e-6, at most
            13.8. With 0 the loss of a pair grows with the difference of its scores.

    Returns:
        Scalar: mean of the binary cross-entropy of sigmoid(s_i - s_j) and [v_i > v_j] over pairs with v_i != v_j.
    """
    value = value.detach()
    difference = prediction[:, :, None] - prediction[:, None, :]
    sign = (value[:, :, None] - value[:, None, :]).sign()
    agreement = difference * sign
    loss = -(agreement.sigmoid() + eps).log() if eps else F.softplus(-agreement)
    loss = loss * (sign != 0)
    return loss.sum() / (sign != 0).sum().clamp_min(1)
