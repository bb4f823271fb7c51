"""Meshes: OBJ (Wavefront), OFF (Geomview) and STL (3D Systems), as far as points and surfaces go."""

from __future__ import annotations

import itertools
import struct
from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import IO

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import COLOURS, Cloud
from maskwright.pointcloud.formats.base import PointFile, check_room, refuse_missing
from maskwright.pointcloud.formats.text import MAX_LINE, number_lines
from maskwright.pointcloud.mesh import Mesh, fan

MAX_CORNERS = 1000


class MeshFile(PointFile):
    """A mesh that is read as a whole; its points are its vertices."""

    columns: tuple[str, ...] | None = None
    faces: int | None = None

    def _open(self) -> None:
        pass

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        mesh = self._mesh()
        refuse_missing(self.path, columns, tuple(mesh.columns))
        yield Cloud(mesh.vertices, {name: mesh.columns[name] for name in columns})

    @abstractmethod
    def _mesh(self) -> Mesh:
        """The mesh, with what is declared compared with what is there."""

    def _refuse(self, found: str, expected: str) -> DataError:
        return DataError(self.path, found, expected, "Get the file again")


class ObjFile(MeshFile):
    """`v` lines and `f` lines; polygons are cut into triangles, colours behind a vertex are kept, materials are not."""

    kind = "OBJ"

    def _mesh(self) -> Mesh:
        vertices: list[list[float]] = []
        polygons: list[list[int]] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                words = line.split()
                if not words:
                    continue
                if words[0] == b"v":
                    vertices.append([float(word) for word in words[1:]])
                    if len(vertices[-1]) not in (3, 4, 6, 7):
                        raise self._refuse(f"line {number} has a vertex of {len(words) - 1} numbers", "3, 4 or 6")
                elif words[0] == b"f":
                    polygons.append([_corner(word, len(vertices)) for word in words[1:]])
                    if not 3 <= len(words) - 1 <= MAX_CORNERS:
                        raise self._refuse(f"line {number} has a face of {len(words) - 1} corners", "3 or more")
        if not vertices:
            raise self._refuse("holds no vertices", "lines that begin with v")
        if len(vertices) > self.max_points or len(polygons) > self.max_points:
            raise self._refuse(f"holds more than {self.max_points} vertices or faces", "fewer")
        widths = set(map(len, vertices))
        if len(widths) > 1:
            raise self._refuse(f"has vertices of {' and of '.join(map(str, sorted(widths)))} numbers", "one kind")
        values = np.array(vertices, dtype=np.float64)
        columns = dict(zip(COLOURS, values[:, -3:].T, strict=True)) if values.shape[1] >= 6 else {}
        return Mesh(values[:, :3], fan(polygons), columns)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, those that end in a backslash with the next."""
    held = b""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE or len(held) > MAX_LINE:
            raise ValueError(f"it has a line of more than {MAX_LINE} bytes")
        if line.rstrip().endswith(b"\\"):
            held += line.rstrip()[:-1] + b" "
            continue
        yield held + line
        held = b""
    if held:
        yield held


def _corner(word: bytes, vertices: int) -> int:
    """Position of a vertex, from 0, of `7`, `7/1/3`, or `-1` for the latest."""
    at = int(word.split(b"/")[0])
    if at == 0 or at < -vertices:
        raise ValueError(f"a face names vertex {at}")
    return at - 1 if at > 0 else vertices + at


class OffFile(MeshFile):
    """OFF and COFF; the counts may stand in the first line, as in ModelNet."""

    kind = "OFF"

    def _open(self) -> None:
        with self.path.open("rb") as file:
            words = _next_words(file)
            word = words[0] if words else b""
            self._coloured = word.startswith(b"COFF")
            rest = word.removeprefix(b"C").removeprefix(b"OFF")
            if not word.removeprefix(b"C").startswith(b"OFF"):
                raise DataError(self.path, f'begins with "{word[:20].decode("ascii", "replace")}"', "OFF or COFF")
            words = [*([rest] if rest else []), *words[1:]] or _next_words(file)
            if words == [b"BINARY"]:
                raise DataError(self.path, "is a binary OFF file", "one of text", "Save it as PLY or OBJ")
            if len(words) < 2:
                raise self._refuse("declares no numbers of vertices and faces", "vertices faces edges")
            count, faces = int(words[0]), int(words[1])
            self._start = file.tell()
        there = self.path.stat().st_size - self._start + 1
        check_room(self.path, count, 6, there, "points")
        check_room(self.path, faces, 4, there - 6 * count, "faces")
        self.count, self.faces = count, faces
        self.columns = COLOURS if self._coloured else ()

    def _mesh(self) -> Mesh:
        with self.path.open("rb") as file:
            file.seek(self._start)
            values = self._vertices(file)
            polygons, left = [], self.faces or 0
            while left:
                words = _next_words(file)
                if not words:
                    raise self._refuse(f"ends before {left} of its {self.faces} faces", "all of them")
                corners = int(words[0])
                if not 1 <= corners <= min(MAX_CORNERS, len(words) - 1):
                    raise self._refuse(f"has a face of {corners} corners in a line of {len(words)} numbers", "as many")
                polygons.append([int(word) for word in words[1 : 1 + corners]])
                left -= 1
            if _next_words(file):
                raise self._refuse("goes on behind the faces that it declares", "their end")
        columns = dict(zip(COLOURS, values[:, 3:6].T, strict=True)) if self._coloured else {}
        return Mesh(values[:, :3], fan(polygons), columns)

    def _vertices(self, file: IO[bytes]) -> np.ndarray:
        place = file.tell()
        width = len(_next_words(file))
        file.seek(place)
        if width != 3 and not (self._coloured and width in (6, 7)):
            raise self._refuse(f"has vertices of {width} numbers", "x, y, z and, of COFF, colours")
        blocks = list(number_lines(file, self.path, width, limit=self.count))
        if not blocks or sum(map(len, blocks)) != self.count:
            raise self._refuse(f"declares {self.count} vertices but holds {sum(map(len, blocks))}", "all of them")
        return np.concatenate(blocks)


def _next_words(file: IO[bytes]) -> list[bytes]:
    """Words of the next line that is neither blank nor a comment."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"it has a line of more than {MAX_LINE} bytes")
        words = line.split(b"#")[0].split()
        if words:
            return words
    return []


class StlFile(MeshFile):
    """STL, binary and text. Its triangles do not share corners; as points, equal corners are taken once."""

    kind = "STL"
    columns = ()

    def _open(self) -> None:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            head = file.read(84)
        declared = struct.unpack("<I", head[80:])[0] if len(head) == 84 else -1
        self._binary = size == 84 + 50 * declared
        if not self._binary and not head.lstrip().startswith(b"solid"):
            if declared < 0:
                raise self._refuse(f"is of {size} bytes", "84 at least")
            check_room(self.path, declared, 50, size - 84, "triangles")
            raise self._refuse(f"declares {declared} triangles, but has {size - 84} bytes for them", f"{50 * declared}")
        if self._binary:
            self.faces = declared
            if declared == 0:
                raise self._refuse("holds no triangles", "some")

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        yield Cloud(np.unique(self._mesh().vertices, axis=0))

    def _mesh(self) -> Mesh:
        corners = self._triangles() if self._binary else self._text()
        return Mesh(corners, np.arange(len(corners)).reshape(-1, 3))

    def _triangles(self) -> np.ndarray:
        dtype = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        with self.path.open("rb") as file:
            file.seek(84)
            return np.fromfile(file, dtype)["corners"].reshape(-1, 3).astype(np.float64)

    def _text(self) -> np.ndarray:
        """Corners of `facet ... outer loop ... vertex x y z (three times) ... endloop endfacet` up to `endsolid`."""
        corners: list[list[float]] = []
        facets, ended = 0, False
        with self.path.open("rb") as file:
            for line in itertools.takewhile(bool, iter(lambda: _next_words(file), [])):
                word = line[0].lower()
                if word == b"vertex" and len(line) == 4:
                    corners.append([float(number) for number in line[1:]])
                elif word == b"endfacet":
                    facets += 1
                    if len(corners) != 3 * facets:
                        raise self._refuse(f"has {len(corners)} corners in {facets} triangles", "three in each")
                elif word == b"endsolid":
                    ended = True
                elif word == b"solid":
                    ended = False
                elif word not in (b"facet", b"outer", b"endloop"):
                    shown = b" ".join(line)[:60].decode("ascii", "replace")
                    raise self._refuse(f'has a line "{shown}"', "one that STL knows")
        if not ended or not corners or len(corners) != 3 * facets:
            raise self._refuse(f"ends after {facets} triangles without endsolid", "whole triangles, and endsolid")
        return np.array(corners, dtype=np.float64)


MESH_FILES: dict[str, type[MeshFile]] = {".obj": ObjFile, ".off": OffFile, ".stl": StlFile}
