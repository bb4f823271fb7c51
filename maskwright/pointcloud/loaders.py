"""The loaders `points` and `scans`: files of one object each, and large scans in tiles."""

from __future__ import annotations

import functools
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.folder import FileLoader
from maskwright.core.masking.base import Grid
from maskwright.core.sample import BadFile, Meta, Sample
from maskwright.pointcloud import base, codes, pictures, simple
from maskwright.pointcloud.cloud import NORMALS, Cloud, colour_top
from maskwright.pointcloud.crs import in_units, to_lonlat
from maskwright.pointcloud.formats import CERTAIN, POSSIBLE, holds_points, open_points
from maskwright.pointcloud.formats.base import MAX_POINTS, PointFile, refuse_missing
from maskwright.pointcloud.inspection import inspect_points
from maskwright.pointcloud.mesh import sample_surface
from maskwright.pointcloud.tiles import Tiles, cut

if TYPE_CHECKING:
    from maskwright.pointcloud.scenes import ScanScene

SCAN_SUFFIXES = (".las", ".laz")
SCAN_POINTS = 5_000_000_000
"""Points of a scan, which is read block by block."""


class PointsLoader(FileLoader):
    """What both loaders do with a sample of points.

    Args:
        path: a folder, or a file.
        features: columns behind x, y and z, in this order, such as [normal_x, normal_y, normal_z, red, intensity].
    """

    suffixes = (*CERTAIN, *POSSIBLE)

    def __init__(self, path: str | Path, features: list[str] | None = None) -> None:
        super().__init__(path)
        single = Path(path).is_file()
        self.files = [file for file in self.files if single or holds_points(file)]
        self.bad_files = [bad for bad in self.bad_files if Path(bad.path).suffix.lower() in CERTAIN or single]

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in cls.suffixes and holds_points(path)
        return path.is_dir() and any(
            file.suffix.lower() in cls.suffixes and file.is_file() and not _hidden(file, path) and holds_points(file)
            for file in path.rglob("*")
        )

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """A row a file: points, extent, density, reference system, columns; or the reason why it cannot be used."""
        return inspect_points(path)

    def _set_aside(self, error: DataError) -> None:
        self.bad_files.append(BadFile(error.path, str(error).removeprefix(f"{error.path}: ")))

    def _refuse_nothing(self) -> None:
        """Raise DataError if no file can be used."""
        if self.files:
            return
        if len(self.bad_files) == 1:
            raise DataError(self.bad_files[0].path, self.bad_files[0].reason.rstrip("."))
        reason = (
            f"; the first, {self.bad_files[0].path}: {self.bad_files[0].reason.rstrip('.')}" if self.bad_files else ""
        )
        raise DataError(self.root, f"holds no usable file of points, and {len(self.bad_files)} broken ones{reason}")

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} samples, not a sample {index}")

    def to_lonlat(self, crs: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return to_lonlat(crs, x, y)

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        """Histograms of the shape; of scattered tokens, statistics and shape of the points that are nearest to each."""
        if cells is None:
            return simple.shape_features(sample)
        return {} if cells.positions is None else simple.group_features(sample, cells.positions)


class PointLoader(PointsLoader):
    """Files of points and meshes, one object each: PLY, PCD, XYZ, PTS, TXT, CSV, NPZ, NPY, LAS, LAZ, OBJ, OFF, STL.

    `points` (N, C) float32 holds x, y and z about their centroid and divided by a scale, then the columns that
    `features` names: colours from 0 to 1, normals, all else as it is stored. Of a mesh, points are drawn uniformly by
    area from its surface, with the normals of its triangles. The group is the file, the label the folder it lies in.

    `points * meta.extra["scale"] + meta.extra["centre"]` are the coordinates of the file, in its own units.

    Args:
        path: a folder, or a file.
        points: points of a sample, drawn at random with a generator, and always the same without; those of a file that
            has fewer are repeated, which meta.extra["repeated"] counts. all: whole files, for a batch of one.
        scale: unit makes the largest distance from the centroid 1; a number of metres keeps sizes comparable.
        features: columns behind x, y and z, in this order, such as [normal_x, normal_y, normal_z, red, intensity].
        surface: whether points are drawn from the surface of a mesh; else they are its vertices.
        max_points: larger files are set aside before anything is allocated.

    Raises:
        ConfigError: an option out of its range. DataError: there is no file that can be used.
    """

    def __init__(
        self,
        path: str | Path,
        points: int | Literal["all"] = 1024,
        scale: float | Literal["unit"] = "unit",
        features: list[str] | None = None,
        surface: bool = True,
        max_points: int = MAX_POINTS,
    ) -> None:
        self.features = base.check_reading(points, scale, features or [])
        if max_points < 1:
            raise ConfigError(f"data.max_points={max_points}: at least 1 is needed.")
        self.points, self.scale, self.surface, self.max_points = points, scale, surface, max_points
        super().__init__(path)
        usable, systems = [], []
        for file in self.files:
            try:
                one = open_points(file, max_points)
                if not (surface and one.faces != 0):
                    one.require(self.features)
            except DataError as error:
                self._set_aside(error)
                continue
            usable.append(file)
            systems.append((file, one.crs))
        self.files = usable
        self._refuse_nothing()
        if scale != "unit":
            base.common_system(systems)
        self.spec = base.points_spec(self.features, "largest distances" if scale == "unit" else f"{scale:g} m")

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        self._check_index(index)
        path = self.files[index]
        file = open_points(path, self.max_points)
        seed = base.draw_seed(generator)
        extra: dict[str, Any] = {"draw": seed}
        cloud, top = self._drawn(file, seed, extra)
        tensor, more = base.as_sample(cloud, self.features, top, self.scale, file.crs, path)
        meta = Meta(str(path), self.group(index), index, crs=file.crs, label=self.label(index), extra=more | extra)
        return Sample({"points": tensor}, meta)

    def _drawn(self, file: PointFile, seed: int, extra: dict[str, Any]) -> tuple[Cloud, float]:
        """Points of the file or its surface, and the number of full colour; notes in `extra` what the file holds."""
        mesh = file.mesh() if self.surface else None
        if mesh is not None and len(mesh.faces):
            if self.points == "all":
                raise DataError(
                    file.path,
                    "is a mesh, which has no points but those that are drawn from it",
                    "a number of points",
                    "Set data.points=1024, or data.surface=false for its vertices",
                )
            refuse_missing(
                file.path, self.features, (*(name for name in mesh.columns if name not in NORMALS), *NORMALS)
            )
            extra |= {"triangles": len(mesh.faces), "repeated": 0}
            return sample_surface(mesh, self.points, np.random.default_rng(seed), file.path), colour_top(mesh.columns)
        cloud = file.read(self.features)
        if len(cloud) < 2:
            raise DataError(file.path, "holds 1 point", "at least two")
        which = base.chosen(len(cloud), self.points, seed)
        extra |= {"points": len(cloud), "repeated": max(0, len(which) - len(cloud))}
        return cloud.take(which), colour_top(cloud.columns)

    def bytes_per_sample(self) -> int:
        return super().bytes_per_sample() if self.points == "all" else 4 * self.points * (3 + len(self.features))

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """From the front, the side and above, in the points' own colours or coloured by height."""
        points = tensor.detach().float().cpu().numpy()
        return pictures.three_views(points[:, :3], base.colours_of(self.spec, points, points[:, 2]))


class ScanLoader(PointsLoader):
    """Large scans, cut into square columns: LAS and LAZ, and with data.loader=scans all files that `points` reads.

    `points` (N, C) float32 as in `points`. Scans are read block by block, never as a whole; their points are put into
    the user's cache in order of tiles, once for each scan, tile and choice of columns. A sample is one tile of the grid
    through the origin of the reference system; its group is the scan, its label the folder. Per-point codes, such as
    the classification of LAS, come from `read_labels`.

    `points * meta.extra["scale"] + meta.extra["centre"]` are the coordinates of the file, in its own units;
    `meta.extra["tile"]` are column and row of the tile.

    Args:
        path: a folder, or a file.
        tile: side of a tile in metres; in the file's own units where it does not say what they are.
        points: points of a sample, as in `points`.
        min_points: tiles of fewer points are left out.
        scale: metres that become 1; left out, half a tile. unit makes the largest distance from the centroid 1.
        features: columns behind x, y and z, in this order, such as [red, green, blue, intensity].
        cache: gigabytes that tiles may take in the user's cache folder.
        max_points: larger scans are set aside.

    Raises:
        ConfigError: an option out of its range, or a scan that does not fit into the cache.
        DataError: there is no file that can be used, or files are in several reference systems or units.
    """

    def __init__(
        self,
        path: str | Path,
        tile: float = 20.0,
        points: int | Literal["all"] = 4096,
        min_points: int = 64,
        scale: float | Literal["unit"] | None = None,
        features: list[str] | None = None,
        cache: float = 100.0,
        max_points: int = SCAN_POINTS,
    ) -> None:
        self.features = base.check_reading(points, scale, features or [])
        if not 0 < tile < 1e7 or min_points < 2 or cache <= 0 or max_points < 1:
            raise ConfigError(
                f"data.tile={tile}, data.min_points={min_points}, data.cache={cache}, data.max_points={max_points}: metres "
                f"above 0, 2 points or more, gigabytes above 0, and 1 point or more are needed."
            )
        self.points, self.tile, self.scale = points, tile, tile / 2 if scale is None else scale
        super().__init__(path)
        opened: list[PointFile] = []
        for file in self.files:
            try:
                one = open_points(file, max_points)
                one.require(self.features)
            except DataError as error:
                self._set_aside(error)
                continue
            opened.append(one)
        base.common_system([(one.path, one.crs) for one in opened])
        self.files, self.tiles, self.crs = [], [], opened[0].crs if opened else None
        self.kept: list[np.ndarray] = []
        for one in opened:
            side = in_units(tile, one.crs, one.path, "data.tile")
            known = one.columns or ()
            more = ("classification",) if "classification" in known and "classification" not in self.features else ()
            try:
                tiles = cut(one, side, (*self.features, *more), cache)
            except DataError as error:
                self._set_aside(error)
                continue
            kept = np.flatnonzero(tiles.index[:, 3] >= min_points)
            if not len(kept):
                reason = f"none of its {len(tiles.index)} tiles holds {min_points} points. Raise data.tile"
                self.bad_files.append(BadFile(str(one.path), reason))
                continue
            self.files.append(one.path)
            self.tiles.append(tiles)
            self.kept.append(kept)
        self._refuse_nothing()
        self.ends = list(accumulate(map(len, self.kept)))
        self.spec = base.points_spec(self.features, "largest distances" if scale == "unit" else f"{self.scale:g} m")

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in SCAN_SUFFIXES
        return path.is_dir() and any(
            file.suffix.lower() in SCAN_SUFFIXES and file.is_file() and not _hidden(file, path)
            for file in path.rglob("*")
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[Path, Tiles, int]:
        """Scan of a sample, its tiles, and the number of the tile among them."""
        number = bisect_right(self.ends, index)
        at = index - (self.ends[number - 1] if number else 0)
        return self.files[number], self.tiles[number], int(self.kept[number][at])

    def group(self, index: int) -> str:
        return self._place(index)[0].relative_to(self.root).as_posix()

    def label(self, index: int) -> str | None:
        folder = self._place(index)[0].parent
        return None if folder == self.root else folder.name

    def sources(self, index: int) -> list[str]:
        return [str(self._place(index)[0])]

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        self._check_index(index)
        path, tiles, at = self._place(index)
        seed = base.draw_seed(generator)
        there = int(tiles.index[at, 3])
        which = base.chosen(there, self.points, seed)
        cloud, _ = tiles.points(at, which)
        tensor, extra = base.as_sample(cloud, self.features, tiles.top, self.scale, self.crs, path)
        extra |= {"tile": tiles.index[at, :2].tolist(), "points": there}
        extra |= {"repeated": max(0, len(which) - there), "draw": seed}
        meta = Meta(str(path), self.group(index), index, crs=self.crs, label=self.label(index), extra=extra)
        return Sample({"points": tensor}, meta)

    def bytes_per_sample(self) -> int:
        if self.points != "all":
            return 4 * self.points * (3 + len(self.features))
        largest = max(int(tiles.index[kept, 3].max()) for tiles, kept in zip(self.tiles, self.kept, strict=True))
        return 4 * largest * (3 + len(self.features))

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """From above, in the points' own colours or coloured by height."""
        points = tensor.detach().float().cpu().numpy()
        return pictures.top_view(points[:, :3], base.colours_of(self.spec, points, points[:, 2]))

    def numbers(self, sample: Sample) -> np.ndarray:
        """Numbers of a sample's points in its scan, (N,) int64, in the order of the sample."""
        _, tiles, at = self._place(sample.meta.index)
        return tiles.points(at, self._which(sample))[1]

    def _which(self, sample: Sample) -> np.ndarray:
        _, tiles, at = self._place(sample.meta.index)
        return base.chosen(int(tiles.index[at, 3]), self.points, sample.meta.extra["draw"])

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        """Codes of a sample's points, in its order: (N,) int64.

        Args:
            path: the scan itself, or the folder it lies in, for its classification; a file with a code for each point
                of the scan (.npy, .txt, or LAS, LAZ and PLY with a classification), or a folder with one of its name.

        Raises:
            DataError: there is none for this scan, it holds another number of codes, or what is no code.
        """
        scan, tiles, at = self._place(sample.meta.index)
        file = codes.file_for(Path(path), scan, self.root)
        if file.resolve() == scan.resolve():
            if "classification" not in tiles.columns:
                raise DataError(scan, "has no column classification", "codes", "Give a file of codes with --labels")
            cloud, _ = tiles.points(at, self._which(sample))
            return codes.checked(cloud.columns["classification"], scan)
        return _codes(file, file.stat().st_mtime_ns, int(tiles.index[:, 3].sum()))[self.numbers(sample)]

    @classmethod
    def scene_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Tiles of few points, too."""
        return {**options, "min_points": 2}

    def scenes(self) -> list[ScanScene]:
        """Every scan as a whole; classes are written into a copy of it."""
        from maskwright.pointcloud.scenes import ScanScene

        return [ScanScene(self, number) for number in range(len(self.files))]

    def legend(self, path: Path) -> dict[int, tuple[str, tuple[int, int, int]]]:
        """Names and colours of the classes of LAS, which have a fixed meaning; none of other files."""
        return codes.legend(Path(path))


@functools.lru_cache(maxsize=2)
def _codes(file: Path, changed: int, count: int) -> np.ndarray:
    """Codes of a whole scan; kept, as samples of one scan follow one another."""
    return codes.read_codes(file, count)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
