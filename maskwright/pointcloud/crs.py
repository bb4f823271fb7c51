"""Coordinate reference systems: what a LAS file says, and how long its unit is."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwright.core.errors import DataError

if TYPE_CHECKING:
    import laspy

WKT_RECORD, GEO_KEYS_RECORD = 2112, 34735
PROJECTED_KEY, GEOGRAPHIC_KEY, USER_DEFINED = 3072, 2048, 32767


@dataclass(frozen=True)
class Unit:
    """Unit of coordinates.

    Args:
        name: such as metre or US survey foot; "unknown" if nothing says it.
        metres: its length, 1 if it is unknown; 0 for angles.
    """

    name: str
    metres: float


def las_crs(header: laspy.LasHeader) -> str | None:
    """WKT of a LAS header, or `EPSG:n` of its GeoTIFF keys, None if it says nothing."""
    records = [*header.vlrs, *(header.evlrs or [])]
    for record in records:
        if record.user_id == "LASF_Projection" and record.record_id == WKT_RECORD:
            text = getattr(record, "string", "").strip("\0").strip()
            if text:
                return text
    for record in records:
        if record.user_id == "LASF_Projection" and record.record_id == GEO_KEYS_RECORD:
            keys = {key.id: key.value_offset for key in record.geo_keys if key.tiff_tag_location == 0}
            for key in (PROJECTED_KEY, GEOGRAPHIC_KEY):
                if keys.get(key, USER_DEFINED) not in (0, USER_DEFINED):
                    return f"EPSG:{keys[key]}"
    return None


@functools.lru_cache(maxsize=64)
def parsed(crs: str) -> Any:
    """The system as pyproj has it, None if it cannot be understood."""
    import pyproj

    try:
        return pyproj.CRS.from_user_input(crs)
    except (pyproj.exceptions.CRSError, UnicodeError, ValueError):
        return None


def unit_of(crs: str | None) -> Unit:
    """Unit of the first axis of a reference system."""
    system = parsed(crs) if crs else None
    if system is None or not system.axis_info:
        return Unit("unknown", 1.0)
    axis = system.axis_info[0]
    if system.is_geographic:
        return Unit(axis.unit_name, 0.0)
    length = axis.unit_conversion_factor
    return Unit(axis.unit_name, length if math.isfinite(length) and length > 0 else 1.0)


def in_units(metres: float, crs: str | None, path: object, option: str) -> float:
    """A length in the units of a file.

    Raises:
        DataError: the file is in degrees.
    """
    unit = unit_of(crs)
    if unit.metres == 0:
        raise DataError(
            path, f"has coordinates in {unit.name}s, and {option} is in metres", "a projected system", "Reproject it"
        )
    return metres / unit.metres


def same_system(first: str | None, second: str | None) -> bool:
    """Whether two systems are one, however they are written."""
    if first == second:
        return True
    if not first or not second:
        return False
    one, other = parsed(first), parsed(second)
    return one is not None and other is not None and one.equals(other)


def to_lonlat(crs: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude (WGS 84) in degrees of places (n,) in a system; NaN where they are unknown."""
    import pyproj

    unknown = np.full(len(x), np.nan)
    if parsed(crs) is None:
        return unknown, unknown.copy()
    try:
        change = pyproj.Transformer.from_crs(parsed(crs), "EPSG:4326", always_xy=True)
        longitude, latitude = change.transform(np.asarray(x, float), np.asarray(y, float))
    except pyproj.exceptions.ProjError:
        return unknown, unknown.copy()
    fine = np.isfinite(longitude) & np.isfinite(latitude)
    return np.where(fine, longitude, np.nan), np.where(fine, latitude, np.nan)
