"""A scan cut into square columns, in the user's cache folder: its points ordered by tile, read tile by tile from there.

A scan is streamed twice and never held as a whole: first its points are counted by tile, then each is put in its place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.files import DiskFullError, user_folder, whole_folder
from maskwright.pointcloud.cloud import Cloud, colour_top
from maskwright.pointcloud.formats.base import PointFile

IN_USE = 24 * 3600
"""Seconds since its last use after which a scan's tiles may make room for another's."""
MAX_TILES = 2_000_000
FARTHEST = 2**30
"""Tiles from the origin that still have a number."""
VERSION = 1


@dataclass(frozen=True)
class Tiles:
    """Tiles of one scan, in order of row and column.

    Args:
        folder: where `points.npy` and `tiles.npy` are.
        index: (t, 4) int64: column and row on a grid through the origin, first point, number of points.
        columns: names of the columns that are kept.
        top: number of full colour.
    """

    folder: Path
    index: np.ndarray
    columns: tuple[str, ...]
    top: float

    def points(self, tile: int, which: np.ndarray | slice = slice(None)) -> tuple[Cloud, np.ndarray]:
        """Points of a tile, in the order of the scan, and their numbers in the scan (n,).

        Raises:
            DataError: the cache was damaged or removed in the meantime.
        """
        path = self.folder / "points.npy"
        try:
            if time.time() - self.folder.stat().st_mtime > IN_USE / 24:
                os.utime(self.folder)
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if len(mapped) != self.index[:, 3].sum():
                raise ValueError("it holds another number of points")
        except (OSError, ValueError) as error:
            raise DataError(
                path, f"is not what was written there ({error})", mend="Remove it and start again"
            ) from error
        _, _, first, count = self.index[tile]
        rows = np.array(mapped[first : first + count][which])
        columns = {name: rows[f"c_{name}"].copy() for name in self.columns}
        return Cloud(rows["xyz"].copy(), columns), rows["number"].copy()


def cut(file: PointFile, side: float, columns: Sequence[str], limit: float, folder: Path | None = None) -> Tiles:
    """Tiles of a scan, made now or before.

    Args:
        side: of a tile, in the units of the file.
        columns: columns that are kept beside the coordinates.
        limit: gigabytes that all tiles in the cache may take.
        folder: where to put them instead of the user's cache.

    Raises:
        DataError: the scan is damaged, or would fall into far too many tiles.
        ConfigError: it does not fit into the cache. DiskFullError: no space.
    """
    columns = tuple(columns)
    root = folder or user_folder() / "scans"
    place = root / _key(file.path, side, columns)
    if (known := _opened(place, columns)) is not None:
        os.utime(place)
        return known
    index, highest, kinds = _survey(file, side, columns)
    dtype = np.dtype([("xyz", "<f8", (3,)), ("number", "<i8"), *((f"c_{name}", kinds[name]) for name in columns)])
    size = int(index[:, 3].sum()) * dtype.itemsize
    root.mkdir(parents=True, exist_ok=True)
    if folder is None and not _make_room(root, size, limit * 1e9):
        raise ConfigError(
            f"The tiles of {file.path} take {size / 1e9:.2f} GB, and the cache in {root} may take {limit:g}. "
            f"Raise data.cache, or set MASKWRIGHT_CACHE to a larger disk."
        )
    if shutil.disk_usage(root).free < size * 1.05:
        raise DiskFullError(
            f"{root}: the tiles of {file.path} take {size / 1e9:.2f} GB, and "
            f"{shutil.disk_usage(root).free / 1e9:.2f} GB of disk are free. Free some space, or set MASKWRIGHT_CACHE."
        )
    try:
        with whole_folder(place) as temporary:
            _fill(file, side, columns, index, dtype, temporary / "points.npy")
            np.save(temporary / "tiles.npy", index)
            said = {
                "version": VERSION,
                "file": str(file.path.resolve()),
                "columns": columns,
                "top": colour_top(highest),
            }
            (temporary / "scan.json").write_text(json.dumps(said))
    except (OSError, ConfigError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DiskFullError(f"{root}: the disk got full with tiles of {file.path}. Free some space.") from error
        if _opened(place, columns) is None:  # else another process was faster
            raise
    made = _opened(place, columns)
    assert made is not None
    return made


def _survey(
    file: PointFile, side: float, columns: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.dtype]]:
    """Tiles with their numbers of points, the highest value of each column, and the type of each."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    highest: dict[str, np.ndarray] = {}
    for block in file.blocks(columns):
        found, there = np.unique(_keys_of(block.xyz, side, file.path), return_counts=True)
        keys, which = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(which, np.concatenate([counts, there]), len(keys)).astype(np.int64)
        if len(keys) > MAX_TILES:
            raise DataError(
                file.path, f"falls into more than {MAX_TILES} tiles", "far fewer", "Raise data.tile, or remove outliers"
            )
        for name, values in block.columns.items():
            before = highest.get(name, values[:1])
            highest[name] = np.array([max(before[0], values.max())], dtype=values.dtype)
    places = np.column_stack([keys % (2 * FARTHEST) - FARTHEST, keys // (2 * FARTHEST) - FARTHEST])
    index = np.column_stack([places, np.cumsum(counts) - counts, counts])
    return index, highest, {name: column.dtype for name, column in highest.items()}


def _keys_of(xyz: np.ndarray, side: float, path: Path) -> np.ndarray:
    """Number of the tile of each point, (n,) int64, rising with its row and then its column."""
    tiles = np.floor(xyz[:, :2] / side)
    if np.abs(tiles).max() >= FARTHEST:
        raise DataError(path, f"has points {np.abs(xyz[:, :2]).max():.3g} from the origin", "sensible coordinates")
    column, row = tiles.astype(np.int64).T
    return (row + FARTHEST) * (2 * FARTHEST) + column + FARTHEST


def _fill(file: PointFile, side: float, columns: Sequence[str], index: np.ndarray, dtype: np.dtype, out: Path) -> None:
    """Put each point behind those of its tile that came before it.

    Written rather than mapped, so that what was written does not count as memory of this process.
    """
    total = int(index[:, 3].sum())
    np.lib.format.open_memmap(out, "w+", dtype, (total,)).flush()
    start = out.stat().st_size - total * dtype.itemsize
    known = (index[:, 1] + FARTHEST) * (2 * FARTHEST) + index[:, 0] + FARTHEST
    free, ends = index[:, 2].copy(), index[:, 2] + index[:, 3]
    changed = DataError(file.path, "was changed while it was read", mend="Start again with the file as it is now")
    seen = 0
    with out.open("r+b", buffering=0) as stream:
        for block in file.blocks(columns):
            keys = _keys_of(block.xyz, side, file.path)
            order = np.argsort(keys, kind="stable")
            found, firsts, counts = np.unique(keys[order], return_index=True, return_counts=True)
            tiles = np.minimum(np.searchsorted(known, found), len(known) - 1)
            if (known[tiles] != found).any() or (free[tiles] + counts > ends[tiles]).any():
                raise changed
            rows = np.empty(len(block), dtype)
            rows["xyz"], rows["number"] = block.xyz, np.arange(seen, seen + len(block))
            for name in columns:
                rows[f"c_{name}"] = block.columns[name]
            data = memoryview(rows[order].view(np.uint8).data)
            for tile, first, count in zip(tiles.tolist(), firsts.tolist(), counts.tolist(), strict=True):
                piece = data[first * dtype.itemsize : (first + count) * dtype.itemsize]
                stream.seek(start + int(free[tile]) * dtype.itemsize)
                if stream.write(piece) != len(piece):  # a disk that gets full in the middle
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            free[tiles] += counts
            seen += len(block)
    if (free != ends).any():
        raise changed


def _key(path: Path, side: float, columns: Sequence[str]) -> str:
    status = path.stat()
    said = [VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns, float(side), *columns]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]


def _opened(place: Path, columns: tuple[str, ...]) -> Tiles | None:
    """Tiles that are there already and whole; a damaged copy is removed."""
    if not place.is_dir() or not any(place.iterdir()):
        return None
    try:
        said = json.loads((place / "scan.json").read_text())
        index = np.load(place / "tiles.npy", allow_pickle=False)
        points = np.load(place / "points.npy", mmap_mode="r", allow_pickle=False)
        fits = index.ndim == 2 and index.shape[1] == 4 and len(index) > 0 and len(points) == index[:, 3].sum()
        if fits and said["version"] == VERSION and tuple(said["columns"]) == columns:
            return Tiles(place, index, columns, float(said["top"]))
    except (OSError, ValueError, KeyError, EOFError):
        pass
    shutil.rmtree(place, ignore_errors=True)
    return None


def _make_room(root: Path, size: int, limit: float) -> bool:
    """Whether `size` bytes may be added; removes tiles of scans that were not used of late."""
    kept = []
    for place in root.iterdir():
        try:
            kept.append((place.stat().st_mtime, sum(file.stat().st_size for file in place.iterdir()), place))
        except (FileNotFoundError, NotADirectoryError):  # another process made room
            continue
    total = sum(bytes_ for _, bytes_, _ in kept)
    for used, bytes_, place in sorted(kept):
        if total + size <= limit or time.time() - used < IN_USE:
            break
        shutil.rmtree(place, ignore_errors=True)
        total -= bytes_
    return total + size <= limit
