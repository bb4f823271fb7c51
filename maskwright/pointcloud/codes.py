"""Codes of points: the classification of LAS, or a file with one for each point of a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskwright.core.array_files import map_npy
from maskwright.core.errors import DataError
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.formats.text import number_lines

ENDINGS = (".npy", ".txt", ".las", ".laz", ".ply", ".labels")
LARGEST = 2**31
Colour = tuple[int, int, int]
ASPRS: dict[int, tuple[str, Colour]] = {
    0: ("created, never classified", (160, 160, 160)),
    1: ("unclassified", (190, 190, 190)),
    2: ("ground", (166, 116, 70)),
    3: ("low vegetation", (170, 220, 120)),
    4: ("medium vegetation", (100, 180, 70)),
    5: ("high vegetation", (30, 120, 40)),
    6: ("building", (220, 70, 60)),
    7: ("low point (noise)", (255, 0, 255)),
    8: ("reserved 8", (120, 120, 120)),
    9: ("water", (60, 120, 220)),
    10: ("rail", (90, 60, 110)),
    11: ("road surface", (80, 80, 90)),
    12: ("reserved 12", (140, 140, 140)),
    13: ("wire, guard", (255, 220, 90)),
    14: ("wire, conductor", (255, 180, 0)),
    15: ("transmission tower", (120, 90, 200)),
    16: ("wire-structure connector", (200, 140, 255)),
    17: ("bridge deck", (0, 180, 180)),
    18: ("high noise", (255, 0, 120)),
    19: ("overhead structure", (0, 140, 120)),
    20: ("ignored ground", (120, 80, 50)),
    21: ("snow", (235, 245, 255)),
    22: ("temporal exclusion", (70, 70, 70)),
}
"""Standard point classes of LAS 1.4 R15, tables 9 and 17 (8 and 12 have a meaning in older formats only)."""


def legend(path: Path) -> dict[int, tuple[str, Colour]]:
    """Classes of LAS, if the codes are of a LAS file or of a folder that holds one."""
    if path.is_dir():
        las = any(file.suffix.lower() in (".las", ".laz") for file in path.rglob("*"))
        own = any(file.suffix.lower() in (".npy", ".labels") for file in path.rglob("*"))
        return dict(ASPRS) if las and not own else {}
    return dict(ASPRS) if path.suffix.lower() in (".las", ".laz") else {}


def file_for(path: Path, scan: Path, root: Path) -> Path:
    """The file of codes of a scan.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return path
    below = scan.relative_to(root)
    for stem in dict.fromkeys((below.with_suffix(""), Path(scan.stem))):
        for ending in ENDINGS:
            if (file := path / f"{stem}{ending}").is_file():
                return file
    if scan.resolve().is_relative_to(path.resolve()):
        return scan
    raise DataError(path, f"holds no codes for {scan.name}", f"{scan.stem}.npy, named like the scan")


def read_codes(file: Path, count: int) -> np.ndarray:
    """Codes of all points of a scan, (count,) int64.

    Raises:
        DataError: the file is damaged, holds another number of codes, or numbers that are none.
    """
    ending = file.suffix.lower()
    if ending == ".npy":
        values = map_npy(file)
    elif ending in (".las", ".laz", ".ply"):
        values = np.concatenate(
            [block.columns["classification"] for block in open_points(file, 2**40).blocks(["classification"])]
        )
    else:
        with file.open("rb") as stream:
            values = np.concatenate([np.empty((0, 1)), *number_lines(stream, file, 1, limit=count + 1)])[:, 0]
    if values.shape != (count,):
        raise DataError(file, f"holds codes of shape {values.shape}", f"one for each of the {count} points of its scan")
    return checked(values, file)


def checked(values: np.ndarray, path: Path) -> np.ndarray:
    """Codes as int64. Raises DataError if they are no whole numbers of 0 or more (-1 stands for none)."""
    if values.dtype.kind not in "biuf":
        raise DataError(path, f"holds codes of type {values.dtype}", "whole numbers")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise DataError(path, "holds numbers that are no codes", "whole numbers")
    if len(values) and (values.min() < -1 or values.max() > LARGEST):
        raise DataError(path, f"holds codes from {values.min()} to {values.max()}", f"-1 to {LARGEST}")
    return values.astype(np.int64)
