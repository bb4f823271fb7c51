"""Some samples of a loader, as a loader of their own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import DataError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import BadFile, Sample
from maskwright.core.statistics import compute


class Part(Loader):
    """The samples `indices` of another loader, in that order. Nothing of the others is read, statistics included.

    Args:
        whole: the loader.
        indices: positions in it.

    Raises:
        DataError: no index is given.
    """

    def __init__(self, whole: Loader, indices: Sequence[int] | np.ndarray) -> None:
        self.whole, self.indices = whole, [int(index) for index in indices]
        self.spec, self.suffixes = whole.spec, whole.suffixes
        self.bad_files: list[BadFile] = []
        if not self.indices:
            raise DataError("unlabelled data", "hold no sample besides those of the test and validation groups")

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        sample = self.whole.read(self.indices[index], generator)
        return replace(sample, meta=replace(sample.meta, index=index))

    def group(self, index: int) -> str:
        return self.whole.group(self.indices[index])

    def label(self, index: int) -> Any:
        return self.whole.label(self.indices[index])

    def sources(self, index: int) -> list[str]:
        return self.whole.sources(self.indices[index])

    def buckets(self) -> np.ndarray | None:
        of_all = self.whole.buckets()
        return None if of_all is None else np.unique(of_all[self.indices], return_inverse=True)[1]

    def bytes_per_sample(self) -> int:
        return self.whole.bytes_per_sample()

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return self.whole.picture(name, tensor)

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        return self.whole.upright(name, picture)

    def statistics(self) -> dict[str, Statistics]:
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        def read(index: int) -> dict[str, np.ndarray]:
            return {name: tensor.numpy() for name, tensor in self.read(index).tensors.items()}

        return compute(len(self), read, self.sources(0)[0])
