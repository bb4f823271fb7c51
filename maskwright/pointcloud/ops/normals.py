"""Normals of point clouds by principal components, and how evenly they turn."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.pointcloud.ops.neighbours import gather, knn

SignRule = Literal["absolute", "majority"]


class _SmallestEigenvector(torch.autograd.Function):
    """Eigenvector of the smallest eigenvalue of symmetric (..., 3, 3) matrices.

    The derivative of an eigenvector divides by the differences of eigenvalues; where they vanish (a ball, a line, equal
    points) it is not defined. Here these differences are kept away from 0, so that such points get a bounded gradient
    rather than an infinite one.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return vectors[..., 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        normal, others = vectors[..., :1], vectors[..., 1:]
        gap = values[..., 1:] - values[..., :1]
        floor = values[..., 2:].clamp_min(1e-12) * 1e-4
        # v' = - sum over the others of u (u^T C' v) / (lambda_u - lambda_v)
        along = (others.transpose(-1, -2) @ gradients[0].unsqueeze(-1)).squeeze(-1) / (gap + floor)
        change = -(others * along.unsqueeze(-2)).sum(-1, keepdim=True) @ normal.transpose(-1, -2)
        return (change + change.transpose(-1, -2)) / 2


def pca_normals(points: Tensor, k: int = 32) -> Tensor:
    """Unit normal of each point: the direction in which its k nearest points, itself among them, vary least.

    The sign is that of the eigenvector, which means nothing. Differentiable, with a bounded gradient also where a normal
    is not defined (Hoppe et al. 1992).

    Args:
        points: (B, N, 3).
        k: points of a neighbourhood, 3 to N.

    Returns:
        (B, N, 3), of length 1.

    Raises:
        ConfigError: fewer than 3 neighbours, or more than points.
    """
    return _normals(points, knn(points.detach(), points.detach(), _checked(k))[0])


def _checked(k: int) -> int:
    if k < 3:
        raise ConfigError(f"A normal needs 3 points or more, not {k}.")
    return k


def _normals(points: Tensor, index: Tensor) -> Tensor:
    around = gather(points, index)
    around = around - around.mean(2, keepdim=True)
    covariance = around.transpose(-1, -2) @ around / index.shape[-1]
    return _SmallestEigenvector.apply(covariance)


def normal_consistency(points: Tensor, neighbours: int = 16, k: int = 32, sign: SignRule = "absolute") -> Tensor:
    """How unevenly normals turn around each point (P2C, Cui et al. 2023): 0 on a plane.

    With s_j = 1 - cos(n_i, n_j) for the nearest points j of i, itself among them, this is the mean over i of the unbiased
    standard deviation of s_j. As the sign of a normal means nothing, the default takes |cos|. `sign="majority"` is the
    released rule: a normal is turned to the side where at least half of its k neighbours lie; that is undecided on flat
    surfaces, where it punishes more than noise.

    Args:
        points: (B, N, 3).
        neighbours: points that are compared, 2 or more.
        k: points of a normal's neighbourhood, see `pca_normals`.

    Returns:
        A scalar between 0 and 1.

    Raises:
        ConfigError: too few or too many neighbours, or an unknown rule.
    """
    if sign not in ("absolute", "majority"):
        raise ConfigError(f'sign="{sign}" is neither absolute nor majority.')
    if neighbours < 2:
        raise ConfigError(f"A deviation needs 2 neighbours or more, not {neighbours}.")
    still = points.detach()
    index = knn(still, still, max(_checked(k), neighbours))[0]
    normals = _normals(points, index[..., :k])
    if sign == "majority":
        offsets = gather(still, index[..., :k]) - still.unsqueeze(2)
        ahead = ((offsets * normals.detach().unsqueeze(2)).sum(-1) > 0).sum(-1, keepdim=True)
        normals = torch.where(ahead < k / 2, -normals, normals)
    cosine = (gather(normals, index[..., :neighbours]) * normals.unsqueeze(2)).sum(-1)
    turn = 1 - (cosine.abs() if sign == "absolute" else cosine)
    return turn.std(-1).mean()
