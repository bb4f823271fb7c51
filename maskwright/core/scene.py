"""Scenes: images of any size that are predicted as a whole, and the maps made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from maskwright.core.sample import Sample

Window = tuple[slice, ...]
"""Start and stop along each spatial axis, inside the scene."""


@dataclass(frozen=True)
class MapFormat:
    """What a map holds.

    Args:
        dtype: of its values, such as "uint8".
        bands: name of each band.
        nodata: value where the input has no data; NaN for floats.
        colours: RGB of each code.
        categories: name of each code.
        tags: further metadata.
    """

    dtype: str
    bands: tuple[str, ...]
    nodata: float | None = None
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class MapWriter(Protocol):
    """Takes a map piece by piece."""

    def write(self, window: Window, array: np.ndarray) -> None:
        """Write (bands, *window). Pieces span all axes but the first, and come one after another along the first."""


class Scene(ABC):
    """One image, volume or recording of any size, read in windows."""

    name: str
    """Unique among the scenes of a loader; a relative path without ending, which maps are called after."""
    sources: list[str]
    """All files that it is read from."""
    shape: tuple[int, ...]
    """Pixels along each spatial axis."""
    suffix: str
    """File name ending of its maps, such as ".tif"."""
    stacked: bool = False
    """Whether the first axis counts images that are predicted one by one, as a volume's slices; the model sees no such
    axis, and `read` gives (C, *rest) of one of them."""

    @abstractmethod
    def read(self, window: Window) -> Sample:
        """The inputs in a window, (C, *window) in physical units, NaN where there is no data.

        Raises:
            DataError: the file is broken.
        """

    @abstractmethod
    def writer(self, path: Path, form: MapFormat) -> AbstractContextManager[MapWriter]:
        """A map that lies where this scene lies. It appears under `path` when all of it is written, whole or not at all.

        Raises:
            DataError: it cannot be written. DiskFullError: no space.
        """


class PointScene(ABC):
    """One scan of scattered points of any number, predicted point by point."""

    name: str
    """Unique among the scenes of a loader; a relative path without ending, which outputs are called after."""
    sources: list[str]
    suffix: str
    """File name ending of its outputs, such as ".laz"."""
    count: int
    """Points of the scan."""

    @abstractmethod
    def pieces(self) -> Iterator[tuple[Sample, np.ndarray]]:
        """Samples that cover all points together, with the number in the scan of each of a sample's points, (N,) int64.

        A point may come more than once. Every piece has as many points as a sample has.

        Raises:
            DataError: the file is broken.
        """

    @abstractmethod
    def write(self, path: Path, columns: dict[str, np.ndarray], form: MapFormat) -> None:
        """All points with new columns (count,), in the order of the scan and where the scan has them; atomically.

        A column "class" takes the place of the scan's own classification.

        Raises:
            DataError: it cannot be written. DiskFullError: no space.
        """
