"""PLY: text, and binary of either byte order (Turk, "The PLY Polygon File Format", 1994)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import Cloud, canonical
from maskwright.pointcloud.formats.base import BLOCK, PointFile, as_type, check_room
from maskwright.pointcloud.formats.text import number_lines
from maskwright.pointcloud.mesh import Mesh, fan

HEADER_BYTES = 2**16
MAX_CORNERS = 1000
"""Corners that a polygon may have."""
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
CORNERS = ("vertex_indices", "vertex_index")


@dataclass
class Property:
    """A property; `count` is the type of a list's length."""

    name: str
    type: str
    count: str = ""


@dataclass
class Element:
    """`count` times the properties."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def lists(self) -> list[str]:
        return [one.name for one in self.properties if one.count]

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(f"p{at}", order + one.type) for at, one in enumerate(self.properties)])

    def smallest(self, text: bool) -> int:
        """Bytes that one of it takes at least."""
        return sum(2 if text else np.dtype(one.count or one.type).itemsize for one in self.properties)


class PlyFile(PointFile):
    """Vertices are points; faces make a mesh of them."""

    kind = "PLY"

    def _open(self) -> None:
        with self.path.open("rb") as file:
            self._read_header(file)
            self._start = file.tell()
        there = self.path.stat().st_size - self._start + self._text  # a last line may end without an end of line
        names = [element.name for element in self._elements]
        if "vertex" not in names:
            raise DataError(self.path, "has no element vertex", "a PLY file of points")
        if len(set(names)) < len(names):
            raise DataError(self.path, "names an element twice", "each once")
        at = names.index("vertex")
        vertex = self._vertex = self._elements[at]
        for element in self._elements:
            if element.properties and element.smallest(self._text):
                check_room(self.path, element.count, element.smallest(self._text), there, f"of element {element.name}")
            elif element.count:
                raise DataError(self.path, f"has an element {element.name} without properties", "some")
        for element in self._elements[: at + 1]:
            if element.lists:
                raise DataError(
                    self.path,
                    f"has lists ({', '.join(element.lists)}) in its element {element.name}",
                    "lists in faces only, and those behind the vertices",
                )
        if vertex.count == 0:
            raise DataError(self.path, "holds no points", "at least two")
        total = sum(element.count * element.smallest(self._text) for element in self._elements)
        check_room(self.path, 1, total, there, f"file of {total} bytes or more")
        self._names = [canonical(one.name) for one in vertex.properties]
        if sorted(name for name in self._names if name in ("x", "y", "z")) != ["x", "y", "z"]:
            raise DataError(self.path, f"has vertices of {', '.join(self._names)}", "x, y and z, each once")
        self.count = vertex.count
        self.columns = tuple(name for name in self._names if name not in ("x", "y", "z"))
        self.faces = next((one.count for one in self._elements if one.name == "face"), 0)

    def _read_header(self, file: IO[bytes]) -> None:
        if file.readline(8).strip() != b"ply":
            raise DataError(self.path, 'does not begin with "ply"', "a PLY file")
        form, self._elements = "", []
        while True:
            if file.tell() > HEADER_BYTES:
                raise DataError(self.path, f"has no end_header in its first {HEADER_BYTES} bytes", "a PLY header")
            raw = file.readline(HEADER_BYTES)
            if not raw.endswith(b"\n"):
                raise DataError(self.path, "has a header without end", "a line end_header")
            words = raw.decode("utf-8", "replace").split()
            match words:
                case ["format", form, "1.0"] if form in ORDERS:
                    pass
                case ["element", name, count] if count.isascii() and count.isdigit():
                    self._elements.append(Element(name, int(count)))
                case ["property", "list", count, kind, name] if count in TYPES and kind in TYPES and self._elements:
                    if TYPES[count][0] == "f":
                        raise DataError(self.path, f'counts its list "{name}" in {count}', "whole numbers")
                    self._elements[-1].properties.append(Property(name, TYPES[kind], TYPES[count]))
                case ["property", kind, name] if kind in TYPES and self._elements:
                    self._elements[-1].properties.append(Property(name, TYPES[kind]))
                case ["comment", "crs", *_]:
                    self.crs = raw.decode("utf-8", "replace").split("crs", 1)[1].strip() or None
                case ["comment" | "obj_info", *_] | []:
                    pass
                case ["end_header"]:
                    break
                case _:
                    raise DataError(self.path, f'has a header line "{" ".join(words)[:80]}"', "one that PLY knows")
        if not form:
            raise DataError(self.path, "names no format", f"one of {', '.join(ORDERS)}, version 1.0")
        self._text, self._order = form == "ascii", ORDERS[form]

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        with self.path.open("rb") as file:
            self._to_vertices(file)
            yield from self._vertices(file, columns)
            behind = self._elements[self._elements.index(self._vertex) + 1 :]
            if not any(element.count for element in behind):
                self._check_end(file)

    def _to_vertices(self, file: IO[bytes]) -> None:
        file.seek(self._start)
        for element in self._elements[: self._elements.index(self._vertex)]:
            if self._text:
                for _ in number_lines(file, self.path, len(element.properties), limit=element.count):
                    pass
            else:
                file.seek(element.count * element.dtype(self._order).itemsize, 1)

    def _vertices(self, file: IO[bytes], columns: Collection[str]) -> Iterator[Cloud]:
        vertex = self._vertex
        place = {name: at for at, name in enumerate(self._names)}
        kinds = {name: np.dtype(one.type) for name, one in zip(self._names, vertex.properties, strict=True)}
        if self._text:
            for values in number_lines(file, self.path, len(self._names), limit=vertex.count):
                xyz = values[:, [place[axis] for axis in "xyz"]]
                yield Cloud(
                    xyz, {name: as_type(self.path, name, values[:, place[name]], kinds[name]) for name in columns}
                )
            return
        dtype, left = vertex.dtype(self._order), vertex.count
        while left:
            data = file.read(min(left, BLOCK) * dtype.itemsize)
            rows = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
            if not len(rows):
                return  # the count is compared by whoever reads
            xyz = np.stack([rows[f"p{place[axis]}"].astype(np.float64) for axis in "xyz"], 1)
            yield Cloud(xyz, {name: rows[f"p{place[name]}"].astype(kinds[name]) for name in columns})
            left -= len(rows)

    def _check_end(self, file: IO[bytes]) -> None:
        """Raise DataError if more is there than the header declares."""
        rest = file.read(BLOCK)
        if rest.strip() if self._text else rest.strip(b"\r\n"):
            raise DataError(self.path, "goes on behind what its header declares", mend="Get the file again")

    def _mesh(self) -> Mesh:
        face = next(element for element in self._elements if element.name == "face")
        corners = next((at for at, one in enumerate(face.properties) if one.count and one.name in CORNERS), None)
        if corners is None:
            raise DataError(self.path, "has faces without a list vertex_indices", "one", "Set data.surface=false")
        order = self._elements.index(face)
        if order < self._elements.index(self._vertex):
            raise DataError(self.path, "has its faces before its vertices", "vertices first")
        with self.path.open("rb") as file:
            self._to_vertices(file)
            blocks = list(self._vertices(file, self.columns or ()))
            seen = sum(map(len, blocks))
            if seen != self.count:
                raise DataError(self.path, f"declares {self.count} vertices but holds {seen}")
            for element in self._elements[self._elements.index(self._vertex) + 1 : order]:
                read_lists(file, element, self._text, self._order, 0)
            faces = read_lists(file, face, self._text, self._order, corners)
            for element in self._elements[order + 1 :]:
                read_lists(file, element, self._text, self._order, 0)
            self._check_end(file)
        columns = {name: np.concatenate([block.columns[name] for block in blocks]) for name in self.columns or ()}
        return Mesh(np.concatenate([block.xyz for block in blocks]), faces, columns)


def read_lists(file: IO[bytes], element: Element, text: bool, order: str, chosen: int) -> np.ndarray:
    """All of an element, and of one list in it the triangles that its polygons are made of, (f, 3) int64.

    Raises:
        ValueError: the file ends before, or a list has too many entries.
    """
    if not text and (triangles := _all_triangles(file, element, order, chosen)) is not None:
        return triangles
    polygons: list[list[int]] = []
    for _ in range(element.count):
        words = file.readline(HEADER_BYTES).split() if text else None
        at = 0
        for number, one in enumerate(element.properties):
            if words is not None:
                count = int(words[at]) if one.count else 1
                at += bool(one.count)
                values = [float(word) for word in words[at : at + count]]
                at += count
            else:
                count = int(_take(file, order + one.count, 1)[0]) if one.count else 1
                _check_corners(count)
                values = _take(file, order + one.type, count).tolist()
            if count != len(values):
                raise ValueError(f"its element {element.name} ends in the middle")
            _check_corners(count)
            if number == chosen and one.count:
                polygons.append([int(value) for value in values])
        if words is not None and at != len(words):
            raise ValueError(f"a line of its element {element.name} has {len(words)} numbers, not {at}")
    return fan(polygons)


def _check_corners(count: int) -> None:
    if not 0 <= count <= MAX_CORNERS:
        raise ValueError(f"a list of it has {count} entries, more than {MAX_CORNERS}")


def _take(file: IO[bytes], dtype: str, count: int) -> np.ndarray:
    kind = np.dtype(dtype)
    data = file.read(count * kind.itemsize)
    if len(data) < count * kind.itemsize:
        raise ValueError("it ends in the middle of a list")
    return np.frombuffer(data, kind)


def _all_triangles(file: IO[bytes], element: Element, order: str, chosen: int) -> np.ndarray | None:
    """The usual case at once: one list, of three corners each. None, with the file where it was, if that is not so."""
    fields: list[tuple] = []
    for at, one in enumerate(element.properties):
        if one.count:
            if at != chosen:
                return None
            fields.append((f"n{at}", order + one.count))
        fields.append((f"p{at}", order + one.type, (3,)) if one.count else (f"p{at}", order + one.type))
    if not element.lists:
        file.seek(element.count * np.dtype(fields).itemsize, 1)
        return np.empty((0, 3), np.int64)
    start, dtype = file.tell(), np.dtype(fields)
    data = file.read(element.count * dtype.itemsize)
    if len(data) == element.count * dtype.itemsize:
        rows = np.frombuffer(data, dtype)
        if (rows[f"n{chosen}"] == 3).all():
            return rows[f"p{chosen}"].astype(np.int64)
    file.seek(start)
    return None
