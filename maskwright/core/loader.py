"""Loader: the one interface between file formats and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid
from maskwright.core.sample import BadFile, InputSpec, Sample

if TYPE_CHECKING:
    from maskwright.core.scene import PointScene, Scene

RAW_VALUES = 1024
"""Longest vector of raw values that serves as a baseline."""


@dataclass(frozen=True)
class Statistics:
    """Per-channel statistics of one named tensor over (a sample of) the data, in physical units; lists of length C."""

    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    count: int
    """Number of values a channel that were seen."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Loader(ABC):
    """A file or folder as an indexed set of samples.

    Constructor options other than `path` are what a recipe may set under `data`; they are validated against the
    constructor's signature. Indexing must be cheap: headers are read, not pixels. A file that cannot be used is put in
    `bad_files` while indexing, or raised as `DataError` by `read`.
    """

    spec: InputSpec
    """What each sample holds."""
    bad_files: list[BadFile]
    """Files left out while indexing, with the reason."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings that this loader reads, in lower case."""

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this loader understands `path`. Looks at names and headers only."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples, after bad files were set aside."""

    @abstractmethod
    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        """Read sample `index`. `generator` draws random crops and flips; without it the reading is deterministic.

        Raises:
            DataError: the file is broken, or lies about itself.
        """

    @abstractmethod
    def group(self, index: int) -> str:
        """Scene, patient, speaker or scan of sample `index`. Splits never cut through a group."""

    @abstractmethod
    def statistics(self) -> dict[str, Statistics]:
        """Statistics of each tensor, computed once and cached beside the data or in the user's cache folder."""

    @abstractmethod
    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """Draw one tensor (C, ...) in physical units as its domain would: RGB image (H, W, 3) uint8.

        Rows and columns keep the order of the tensor, as masks are laid over them.
        """

    def middle(self, name: str, tensor: Tensor) -> int:
        """Which slice along D of a volume (C, D, H, W) a picture shows."""
        return tensor.shape[1] // 2

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        """Turn a finished picture (H, W, 3) of one tensor as people of this domain look at it, where that is not its order."""
        return picture

    def label(self, index: int) -> Any:
        """Label of sample `index` as the files give it, None where there is none. Override it where that needs no reading."""
        return self.read(index).meta.label

    def sources(self, index: int) -> list[str]:
        """All files that sample `index` is read from."""
        return [self.read(index).meta.source]

    def buckets(self) -> np.ndarray | None:
        """Bucket 0, 1, ... of each sample, (N,) int, where samples of different buckets do not go into one batch: pictures
        and volumes, series of different lengths. None where all go together.
        """
        return None

    def bytes_per_sample(self) -> int:
        """Bytes of one sample in memory; used for the forecast of a run."""
        return sum(t.numel() * t.element_size() for t in self.read(0).tensors.values())

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        """Codes of a label raster or volume on the grid of a sample: integers of the sample's spatial shape.

        Args:
            path: a file, or a folder that holds one of the sample's name.

        Raises:
            DataError: there is none for this sample. ConfigError: this loader knows no label rasters.
        """
        raise ConfigError(
            f"The loader {type(self).__name__} reads no label rasters. Give labels as folder, or FILE.csv:COLUMN."
        )

    def legend(self, path: Path) -> dict[int, tuple[str, tuple[int, int, int]]]:
        """Names and colours (RGB) of the codes of a label raster, as far as the file itself tells."""
        return {}

    @classmethod
    def scene_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options with which this loader is opened to give `scenes`; those of a task model's training data before."""
        return options

    def scenes(self) -> Sequence[Scene | PointScene]:
        """Its images as a whole, to be predicted pixel by pixel, or its scans, point by point.

        Raises:
            ConfigError: this loader knows no scenes.
        """
        raise ConfigError(
            f"The loader {type(self).__name__} gives no scenes to make maps of. Sample-level tasks work with it."
        )

    def to_lonlat(self, crs: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude and latitude in degrees (WGS 84) of places (n,) in a reference system; NaN where they are unknown.

        Without a domain that knows reference systems, all are unknown.
        """
        return np.full(len(x), np.nan), np.full(len(x), np.nan)

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        """Features that need no network, which pre-training must beat to be worth its while.

        A domain says here what suits it; this is the mean, deviation and deciles of each channel, and the raw values,
        averaged down to at most `RAW_VALUES`.

        Args:
            cells: layout of tokens, to describe each cell of it rather than the whole sample; (N, d) `positions` where
                they are scattered.

        Returns:
            (D,) each, or (N, D) for N cells in raster order.
        """
        if cells is not None:
            return {} if cells.scattered else _cell_features(sample, cells.shape)
        summary, raw = [], []
        levels = torch.linspace(0.1, 0.9, 9)
        for tensor in sample.tensors.values():
            values = tensor.float().flatten(1)
            summary += [values.mean(1), values.std(1, correction=0), values.quantile(levels, dim=1).flatten()]
            room = max(1, RAW_VALUES // (len(sample.tensors) * len(values)))
            raw.append(F.adaptive_avg_pool1d(values, room) if values.shape[1] > room else values)
        return {
            "channel statistics": torch.cat(summary),
            "raw values": torch.cat([values.flatten() for values in raw]),
        }


def _cell_features(sample: Sample, cells: tuple[int, ...]) -> dict[str, Tensor]:
    """Mean and deviation of each channel in each cell, and the raw values where the cells divide the sample evenly."""
    pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(cells)]
    summary: list[Tensor] = []
    raw: list[Tensor] | None = []
    for tensor in sample.tensors.values():
        x = tensor.float()[None]
        shift = x.flatten(2).mean(2).reshape(1, -1, *[1] * len(cells))
        mean = pool(x - shift, cells)
        variance = pool((x - shift) ** 2, cells) - mean**2
        summary += [(mean + shift)[0].flatten(1), variance.clamp_min(0).sqrt()[0].flatten(1)]
        size = x.shape[2:]
        if raw is not None and len(size) == len(cells) and all(s % c == 0 for s, c in zip(size, cells, strict=True)):
            split = [value for s, c in zip(size, cells, strict=True) for value in (c, s // c)]
            axes = range(len(cells))
            order = [1 + 2 * axis for axis in axes] + [0] + [2 + 2 * axis for axis in axes]
            raw.append(x[0].reshape(len(x[0]), *split).permute(order).flatten(len(cells)).flatten(0, len(cells) - 1))
        else:
            raw = None
    features = {"channel statistics": torch.cat(summary).T.contiguous()}
    if raw is not None:
        features["raw values"] = torch.cat(raw, dim=1)
    return features
