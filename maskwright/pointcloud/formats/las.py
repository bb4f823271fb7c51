"""LAS and LAZ (ASPRS LAS Specification 1.4 R15; LASzip for the compressed form), through laspy and lazrs."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import laspy
import numpy as np
from laspy import LazBackend

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import Cloud, canonical
from maskwright.pointcloud.crs import las_crs
from maskwright.pointcloud.formats.base import BLOCK, PointFile, check_room, reading

SMALLEST_HEADER, VLR_HEADER, EVLR_HEADER = 227, 54, 60
WKT_RECORD = 2112
VARIABLE = 2**32 - 1
"""Size of a LAZ chunk if each has its own."""
MAX_CHUNK = 2**24
SLACK = 0.01
"""Share of the extent by which points may lie outside of the bounds in the header: some writers round them."""
BACKEND = LazBackend.Lazrs
"""One chunk at a time; the parallel one holds as many as there are cores."""


class LasFile(PointFile):
    """Columns have the names of laspy, but gps_time is `time`; coordinates are X * scale + offset in float64."""

    kind = "LAS"

    def _open(self) -> None:
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            self._check_header(file.read(375))
            file.seek(0)
            self.header = laspy.LasHeader.read_from(file, read_evlrs=False)
            if self.header.are_points_compressed:
                self._check_chunks(file)
            if self.header.version.minor >= 4 and self.header.number_of_evlrs:
                start = self.header.start_of_first_evlr
                check_room(self.path, self.header.number_of_evlrs, EVLR_HEADER, self.size - start, "extended records")
                self._check_evlrs(file, start, self.header.number_of_evlrs)
                self.header.read_evlrs(file)
        scales, offsets = self.header.scales, self.header.offsets
        if not (np.isfinite(scales).all() and np.isfinite(offsets).all() and (scales != 0).all()):
            raise DataError(
                self.path, f"has scales {scales} and offsets {offsets}", "finite numbers, and no scale of 0"
            )
        self.count = self.header.point_count
        self.crs = las_crs(self.header)
        self.places: dict[str, tuple[str, int | None]] = {}
        for dimension in self.header.point_format.dimensions:
            if dimension.name not in ("X", "Y", "Z"):
                name = canonical(dimension.name)
                if dimension.num_elements == 1:
                    self.places[name] = (dimension.name, None)
                else:
                    self.places |= {f"{name}_{at}": (dimension.name, at) for at in range(dimension.num_elements)}
        self.columns = tuple(self.places)

    def _check_header(self, head: bytes) -> None:
        """Compare what the header declares with the size of the file, before laspy reads it."""
        if head[:4] != b"LASF":
            raise DataError(self.path, 'does not begin with "LASF"', "a LAS or LAZ file")
        if len(head) < SMALLEST_HEADER:
            raise DataError(self.path, f"is of {len(head)} bytes", f"a header of {SMALLEST_HEADER} at least")
        minor, header_size = head[25], struct.unpack_from("<H", head, 94)[0]
        start, records = struct.unpack_from("<II", head, 96)
        form, length, count = head[104], *struct.unpack_from("<HI", head, 105)
        if minor >= 4:
            if len(head) < 375:
                raise DataError(self.path, f"is of {len(head)} bytes", "a header of 375 in LAS 1.4")
            legacy, count = count, struct.unpack_from("<Q", head, 247)[0]
            if legacy not in (0, count):
                raise DataError(
                    self.path, f"declares {legacy} points in one place and {count} in another", "one number"
                )
        if not SMALLEST_HEADER <= header_size <= start <= self.size:
            raise DataError(
                self.path,
                f"declares a header of {header_size} bytes and points from byte {start}, but is of {self.size} bytes",
                mend="It was cut short or damaged: get it again",
            )
        check_room(self.path, records, VLR_HEADER, start - header_size, "records in its header")
        if not form & 0x80:
            check_room(self.path, count, max(length, 1), self.size - start)

    def _check_chunks(self, file) -> None:
        """Compare the points declared with the chunks that the compressed points are made of."""
        record = next((vlr for vlr in self.header.vlrs if vlr.record_id == 22204), None)
        if record is None or len(record.record_data) < 34:
            raise DataError(self.path, "has no sound record of how its points are compressed", "LAZ", "Get it again")
        chunk_size, items = (
            struct.unpack_from("<I", record.record_data, 12)[0],
            struct.unpack_from("<H", record.record_data, 32)[0],
        )
        if len(record.record_data) < 34 + 6 * items:
            raise DataError(self.path, f"declares {items} compressed items", "as many as there is room for")
        length = sum(struct.unpack_from("<H", record.record_data, 36 + 6 * at)[0] for at in range(items))
        if length != self.header.point_format.size:
            raise DataError(
                self.path, f"compresses points of {length} bytes", f"{self.header.point_format.size} as its header says"
            )
        start, count = self.header.offset_to_point_data, self.header.point_count
        file.seek(start)
        (table,) = struct.unpack("<q", file.read(8))
        if table == -1:  # written without going back: the place of the table is at the end
            file.seek(self.size - 8)
            (table,) = struct.unpack("<q", file.read(8))
        if not start + 8 <= table <= self.size - 8:
            raise DataError(
                self.path,
                f"has no table of chunks: it should be at byte {table} of {self.size}",
                mend="It was cut short: get it again",
            )
        file.seek(table)
        version, chunks = struct.unpack("<II", file.read(8))
        if version != 0:
            raise DataError(self.path, f"has a table of chunks of version {version}", "version 0")
        # a chunk begins with a whole point
        check_room(self.path, chunks, length, table - start - 8, "chunks")
        if chunk_size != VARIABLE and not (0 < chunk_size <= MAX_CHUNK and -(-count // chunk_size) == chunks):
            raise DataError(
                self.path,
                f"declares {count} points in {chunks} chunks of {chunk_size}",
                f"at most {chunks * min(chunk_size, MAX_CHUNK)}, for which its table of chunks has room",
                "It was damaged: get it again",
            )
        if count and not chunks:
            raise DataError(self.path, f"declares {count} points in no chunk", "chunks")

    def _check_evlrs(self, file, start: int, count: int) -> None:
        """Follow the extended records from one to the next, so that none is longer than the file."""
        for _ in range(count):
            file.seek(start)
            head = file.read(EVLR_HEADER)
            if len(head) < EVLR_HEADER:
                raise DataError(self.path, "ends before its extended records do", mend="Get it again")
            start += EVLR_HEADER + struct.unpack_from("<Q", head, 20)[0]
            if start > self.size:
                raise DataError(self.path, "has an extended record longer than the file", mend="Get it again")

    def _blocks(self, columns: Collection[str]) -> Iterator[Cloud]:
        for points in self.records():
            xyz = np.stack(
                [
                    points[axis] * s + o
                    for axis, s, o in zip("XYZ", self.header.scales, self.header.offsets, strict=True)
                ],
                1,
            )
            found = {}
            for name in columns:
                dimension, at = self.places[name]
                values = np.asarray(points[dimension])
                found[name] = np.array(values if at is None else values[:, at])
            yield Cloud(xyz, found)

    def whole_records(self) -> Iterator[laspy.ScaleAwarePointRecord]:
        """As `records`, with everything that goes wrong turned into a DataError, and all points there at the end."""
        seen, records = 0, self.records()
        while True:
            with reading(self.path, self.kind):
                points = next(records, None)
            if points is None:
                break
            seen += len(points)
            yield points
        if seen != self.count:
            self._refuse_count(str(seen))

    def records(self) -> Iterator[laspy.ScaleAwarePointRecord]:
        """Points as laspy has them, block by block. Raises DataError if they lie outside of the header's bounds."""
        low, high = np.array(self.header.mins), np.array(self.header.maxs)
        known = bool(np.isfinite([low, high]).all() and (low <= high).all() and (low < high).any())
        slack = SLACK * (high - low).max() + 2 * np.abs(self.header.scales) if known else np.zeros(3)
        with laspy.open(self.path, laz_backend=BACKEND, read_evlrs=False) as reader:
            for points in reader.chunk_iterator(BLOCK):
                if known and len(points):
                    self._check_bounds(points, low - slack, high + slack)
                yield points

    def _check_bounds(self, points: laspy.ScaleAwarePointRecord, low: np.ndarray, high: np.ndarray) -> None:
        for axis, name in enumerate("XYZ"):
            ends = np.array([points[name].min(), points[name].max()])
            ends = ends * self.header.scales[axis] + self.header.offsets[axis]
            if ends.min() < low[axis] or ends.max() > high[axis]:
                raise DataError(
                    self.path,
                    f"has points at {name.lower()} = {ends.min():.6g} to {ends.max():.6g}",
                    f"{low[axis]:.6g} to {high[axis]:.6g}, about what its header says",
                    "It was damaged: get it again",
                )


def is_las(path: Path) -> bool:
    return path.suffix.lower() in (".las", ".laz")
