"""Scenes: images of any size that are predicted as a whole, and the maps made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
