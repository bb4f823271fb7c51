"""Whether two images lie on one grid, overlap, or have nothing to do with each other; and the unit of radar values."""

from __future__ import annotations

import functools
import math

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from maskwright.core.errors import DataError
from maskwright.remote_sensing.raster import Header, gdal_errors

LOWEST_POWER = 1e-6
"""Radar power below which the logarithm is cut off (-60 dB)."""

Bounds = tuple[float, float, float, float]
"""(left, bottom, right, top)."""


@functools.lru_cache(maxsize=256)
def same_crs(a: str | None, b: str | None) -> bool:
    """Whether two descriptions mean one coordinate reference system."""
    if a == b:
        return True
    return a is not None and b is not None and CRS.from_string(a) == CRS.from_string(b)


def check_overlap(optical: Header, sar: Header) -> bool:
    """Whether two images lie on one grid.

    Returns:
        True where CRS, size and transform agree within a tenth of a pixel; False where the radar must be resampled.

    Raises:
        DataError: they do not overlap, or nothing says how they lie.
    """
    with gdal_errors(sar.path):
        if same_crs(optical.crs, sar.crs) and _same_grid(optical, sar):
            return True
    if optical.crs is None or sar.crs is None:
        neither = "neither has" if optical.crs == sar.crs else "one has no"
        raise DataError(
            sar.path,
            f"and {optical.path} lie on different grids, and {neither} a coordinate reference system",
            "equal grids, or georeferenced files",
            "Set the CRS with `rio edit-info --crs EPSG:CODE`, or resample one onto the other",
        )
    theirs, ours = bounds_in(sar, optical.crs), bounds_in(optical, optical.crs)
    if not (theirs[0] < ours[2] and theirs[2] > ours[0] and theirs[1] < ours[3] and theirs[3] > ours[1]):
        raise DataError(
            sar.path,
            f"does not overlap with {optical.path}: it spans {_words(theirs)} in {optical.crs}, the other {_words(ours)}",
            "images of the same place",
            "Check the pairing",
        )
    return False


def _same_grid(a: Header, b: Header) -> bool:
    if (a.height, a.width) != (b.height, b.width):
        return False
    pixel = max(abs(a.affine.a), abs(a.affine.b), 1e-12)
    shift = np.abs(np.subtract(a.transform, b.transform))
    return bool(shift[[2, 5]].max() < pixel / 10 and shift[[0, 1, 3, 4]].max() * max(a.width, a.height) < pixel / 10)


def bounds_in(header: Header, crs: str) -> Bounds:
    """The rectangle in `crs` that holds an image.

    Raises:
        DataError: the image cannot be placed there.
    """
    corners = [(0, 0), (header.width, header.height), (header.width, 0), (0, header.height)]
    xs, ys = zip(*(header.affine * corner for corner in corners), strict=True)
    bounds = min(xs), min(ys), max(xs), max(ys)
    if not same_crs(header.crs, crs):
        with gdal_errors(header.path):
            bounds = transform_bounds(header.crs, crs, *bounds)
    if not all(math.isfinite(value) for value in bounds):
        raise DataError(header.path, f"lies at {bounds} in {crs}", "a place on the Earth", "Mend its georeference")
    return bounds


def _words(bounds: Bounds) -> str:
    left, bottom, right, top = (f"{value:.6g}" for value in bounds)
    return f"{left} to {right} and {bottom} to {top}"


def to_decibels(power: np.ndarray) -> np.ndarray:
    """Linear radar power in dB; NaN where it is not positive."""
    with np.errstate(invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(np.maximum(power, LOWEST_POWER)), np.nan).astype(np.float32)
