"""The box of the world that becomes a grid, from the cameras where nobody declares one."""

from __future__ import annotations

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.nerf.cameras import Camera

CELLS = 48
"""Cells a side of the cube in which the cameras' views are counted."""
SHARE = 0.5
"""Share of the cameras that must see what belongs to the box."""
REACH = 0.7
"""Half side of that cube, of the middle distance of the cameras from what they look at."""
NARROW = 1e-3
"""Smallest eigenvalue below which axes are taken for parallel: of the mean of 1 - axis axis'."""
ROOM = 0.25
"""How far the box of a camera path that looks outwards is widened on each side, of its diagonal."""


def focus(cameras: list[Camera]) -> np.ndarray | None:
    """(3,) the point that is closest to all optical axes in least squares; None where it is not in front of most."""
    across = [np.eye(3) - np.outer(camera.axis, camera.axis) for camera in cameras]
    if np.linalg.eigvalsh(np.mean(across, 0))[0] < NARROW:
        return None
    point = np.linalg.solve(np.sum(across, 0), np.sum([a @ c.place for a, c in zip(across, cameras, strict=True)], 0))
    ahead = [(point - camera.place) @ camera.axis > 0 for camera in cameras]
    return point if np.mean(ahead) > 2 / 3 else None


def box_of_cameras(cameras: list[Camera], where: object) -> np.ndarray:
    """(2, 3) lowest and highest corner of what the cameras look at.

    Cameras around something: the cells that half of the cameras see, of a cube around the point that is closest to
    their axes, which leaves out where the cameras are (views have no end, and near the cameras they are narrow).
    Cameras that look outwards, in a room: the box of their places, wider by a quarter of its diagonal on each side.

    Raises:
        DataError: cameras side by side with parallel axes, of which no end of the scene follows.
    """
    places = np.stack([camera.place for camera in cameras])
    middle = focus(cameras)
    if middle is None:
        axes = np.stack([camera.axis for camera in cameras])
        if np.linalg.norm(axes.mean(0)) > 0.9 or np.ptp(places, 0).max() == 0:
            raise DataError(
                where, "has cameras that look the same way, so that no box follows", "", "Name the box with --aabb"
            )
        margin = ROOM * np.linalg.norm(np.ptp(places, 0))
        return np.stack([places.min(0) - margin, places.max(0) + margin])
    reach = REACH * float(np.median(np.linalg.norm(places - middle, axis=1)))
    steps = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    cells = middle + reach * np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    views = np.sum([camera.sees(cells) for camera in cameras], 0)
    seen = cells[views >= max(1, SHARE * len(cameras))]
    if not len(seen):
        raise DataError(where, "has no place that half of the cameras see", "", "Name the box with --aabb")
    half = reach / CELLS
    return np.stack([seen.min(0) - half, seen.max(0) + half])
