"""Points in NumPy files: an .npy of rows x y z ..., or an .npz with `points` and a further array for each column."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from maskwright.core.array_files import NUMBERS, Declared, load_npz, map_npy, npy_header, npz_headers
from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import Cloud, canonical
from maskwright.pointcloud.formats.base import BLOCK, PointFile, check_room

POINTS = ("points", "xyz", "pos")
"""Names of the array of coordinates."""


class ArrayFile(PointFile):
    """Columns of the array of coordinates behind x, y and z are column_4, column_5 ...; other arrays have their names."""

    kind = "NumPy"

    def _open(self) -> None:
        if self.path.suffix.lower() == ".npy":
            self._array, self.named = "", False
            headers: dict[str, Declared] = {}
            points = npy_header(self.path)
        else:
            headers = npz_headers(self.path)
            tables = [name for name, one in headers.items() if len(one.shape) == 2 and one.dtype.kind in NUMBERS]
            self._array = next((name for name in POINTS if name in headers), tables[0] if len(tables) == 1 else "")
            self.named = self._array in POINTS
            if not self._array:
                raise DataError(self.path, f"holds the arrays {', '.join(headers)}", "one named points, of rows x y z")
            points = headers[self._array]
        if len(points.shape) != 2 or points.shape[1] < 3 or points.dtype.kind not in NUMBERS:
            raise DataError(self.path, f"holds {points.dtype} of shape {points.shape}", "rows of x, y and z")
        self.count = points.shape[0]
        if points.shape[1] > 1000:
            raise DataError(self.path, f"has rows of {points.shape[1]} numbers", "x, y, z and up to 997 columns")
        self._own = [f"column_{at + 1}" for at in range(3, points.shape[1])]
        self._others = {
            canonical(name): name
            for name, one in headers.items()
            if name != self._array and one.shape == (self.count,) and one.dtype.kind in NUMBERS
        }
        self.columns = (*self._own, *self._others)
        if "crs" in headers and headers["crs"].shape == () and headers["crs"].dtype.kind == "U":
            check_room(self.path, headers["crs"].nbytes, 1, 2**18, "bytes of crs")
            self.crs = str(load_npz(self.path, "crs")) or None

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        values = load_npz(self.path, self._array) if self._array else map_npy(self.path)
        others = {name: load_npz(self.path, self._others[name]) for name in columns if name in self._others}
        for start in range(0, len(values), BLOCK):
            part = slice(start, start + BLOCK)
            rows = np.array(values[part])
            found = {
                name: others[name][part] if name in others else rows[:, 3 + self._own.index(name)] for name in columns
            }
            found = {name: column.astype(column.dtype.newbyteorder("=")) for name, column in found.items()}
            yield Cloud(rows[:, :3].astype(np.float64), found)
