"""Text tables of points (XYZ, TXT, CSV, ASC, PTS), and lines of numbers as other formats have them too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import COLOURS, NORMALS, Cloud, canonical
from maskwright.pointcloud.formats.base import PointFile, check_room

HEAD_BYTES = 2**16
LINES = 2**15
"""Lines that are read at a time."""
MAX_LINE = 2**16
"""Longest line, in bytes."""
SMALLEST = 6
"""Bytes of the shortest line of three numbers."""
COMMENTS = (b"#", b"//")


class TextFile(PointFile):
    """A point a line: numbers between white space, commas or semicolons; names of the columns in a first line, or not.

    A name line may begin with # or //. Without one the first three columns are x, y and z. Three further ones are
    colours if they are whole numbers from 0 to 255, and normals if their length is 1; a single further one, or the first
    of four in a PTS file, is intensity; others are column_4, column_5 ... A PTS file begins with its number of points.
    """

    kind = "text"

    def _open(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if b"\0" in head:
            raise DataError(self.path, "is no text, it holds zero bytes", "a line of numbers for each point")
        lines = head.split(b"\n") if len(head) < HEAD_BYTES else head.split(b"\n")[:-1]
        names, self._skip, rows = self._look(lines)
        width = len(rows[0])
        if width < 3:
            raise DataError(self.path, f"has lines of {width} numbers", "x, y and z at least")
        self.named = bool(names)
        if names:
            canon = [canonical(name) for name in names]
            if not {"x", "y", "z"} <= set(canon):
                raise DataError(self.path, f"names its columns {', '.join(names)}", "x, y and z among them")
        else:
            canon = ["x", "y", "z", *_guess(rows, self.path.suffix.lower() == ".pts")]
        if len(canon) != width:
            raise DataError(self.path, f"names {len(canon)} columns but has {width}", "a name for each")
        self._names = canon
        self.columns = tuple(name for name in canon if name not in ("x", "y", "z"))
        if sum(name in ("x", "y", "z") for name in canon) != 3:
            raise DataError(self.path, "names x, y or z more than once", "one column of each name")

    def _look(self, lines: list[bytes]) -> tuple[list[str], int, list[list[str]]]:
        """Names of columns if there are any, lines before the first point, and the first points."""
        names: list[str] = []
        rows: list[list[str]] = []
        skip = 0
        self._delimiter = b""
        for at, line in enumerate(lines):
            text = line.strip().lstrip(b"\xef\xbb\xbf")
            comment = text.startswith(COMMENTS)
            bare = text.lstrip(b"#/").strip()
            if not bare or len(rows) >= 50:
                continue
            delimiter = next((mark for mark in (b",", b";") if mark in bare), b"")
            fields = [field.decode("utf-8", "replace").strip() for field in split(bare, delimiter)]
            numbers = all(map(_is_number, fields))
            if comment or (not numbers and not rows):
                if not rows and {"x", "y", "z"} <= {canonical(field) for field in fields}:
                    names = fields
                if not comment:
                    if not names:
                        shown = bare[:60].decode("utf-8", "replace")
                        raise DataError(self.path, f'begins with "{shown}"', "numbers, or names of columns")
                    skip = at + 1
                continue
            if not rows and len(fields) == 1 and fields[0].isdigit() and self.path.suffix.lower() == ".pts":
                self.count, skip = int(fields[0]), at + 1
                check_room(self.path, self.count, SMALLEST, self.path.stat().st_size + 1)
                continue
            if numbers:
                rows.append(fields)
                self._delimiter = self._delimiter or delimiter
        if not rows:
            raise DataError(self.path, "holds no line of numbers", "x, y and z of a point in each line")
        return names, skip, rows

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        with self.path.open("rb") as file:
            for _ in range(self._skip):
                file.readline(MAX_LINE)
            for values in number_lines(file, self.path, len(self._names), self._delimiter, self._skip + 1):
                place = {name: at for at, name in enumerate(self._names)}
                xyz = values[:, [place["x"], place["y"], place["z"]]]
                yield Cloud(xyz, {name: values[:, place[name]].copy() for name in columns})


def split(line: bytes, delimiter: bytes) -> list[bytes]:
    return line.split(delimiter) if delimiter else line.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _guess(rows: list[list[str]], pts: bool) -> list[str]:
    """Names of the columns behind x, y and z, by what they hold."""
    more = len(rows[0]) - 3
    whole = [row for row in rows if len(row) == len(rows[0])]
    values = np.array([[float(field) for field in row[3:]] for row in whole])
    names = [f"column_{at + 4}" for at in range(more)]
    if more == 1 or (pts and more == 4):
        names[0] = "intensity"
    if more == 3 or (pts and more == 4):
        last = values[:, -3:]
        if ((last >= 0) & (last <= 255) & (last == np.round(last))).all():
            names[-3:] = COLOURS
        elif np.allclose(np.linalg.norm(last, axis=1), 1, atol=0.02):
            names[-3:] = NORMALS
    return names


def number_lines(
    file: IO[bytes], path: Path, fields: int, delimiter: bytes = b"", first: int = 1, limit: int | None = None
) -> Iterator[np.ndarray]:
    """Lines of numbers, blank ones and comments left out: (m, fields) float64 at a time.

    Args:
        first: number of the next line, for errors.
        limit: lines of numbers to read; to the end without it.

    Raises:
        DataError: a line of another number of fields, or with a field that is no number; names the line.
    """
    left = limit
    while left is None or left > 0:
        rows: list[list[bytes]] = []
        numbers: list[int] = []
        while len(rows) < (LINES if left is None else min(LINES, left)):
            line = file.readline(MAX_LINE)
            if not line:
                break
            if len(line) == MAX_LINE:
                raise DataError(f"{path}, line {first}", f"is longer than {MAX_LINE} bytes", "a point a line")
            text = line.strip().removeprefix(b"\xef\xbb\xbf")
            if text and not text.startswith(COMMENTS):
                rows.append(split(text, delimiter))
                numbers.append(first)
            first += 1
        if not rows:
            return
        for row, at in zip(rows, numbers, strict=True):
            if len(row) != fields:
                raise DataError(f"{path}, line {at}", f"has {len(row)} fields", f"{fields}", "Mend or remove this line")
        yield _numbers(rows, numbers, path)
        left = None if left is None else left - len(rows)


def _numbers(rows: list[list[bytes]], lines: list[int], path: Path) -> np.ndarray:
    try:
        values = np.array([[float(field) for field in row] for row in rows], dtype=np.float64)
    except ValueError:
        values = None
    if values is not None and not any(b"_" in field for row in rows for field in row):
        return values
    for row, at in zip(rows, lines, strict=True):
        for field in row:
            if not _is_number(field.decode("utf-8", "replace")):
                shown = field[:40].decode("utf-8", "replace")
                raise DataError(f"{path}, line {at}", f'holds "{shown}"', "a number", "Mend or remove this line")
    raise DataError(path, "holds a line that is no line of numbers")
