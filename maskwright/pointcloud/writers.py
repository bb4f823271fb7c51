"""Points back into files: PLY, LAS, LAZ, text and NumPy, with nothing of their places lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import laspy
import numpy as np
from laspy import LazBackend

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.files import atomic
from maskwright.pointcloud.cloud import COLOURS, Cloud, colour_top
from maskwright.pointcloud.crs import parsed
from maskwright.pointcloud.formats.base import PointFile
from maskwright.pointcloud.formats.las import LasFile

ENDINGS = (".ply", ".las", ".laz", ".xyz", ".txt", ".csv", ".npz")
PLY_TYPES = {
    "i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double",
}  # fmt: skip
LAS_NAMES = {"time": "gps_time"}
STEP = 0.001
"""Distance in the unit of the file to which coordinates of a new LAS file are exact."""
SIGNED = 2**31 - 1
TEXT_BLOCK = 2**16


def write_points(
    path: str | Path,
    xyz: np.ndarray,
    columns: Mapping[str, np.ndarray] | None = None,
    source: PointFile | str | Path | None = None,
    crs: str | None = None,
) -> list[str]:
    """Write points, atomically.

    PLY is binary, little endian, with coordinates in double precision. A LAS or LAZ file gets scales, offsets, reference
    system and point format of the LAS file that its points come from, so that coordinates are the very integers they
    were; columns that its point format has not are extra bytes.

    Args:
        path: ends in .ply, .las, .laz, .xyz, .txt, .csv or .npz.
        xyz: (n, 3) float64 in the units of the file.
        columns: (n,) each by name; colours of floats from 0 to 1 become integers in LAS.
        source: the LAS file that the points come from, opened or by its path.
        crs: WKT or `EPSG:n`, where the source does not say it.

    Returns:
        What the file could not hold, a sentence each.

    Raises:
        ConfigError: another ending. DataError: arrays that do not fit together, or points that LAS cannot hold.
        DiskFullError: no space.
    """
    path = Path(path)
    cloud = Cloud(np.asarray(xyz, dtype=np.float64), {name: np.asarray(v) for name, v in (columns or {}).items()})
    _check(path, cloud)
    if isinstance(source, (str, Path)):
        from maskwright.pointcloud.formats import open_points

        source = open_points(source, 2**63)
    crs = crs or (source.crs if source is not None else None)
    lost: list[str] = []
    writer = _writer(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        writer(temporary, path, cloud, source, crs, lost)
    return lost


def _check(path: Path, cloud: Cloud) -> None:
    if cloud.xyz.ndim != 2 or cloud.xyz.shape[1] != 3:
        raise DataError(path, f"was given coordinates of shape {cloud.xyz.shape}", "(n, 3)")
    if not len(cloud) or not np.isfinite(cloud.xyz).all():
        raise DataError(path, "was given no points, or some that are NaN or infinite", "finite coordinates")
    for name, values in cloud.columns.items():
        if values.shape != (len(cloud),) or values.dtype.kind not in "biuf":
            raise DataError(
                path, f'was given a column "{name}" of {values.dtype} and shape {values.shape}', f"{len(cloud)} numbers"
            )
        if not name.isprintable() or " " in name or not name or name.lower() in ("x", "y", "z"):
            raise DataError(path, f'was given a column named "{name}"', "a word, and not x, y or z")


def _writer(path: Path) -> Callable[[Path, Path, Cloud, PointFile | None, str | None, list[str]], None]:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f'{path}: points are written to {", ".join(ENDINGS)}, not to "{ending}".')
    if ending in (".las", ".laz"):
        return _las
    return {".ply": _ply, ".npz": _npz}.get(ending, _text)


def _ply(out: Path, path: Path, cloud: Cloud, source: PointFile | None, crs: str | None, lost: list[str]) -> None:
    kinds = {}
    for name, values in cloud.columns.items():
        code = np.dtype(bool).str[1:] if values.dtype.kind == "b" else values.dtype.str[1:]
        code = {"b1": "u1", "f2": "f4"}.get(code, code)
        if code not in PLY_TYPES:  # integers of 64 bits
            if (np.abs(values.astype(np.float64)) >= 2**53).any():
                lost.append(f"{name}: integers of more than 53 bits were rounded, as PLY has none of 64.")
            code = "f8"
        kinds[name] = code
    lines = ["ply", "format binary_little_endian 1.0", "comment written by maskwright"]
    lines += [f"comment crs {' '.join(crs.split())}"] if crs else []
    lines += [f"element vertex {len(cloud)}", *(f"property double {axis}" for axis in "xyz")]
    short = {"normal_x": "nx", "normal_y": "ny", "normal_z": "nz"}
    lines += [f"property {PLY_TYPES[code]} {short.get(name, name)}" for name, code in kinds.items()]
    rows = np.empty(len(cloud), [("xyz", "<f8", 3), *((name, f"<{code}") for name, code in kinds.items())])
    rows["xyz"] = cloud.xyz
    for name in kinds:
        rows[name] = cloud.columns[name]
    with out.open("wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode())
        rows.tofile(file)


def _text(out: Path, path: Path, cloud: Cloud, source: PointFile | None, crs: str | None, lost: list[str]) -> None:
    comma = path.suffix.lower() == ".csv"
    between = "," if comma else " "
    if crs:
        lost.append("The reference system, which a text file has no place for.")
    with out.open("w") as file:
        file.write(("" if comma else "# ") + between.join(["x", "y", "z", *cloud.columns]) + "\n")
        for start in range(0, len(cloud), TEXT_BLOCK):
            part = cloud.take(slice(start, start + TEXT_BLOCK))
            texts: list[Iterable[str]] = [map(repr, part.xyz[:, axis].tolist()) for axis in range(3)]
            texts += [_shortest(values) for values in part.columns.values()]
            file.writelines(between.join(row) + "\n" for row in zip(*texts, strict=True))


def _shortest(values: np.ndarray) -> Iterable[str]:
    """Each number in as few digits as bring it back exactly."""
    if values.dtype.kind != "f":
        return [str(int(value)) for value in values]
    return [
        np.format_float_positional(value, trim="0", unique=True) if values.dtype.itemsize < 8 else repr(float(value))
        for value in values
    ]


def _npz(out: Path, path: Path, cloud: Cloud, source: PointFile | None, crs: str | None, lost: list[str]) -> None:
    with out.open("wb") as file:
        arrays: dict[str, Any] = {"points": cloud.xyz, **cloud.columns} | ({"crs": np.array(crs)} if crs else {})
        np.savez_compressed(file, **arrays)


def _las(out: Path, path: Path, cloud: Cloud, source: PointFile | None, crs: str | None, lost: list[str]) -> None:
    own = source if isinstance(source, LasFile) else None
    header = _header_like(own, lost) if own is not None else _new_header(cloud, crs, lost)
    known = own.places if own is not None else {}
    places = {name: known.get(name, (LAS_NAMES.get(name, name), None)) for name in cloud.columns}
    there = set(header.point_format.dimension_names)
    for name, (dimension, _) in places.items():
        if dimension not in there:
            kind = cloud.columns[name].dtype
            kind = np.dtype(np.uint8) if kind.kind == "b" else np.dtype(np.float32) if kind == np.float16 else kind
            header.add_extra_dim(laspy.ExtraBytesParams(_las_name(path, dimension), kind))
    las = laspy.LasData(header)
    las.points = laspy.ScaleAwarePointRecord.zeros(len(cloud), header=header)
    for axis, name in enumerate("XYZ"):
        whole = np.round((cloud.xyz[:, axis] - header.offsets[axis]) / header.scales[axis])
        if np.abs(whole).max() > SIGNED:
            raise DataError(
                path,
                f"cannot hold {name.lower()} from {cloud.xyz[:, axis].min():.6g} to {cloud.xyz[:, axis].max():.6g} in steps "
                f"of {header.scales[axis]:g} about {header.offsets[axis]:g}",
                "points within 2^31 steps",
                "Write PLY, which has no such bounds",
            )
        las[name] = whole.astype(np.int32)
    if own is None:
        error = float(np.abs(np.stack([las.x, las.y, las.z], 1) - cloud.xyz).max())
        if error > STEP / 1000:  # below that it is the last digit of a double
            lost.append(f"Coordinates were rounded to steps of {STEP:g} of their unit (by {error:.2g} at most).")
    top = colour_top(cloud.columns)
    for name, (dimension, at) in places.items():
        column = cloud.columns[name]
        if header.point_format.dimension_by_name(dimension).is_standard:
            las[dimension] = _fitting(path, header, dimension, column, top, own is not None, lost)
        else:
            _put_extra(path, las, dimension, at, column)
    if own is not None and header.version.minor >= 4 and own.header.evlrs:
        las.evlrs = copy.deepcopy(own.header.evlrs)
    with out.open("wb") as file:
        las.write(file, do_compress=path.suffix.lower() == ".laz", laz_backend=LazBackend.Lazrs)


def _las_name(path: Path, name: str) -> str:
    if len(name.encode()) > 32:
        raise DataError(path, f'cannot hold a column named "{name}"', "names of up to 32 bytes")
    return name


def _put_extra(path: Path, las: laspy.LasData, name: str, at: int | None, column: np.ndarray) -> None:
    """Put a column into extra bytes; of a dimension of several numbers a point, into the one at a place.

    Raises:
        DataError: what is there afterwards is not what was given.
    """
    values = np.array(las[name])
    values[(..., at) if at is not None else ...] = column
    scales = las.header.point_format.dimension_by_name(name).scales
    try:
        las[name] = values
    except (OverflowError, ValueError) as error:
        raise DataError(path, f'cannot hold "{name}" ({error})', "smaller numbers", "Rename the column") from error
    written = np.asarray(las[name])
    written = (written if at is None else written[:, at]).astype(np.float64)
    slack = 0.0 if scales is None else float(np.max(np.abs(scales)))
    narrow = np.array(column, dtype=values.dtype) if values.dtype.kind == "f" else column
    if not (np.abs(written - narrow.astype(np.float64)) <= slack).all():
        raise DataError(
            path,
            f'cannot hold "{name}" from {column.min()} to {column.max()}',
            f"what {values.dtype} holds",
            "Rename it",
        )


def _fitting(
    path: Path, header: laspy.LasHeader, name: str, column: np.ndarray, top: float, same: bool, lost: list[str]
) -> np.ndarray:
    """A column in the type of its dimension.

    Raises:
        DataError: its numbers do not fit.
    """
    dimension = header.point_format.dimension_by_name(name)
    if dimension.kind.name == "FloatingPoint":
        return column
    if name in COLOURS and not (same and column.dtype == np.uint16):
        column = np.round(column.astype(np.float64) * (65535 / top))
    low, high = dimension.min, dimension.max
    rounded = np.round(column) if column.dtype.kind == "f" else column
    if rounded.min() < low or rounded.max() > high:
        raise DataError(
            path,
            f'cannot hold "{name}" from {rounded.min()} to {rounded.max()}',
            f"{low} to {high}",
            "Rename the column",
        )
    if column.dtype.kind == "f" and (rounded != column).any():
        lost.append(f"{name}: rounded to whole numbers, as LAS has it.")
    return rounded.astype(np.int64)


def _header_like(source: LasFile, lost: list[str]) -> laspy.LasHeader:
    """A header of the same scales, offsets, point format and records, and no points."""
    header = copy.deepcopy(source.header)
    header.vlrs = [vlr for vlr in header.vlrs if vlr.record_id != 22204 or vlr.user_id != "laszip encoded"]
    if source.header.point_format.id in (4, 5, 9, 10):
        lost.append("Wave packets: only the points' own records are kept.")
    return header


def _new_header(cloud: Cloud, crs: str | None, lost: list[str]) -> laspy.LasHeader:
    """A header of LAS 1.4 for points that come from no LAS file."""
    coloured = any(name in cloud.columns for name in COLOURS)
    header = laspy.LasHeader(version="1.4", point_format=7 if coloured else 6)
    header.scales = np.full(3, STEP)
    header.offsets = np.floor(cloud.xyz.min(0))
    header.generating_software = "maskwright"
    if crs:
        system = parsed(crs)
        if system is None:
            lost.append("The reference system, which could not be understood.")
        else:
            header.add_crs(system)
    return header


def write_las_with(path: Path, source: LasFile, columns: Mapping[str, np.ndarray]) -> None:
    """All points of a LAS or LAZ file with some columns replaced or added, block by block, atomically.

    Args:
        columns: (points of the source,) each by name; those that its point format has not become extra bytes.

    Raises:
        DataError: the source is broken, or cannot hold the columns. DiskFullError: no space.
    """
    lost: list[str] = []
    header = _header_like(source, lost)
    there = set(header.point_format.dimension_names)
    for name, values in columns.items():
        if name not in there:
            header.add_extra_dim(laspy.ExtraBytesParams(_las_name(path, name), values.dtype))
    path.parent.mkdir(parents=True, exist_ok=True)
    compress = path.suffix.lower() == ".laz"
    with atomic(path) as temporary, temporary.open("wb") as file:
        writer = laspy.LasWriter(file, header, do_compress=compress, laz_backend=LazBackend.Lazrs, closefd=False)
        first = 0
        for points in source.whole_records():
            record = laspy.ScaleAwarePointRecord.zeros(len(points), header=header)
            record.copy_fields_from(points)
            for name, values in columns.items():
                part = values[first : first + len(points)]
                standard = header.point_format.dimension_by_name(name).is_standard
                record[name] = _fitting(path, header, name, part, 1.0, True, lost) if standard else part
            writer.write_points(record)
            first += len(points)
        if header.version.minor >= 4 and source.header.evlrs:
            writer.write_evlrs(copy.deepcopy(source.header.evlrs))
        writer.close()
