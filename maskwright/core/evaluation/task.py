"""Tasks: what is predicted of a sample, and where its labels come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.labels import is_missing, labels_of
from maskwright.core.loader import Loader
from maskwright.core.sample import Sample
from maskwright.core.trainer.data import read_batches

Kind = Literal["classification", "multilabel", "regression", "segmentation", "retrieval"]
IGNORE = -1
"""Class of what has no label: a sample without one, or a pixel without a known code."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Targets:
    """What is to be predicted of each sample of a loader.

    Args:
        kind: classification, multilabel, regression, segmentation or retrieval.
        classes: names of the classes, in order; of the columns, where the task is regression.
        values: one entry a sample. (N,) class numbers with -1 where there is no label; (N, C) 0 or 1, NaN rows where
            there is none; (N, K) numbers, NaN where there is none. None for segmentation.
        read: for segmentation, the class numbers of a sample's pixels, integers of its spatial shape, -1 to ignore.
        codes: for segmentation, the code that stands for each class in the user's files.
        colours: RGB of each class where the labels say so.
    """

    kind: Kind
    classes: tuple[str, ...]
    values: np.ndarray | None = None
    read: Callable[[Sample], np.ndarray] | None = None
    codes: tuple[int, ...] = ()
    colours: tuple[Colour, ...] | None = None

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label of its own."""
        return self.read is not None

    @property
    def outputs(self) -> int:
        """Numbers that a head must give: classes, or columns of a regression."""
        return len(self.classes)

    def labelled(self, count: int) -> np.ndarray:
        """Indices of the samples that have a label, of `count` in all."""
        if self.values is None:
            return np.arange(count)
        if self.kind in ("classification", "retrieval"):
            return np.flatnonzero(self.values != IGNORE)
        return np.flatnonzero(np.isfinite(self.values).all(axis=1))


class Task(ABC):
    """What is predicted. Constructor keywords are the task's options; `labels` says where labels are.

    A domain adds a task by subclassing one of the five below: fixed class names, another way to find labels.
    """

    kind: ClassVar[Kind]

    @abstractmethod
    def targets(self, loader: Loader) -> Targets:
        """Labels of a loader's samples.

        Raises:
            DataError: labels that are missing or cannot be read. ConfigError: labels of another kind.
        """


class Classification(Task):
    """One class a sample.

    Args:
        labels: `folder` (name of the folder that a file lies in), `label` (what the loader itself says), FILE.csv:COLUMN,
            FILE.parquet:COLUMN, FILE.npy or FILE.npz:NAME.
        key: column of the table that names the files; found by itself where it is called path, file, name or id.
    """

    kind: ClassVar[Kind] = "classification"

    def __init__(self, labels: str = "folder", key: str = "") -> None:
        self.labels, self.key = labels, key

    def targets(self, loader: Loader) -> Targets:
        found = labels_of(self.labels, loader, self.key)
        names = ["" if is_missing(label) else _class_name(label) for label in found]
        classes = sorted(set(names) - {""}, key=_natural)
        if len(classes) < 2:
            raise DataError(
                self.labels,
                f"gives {len(classes)} class{'' if len(classes) == 1 else 'es'}: {', '.join(classes) or 'none'}",
                "two classes or more",
            )
        if len(classes) > max(50, len(names) // 2):
            raise ConfigError(
                f"{self.labels} gives {len(classes)} different values for {len(names)} samples, which are hardly "
                "classes. For numbers use --task regression."
            )
        number = {name: at for at, name in enumerate(classes)}
        values = np.array([number.get(name, IGNORE) for name in names], dtype=np.int64)
        return Targets(self.kind, tuple(classes), values)


class Retrieval(Classification):
    """Samples of the same class are to be found: each test sample asks among the training samples."""

    kind: ClassVar[Kind] = "retrieval"


class MultiLabel(Classification):
    """Any number of classes a sample, separated by `;` or `|` or given as a list.

    Args:
        separator: what stands between the classes; found by itself where it is `;` or `|`.
    """

    kind: ClassVar[Kind] = "multilabel"

    def __init__(self, labels: str = "label", key: str = "", separator: str = "") -> None:
        super().__init__(labels, key)
        self.separator = separator

    def targets(self, loader: Loader) -> Targets:
        found = labels_of(self.labels, loader, self.key)
        sets = [None if is_missing(label) else self._split(label) for label in found]
        classes = sorted(set().union(*(names for names in sets if names)), key=_natural)
        if not classes:
            raise DataError(self.labels, "gives no class", "one or more classes a sample")
        values = np.full((len(sets), len(classes)), np.nan, dtype=np.float32)
        for row, names in zip(values, sets, strict=True):
            if names is not None:
                row[:] = [name in names for name in classes]
        return Targets(self.kind, tuple(classes), values)

    def _split(self, label: Any) -> set[str]:
        if isinstance(label, str):
            text = label.strip().strip("[]")
            separator = self.separator or next((mark for mark in ";|" if mark in text), ",")
            label = text.split(separator)
        return {name for part in label if (name := _class_name(part).strip().strip("'\""))}


class Regression(Task):
    """One or more numbers a sample.

    Args:
        labels: as for classification; several columns as FILE.csv:A,B.
        key: column of the table that names the files; found by itself where it is called path, file, name or id.
    """

    kind: ClassVar[Kind] = "regression"

    def __init__(self, labels: str = "label", key: str = "") -> None:
        self.labels, self.key = labels, key

    def targets(self, loader: Loader) -> Targets:
        place, colon, columns = self.labels.rpartition(":")
        names = columns.split(",") if colon else [self.labels.rsplit("/", 1)[-1]]
        specs = [f"{place}:{name}" for name in names] if colon else [self.labels]
        values = np.stack([self._numbers(labels_of(spec, loader, self.key), spec) for spec in specs], axis=1)
        if not np.isfinite(values).all(axis=1).any():
            raise DataError(self.labels, "gives no number", "a number a sample")
        return Targets(self.kind, tuple(names), values)

    @staticmethod
    def _numbers(labels: list[Any], spec: str) -> np.ndarray:
        out = np.full(len(labels), np.nan)
        for at, label in enumerate(labels):
            if is_missing(label):
                continue
            try:
                out[at] = float(label)
            except (TypeError, ValueError):
                raise DataError(
                    spec, f'holds "{label}" for sample {at}', "a number", "For class names use --task classification"
                ) from None
        return out


class Segmentation(Task):
    """A class for each pixel (or voxel, or point), from label rasters on the samples' own grid or any other.

    Args:
        labels: a label raster, or a folder of label rasters named like the samples' files.
        classes: names of codes, such as {1: water, 2: trees}; codes that are not named are ignored if any are named.
        ignore: codes that mean "no label".
    """

    kind: ClassVar[Kind] = "segmentation"

    def __init__(self, labels: str, classes: dict[int, str] | None = None, ignore: list[int] | None = None) -> None:
        self.labels, self.classes, self.ignore = labels, dict(classes or {}), list(ignore or [])

    def targets(self, loader: Loader) -> Targets:
        path = Path(self.labels)
        if not path.exists():
            raise DataError(path, "there is no such file or folder", "label rasters", "Give them with --labels")
        legend = loader.legend(path)
        codes = tuple(sorted(set(self.classes) - set(self.ignore))) or self._codes_in_use(loader, path)
        if len(codes) < 2:
            raise DataError(path, f"holds {len(codes)} class codes", "two or more")
        number = {code: at for at, code in enumerate(codes)}
        names = tuple(self.classes.get(code) or legend.get(code, (str(code),))[0] for code in codes)
        colours = tuple(legend[code][1] for code in codes) if all(code in legend for code in codes) else None

        def read(sample: Sample) -> np.ndarray:
            found = loader.read_labels(path, sample)
            out = np.full(found.shape, IGNORE, dtype=np.int64)
            for code, at in number.items():
                out[found == code] = at
            return out

        return Targets(self.kind, names, read=read, codes=codes, colours=colours)

    def _codes_in_use(self, loader: Loader, path: Path) -> tuple[int, ...]:
        codes: set[int] = set()
        for batch in read_batches(loader, 1):
            for position, meta in enumerate(batch.metas):
                sample = Sample({name: tensor[position] for name, tensor in batch.tensors.items()}, meta)
                codes |= set(np.unique(loader.read_labels(path, sample)).tolist())
        return tuple(sorted(code for code in codes - set(self.ignore) if code >= 0))


def _class_name(label: Any) -> str:
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by size, then text by letter."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
