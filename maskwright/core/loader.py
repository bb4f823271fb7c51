"""Loader: the one interface between file formats and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskwright.core.sample import BadFile, InputSpec, Sample


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
        """Draw one tensor (C, ...) in physical units as its domain would: RGB image (H, W, 3) uint8."""

    def sources(self, index: int) -> list[str]:
        """All files that sample `index` is read from."""
        return [self.read(index).meta.source]

    def bytes_per_sample(self) -> int:
        """Bytes of one sample in memory; used for the forecast of a run."""
        return sum(t.numel() * t.element_size() for t in self.read(0).tensors.values())
