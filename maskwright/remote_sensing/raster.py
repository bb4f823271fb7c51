"""Reading rasters: headers, windows, several resolutions as one, and no belief in what a file says of itself.

GDAL may open only the drivers listed here (no VRT, which can point anywhere), never the network, and declared sizes are
checked before anything is allocated. Every failure is a `DataError` that names the file.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from maskwright.core.errors import DataError

DRIVERS = ["GTiff", "JP2OpenJPEG", "PNG", "JPEG", "HDF4", "HDF4Image"]
SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg")
MAX_READ_BYTES = 512 * 2**20
"""Largest window that is read at once, in bytes of float32. `MASKWRIGHT_MAX_READ_MB` overrides it."""
OPEN_FILES = 32
"""Handles kept open a thread."""

_ENVIRONMENT = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 256,
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".nothing",
    "GDAL_MAX_DATASET_POOL_SIZE": 64,
}

Box = tuple[int, int, int, int]
"""(row, column, height, width) in pixels."""


def max_read_bytes() -> int:
    megabytes = os.environ.get("MASKWRIGHT_MAX_READ_MB")
    return int(megabytes) * 2**20 if megabytes else MAX_READ_BYTES


@contextmanager
def gdal_errors(path: object) -> Iterator[None]:
    """Turn whatever rasterio raises into a `DataError` with the path."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except DataError:
        raise
    except (RasterioError, OSError, ValueError, MemoryError, OverflowError) as error:
        # GDAL's own words say most; rasterio keeps them in the cause
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(path, f"cannot be read ({text})", "a readable raster", _advice(path)) from error


def _advice(path: object) -> str:
    try:
        with Path(str(path)).open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return ""
    if not start:
        return "The file is empty; fetch it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "It is a web page, probably an error message saved under this name; fetch it again"
    return "If its copy was cut short, fetch it again; `maskwright inspect` lists all such files"


def _open(path: str) -> DatasetReader:
    # the reader itself takes a list of drivers, `rasterio.open` only one
    return DatasetReader(path, driver=DRIVERS)


class _Handles(threading.local):
    """Open datasets of this thread, the least used closed first. A forked process starts anew."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: OrderedDict[str, DatasetReader] = OrderedDict()

    def get(self, path: str) -> DatasetReader:
        if self.process != os.getpid():
            self.__init__()  # type: ignore[misc]
        dataset = self.open.pop(path, None)
        if dataset is None:
            with rasterio.Env(**_ENVIRONMENT):
                dataset = _open(path)
            if len(self.open) >= OPEN_FILES:
                self.open.popitem(last=False)[1].close()
        self.open[path] = dataset
        return dataset

    def forget(self, path: str) -> None:
        dataset = self.open.pop(path, None)
        if dataset is not None:
            dataset.close()


_handles = _Handles()


@dataclass(frozen=True)
class Header:
    """What a raster file says of itself."""

    path: str
    driver: str
    width: int
    height: int
    count: int
    dtype: str
    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    nodata: float | None
    descriptions: tuple[str | None, ...]
    block: tuple[int, int]
    georeferenced: bool

    @property
    def striped(self) -> bool:
        """Stored in strips of the full width: reading a window decodes everything beside it."""
        return self.block[1] >= self.width and self.width > 2048 and self.height > 2048

    @property
    def tiled(self) -> bool:
        return self.block[1] < self.width

    @property
    def affine(self) -> Affine:
        return Affine(*self.transform)


def read_header(path: str | Path) -> Header:
    """Read the header of a file; no pixels.

    Raises:
        DataError: it cannot be opened, or holds no bands (a container of sub-datasets).
    """
    path = str(path)
    with gdal_errors(path):
        if not os.path.isfile(path):
            raise DataError(path, "there is no such file")
        with rasterio.Env(**_ENVIRONMENT), _open(path) as dataset:
            if dataset.count == 0:
                raise DataError(
                    path, "holds no bands of its own, only sub-datasets", "a raster", "Convert one to GeoTIFF"
                )
            return Header(
                path,
                dataset.driver,
                dataset.width,
                dataset.height,
                dataset.count,
                dataset.dtypes[0],
                dataset.crs.to_string() if dataset.crs else None,
                tuple(dataset.transform)[:6],  # type: ignore[arg-type]
                dataset.nodata,
                dataset.descriptions,
                dataset.block_shapes[0],
                not dataset.transform.is_identity,
            )


@dataclass(frozen=True)
class Source:
    """One image made of one or several files: bands by name, on the grid of the finest.

    Args:
        name: what the image is called (the stem of the file or the folder).
        header: of the finest file.
        bands: (band name, file, number of the band in it, 1-based).
    """

    name: str
    header: Header
    bands: tuple[tuple[str, str, int], ...]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(height, width) of each file."""

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
        height, width = shape or box[2:]
        self._check(box, len(self.bands) * max(height * width, box[2] * box[3]) * 4)
        out = np.empty((len(self.bands), height, width), np.float32)
        for path in self.files:
            chosen = [(i, number) for i, (_, file, number) in enumerate(self.bands) if file == path]
            rows = self.shapes[path][0] / self.header.height
            columns = self.shapes[path][1] / self.header.width
            window = Window(box[1] * columns, box[0] * rows, box[3] * columns, box[2] * rows)  # type: ignore[call-arg]
            out[[i for i, _ in chosen]] = _read(path, window, [number for _, number in chosen], (height, width))
        return out

    def _check(self, box: Box, size: int) -> None:
        row, column, height, width = box
        header = self.header
        if row < 0 or column < 0 or row + height > header.height or column + width > header.width:
            raise DataError(header.path, f"window {box} lies outside of {header.height} x {header.width} pixels")
        if size > max_read_bytes():
            raise DataError(
                header.path,
                f"a window of {height} x {width} pixels needs {size / 2**20:.0f} MB",
                f"at most {max_read_bytes() / 2**20:.0f} MB",
                "Read smaller windows with data.size, or raise MASKWRIGHT_MAX_READ_MB",
            )


def _read(path: str, window: Window, numbers: list[int], shape: tuple[int, int]) -> np.ndarray:
    with gdal_errors(path):
        dataset = _handles.get(path)
        try:
            values = dataset.read(
                numbers, window=window, out_shape=(len(numbers), *shape), resampling=Resampling.bilinear
            )
        except Exception:
            _handles.forget(path)
            raise
        out = values.astype(np.float32)
        for row, number in enumerate(numbers):
            nodata = dataset.nodatavals[number - 1]
            if nodata is not None:
                out[row][values[row] == nodata] = np.nan
    out[~np.isfinite(out)] = np.nan
    return out


def read_onto(source: Source, target: Header, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """Read a window of `target`'s grid from a source on another grid, bilinearly: (C, h, w) float32, NaN outside."""
    source._check((0, 0, 1, 1), len(source.bands) * max(shape[0] * shape[1], box[2] * box[3]) * 4)
    out = np.empty((len(source.bands), *shape), np.float32)
    row, column, height, width = box
    window = Window(column, row, width, height)  # type: ignore[call-arg]
    for i, (_, path, number) in enumerate(source.bands):
        with gdal_errors(path):
            dataset = _handles.get(path)
            with WarpedVRT(
                dataset,
                crs=target.crs,
                transform=target.affine,
                width=target.width,
                height=target.height,
                resampling=Resampling.bilinear,
                dtype="float32",
                nodata=np.nan,
            ) as warped:
                out[i] = warped.read(number, window=window, out_shape=shape, resampling=Resampling.bilinear)
    out[~np.isfinite(out)] = np.nan
    return out


def read_classes(path: str | Path) -> np.ndarray:
    """A single-band raster of class codes: (H, W) in its own integer type.

    Raises:
        DataError: more than one band, no integers, too large.
    """
    header = read_header(path)
    if header.count != 1 or not np.issubdtype(np.dtype(header.dtype), np.integer):
        raise DataError(path, f"holds {header.count} bands of {header.dtype}", "one band of integer class codes")
    if header.width * header.height * np.dtype(header.dtype).itemsize > max_read_bytes():
        raise DataError(path, f"declares {header.height} x {header.width} pixels", "less than MASKWRIGHT_MAX_READ_MB")
    with gdal_errors(path):
        return _handles.get(str(path)).read(1)


def window_transform(header: Header, box: Box, shape: tuple[int, int]) -> tuple[Any, ...]:
    """Affine (a..f) of a window resampled to `shape`."""
    row, column, height, width = box
    affine = header.affine * Affine.translation(column, row) * Affine.scale(width / shape[1], height / shape[0])
    return tuple(affine)[:6]
