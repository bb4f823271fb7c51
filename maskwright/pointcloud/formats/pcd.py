"""PCD, the format of the Point Cloud Library, version 0.7: ascii, binary and binary_compressed."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import COLOURS, Cloud, canonical
from maskwright.pointcloud.formats.base import BLOCK, PointFile, as_type, check_room
from maskwright.pointcloud.formats.text import number_lines

HEADER_LINES = 64
KINDS = {"F": "f", "I": "i", "U": "u"}
SIZES = {"f": (4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}
LZF_RATIO = 90
"""LZF makes 264 bytes of 3 at most."""


class PcdFile(PointFile):
    """A point a row. `rgb` and `rgba`, three colours in one number, become red, green and blue."""

    kind = "PCD"

    def _open(self) -> None:
        said: dict[str, list[str]] = {}
        with self.path.open("rb") as file:
            for _ in range(HEADER_LINES):
                words = file.readline(2**14).decode("ascii", "replace").split()
                if words and not words[0].startswith("#"):
                    said[words[0].upper()] = words[1:]
                    if words[0].upper() == "DATA":
                        break
            self._start = file.tell()
        missing = [key for key in ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA") if not said.get(key)]
        if missing:
            raise DataError(self.path, f"has a header without {', '.join(missing)}", "a PCD file of version 0.7")
        fields, counts = said["FIELDS"], [int(count) for count in said.get("COUNT", ["1"] * len(said["FIELDS"]))]
        kinds = [KINDS.get(kind, "?") for kind in said["TYPE"]]
        sizes = [int(size) for size in said["SIZE"]]
        fits = len(fields) == len(counts) == len(kinds) == len(sizes)
        if not fits or any(s not in SIZES.get(k, ()) for k, s in zip(kinds, sizes, strict=True)):
            raise DataError(
                self.path, "has FIELDS, SIZE, TYPE and COUNT that do not fit together", "one for each field"
            )
        if any(not 0 < count <= 4096 for count in counts):
            raise DataError(self.path, f"has COUNT {counts}", "1 to 4096 numbers a field")
        self._parts = [
            (name, np.dtype(f"<{k}{s}"), n) for name, k, s, n in zip(fields, kinds, sizes, counts, strict=True)
        ]
        self.count = int(said["POINTS"][0])
        width, height = (int((said.get(key) or ["1"])[0]) for key in ("WIDTH", "HEIGHT"))
        if "WIDTH" in said and width * height != self.count:
            raise DataError(self.path, f"declares {self.count} points, and {width} x {height} of them", "one number")
        self._data = said["DATA"][0].lower()
        self._itemsize = sum(dtype.itemsize * count for _, dtype, count in self._parts)
        self._check_size(self.path.stat().st_size - self._start)
        names = [canonical(name) for name, _, count in self._parts if count == 1 and name != "_"]
        if sorted(name for name in names if name in ("x", "y", "z")) != ["x", "y", "z"]:
            raise DataError(self.path, f"has fields {', '.join(fields)}", "x, y and z, each once")
        self.columns = tuple(
            column for name in names if name not in ("x", "y", "z") for column in (COLOURS if name in ("rgb", "rgba") else (name,))
        )  # fmt: skip

    def _check_size(self, there: int) -> None:
        assert self.count is not None
        if self._data == "ascii":
            check_room(self.path, self.count, 2 * sum(count for *_, count in self._parts), there + 1)
        elif self._data == "binary":
            check_room(self.path, self.count, self._itemsize, there)
            if there > self.count * self._itemsize + 2:
                raise DataError(self.path, f"holds {there} bytes behind its header", f"{self.count * self._itemsize}")
        elif self._data == "binary_compressed":
            check_room(self.path, self.count, self._itemsize / LZF_RATIO, there - 8)
        else:
            raise DataError(self.path, f"has DATA {self._data}", "ascii, binary or binary_compressed")

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        if self._data == "ascii":
            yield from self._lines(columns)
        elif self._data == "binary":
            yield from self._rows(columns)
        else:
            yield self._inflated(columns)

    def _lines(self, columns: Collection[str]) -> Iterator[Cloud]:
        with self.path.open("rb") as file:
            file.seek(self._start)
            for values in number_lines(file, self.path, sum(count for *_, count in self._parts)):
                found, at = {}, 0
                for name, dtype, count in self._parts:
                    if count == 1:
                        # a packed colour is written as the number that its bits make
                        exact = values[:, at] if dtype.kind == "f" else as_type(self.path, name, values[:, at], dtype)
                        found[name] = exact.astype(dtype) if canonical(name) not in ("x", "y", "z") else exact
                    at += count
                yield self._cloud(found, columns)

    def _rows(self, columns: Collection[str]) -> Iterator[Cloud]:
        dtype = np.dtype([(f"f{at}", kind, (count,)) for at, (_, kind, count) in enumerate(self._parts)])
        left = self.count or 0
        with self.path.open("rb") as file:
            file.seek(self._start)
            while left:
                data = file.read(min(left, BLOCK) * dtype.itemsize)
                rows = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
                if not len(rows):
                    return
                found = {name: rows[f"f{at}"][:, 0] for at, (name, _, count) in enumerate(self._parts) if count == 1}
                yield self._cloud(found, columns)
                left -= len(rows)

    def _inflated(self, columns: Collection[str]) -> Cloud:
        """All points: their fields lie one behind the other, compressed as one piece."""
        wanted = (self.count or 0) * self._itemsize
        with self.path.open("rb") as file:
            file.seek(self._start)
            packed, size = struct.unpack("<II", file.read(8))
            data = file.read(packed)
        if size != wanted or len(data) != packed:
            raise DataError(
                self.path,
                f"declares {packed} bytes that become {size}, and {len(data)} are there",
                f"{wanted} bytes for {self.count} points",
                "It was cut short or damaged: get it again",
            )
        raw = inflate(data, size)
        found, at = {}, 0
        for name, dtype, count in self._parts:
            stop = at + dtype.itemsize * count * (self.count or 0)
            if count == 1:
                found[name] = np.frombuffer(raw[at:stop], dtype)
            at = stop
        return self._cloud(found, columns)

    def _cloud(self, found: dict[str, np.ndarray], columns: Collection[str]) -> Cloud:
        """Points of the fields as stored."""
        named = {canonical(name): values for name, values in found.items()}
        for packed in ("rgb", "rgba"):
            if packed in named and named[packed].dtype.itemsize == 4:
                bits = np.ascontiguousarray(named[packed]).view(np.uint32)
                named |= {
                    name: (bits >> shift & 255).astype(np.uint8)
                    for name, shift in zip(COLOURS, (16, 8, 0), strict=True)
                }
        xyz = np.stack([named[axis].astype(np.float64) for axis in "xyz"], 1)
        return Cloud(xyz, {name: named[name].astype(named[name].dtype.newbyteorder("=")) for name in columns})


def inflate(data: bytes, size: int) -> bytes:
    """Bytes that LZF (Lehmann's liblzf) made smaller.

    A control byte below 32 announces that many bytes and one more as they are. Else its upper three bits and, if all
    three are set, a byte more are the length less 2 of a piece that was there before; its lower five and the next byte
    say how far back less 1.

    Raises:
        ValueError: the stream is damaged, or makes another number of bytes.
    """
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        control = data[at]
        at += 1
        if control < 32:
            piece = data[at : at + control + 1]
            if len(piece) <= control:
                raise ValueError("its compressed data end in the middle")
            out += piece
            at += control + 1
        else:
            length = control >> 5
            if at + (length == 7) >= end:
                raise ValueError("its compressed data end in the middle")
            if length == 7:
                length += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - data[at] - 1
            at += 1
            length += 2
            if start < 0:
                raise ValueError("its compressed data refer to before their beginning")
            distance = len(out) - start
            piece = bytes(out[start : start + length])
            out += piece if distance >= length else (piece * (length // distance + 1))[:length]
        if len(out) > size:
            raise ValueError(f"its compressed data become more than the {size} bytes that it declares")
    if len(out) != size:
        raise ValueError(f"its compressed data become {len(out)} bytes, not the {size} that it declares")
    return bytes(out)
