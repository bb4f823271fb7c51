"""Windows over images: where they lie, and how training moves, scales and flips them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from rasterio.transform import Affine

from maskwright.core.errors import DataError
from maskwright.remote_sensing.raster import Box, Header


class Windows:
    """Windows that cover images without a gap, the last of a row or column flush with the edge.

    They are computed when asked for, so that a scene of any size costs nothing to index.

    Args:
        size: side of a window in pixels; None takes each image as one window.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.headers: list[Header] = []
        self._ends: list[int] = []

    def add(self, header: Header) -> None:
        """Append an image.

        Raises:
            DataError: it is smaller than a window.
        """
        size = self.size
        if size is not None and (header.height < size or header.width < size):
            raise DataError(
                header.path,
                f"has {header.height} x {header.width} pixels, less than a window",
                f"{size} x {size} or more",
                "Lower data.size",
            )
        count = 1 if size is None else -(-header.height // size) * -(-header.width // size)
        self.headers.append(header)
        self._ends.append(len(self) + count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[int, Box]:
        """(number of the image, window in it).

        Raises:
            IndexError: there are fewer windows.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = bisect_right(self._ends, index)
        header, size = self.headers[image], self.size
        if size is None:
            return image, (0, 0, header.height, header.width)
        place = index - (self._ends[image - 1] if image else 0)
        row, column = divmod(place, -(-header.width // size))
        return image, (min(row * size, header.height - size), min(column * size, header.width - size), size, size)


def middle(box: Box, size: int) -> Box:
    """The middle of a window, at most `size` pixels a side."""
    row, column, height, width = box
    rows, columns = min(height, size), min(width, size)
    return row + (height - rows) // 2, column + (width - columns) // 2, rows, columns


def jitter(box: Box, header: Header, generator: torch.Generator, aligned: bool) -> Box:
    """Move a window at random by up to half its size, inside the image; inside its own tile of the file if `aligned`."""
    moved = []
    for start, size, length, block in (
        (box[0], box[2], header.height, header.block[0]),
        (box[1], box[3], header.width, header.block[1]),
    ):
        low, high = max(0, start - size // 2), min(length - size, start + size // 2)
        if aligned and header.tiled and block >= size:
            tile = start // block * block
            high = max(tile, min(tile + block, length) - size)
            low = min(tile, length - size)
        moved.append(low + int(torch.randint(high - low + 1, (1,), generator=generator)) if high > low else low)
    return moved[0], moved[1], box[2], box[3]


def scaled(box: Box, header: Header, sides: tuple[float, float], generator: torch.Generator) -> Box:
    """A random square of a side drawn from `sides`, centred on a jittered window where the image allows."""
    high = min(int(sides[1]), header.height, header.width)
    low = min(int(sides[0]), high)
    side = low + int(torch.randint(high - low + 1, (1,), generator=generator))
    row, column, height, width = jitter(box, header, generator, aligned=False)
    row = min(max(row + (height - side) // 2, 0), header.height - side)
    column = min(max(column + (width - side) // 2, 0), header.width - side)
    return row, column, side, side


def flips(
    arrays: dict[str, np.ndarray], transform: tuple, generator: torch.Generator
) -> tuple[dict[str, np.ndarray], tuple]:
    """Flip all arrays alike along rows and columns, each with probability a half; the transform goes with them."""
    vertical, horizontal = torch.rand(2, generator=generator).tolist()
    height, width = next(iter(arrays.values())).shape[-2:]
    affine = Affine(*transform)
    if vertical < 0.5:
        arrays = {name: array[..., ::-1, :] for name, array in arrays.items()}
        affine = affine * Affine(1, 0, 0, 0, -1, height)
    if horizontal < 0.5:
        arrays = {name: array[..., ::-1] for name, array in arrays.items()}
        affine = affine * Affine(-1, 0, width, 0, 1, 0)
    return arrays, tuple(affine)[:6]


def window_transform(header: Header, box: Box, shape: tuple[int, int]) -> tuple:
    """Affine (a..f) of a window resampled to `shape`."""
    row, column, height, width = box
    affine = header.affine * Affine.translation(column, row) * Affine.scale(width / shape[1], height / shape[0])
    return tuple(affine)[:6]
