"""Writing rasters that lie where their data lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from maskwright.core.trainer.files import atomic
from maskwright.remote_sensing.raster import gdal_errors


def write_geotiff(
    path: str | Path,
    array: np.ndarray,
    crs: str | None,
    transform: Sequence[float] | None,
    nodata: float | None = None,
    colormap: dict[int, tuple[int, int, int]] | None = None,
    band_names: Sequence[str] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write a tiled, deflated GeoTIFF, atomically.

    Args:
        array: (C, H, W) or (H, W).
        crs: WKT or `EPSG:n`; None writes no georeference.
        transform: affine (a, b, c, d, e, f) from (column, row) to CRS units.
        colormap: RGB colour of each code of a uint8 band.
        band_names: description of each band.
        tags: further metadata.

    Raises:
        DataError: the array cannot be written; DiskFullError: no space.
    """
    path = Path(path)
    image = array[None] if array.ndim == 2 else array
    profile = {
        "driver": "GTiff",
        "count": image.shape[0],
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": image.dtype.name,
        "crs": crs,
        "transform": Affine(*transform) if transform is not None else None,
        "nodata": nodata,
        "compress": "deflate",
        "predictor": 3 if image.dtype.kind == "f" else 2,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "bigtiff": "if_safer",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, MemoryFile() as memory:
        with gdal_errors(path, "written"), _no_georeference_is_fine(), memory.open(**profile) as file:
            file.write(image)
            for number, name in enumerate(band_names or [], start=1):
                file.set_band_description(number, name)
            if colormap:
                file.write_colormap(1, {code: (*colour, 255) for code, colour in colormap.items()})
            if tags:
                file.update_tags(**tags)
        # GDAL writing to disk itself may lose the error of a full one while it closes the file
        temporary.write_bytes(memory.getbuffer())
    return path


@contextmanager
def _no_georeference_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
