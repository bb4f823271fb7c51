"""Loaders of files: a domain says how a sample is read, and the rest follows."""

from __future__ import annotations

import functools
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import DataError, MaskwrightError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import BadFile, Meta, Sample
from maskwright.core.statistics import Running, spread

MAX_FILES = 1000
"""Files that statistics are taken from, spread evenly over all."""


class FileLoader(Loader):
    """Every file with one of `suffixes` in a folder and its sub-folders, in order of name, or a single file.

    Subclasses set `suffixes` and `spec`, and implement `read`. A sample's label is the name of the folder that its
    file lies in, if that is a sub-folder; its group is the file itself, as a path relative to the folder that was
    opened. Override `group` where several files come from one patient, scene or speaker. Hidden files are left out, and
    empty ones set aside.

    Args:
        path: a folder, or a file.

    Raises:
        DataError: there is neither.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise DataError(path, "there is no such file or folder")
        self.root = path if path.is_dir() else path.parent
        found = _files(path, self.suffixes)
        self.bad_files = [BadFile(str(file), "is empty") for file in found if file.stat().st_size == 0]
        empty = {bad.path for bad in self.bad_files}
        self.files = [file for file in found if str(file) not in empty]

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_dir():
            return next(iter(_files(path, cls.suffixes, only_first=True)), None) is not None
        return path.is_file() and path.suffix.lower() in cls.suffixes

    def __len__(self) -> int:
        return len(self.files)

    def group(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def label(self, index: int) -> str | None:
        """Name of the sub-folder that sample `index` lies in, None at the top."""
        folder = self.files[index].parent
        return None if folder == self.root else folder.name

    def sources(self, index: int) -> list[str]:
        return [str(self.files[index])]

    def statistics(self) -> dict[str, Statistics]:
        return self._statistics

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """The first channel in grey, or the first three in colour, from darkest to brightest value.

        A series (C, T) becomes one row of pixels a channel, a volume its middle slice.
        """
        x = tensor.float()
        if x.ndim == 2:
            x = x[None]
        elif x.ndim == 4:
            x = x[:, x.shape[1] // 2]
        x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
        low, high = x.amin(), x.amax()
        return ((x - low) / (high - low).clamp_min(1e-12) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Over all files or `MAX_FILES` of them; samples with anything but finite numbers count for nothing."""
        chosen = spread(len(self), MAX_FILES)
        running: dict[str, Running] = {}
        reasons = []
        for index in chosen:
            try:
                sample = self.read(index)
            except DataError as error:  # the trainer sets the file aside when it meets it
                reasons.append(str(error))
                continue
            for name, spec in self.spec.items():
                values = _by_channel(sample[name], spec.dims.split())
                if values.size and np.isfinite(values).all():
                    running.setdefault(name, Running(len(values))).add(values)
        if len(running) < len(self.spec):
            reason = reasons[0] if reasons else "there is none, or none holds finite numbers only"
            raise DataError(self.root, f"none of {len(chosen)} files looked at can be used: {reason}")
        return {name: running[name].result() for name in self.spec}


class FolderLoader(FileLoader):
    """One file a sample: subclasses set `suffixes` and `spec`, and implement `read_file`. See `FileLoader` for the rest."""

    @abstractmethod
    def read_file(self, file: Path) -> dict[str, Tensor]:
        """Named tensors of one file in physical units, as `spec` announces them.

        Whatever it raises is reported as a `DataError` of this file.
        """

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        file = self.files[index]
        try:
            tensors = self.read_file(file)
        except (MaskwrightError, MemoryError):
            raise
        except Exception as error:  # a broken file makes a library raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DataError(file, f"cannot be read ({reason})", f"a whole {file.suffix} file") from error
        self._check(file, tensors)
        return Sample(tensors, Meta(str(file), group=self.group(index), index=index, label=self.label(index)))

    def _check(self, file: Path, tensors: dict[str, Tensor]) -> None:
        """Compare what was read with what `spec` announces: names, dimensions, numbers of channels."""
        for name, spec in self.spec.items():
            shape = tuple(tensors[name].shape) if name in tensors else ()
            dims = spec.dims.split()
            fits = len(shape) == len(dims)
            if fits and "C" in dims and spec.channel_count is not None:
                fits = shape[dims.index("C")] == spec.channel_count
            if not fits:
                channels = "" if spec.channel_count is None else f" with {spec.channel_count} channels"
                raise DataError(file, f'gives "{name}" of shape {shape}', f"({spec.dims}){channels}")


def _by_channel(tensor: Tensor, dims: list[str]) -> np.ndarray:
    """(C, M) float64 of a tensor, whichever of its axes is C; one channel where it has none."""
    values = tensor.double()
    values = values.movedim(dims.index("C"), 0) if "C" in dims else values[None]
    return values.flatten(1).numpy()


def _files(path: Path, suffixes: tuple[str, ...], only_first: bool = False) -> list[Path]:
    """Files of these endings, hidden ones left out, in order of name."""
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    found = []
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in suffixes and not hidden and file.is_file():
            found.append(file)
            if only_first:
                break
    return sorted(found)
