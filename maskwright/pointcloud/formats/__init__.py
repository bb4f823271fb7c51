"""File formats of points and meshes, one module each, behind `open_points`."""

from __future__ import annotations

from pathlib import Path

from maskwright.core.errors import DataError
from maskwright.pointcloud.formats.base import MAX_POINTS, PointFile

CERTAIN = (".ply", ".pcd", ".xyz", ".pts", ".las", ".laz", ".obj", ".off", ".stl")
"""Endings that only points and meshes have."""
POSSIBLE = (".txt", ".csv", ".asc", ".npy", ".npz")
"""Endings of files that may as well hold something else."""


def open_points(path: str | Path, max_points: int = MAX_POINTS) -> PointFile:
    """A file of points or a mesh. Its header is read and checked, its points are not.

    Args:
        max_points: files that declare more are refused.

    Raises:
        DataError: no such file, another ending, or a header that is damaged or lies.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "there is no such file")
    if path.stat().st_size == 0:
        raise DataError(path, "is empty", "points")
    return _class_of(path)(path, max_points)


def _class_of(path: Path) -> type[PointFile]:
    ending = path.suffix.lower()
    if ending in (".las", ".laz"):
        from maskwright.pointcloud.formats.las import LasFile

        return LasFile
    if ending == ".ply":
        from maskwright.pointcloud.formats.ply import PlyFile

        return PlyFile
    if ending == ".pcd":
        from maskwright.pointcloud.formats.pcd import PcdFile

        return PcdFile
    if ending in (".obj", ".off", ".stl"):
        from maskwright.pointcloud.formats.meshes import MESH_FILES

        return MESH_FILES[ending]
    if ending in (".npy", ".npz"):
        from maskwright.pointcloud.formats.arrays import ArrayFile

        return ArrayFile
    if ending in (".xyz", ".pts", ".txt", ".csv", ".asc"):
        from maskwright.pointcloud.formats.text import TextFile

        return TextFile
    raise DataError(path, f'has the ending "{ending}"', f"one of {', '.join(CERTAIN + POSSIBLE)}")


def holds_points(path: Path) -> bool:
    """Whether a file says that it holds points: by its ending, by names of its columns, or by an array named points.

    A table or array that does not say so is no point cloud unless its user says it is.
    """
    ending = path.suffix.lower()
    if ending in CERTAIN:
        return True
    if ending not in POSSIBLE or ending == ".npy":
        return False
    try:
        file = open_points(path)
    except (DataError, OSError):
        return False
    return file.named
