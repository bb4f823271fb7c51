"""One image made of one or several files, at one or several resolutions, read as one array of bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rasterio.windows import Window

from maskwright.core.errors import DataError
from maskwright.remote_sensing.raster import Box, Header, max_read_bytes, read_bands, read_bands_onto


@dataclass(frozen=True)
class Source:
    """One image made of one or several files: bands by name, on the grid of the finest.

    Args:
        name: what the image is called (the stem of the file or the folder).
        header: of the finest file.
        bands: (band name, file, number of the band in it, 1-based).
        shapes: (height, width) of each file.
    """

    name: str
    header: Header
    bands: tuple[tuple[str, str, int], ...]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(path for _, path, _ in self.bands))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.bands)

    def select(self, names: Sequence[str]) -> Source:
        """The same image with these bands alone, in this order.

        Raises:
            DataError: a band is not there.
        """
        by_name = {band[0]: band for band in self.bands}
        absent = [name for name in names if name not in by_name]
        if absent:
            raise DataError(self.header.path, f"lacks band {', '.join(absent)}", f"among {', '.join(self.names)}")
        return Source(self.name, self.header, tuple(by_name[name] for name in names), self.shapes)

    def read(self, box: Box, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Read a window of all bands: (C, height, width) float32, NaN where there is no data.

        Args:
            box: (row, column, height, width) on the grid of the finest file.
            shape: (height, width) to resample to, bilinearly; the window's own without it.

        Raises:
            DataError: the window is too large, lies outside, or cannot be read.
        """
        shape = shape or box[2:]
        row, column, height, width = box
        if row < 0 or column < 0 or row + height > self.header.height or column + width > self.header.width:
            raise DataError(
                self.header.path, f"window {box} lies outside of {self.header.height} x {self.header.width} pixels"
            )
        self._check_size(box, shape)
        pieces = self._files_and_numbers()
        if len(pieces) == 1:
            (path, places) = next(iter(pieces.items()))
            return read_bands(path, [number for _, number in places], Window(column, row, width, height), shape)
        out = np.empty((len(self.bands), *shape), np.float32)
        for path, places in pieces.items():
            rows = self.shapes[path][0] / self.header.height
            columns = self.shapes[path][1] / self.header.width
            window = Window(column * columns, row * rows, width * columns, height * rows)
            out[[i for i, _ in places]] = read_bands(path, [number for _, number in places], window, shape)
        return out

    def read_onto(self, target: Header, box: Box, shape: tuple[int, int]) -> np.ndarray:
        """Read a window of `target`'s grid, resampled bilinearly: (C, height, width) float32, NaN outside this image.

        Raises:
            DataError: the window is too large, or cannot be read.
        """
        self._check_size(box, shape)
        out = np.empty((len(self.bands), *shape), np.float32)
        for path, places in self._files_and_numbers().items():
            out[[i for i, _ in places]] = read_bands_onto(path, [number for _, number in places], target, box, shape)
        return out

    def _files_and_numbers(self) -> dict[str, list[tuple[int, int]]]:
        """For each file, (position among the bands, number of the band in the file)."""
        pieces: dict[str, list[tuple[int, int]]] = {}
        for i, (_, path, number) in enumerate(self.bands):
            pieces.setdefault(path, []).append((i, number))
        return pieces

    def _check_size(self, box: Box, shape: tuple[int, int]) -> None:
        size = len(self.bands) * max(shape[0] * shape[1], box[2] * box[3]) * 4
        if size > max_read_bytes():
            raise DataError(
                self.header.path,
                f"a window of {len(self.bands)} x {box[2]} x {box[3]} values needs {size / 2**20:.0f} MB",
                f"at most {max_read_bytes() / 2**20:.0f} MB",
                "Read smaller windows with data.size, or raise MASKWRIGHT_MAX_READ_MB",
            )
