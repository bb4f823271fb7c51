"""Training, validation and test samples that share no patient, and falling shares of the training part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.labels import labels_of
from maskwright.core.evaluation.splits import make_folds, take_fraction
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader

NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
         "test": "test"}  # fmt: skip
"""What a column of parts may say of a sample."""
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Positions in the loader, sorted: (n,) int64 each. No group is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_samples(
    loader: Loader, targets: Targets, spec: str = "group", test: float = 0.2, validation: float = 0.15, seed: int = 0
) -> Split:
    """Labelled samples in three parts.

    Args:
        spec: `group` cuts by `loader.group`, classes spread evenly, with the shares below; FILE.csv:COLUMN or
            FILE.npz:NAME says train, validation or test of each sample (without validation it is cut from train).
        test: share of all groups that is tested on; more, where so few patients would leave a class out.
        validation: share of the other groups that the best step is chosen on.

    Raises:
        ConfigError: a share outside (0, 0.5]. DataError: a group in two parts, too few groups, or a part without two
            classes.
    """
    for name, share in (("test", test), ("validation", validation)):
        if not 0 < share <= 0.5:
            raise ConfigError(f"{name}={share} is outside (0, 0.5]: it is a share of the patients.")
    assert targets.values is not None
    labelled = targets.labelled(len(loader))
    labels = targets.values
    groups = np.array([loader.group(int(index)) for index in labelled])
    if spec == "group":
        parts = np.full(len(labelled), "train", dtype="<U10")
        parts[_fold(groups, labels[labelled], test, seed)] = "test"
    else:
        parts = _column(spec, loader)[labelled]
    if not (parts == "validation").any():
        rest = np.flatnonzero(parts == "train")
        parts[rest[_fold(groups[rest], labels[labelled][rest], validation, seed)]] = "validation"
    split = Split(*(labelled[parts == name] for name in PARTS))
    _check(split, spec, loader, targets)
    return split


def _fold(groups: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Positions of the samples of about this share of the groups; of more, where few patients leave a class out.

    Groups count by when they first occur, not by name: names of DICOM patients are hashes with a key of the machine.
    """
    first = {name: f"{number:09d}" for number, name in enumerate(dict.fromkeys(groups.tolist()))}
    names, classes = [first[name] for name in groups.tolist()], len(np.unique(labels))
    rarest = int(np.unique(labels, return_counts=True)[1].min())
    counts = range(max(2, min(round(1 / share), rarest)), 1, -1)
    folds = [fold.test for count in counts for fold in make_folds(names, labels, count, seed)]
    return next((fold for fold in folds if len(np.unique(labels[fold])) == classes), folds[0])


def _column(spec: str, loader: Loader) -> np.ndarray:
    found = [str(value).strip().lower() for value in labels_of(spec, loader)]
    unknown = sorted(set(found) - set(NAMES))
    if unknown:
        raise DataError(
            spec, f'says "{unknown[0]}" of a sample', "train, validation or test", "Or split by patient: --split group"
        )
    return np.array([NAMES[value] for value in found], dtype="<U10")


def _check(split: Split, spec: str, loader: Loader, targets: Targets) -> None:
    assert targets.values is not None
    of_groups: dict[str, str] = {}
    for name in PARTS:
        indices = getattr(split, name)
        found = np.unique(targets.values[indices])
        if len(found) < 2:
            names = ", ".join(targets.classes[number] for number in found) or "no sample"
            raise DataError(
                spec,
                f"leaves {name} with {names}",
                "two classes in each part",
                "Label more patients, or change the shares with --test and --validation",
            )
        for index in indices:
            group = loader.group(int(index))
            if of_groups.setdefault(group, name) != name:
                raise DataError(
                    spec,
                    f'puts samples of the group "{group}" in {of_groups[group]} and in {name}',
                    "each patient in one part",
                    "Split by patient: --split group",
                )


def subset(split: Split, targets: Targets, fraction: float, seed: int) -> np.ndarray:
    """A share of the training part, every class in proportion and at least once: sorted positions in the loader.

    Equal seeds give equal subsets, and of one seed a smaller share lies within every larger one.
    """
    return take_fraction(split.train, targets.values, fraction, seed)
