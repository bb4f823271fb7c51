"""Rows about files of points, for `maskwright inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import COLOURS, duplicates
from maskwright.pointcloud.crs import unit_of
from maskwright.pointcloud.formats import CERTAIN, POSSIBLE, holds_points, open_points
from maskwright.pointcloud.formats.base import MAX_POINTS, PointFile


def inspect_points(path: str | Path) -> list[dict[str, Any]]:
    """A row a file; one with `problem` cannot be used. Files are read as a whole, up to `MAX_POINTS` points."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    rows = []
    for file in files:
        hidden = path.is_dir() and any(part.startswith(".") for part in file.relative_to(path).parts)
        ending = file.suffix.lower()
        if hidden or ending not in CERTAIN + POSSIBLE or not (path.is_file() or holds_points(file)):
            continue
        try:
            rows.append(_row(file))
        except DataError as error:
            rows.append({"file": str(file), "problem": str(error).removeprefix(f"{error.path}: ")})
    return rows


def _row(path: Path) -> dict[str, Any]:
    file = open_points(path, 2**63)
    row: dict[str, Any] = {"file": str(path), "format": file.kind}
    if file.count is not None and file.count > MAX_POINTS:
        row |= {"points": file.count, "columns": list(file.columns or ()), "remark": "not read: for the loader scans"}
        return row | _system(file)
    mesh = file.mesh()
    cloud = file.read(file.columns or ())
    low, high = cloud.xyz.min(0), cloud.xyz.max(0)
    row |= {
        "points" if mesh is None or not len(mesh.faces) else "vertices": len(cloud),
        "extent": [float(f"{size:.6g}") for size in high - low],
        "from": [float(f"{value:.9g}") for value in low],
        "columns": list(file.columns or (mesh.columns if mesh is not None else ())),
        "duplicates": duplicates(cloud.xyz),
    }
    if mesh is not None and len(mesh.faces):
        row["triangles"] = len(mesh.faces)
    metres = unit_of(file.crs).metres
    area = float(np.prod(high[:2] - low[:2])) * metres**2
    if file.crs and area > 0:
        row["points per m2"] = float(f"{len(cloud) / area:.3g}")
    row |= _system(file)
    if len(cloud) < 2 or not (high > low).any():
        row["problem"] = f"has all of {len(cloud)} points at one place"
    highest = [
        int(cloud.columns[name].max())
        for name in COLOURS
        if name in cloud.columns and cloud.columns[name].dtype == np.uint16
    ]
    if highest and max(highest) <= 255:
        row["remark"] = "colours of 8 bits in fields of 16: taken as 0 to 255"
    return row


def _system(file: PointFile) -> dict[str, Any]:
    from maskwright.pointcloud.base import system_name

    return {"reference system": system_name(file.crs) if file.crs else "not said", "unit": unit_of(file.crs).name}
