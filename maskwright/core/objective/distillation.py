"""Learning from a teacher: regression, cosine and soft cross-entropy. Teachers never get a gradient."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def token_regression(
    student: Tensor, teacher: Tensor, kind: Literal["mse", "l1", "smooth_l1"] = "smooth_l1", layer_norm: bool = True
) -> Tensor:
    """Regress the teacher's features (data2vec, Baevski et al. 2022): (..., D) both, scalar.

    Args:
        layer_norm: normalise the teacher's features over D first, without affine parameters.
    """
    teacher = teacher.detach()
    if layer_norm:
        teacher = F.layer_norm(teacher, teacher.shape[-1:])
    loss = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[kind]
    return loss(student, teacher)


def cosine_distance(student: Tensor, teacher: Tensor, power: float = 1.0) -> Tensor:
    """Mean of (1 - cosine similarity) ** power over all but the last axis (scaled cosine error of GraphMAE): scalar."""
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=-1)).clamp_min(0).pow(power).mean()


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    centre: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the teacher's softmax and the student's (DINO, Caron et al. 2021): logits (..., K), scalar.

    Args:
        centre: (K,) running mean of teacher logits, taken off before the softmax.
    """
    teacher = teacher.detach() if centre is None else teacher.detach() - centre
    target = F.softmax(teacher / teacher_temperature, dim=-1)
    return -(target * F.log_softmax(student / student_temperature, dim=-1)).sum(-1).mean()
