"""Writing rasters that lie where their data lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskwright.core.scene import MapFormat
from maskwright.remote_sensing.scenes import write_map


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
    height, width = image.shape[1:]
    names = tuple(band_names) if band_names is not None else ("",) * len(image)
    form = MapFormat(image.dtype.name, names, nodata, colormap or {}, tags=tags or {})
    with write_map(path, (height, width), crs, transform, form) as file:
        file.write((slice(0, height), slice(0, width)), image)
    return path
