"""Chamfer distances between point sets: how far each point of one is from the other. All are differentiable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.pointcloud.ops.neighbours import CHUNK, TREE_POINTS, first_lowest, gather, knn, squared_distances

Power = Literal["l1", "l2"]
"""Mean distance, or mean squared distance."""


@torch.no_grad()
def nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest neighbours both ways of (B, N, d) and (B, M, d): indices into the second (B, N), into the first (B, M).

    No more than `neighbours.CHUNK` distances are held at a time; of equally near points the lowest index is taken.
    """
    first, second = first.detach().float(), second.detach().float()
    rows, columns = first.shape[1], second.shape[1]
    if rows * columns > CHUNK or (first.device.type == "cpu" and min(rows, columns) >= TREE_POINTS):
        return knn(first, second, 1)[0][..., 0], knn(second, first, 1)[0][..., 0]
    forth, back = [], []
    samples = max(1, CHUNK // (rows * columns))
    for a, b in zip(first.split(samples), second.split(samples), strict=True):
        distances = squared_distances(a, b)
        forth.append(first_lowest(distances))
        back.append(first_lowest(distances.transpose(1, 2).contiguous()))
    return torch.cat(forth), torch.cat(back)


def _mean(first: Tensor, second: Tensor, index: Tensor, power: Power) -> Tensor:
    """Mean over (B, N) of the distance of each point to the one of `second` at its index."""
    offset = first - gather(second, index)
    if power == "l2":
        return offset.square().sum(-1).mean()
    # the gradient of this norm at 0 is 0, where that of a square root is infinite
    return torch.linalg.vector_norm(offset, dim=-1).mean()


def _check(first: Tensor, second: Tensor, power: str) -> None:
    if power not in ("l1", "l2"):
        raise ConfigError(f'power="{power}" is neither l1 nor l2.')
    if first.ndim != 3 or second.ndim != 3 or len(first) != len(second) or first.shape[2] != second.shape[2]:
        raise ConfigError(
            f"Point sets of shapes {tuple(first.shape)} and {tuple(second.shape)} do not fit each other: (B, N, d) and "
            f"(B, M, d) were expected."
        )
    if not first.shape[1] or not second.shape[1]:
        raise ConfigError("The distance to a set without points is not defined.")


def one_way(first: Tensor, second: Tensor, power: Power = "l2") -> Tensor:
    """Mean (squared) distance of the points of (B, N, d) to their nearest of (B, M, d); with l2 the UCD of completion.

    Raises:
        ConfigError: sets that are empty or do not fit each other.
    """
    _check(first, second, power)
    return _mean(first, second, knn(first, second, 1)[0][..., 0], power)


def chamfer(first: Tensor, second: Tensor, power: Power = "l2") -> Tensor:
    """Chamfer distance of (B, N, d) and (B, M, d), a scalar: the mean over the batch.

    `l2`: mean squared distance to the nearest point, the sum of both directions (Fan et al. 2017; Point-MAE).
    `l1`: mean distance, half the sum of both directions (PCN). Unit: that of the points, squared for l2.
    Memory grows with N + M; distances of all pairs are held in pieces. The gradient is finite at distance 0.

    Raises:
        ConfigError: sets that are empty or do not fit each other.
    """
    _check(first, second, power)
    forth, back = nearest(first, second)
    total = _mean(first, second, forth, power) + _mean(second, first, back, power)
    return total / 2 if power == "l1" else total


def region_aware_chamfer(prediction: Tensor, patches: Tensor, centres: Tensor, k: int, power: Power = "l1") -> Tensor:
    """Chamfer distance near the centres alone (P2C, Cui et al. 2023): what is predicted elsewhere costs nothing.

    The true side is all points of the patches; the predicted side the k nearest predicted points of each centre, where a
    point that is near two centres counts twice.

    Args:
        prediction: (B, M, 3) predicted cloud, absolute.
        patches: (B, G, K, 3) true points around each centre, absolute.
        centres: (B, G, 3).
        k: predicted points of each centre, 1 to M; twice K in the paper.

    Returns:
        A scalar, in the unit of the points (l1) or its square (l2).

    Raises:
        ConfigError: more neighbours than predicted points.
    """
    near = gather(prediction, knn(centres, prediction.detach(), k)[0])
    return chamfer(patches.flatten(1, 2), near.flatten(1, 2), power)
