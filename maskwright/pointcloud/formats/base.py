"""What all files of points share: blocks, declared counts against read ones, numbers that are no numbers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from maskwright.core.errors import DataError, MaskwrightError
from maskwright.pointcloud.cloud import Cloud, join
from maskwright.pointcloud.mesh import Mesh

BLOCK = 2**18
"""Points that are read at a time."""
MAX_POINTS = 50_000_000
"""Points of a file that is read as a whole."""


class PointFile(ABC):
    """A file whose header was read and checked.

    Args:
        path: the file.
        max_points: files that declare more points or faces are refused.

    Raises:
        DataError: a header that is damaged, or that declares what the file has no room for.
    """

    kind: ClassVar[str]
    """Name of the format, for people."""
    count: int | None = None
    """Points (of a mesh vertices) that the header declares; None if the format does not say."""
    columns: tuple[str, ...] | None = ()
    """Columns besides x, y and z; None if they are known only when the file is read."""
    crs: str | None = None
    """Coordinate reference system as WKT or `EPSG:n`."""
    faces: int | None = 0
    """Faces that the header declares; None if the format does not say."""
    named: bool = True
    """Whether the file itself names its coordinates."""

    def __init__(self, path: Path, max_points: int = MAX_POINTS) -> None:
        self.path, self.max_points = path, max_points
        with reading(path, self.kind):
            self._open()
        if self.count is not None and self.count > max_points:
            raise DataError(
                path,
                f"declares {self.count} points",
                f"at most {max_points}",
                "Cut it into tiles, or raise data.max_points",
            )
        if self.count == 0:
            raise DataError(path, "holds no points", "at least two")
        if self.columns and len(set(self.columns)) < len(self.columns):
            twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
            raise DataError(path, f"names {', '.join(twice)} more than once", "one column of each name")

    @abstractmethod
    def _open(self) -> None:
        """Read the header: set `count`, `columns`, `crs`, `faces`, and check the declared size against the file's."""

    @abstractmethod
    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        """Points in the order of the file, up to about `BLOCK` at a time, with the columns that are asked for."""

    def _mesh(self) -> Mesh | None:
        return None

    def blocks(self, columns: Collection[str] = ()) -> Iterator[Cloud]:
        """Points block by block, in the order of the file.

        Raises:
            DataError: the file is damaged, ends too early, has no such column, or holds NaN or infinite numbers.
        """
        self.require(columns)
        seen = 0
        source = guarded(self.path, self.kind, self._blocks(columns))
        for block in source:
            seen += len(block)
            limit = self.max_points if self.count is None else self.count
            if seen > limit:
                self._refuse_count(f"more than {limit}" if self.count is None else f"{seen} or more")
            if bad := block.not_finite():
                bad += sum(later.not_finite() for later in source)
                raise DataError(
                    self.path,
                    f"{bad} of its points have a coordinate or column that is NaN or infinite",
                    "finite numbers",
                    "Remove these points",
                )
            yield block
        if seen == 0:
            raise DataError(self.path, "holds no points", "at least two")
        if self.count is not None and seen != self.count:
            self._refuse_count(str(seen))

    def _refuse_count(self, read: str) -> None:
        if self.count is None:
            raise DataError(
                self.path, f"holds {read} points", f"at most {self.max_points}", "Cut it, or raise data.max_points"
            )
        raise DataError(self.path, f"declares {self.count} points but holds {read}", mend="Get the file again")

    def read(self, columns: Collection[str] = ()) -> Cloud:
        """All points. Raises as `blocks`."""
        return join(list(self.blocks(columns)))

    def mesh(self) -> Mesh | None:
        """Vertices and triangles, None of a file that holds only points.

        Raises:
            DataError: the file is damaged, or its faces name vertices that are not there.
        """
        if self.faces == 0:
            return None
        with reading(self.path, self.kind):
            mesh = self._mesh()
        if mesh is not None:
            mesh.check(self.path)
        return mesh

    def require(self, columns: Collection[str]) -> None:
        """Raise DataError if the file has not all of these columns."""
        if self.columns is not None:
            refuse_missing(self.path, columns, self.columns)


def refuse_missing(path: Path, wanted: Collection[str], there: Collection[str]) -> None:
    """Raise DataError if a wanted column is not there."""
    missing = [name for name in wanted if name not in there]
    if missing:
        has = f"it has {', '.join(there)}" if there else "it has x, y and z alone"
        raise DataError(path, f"has no column {', '.join(missing)}; {has}", mend="Choose others with data.features")


def check_room(path: Path, declared: int, smallest: float, there: int, what: str = "points") -> None:
    """Raise DataError if a header declares more than a file can hold, before anything is made for it.

    Args:
        smallest: bytes that each takes at least.
        there: bytes that there are.
    """
    if declared < 0:
        raise DataError(path, f"declares {declared} {what}", "a number of 0 or more", "Get the file again")
    room = int(max(there, 0) / smallest)
    if declared > room:
        raise DataError(
            path,
            f"declares {declared} {what}",
            f"at most {room}, for which the {max(there, 0)} bytes behind its header have room",
            "It was cut short or damaged: get it again",
        )


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises into a DataError of the file."""
    try:
        yield
    except (MaskwrightError, MemoryError):
        raise
    except Exception as error:
        raise _refusal(path, kind, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a library in Rust reports a fault of its own
            raise
        raise _refusal(path, kind, error) from error


def guarded(path: Path, kind: str, blocks: Iterator[Cloud]) -> Iterator[Cloud]:
    """Blocks, with whatever their reader raises turned into a DataError of the file."""
    while True:
        with reading(path, kind):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def _refusal(path: Path, kind: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(path, f"cannot be read ({reason})", f"a sound {kind} file", "Get the file again")


def as_type(path: Path, name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers of a text as the type that a header names.

    Raises:
        DataError: an integer type, and a number that is no integer or beyond its range.
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = np.isfinite(values) & (values == np.floor(values)) & (values >= limits.min) & (values <= limits.max)
        if not fits.all():
            raise DataError(path, f'column "{name}" holds {values[~fits][0]}', f"whole numbers of type {dtype}")
    with np.errstate(over="ignore"):
        return values.astype(dtype)
