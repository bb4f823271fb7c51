"""Reading rasters: headers and windows of single files, and no belief in what a file says of itself.

GDAL may open only the drivers listed here (no VRT, which can point anywhere), never the network, and declared sizes are
checked before anything is allocated. Every failure is a `DataError` that names the file.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what GDAL's own errors are; rasterio.errors has no public base for them
from rasterio.enums import Interleaving, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from maskwright.core.errors import ConfigError, DataError

DRIVERS = ["GTiff", "JP2OpenJPEG", "PNG", "JPEG"]
SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg")
MAX_READ_BYTES = 512 * 2**20
"""Largest window, or stored block, that is read at once, in bytes. `MASKWRIGHT_MAX_READ_MB` overrides it."""
OPEN_FILES = 32
"""Handles kept open a thread."""

_ENVIRONMENT = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 256 * 2**20,  # bytes: rasterio hands the number on, so 256 would be no cache at all
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".nothing",
}

Box = tuple[int, int, int, int]
"""(row, column, height, width) in pixels."""


def max_read_bytes() -> int:
    """The limit on what is read at once.

    Raises:
        ConfigError: `MASKWRIGHT_MAX_READ_MB` is no number.
    """
    megabytes = os.environ.get("MASKWRIGHT_MAX_READ_MB", "")
    if not megabytes:
        return MAX_READ_BYTES
    if not megabytes.isdigit():
        raise ConfigError(f"MASKWRIGHT_MAX_READ_MB={megabytes!r} is no whole number of megabytes.")
    return int(megabytes) * 2**20


@contextmanager
def gdal_errors(path: object, verb: str = "read") -> Iterator[None]:
    """Turn whatever rasterio raises into a `DataError` with the path."""
    try:
        yield
    except DataError:
        raise
    except (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError, OverflowError) as error:
        # GDAL's own words say most; rasterio keeps them in the cause
        text = " ".join(str(error.__cause__ or error).split())[:200]
        advice = _advice(path) if verb == "read" else ""
        raise DataError(path, f"cannot be {verb} ({text})", mend=advice) from error


def _advice(path: object) -> str:
    try:
        with Path(str(path)).open("rb") as file:
            start = file.read(64).lstrip().lower()
    except PermissionError:
        return "You may not read it; change its permissions (chmod a+r)"
    except (OSError, ValueError):
        return ""
    if not start:
        return "The file is empty; fetch it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "It is a web page, probably an error message saved under this name; fetch it again"
    return "If its copy was cut short, fetch it again; `maskwright inspect` lists all such files"


def _open(path: str) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # the reader itself takes a list of drivers, `rasterio.open` only one
        return DatasetReader(path, driver=DRIVERS)


class _Handles(threading.local):
    """Open datasets of this thread, the least used closed first. A forked process starts anew."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: OrderedDict[str, tuple[tuple[int, ...], DatasetReader]] = OrderedDict()

    def get(self, path: str) -> DatasetReader:
        if self.process != os.getpid():
            self.__init__()  # type: ignore[misc]
        status = os.stat(path)
        version = status.st_ino, status.st_mtime_ns, status.st_size
        if path in self.open and self.open[path][0] != version:  # the file was written anew
            self.forget(path)
        if path not in self.open:
            self.open[path] = version, _open(path)
            if len(self.open) > OPEN_FILES:
                self.forget(next(iter(self.open)))
        self.open.move_to_end(path)
        return self.open[path][1]

    def forget(self, path: str) -> None:
        if path in self.open:
            self.open.pop(path)[1].close()


_handles = _Handles()


@contextmanager
def _dataset(path: str) -> Iterator[DatasetReader]:
    """An open dataset under our own GDAL settings; after a failure its handle is not used again."""
    with gdal_errors(path), rasterio.Env(**_ENVIRONMENT):
        try:
            yield _handles.get(path)
        except Exception:
            _handles.forget(path)
            raise


@dataclass(frozen=True)
class Header:
    """What a raster file says of itself. `block` is the (height, width) in which it is stored."""

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
        DataError: it cannot be opened, ends before its last block, holds complex numbers or no bands at all, or is
            stored in blocks above `max_read_bytes`.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise DataError(path, "there is no such file")
    with gdal_errors(path), rasterio.Env(**_ENVIRONMENT), _open(path) as dataset:
        if dataset.count == 0:
            raise DataError(path, "holds no bands of its own, only sub-datasets", "a raster", "Convert one to GeoTIFF")
        header = Header(
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
        )
        _check_types(path, dataset.dtypes)
        _check_blocks(header, dataset)
        return header


def _check_types(path: str, types: tuple[str, ...]) -> None:
    complex_types = [name for name in types if name.startswith("complex")]
    if complex_types:
        raise DataError(path, f"holds {complex_types[0]} numbers", "real ones", "Detect it first: intensity or dB")


def _check_blocks(header: Header, dataset: DatasetReader) -> None:
    """A block is decoded whole, however small the window; and the last one must lie within the file."""
    rows, columns = header.block
    shared = header.count if header.driver != "GTiff" or dataset.interleaving is Interleaving.pixel else 1
    size = rows * columns * shared * np.dtype(header.dtype).itemsize
    if size > max_read_bytes():
        raise DataError(
            header.path,
            f"is stored in blocks of {rows} x {columns} pixels, {size / 2**20:.0f} MB each",
            f"at most {max_read_bytes() / 2**20:.0f} MB",
            "Rewrite it in tiles (rio convert IN.tif OUT.tif --co TILED=YES), or raise MASKWRIGHT_MAX_READ_MB",
        )
    if header.driver == "GTiff":
        place = f"{(header.width - 1) // columns}_{(header.height - 1) // rows}"
        offset, length = (
            int(dataset.get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=header.count) or 0)
            for what in ("OFFSET", "SIZE")
        )
        actual = os.path.getsize(header.path)
        if offset + length > actual:
            raise DataError(
                header.path,
                f"is cut short or damaged: its last block ends at byte {offset + length}, the file at {actual}",
                mend="Fetch it again",
            )


def read_bands(path: str, numbers: list[int], window: Window, shape: tuple[int, int]) -> np.ndarray:
    """A window of some bands (1-based) of a file, resampled bilinearly to `shape`: (C, h, w) float32, NaN is no data.

    Raises:
        DataError: it cannot be read.
    """
    with _dataset(path) as dataset:
        types = [dataset.dtypes[number - 1] for number in numbers]
        direct = None if "float64" in types else "float32"  # a nodata value may lie outside float32
        values = dataset.read(
            numbers,
            window=window,
            out_shape=(len(numbers), *shape),
            out_dtype=direct,
            resampling=Resampling.bilinear,
        )
        nodata = [dataset.nodatavals[number - 1] for number in numbers]
        # an alpha band is no mask: the near infrared of four-band images is often mistaken for one
        masked = dataset.mask_flag_enums[numbers[0] - 1] == [MaskFlags.per_dataset]
        mask = dataset.dataset_mask(window=window, out_shape=shape) if masked else None
    with np.errstate(over="ignore"):
        out = values.astype(np.float32, copy=False)
        for row, value in enumerate(nodata):
            if value is not None and not np.isnan(value):
                out[row][values[row] == values.dtype.type(value)] = np.nan
    if mask is not None:
        out[:, mask == 0] = np.nan
    if any(name.startswith("float") for name in types):
        out[np.isinf(out)] = np.nan
    return out


def read_bands_onto(path: str, numbers: list[int], target: Header, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """A window of `target`'s grid from a file on another grid, bilinearly: (C, h, w) float32, NaN outside the file.

    Raises:
        DataError: it cannot be read.
    """
    row, column, height, width = box
    with _dataset(path) as dataset:
        options = {"crs": target.crs, "transform": target.affine, "width": target.width, "height": target.height}
        with WarpedVRT(dataset, resampling=Resampling.bilinear, dtype="float32", nodata=np.nan, **options) as warped:
            window = Window(column, row, width, height)
            out = warped.read(numbers, window=window, out_shape=(len(numbers), *shape), resampling=Resampling.bilinear)
    out[np.isinf(out)] = np.nan
    return out


def read_classes(path: str | Path) -> np.ndarray:
    """A single-band raster of class codes: (H, W) in its own integer type.

    Raises:
        DataError: more than one band, no integers, too large.
    """
    header = read_header(path)
    if header.count != 1 or not np.issubdtype(np.dtype(header.dtype), np.integer):
        raise DataError(path, f"holds {header.count} bands of {header.dtype}", "one band of integer class codes")
    size = header.width * header.height * np.dtype(header.dtype).itemsize
    if size > max_read_bytes():
        raise DataError(
            path,
            f"declares {header.height} x {header.width} pixels, {size / 2**20:.0f} MB",
            f"at most {max_read_bytes() / 2**20:.0f} MB",
            "Raise MASKWRIGHT_MAX_READ_MB",
        )
    with _dataset(str(path)) as dataset:
        return dataset.read(1)


def read_classes_onto(
    path: str, crs: str | None, transform: tuple | None, shape: tuple[int, int], window: Box | None
) -> np.ndarray:
    """Class codes on a given grid, of the nearest pixel: (h, w) int64, -1 where there are none.

    Args:
        crs, transform, shape: the grid. Where grid or file has no georeference, `window` of the file is read.

    Raises:
        DataError: no single band of integers, or a window of another shape.
    """
    header = read_header(path)
    if header.count != 1 or not np.issubdtype(np.dtype(header.dtype), np.integer):
        raise DataError(path, f"holds {header.count} bands of {header.dtype}", "one band of integer class codes")
    height, width = shape
    with _dataset(path) as dataset:
        if crs is None or header.crs is None or transform is None:
            row, column, rows, columns = window or (0, 0, height, width)
            if row + rows > header.height or column + columns > header.width:
                raise DataError(
                    path,
                    f"has {header.height} x {header.width} pixels and no georeference",
                    f"window {(row, column, rows, columns)} of the image it belongs to",
                )
            read = {"window": Window(column, row, columns, rows), "out_shape": shape, "resampling": Resampling.nearest}
            codes = dataset.read(1, **read).astype(np.int64)
            if dataset.nodata is not None:
                codes[codes == dataset.nodata] = -1
            return codes
        grid = {"crs": crs, "transform": Affine(*transform), "width": width, "height": height}
        # codes above int32 do not occur; -1 marks what lies outside and what the file calls no data
        with WarpedVRT(dataset, resampling=Resampling.nearest, dtype="int32", nodata=-1, **grid) as warped:
            return warped.read(1).astype(np.int64)


def read_colours(path: str) -> dict[int, tuple[int, int, int]]:
    """RGB of each code, where the file has a colour table; without those that are all black."""
    with _dataset(path) as dataset:
        try:
            table = dataset.colormap(1)
        except ValueError:
            return {}
    return {code: colour[:3] for code, colour in table.items() if any(colour[:3])}
