"""Points as pictures."""

from __future__ import annotations

import numpy as np

BACKGROUND = 255
SMALLEST_SIDE, LARGEST_SIDE = 64, 256
MARGIN = 0.04


def splat(across: np.ndarray, up: np.ndarray, towards: np.ndarray, colours: np.ndarray, reach: float) -> np.ndarray:
    """A view (H, W, 3) uint8 of points as squares of pixels, those nearer to the viewer before the others.

    Args:
        across, up: where points lie in the picture, about 0.
        towards: how near they are to the viewer.
        colours: (n, 3) uint8.
        reach: distance from the middle of the picture to its edges.
    """
    side = int(np.clip(4 * np.sqrt(len(across)), SMALLEST_SIDE, LARGEST_SIDE))
    dot = max(1, round(side / 64))
    pixels = side / (2 * max(reach, 1e-12) * (1 + MARGIN))
    columns = np.floor(side / 2 + across * pixels).astype(int)
    rows = np.floor(side / 2 - up * pixels).astype(int)
    order = np.argsort(towards, kind="stable")
    picture = np.full((side, side, 3), BACKGROUND, dtype=np.uint8)
    for down in range(dot):
        for right in range(dot):
            y, x = np.clip(rows[order] + down, 0, side - 1), np.clip(columns[order] + right, 0, side - 1)
            picture[y, x] = colours[order]
    return picture


def top_view(xyz: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """From above, y upwards."""
    middle = (xyz.min(0) + xyz.max(0)) / 2
    x, y, z = (xyz - middle).T
    return splat(x, y, z, colours, max(np.ptp(xyz[:, :2], axis=0).max() / 2, 1e-12))


def three_views(xyz: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """From the front (x and z), the side (y and z) and above (x and y), beside each other."""
    middle = (xyz.min(0) + xyz.max(0)) / 2
    x, y, z = (xyz - middle).T
    reach = np.ptp(xyz, axis=0).max() / 2
    views = [splat(x, z, -y, colours, reach), splat(y, z, x, colours, reach), splat(x, y, z, colours, reach)]
    line = np.full((len(views[0]), 2, 3), 128, dtype=np.uint8)
    return np.concatenate([views[0], line, views[1], line, views[2]], axis=1)
