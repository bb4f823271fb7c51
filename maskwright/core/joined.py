"""Several loaders as one: samples of one kind one after the other, or of several kinds side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking.base import Grid
from maskwright.core.sample import Sample


class JoinedLoader(Loader):
    """Loaders one after the other: training data, then test data. Statistics are those of the first."""

    def __init__(self, parts: Sequence[Loader]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))
        self.spec = self.parts[0].spec
        self.bad_files = [bad for part in self.parts for bad in part.bad_files]

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def _part(self, index: int) -> tuple[Loader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, and no sample {index}")
        number = bisect_right(self.ends, index)
        return self.parts[number], index - (self.ends[number - 1] if number else 0)

    def _of(self, name: str) -> Loader:
        """The part that gives a tensor."""
        return next(part for part in self.parts if name in part.spec)

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        part, at = self._part(index)
        sample = part.read(at, generator)
        return replace(sample, meta=replace(sample.meta, index=index))

    def label(self, index: int) -> Any:
        part, at = self._part(index)
        return part.label(at)

    def group(self, index: int) -> str:
        part, at = self._part(index)
        return part.group(at)

    def sources(self, index: int) -> list[str]:
        part, at = self._part(index)
        return part.sources(at)

    def statistics(self) -> dict[str, Statistics]:
        return self.parts[0].statistics()

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return self._of(name).picture(name, tensor)

    def middle(self, name: str, tensor: Tensor) -> int:
        return self._of(name).middle(name, tensor)

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        return self._of(name).upright(name, picture)

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        return self._of(next(iter(sample.tensors))).simple_features(sample, cells)


class MixedLoader(JoinedLoader):
    """Samples of several kinds, such as pictures and volumes, each kind read by its own loader.

    A batch holds one kind; kinds take turns at random. For methods that take one of several inputs, such as Uni4Eye.

    Args:
        path: folder that each kind is looked for in, unless it has a path of its own.
        parts: options of each loader, by the loader's name: `data.parts.images.size=224`,
            `data.parts.volumes.size=[112,224,224]`, or `{}` for its defaults. `path` among them, absolute or below the
            folder, says where that kind lies.

    Raises:
        ConfigError: no kind is named, or two loaders give inputs of one name. DataError: one kind is not there.
    """

    def __init__(self, path: str | Path, parts: dict[str, dict[str, Any]] | None = None) -> None:
        if not parts:
            raise ConfigError(
                "data.parts names no loader. Say which kinds to mix, each with its options: "
                "data.parts.images.size=224 data.parts.volumes.size=64 (`maskwright list loader`)."
            )
        loaders = []
        for name, options in parts.items():
            rest = {key: value for key, value in (options or {}).items() if key != "path"}
            place = Path(path) / str((options or {}).get("path", ""))
            loaders.append(open_loader(place, name, **rest)[1])
        super().__init__(loaders)
        names = [name for part in self.parts for name in part.spec]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"data.parts: {' and '.join(parts)} both give {', '.join(twice)}. Leave one of them out.")
        self.spec = {name: replace(spec, optional=True) for part in self.parts for name, spec in part.spec.items()}

    def statistics(self) -> dict[str, Statistics]:
        return {name: found for part in self.parts for name, found in part.statistics().items()}

    def buckets(self) -> np.ndarray:
        """One for each kind, or for each bucket of a kind."""
        found, first = [], 0
        for part in self.parts:
            of_part = part.buckets()
            found.append(first + (np.zeros(len(part), dtype=int) if of_part is None else of_part))
            first = int(found[-1].max(initial=first - 1)) + 1
        return np.concatenate(found)

    def bytes_per_sample(self) -> int:
        return max(part.bytes_per_sample() for part in self.parts)

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        part, at = self._part(sample.meta.index)
        return part.read_labels(path, replace(sample, meta=replace(sample.meta, index=at)))

    def legend(self, path: Path) -> dict[int, tuple[str, tuple[int, int, int]]]:
        return next((found for part in self.parts if (found := part.legend(path))), {})
