"""Scans as a whole: pieces in, every point with its class out, where the scan has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskwright.core.sample import Meta, Sample
from maskwright.core.scene import MapFormat, PointScene
from maskwright.core.trainer.data import generator_for
from maskwright.pointcloud import base
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.formats.las import LasFile
from maskwright.pointcloud.writers import write_las_with, write_points

if TYPE_CHECKING:
    from maskwright.pointcloud.loaders import ScanLoader

CLASS = "classification"


class ScanScene(PointScene):
    """Scan `number` of a loader, whose tiles are cut into samples at random, so that each is as dense as in training."""

    def __init__(self, loader: ScanLoader, number: int) -> None:
        self.loader, self.number = loader, number
        path, tiles = loader.files[number], loader.tiles[number]
        self.name = path.relative_to(loader.root).with_suffix("").as_posix()
        self.sources = [str(path)]
        self.suffix = path.suffix.lower() if path.suffix.lower() in (".las", ".laz") else ".ply"
        self.count = int(tiles.index[:, 3].sum())

    def pieces(self) -> Iterator[tuple[Sample, np.ndarray]]:
        """Every tile, also those of too few points to train on; the last piece of a tile repeats some of its points."""
        loader, path, tiles = self.loader, self.loader.files[self.number], self.loader.tiles[self.number]
        for tile, there in enumerate(tiles.index[:, 3].tolist()):
            size = there if loader.points == "all" else loader.points
            order = _shuffled(there, tile)
            order = np.concatenate([order, order[np.arange(-there % size) % there]])
            for which in order.reshape(-1, size):
                cloud, numbers = tiles.points(tile, which)
                if (cloud.xyz == cloud.xyz[0]).all():  # a tile of one point has no extent that could be scaled
                    continue
                tensor, extra = base.as_sample(cloud, loader.features, tiles.top, loader.scale, loader.crs, path)
                yield Sample({"points": tensor}, Meta(str(path), crs=loader.crs, extra=extra)), numbers

    def write(self, path: Path, columns: dict[str, np.ndarray], form: MapFormat) -> None:
        named = {CLASS if name == "class" else name: values for name, values in columns.items()}
        source = open_points(self.sources[0], 2**63)
        if isinstance(source, LasFile):
            if CLASS in named:  # 0 is "never classified" in LAS, and old point formats hold no code above 31
                named[CLASS] = np.where(named[CLASS] == form.nodata, 0, named[CLASS])
            write_las_with(path, source, named)
            return
        blocks = list(source.blocks(source.columns or ()))
        kept = {name: np.concatenate([block.columns[name] for block in blocks]) for name in source.columns or ()}
        write_points(path, np.concatenate([block.xyz for block in blocks]), {**kept, **named}, crs=self.loader.crs)


def _shuffled(count: int, seed: int) -> np.ndarray:
    return torch.randperm(count, generator=generator_for(0, seed)).numpy()
