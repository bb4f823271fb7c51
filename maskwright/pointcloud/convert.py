"""Between file formats of points, and scans into tiles: what `maskwright pointcloud` does with files."""

from __future__ import annotations

import copy
import csv
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import laspy

from maskwright.core.errors import ConfigError
from maskwright.core.trainer.files import atomic, whole_folder
from maskwright.pointcloud.crs import in_units
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.formats.base import MAX_POINTS
from maskwright.pointcloud.formats.las import BACKEND, LasFile, is_las
from maskwright.pointcloud.tiles import cut
from maskwright.pointcloud.writers import write_points

SCAN_POINTS = 2**40


@dataclass(frozen=True)
class Converted:
    """A file that was written.

    Args:
        points: number of points in it.
        lost: what it could not hold, a sentence each.
    """

    path: Path
    points: int
    lost: list[str] = field(default_factory=list)


def convert(source: str | Path, out: str | Path, max_points: int = MAX_POINTS) -> Converted:
    """Write the points of a file in another format; nothing that the other one can hold is lost.

    Between LAS and LAZ each point record is copied as it is, block by block.

    Raises:
        DataError: the file is damaged, or too large for memory. ConfigError: an ending that is not written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError(f"{out} is the file itself. Choose another name.")
    if is_las(source) and is_las(out):
        file = open_points(source, SCAN_POINTS)
        assert isinstance(file, LasFile)
        return Converted(out, _copy(file, out))
    file = open_points(source, max_points)
    cloud = file.read(file.columns or ())
    lost = []
    if file.faces != 0 and (mesh := file.mesh()) is not None and len(mesh.faces):
        lost.append(f"{len(mesh.faces)} triangles: only the vertices were written.")
        if file.columns is None and mesh.columns:  # known only now
            cloud = file.read(tuple(mesh.columns))
    if isinstance(file, LasFile) and not is_las(out):
        lost.append("Scales, offsets and further records of the LAS header.")
    lost += write_points(out, cloud.xyz, cloud.columns, file)
    return Converted(out, len(cloud), lost)


def _copy(file: LasFile, out: Path) -> int:
    """Every point record of a LAS or LAZ file into the other, with all records of the header."""
    header = copy.deepcopy(file.header)
    seen = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as temporary, temporary.open("wb+") as stream:
        compress = out.suffix.lower() == ".laz"
        with laspy.open(
            stream,
            mode="w",
            header=header,
            do_compress=compress,
            laz_backend=BACKEND if compress else None,
            closefd=False,
        ) as writer:
            for points in file.whole_records():
                writer.write_points(points)
                seen += len(points)
            if header.version.minor >= 4 and file.header.evlrs:
                writer.write_evlrs(file.header.evlrs)
    return seen


def write_tiles(scan: str | Path, out: str | Path, side: float) -> list[Converted]:
    """Cut a scan into square tiles, a file each, with a table tiles.csv of where they lie.

    LAS scans give LAS or LAZ files with the scan's own header, others PLY. Only one tile is in memory at a time.

    Args:
        side: of a tile, in metres; in the scan's own units where it does not say what they are.

    Raises:
        DataError: the scan is damaged. ConfigError: `out` is not empty, or a side that is not above 0.
    """
    scan, out = Path(scan), Path(out)
    if not 0 < side < 1e7:
        raise ConfigError(f"--tile={side}: metres above 0 are needed.")
    file = open_points(scan, SCAN_POINTS)
    length = in_units(side, file.crs, scan, "--tile")
    ending = scan.suffix.lower() if is_las(scan) else ".ply"
    written = []
    with whole_folder(out) as folder, (folder / "tiles.csv").open("w", newline="") as table:
        lines = csv.writer(table)
        lines.writerow(["path", "column", "row", "x_min", "y_min", "x_max", "y_max", "points"])
        # beside the tiles, where there has to be room for them in any case
        with tempfile.TemporaryDirectory(dir=folder) as place:
            tiles = cut(file, length, file.columns or (), 0, Path(place))
            for at, (column, row, _, count) in enumerate(tiles.index.tolist()):
                cloud, _ = tiles.points(at)
                name = f"{scan.stem}_{column}_{row}{ending}"
                lost = write_points(folder / name, cloud.xyz, cloud.columns, file)
                corners = [column * length, row * length, (column + 1) * length, (row + 1) * length]
                lines.writerow([name, column, row, *corners, count])
                written.append(Converted(out / name, count, lost))
    return written
