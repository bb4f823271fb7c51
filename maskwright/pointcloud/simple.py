"""Features of points that need no network, which pre-training must beat to be worth its while."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.core.sample import Sample

RADII, BINS = 32, 16
"""Bins of the histogram of distances, and of those along each axis."""


def shape_features(sample: Sample) -> dict[str, Tensor]:
    """Histograms of the distances from the centroid and along each axis, and the mean and deviation of each channel.

    Coordinates are divided by the largest distance first, so the histograms do not know how large a thing is; the
    statistics do.
    """
    points = sample["points"].float()
    xyz = points[:, :3] - points[:, :3].mean(0)
    radii = xyz.norm(dim=1)
    largest = radii.max().clamp_min(1e-12)
    histograms = [torch.histc(radii / largest, RADII, 0, 1)]
    histograms += [torch.histc(xyz[:, axis] / largest, BINS, -1, 1) for axis in range(3)]
    return {
        "shape histograms": torch.cat(histograms) / len(points),
        "channel statistics": torch.cat([points.mean(0), points.std(0, correction=0)]),
    }


def group_features(sample: Sample, centres: Tensor) -> dict[str, Tensor]:
    """What the points are like that are nearer to one of scattered tokens than to all others.

    The share of all points, their height, the mean of each channel (of coordinates, its distance from the centre) and its
    deviation; and how linear, planar and scattered they are (Weinmann et al., ISPRS Journal 105, 2015, from the square
    roots of the eigenvalues of their covariance) with how far their normal leans from the vertical.

    Args:
        centres: (N, 3) in the coordinates of the sample.

    Returns:
        (N, D) each.
    """
    points, centres = sample["points"].double(), centres.double().cpu()
    owner = torch.cdist(points[:, :3], centres).argmin(1)
    number = len(centres)
    relative = torch.cat([points[:, :3] - centres[owner], points[:, 3:]], 1)
    count = torch.zeros(number, dtype=torch.float64).index_add_(0, owner, torch.ones_like(points[:, 0]))
    mean = _mean(relative, owner, count)
    off = relative - mean[owner]
    deviation = _mean(off**2, owner, count).sqrt()
    covariance = _mean((off[:, :3, None] * off[:, None, :3]).flatten(1), owner, count).view(number, 3, 3)
    values, vectors = torch.linalg.eigh(covariance)  # in ascending order
    third, second, first = values.clamp_min(0).sqrt().unbind(1)
    largest = first.clamp_min(1e-12)
    shape = [(first - second) / largest, (second - third) / largest, third / largest, 1 - vectors[:, 2, 0].abs()]
    statistics = torch.cat([count[:, None] / len(points), centres[:, 2:3] + mean[:, 2:3], mean, deviation], 1)
    return {"group statistics": statistics.float(), "local shape": torch.stack(shape, 1).float()}


def _mean(values: Tensor, owner: Tensor, count: Tensor) -> Tensor:
    """Mean of (P, C) over the points of each of N groups, 0 for those without any: (N, C)."""
    total = torch.zeros(len(count), values.shape[1], dtype=values.dtype).index_add_(0, owner, values)
    return total / count.clamp_min(1)[:, None]
