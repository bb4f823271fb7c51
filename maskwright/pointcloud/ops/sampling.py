"""Farthest point sampling: a subset of points that covers a cloud evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError


@torch.no_grad()
def farthest_point_sampling(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick points one by one, each as far as possible from all that were picked before (Gonzalez 1985; PointNet++).

    All clouds of the batch take a step together; the loop over picks is the algorithm itself. The farthest point is
    found by exact float32 comparison, and of equally far ones the lowest index is taken. Once all
    different points of a cloud are picked, index 0 is repeated.

    Args:
        points: (B, N, d), any unit. No gradient flows through the choice.
        count: number of picks, 1 to N.
        start: index of the first pick.

    Returns:
        Indices (B, count) int64, in the order in which they were picked.

    Raises:
        ConfigError: more picks than points, or a start that is no index.
    """
    batch, size, axes = points.shape
    if not 1 <= count <= size:
        raise ConfigError(
            f"{count} points cannot be sampled from clouds of {size}: choose 1 to {size}, or let the loader give more points."
        )
    if not 0 <= start < size:
        raise ConfigError(f"start={start} is no index into clouds of {size} points.")
    if not points.dtype.is_floating_point or points.dtype.itemsize < 4:
        points = points.float()
    # one contiguous plane a coordinate, and buffers that are used again: the passes over memory are all that it costs
    planes = [points[..., axis].contiguous() for axis in range(axes)]
    offset, distance = torch.empty_like(planes[0]), torch.empty_like(planes[0])
    least = torch.full_like(planes[0], torch.inf)
    picked = points.new_empty((batch, count), dtype=torch.int64)
    at = torch.full((batch, 1), start, device=points.device)
    for number in range(count):
        picked[:, number] = at[:, 0]
        torch.sub(planes[0], planes[0].gather(1, at), out=offset)
        torch.mul(offset, offset, out=distance)
        for plane in planes[1:]:
            torch.sub(plane, plane.gather(1, at), out=offset)
            distance.add_(offset.mul_(offset))
        torch.minimum(least, distance, out=least)
        at = _first_highest(least)
    return picked


def _first_highest(values: Tensor) -> Tensor:
    """Index (B, 1) of the first of the highest values in each row of (B, N)."""
    if values.device.type == "cpu":
        # NumPy's search is vectorised and about several times as fast as torch's, which would take half of the time
        return torch.from_numpy(values.numpy().argmax(1)).unsqueeze(1)
    return values.argmax(1, keepdim=True)
