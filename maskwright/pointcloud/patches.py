"""Patches of a point cloud: groups of near points around centres, the tokens of methods on points."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask
from maskwright.core.sample import Batch
from maskwright.pointcloud.ops import farthest_point_sampling, gather, group, knn

PATCHES = "patches"
"""Tensor (B, G, K) int64 that a batch may hold beside its points: numbers of the points of each patch, the centre first.
With it nothing is searched, which saves time where clouds come again unchanged."""


def coordinates(batch: Batch, name: str) -> Tensor:
    """The first three channels of points (B, N, C): (B, N, 3) float32.

    Raises:
        ConfigError: fewer channels.
    """
    points = batch[name]
    if points.ndim != 3 or points.shape[2] < 3:
        raise ConfigError(
            f'"{name}" has shape {tuple(points.shape)}; points (B, N, C) with x, y and z first were expected.'
        )
    return points[..., :3].float()


def find_patches(points: Tensor, num_groups: int, group_size: int) -> Tensor:
    """Numbers of the points of each patch, (B, G, K) int64: farthest points as centres, each with its nearest points.

    A centre is the first of its patch; of several points at one place the lowest number stands for all. Patches overlap,
    and a point may be in none.

    Args:
        points: (B, N, 3).
        num_groups: patches G, at most N.
        group_size: points K of a patch, its centre among them, at most N.

    Raises:
        ConfigError: fewer points than patches, or than points of a patch.
    """
    least = max(num_groups, group_size)
    if points.shape[1] < least:
        raise ConfigError(
            f"{num_groups} patches of {group_size} points need clouds of {least} points or more, not {points.shape[1]}. "
            f"Raise data.points, or lower method.num_groups and method.group_size."
        )
    return group(points, farthest_point_sampling(points, num_groups), group_size)


def patches_of(batch: Batch, points: Tensor, num_groups: int, group_size: int) -> Tensor:
    """The patches that a batch holds, or else those that are found in `points`."""
    given = batch.tensors.get(PATCHES)
    if given is None:
        return find_patches(points, num_groups, group_size)
    wanted = (len(points), num_groups, group_size)
    if tuple(given.shape) != wanted:
        raise ConfigError(f'"{PATCHES}" has shape {tuple(given.shape)}; {wanted} was expected.')
    return given


def with_patches(batch: Batch, name: str, num_groups: int, group_size: int) -> Batch:
    """The batch with its patches written into it."""
    found = patches_of(batch, coordinates(batch, name), num_groups, group_size)
    return replace(batch, tensors={**batch.tensors, PATCHES: found})


def cut(points: Tensor, patches: Tensor) -> tuple[Tensor, Grid]:
    """Points of the patches, absolute (B, G, K, 3), and their layout, scattered tokens at the centres (B, G, 3)."""
    values = gather(points, patches)
    return values, Grid((patches.shape[1],), positions=values[:, :, 0])


def unseen(count: int, patches: Tensor, mask: Mask, centres_seen: bool) -> Tensor:
    """Which points are in no visible patch: (B, N) bool.

    Args:
        centres_seen: whether a decoder is told the centres of hidden patches, which then count as seen.
    """
    hidden = torch.ones((len(patches), count), dtype=torch.bool, device=patches.device)
    rows = torch.arange(len(patches), device=patches.device)[:, None]
    hidden[rows, patches[rows, mask.visible].flatten(1)] = False
    if centres_seen:
        hidden[rows, patches[:, :, 0]] = False
    return hidden


def with_features(made: Tensor, original: Tensor, hidden: Tensor) -> Tensor:
    """Points (B, M, 3) with further channels for a picture, (B, M, C): those of the nearest point that was seen.

    Args:
        original: (B, N, C).
        hidden: (B, N) bool.
    """
    if original.shape[2] == 3:
        return made
    # points that were hidden are put out of reach
    far = original[..., :3].abs().amax() * 1e3 + 1e3
    seen = torch.where(hidden[..., None], far, original[..., :3].float())
    near = knn(made.float(), seen, 1)[0][..., 0]
    return torch.cat([made, gather(original[..., 3:].float(), near)], dim=2)
