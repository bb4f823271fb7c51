"""Whole rasters as scenes: windows in, maps out that lie where the rasters lie."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from maskwright.core.errors import DataError
from maskwright.core.sample import Meta, Sample
from maskwright.core.scene import MapFormat, MapWriter, Scene, Window
from maskwright.core.trainer.files import atomic
from maskwright.remote_sensing.raster import Box, Header, gdal_errors
from maskwright.remote_sensing.windows import window_transform

if TYPE_CHECKING:
    from maskwright.remote_sensing.base import RasterLoader

BLOCK = 256
"""Side of the blocks of a map, in pixels."""
CACHE_BYTES = 64 * 2**20
FULL_BYTES = 2**20
"""A disk with less free space than this counts as full when a map could not be written."""


class RasterScene(Scene):
    """One image of a raster loader."""

    suffix = ".tif"

    def __init__(self, loader: RasterLoader, number: int, name: str) -> None:
        self.loader, self.number, self.name = loader, number, name
        self.group, self.sources, self.header = loader._image(number)
        self.shape = (self.header.height, self.header.width)

    def read(self, window: Window) -> Sample:
        rows, columns = window
        box: Box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        arrays = self.loader._window(self.number, box, box[2:])
        transform = window_transform(self.header, box, box[2:])
        meta = Meta(self.sources[0], self.group, -1, box, self.header.crs, transform)  # type: ignore[arg-type]
        return Sample({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, meta)

    def writer(self, path: Path, form: MapFormat) -> Any:
        return write_map(path, self.shape, self.header.crs, self.header.transform, form)


def raster_scenes(loader: RasterLoader) -> list[RasterScene]:
    """A scene for each image, named by its path below the loader's folder."""
    count = len(loader.windows.headers)
    whole = [_relative(loader.path, loader._image(number)) for number in range(count)]
    short = [str(Path(name).with_suffix("")) if is_file else name for name, is_file in whole]
    taken = Counter(short)
    names = [one if taken[one] == 1 else name for one, (name, _) in zip(short, whole, strict=True)]
    return [RasterScene(loader, number, name) for number, name in enumerate(names)]


def _relative(root: Path, image: tuple[str, list[str], Header]) -> tuple[str, bool]:
    """Path of an image below the folder that was opened, and whether it is a file: a pair goes by its name alone."""
    name, files, header = image
    own = Path(header.path)
    if len(files) == 1:
        return (str(own.relative_to(root)) if root.is_dir() and own.is_relative_to(root) else own.name), True
    return name, False


class _Rows(MapWriter):
    """Gathers pieces to whole rows of blocks, so that no block is written, and compressed, twice."""

    def __init__(self, path: Path, file: DatasetWriter, form: MapFormat) -> None:
        self.path, self.file = path, file
        self.waiting = np.empty((len(form.bands), BLOCK, file.width), dtype=form.dtype)
        self.first = self.filled = 0
        self.sums: list[tuple[int, int, int]] = []
        """(first row, rows, checksum) of what was written."""

    def write(self, window: Window, array: np.ndarray) -> None:
        if window[0].start != self.first + self.filled or window[1] != slice(0, self.file.width):
            raise ValueError(f"pieces must come in order: row {self.first + self.filled} is next, not {window}")
        taken = 0
        while taken < array.shape[1]:
            some = min(BLOCK - self.filled, array.shape[1] - taken)
            self.waiting[:, self.filled : self.filled + some] = array[:, taken : taken + some]
            self.filled += some
            taken += some
            if self.filled == BLOCK:
                self.flush()

    def flush(self) -> None:
        if self.filled:
            rows = np.ascontiguousarray(self.waiting[:, : self.filled])
            with gdal_errors(self.path, "written"):
                self.file.write(rows, window=RasterWindow(0, self.first, self.file.width, self.filled))
            self.sums.append((self.first, self.filled, zlib.crc32(rows)))
            self.first, self.filled = self.first + self.filled, 0


@contextmanager
def write_map(
    path: Path, shape: tuple[int, int], crs: str | None, transform: Sequence[float] | None, form: MapFormat
) -> Iterator[MapWriter]:
    """A tiled, deflated GeoTIFF, written row by row, then read back and compared before it gets its name.

    GDAL may lose the error of a full disk while it closes a file; reading back finds it.

    Args:
        shape: (height, width).
        crs: WKT or `EPSG:n`; None writes no georeference.
        transform: affine (a, b, c, d, e, f) from (column, row) to CRS units.

    Raises:
        DataError: it cannot be written, or reads back otherwise. DiskFullError: no space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_PAM_ENABLED="NO")
    with atomic(path) as temporary, environment, _full_disk(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with gdal_errors(path, "written"):
            file = rasterio.open(temporary, "w", **_profile(shape, crs, transform, form))
        rows = _Rows(path, file, form)
        try:
            with gdal_errors(path, "written"):
                _describe(file, form)
            yield rows
            rows.flush()
        finally:
            with gdal_errors(path, "written"):
                file.close()
        _compare(path, temporary, rows.sums, shape[0])


def _profile(
    shape: tuple[int, int], crs: str | None, transform: Sequence[float] | None, form: MapFormat
) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "count": len(form.bands),
        "height": shape[0],
        "width": shape[1],
        "dtype": form.dtype,
        "crs": crs,
        "transform": None if transform is None else Affine(*transform),
        "nodata": form.nodata,
        "compress": "deflate",
        "predictor": 3 if np.dtype(form.dtype).kind == "f" else 2,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "interleave": "band",
        "bigtiff": "if_safer",
    }


def _describe(file: DatasetWriter, form: MapFormat) -> None:
    for number, name in enumerate(form.bands, start=1):
        if name:
            file.set_band_description(number, name)
    if form.colours and form.dtype in ("uint8", "uint16"):
        file.write_colormap(1, {code: (*colour, 255) for code, colour in form.colours.items()})
    if form.categories:
        file.update_tags(1, **{f"CLASS_{code}": name for code, name in form.categories.items()})
        file.update_tags(classes=json.dumps({str(code): name for code, name in form.categories.items()}))
    if form.tags:
        file.update_tags(**form.tags)


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Let a failure on a full disk be what it is: `atomic` says how much is free."""
    try:
        yield
    except DataError as error:
        if error.path == str(path) and shutil.disk_usage(path.parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def _compare(path: Path, temporary: Path, sums: list[tuple[int, int, int]], height: int) -> None:
    if sum(rows for _, rows, _ in sums) != height:
        raise ValueError(f"{path}: only {sum(rows for _, rows, _ in sums)} of {height} rows were given")
    with gdal_errors(path, "written"), rasterio.open(temporary, driver="GTiff") as file:
        for first, rows, checksum in sums:
            found = file.read(window=RasterWindow(0, first, file.width, rows))
            if zlib.crc32(np.ascontiguousarray(found)) != checksum:
                raise DataError(path, f"reads back otherwise than it was written, in rows {first} to {first + rows}")
