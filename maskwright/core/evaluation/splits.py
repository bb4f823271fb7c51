"""Splits that never cut through a group: scene, spatial block, patient, speaker, video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.labels import labels_of
from maskwright.core.loader import Loader
from maskwright.core.sample import Meta
from maskwright.core.trainer.data import derive_seed, generator_for

FRACTION = 12
"""Keeps the stream that draws label subsets apart from others."""


@dataclass(frozen=True)
class Fold:
    """Positions of the training and the test samples."""

    train: np.ndarray
    test: np.ndarray


def groups_of(spec: str, loader: Loader, metas: Sequence[Meta]) -> list[str]:
    """The group of each sample.

    Args:
        spec: `group` (what the loader says), `block:SIZE` (squares of that side in units of the CRS, or pixels where
            there is none), `random` (each sample for itself), or a column as for labels (FILE.csv:COLUMN, FILE.npy).

    Raises:
        ConfigError: a block size that is no number. DataError: a column that cannot be read.
    """
    if spec == "group":
        return [meta.group or meta.source for meta in metas]
    if spec == "random":
        return [f"{meta.source}#{meta.index}" for meta in metas]
    if spec.startswith("block:"):
        try:
            size = float(spec.removeprefix("block:"))
        except ValueError:
            size = 0.0
        if not size > 0:
            raise ConfigError(f'split="{spec}": write block:SIZE, such as block:5000, in units of the CRS or pixels.')
        return [_block(meta, size) for meta in metas]
    labels = labels_of(spec, loader)
    return [str(labels[meta.index]) for meta in metas]


def centre(meta: Meta) -> tuple[float, float] | None:
    """Centre of a sample's window, in units of its CRS where it has one, else in pixels of its file."""
    if meta.window is None:
        return None
    row, column, height, width = meta.window
    if meta.transform is None or meta.crs is None:
        return column + width / 2, row + height / 2
    a, b, c, d, e, f = meta.transform
    return a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f


def _block(meta: Meta, size: float) -> str:
    at = centre(meta)
    if at is None:
        raise DataError(meta.source, "its samples have no window", "places, for a split by block")
    place = f"{math.floor(at[0] / size)},{math.floor(at[1] / size)}"
    return f"block {place} of {meta.crs[:40] if meta.crs and meta.transform else meta.source}"


def join(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Groups after those of each pair of samples became one."""
    leader = {group: group for group in groups}

    def find(group: str) -> str:
        while leader[group] != group:
            leader[group] = leader[leader[group]]
            group = leader[group]
        return group

    for first, second in pairs:
        a, b = sorted((find(groups[first]), find(groups[second])))
        leader[b] = a
    return [find(group) for group in groups]


def make_folds(groups: Sequence[str], labels: np.ndarray | None, count: int, seed: int) -> list[Fold]:
    """Folds in which each sample is tested once and no group is on both sides.

    Args:
        groups: of each sample.
        labels: (n,) class numbers, to spread the classes evenly; None where there are no classes.
        count: folds; fewer where there are fewer groups.

    Raises:
        DataError: all samples are of one group.
    """
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            "split",
            f"all {len(groups)} samples are of one group, {names[0]}",
            "two groups or more",
            "Split by place with --split block:SIZE, by a column with --split FILE.csv:COLUMN, or ask for --split random",
        )
    count = min(count, len(names))
    state = derive_seed(seed, len(groups)) % 2**32
    largest = 0 if labels is None else int(np.bincount(labels).max())
    if labels is None or largest < count:  # no class has a sample for each fold
        parts = GroupKFold(count, shuffle=True, random_state=state).split(numbers, groups=numbers)
    elif len(names) == len(groups):
        smallest = np.bincount(labels)[np.unique(labels)].min()
        if smallest < count:  # too rare a class to be in each fold
            parts = GroupKFold(count, shuffle=True, random_state=state).split(numbers, groups=numbers)
        else:
            parts = StratifiedKFold(count, shuffle=True, random_state=state).split(numbers, labels)
    else:
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=state).split(numbers, labels, numbers)
    return [Fold(train, test) for train, test in parts if len(train) and len(test)]


def keep_away(fold: Fold, metas: Sequence[Meta], distance: float) -> Fold:
    """The fold without training samples whose centre is nearer than `distance` to that of a test sample."""
    if distance <= 0:
        return fold
    places = [centre(meta) for meta in metas]
    if any(place is None for place in places):
        raise ConfigError("A buffer needs samples with places; these have none. Leave --buffer out.")
    at = np.array(places)
    near = np.zeros(len(fold.train), bool)
    systems = np.array([f"{meta.crs if meta.transform else meta.source}" for meta in metas])
    for sample in fold.test:
        same = systems[fold.train] == systems[sample]
        near |= same & (np.abs(at[fold.train] - at[sample]).max(1) < distance)
    return Fold(fold.train[~near], fold.test)


def take_fraction(train: np.ndarray, labels: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """A share of the training samples, one or more of each class; smaller shares are subsets of larger ones."""
    if fraction >= 1:
        return train
    generator = generator_for(seed, FRACTION)
    shuffled = train[torch.randperm(len(train), generator=generator).numpy()]
    wanted = max(1, round(fraction * len(train)))
    if labels is None:
        return np.sort(shuffled[:wanted])
    kept = []
    classes = np.unique(labels[train])
    for number in classes:
        members = shuffled[labels[shuffled] == number]
        kept.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(kept))


def check_fractions(fractions: Sequence[float]) -> list[float]:
    """Fractions in rising order.

    Raises:
        ConfigError: one outside (0, 1].
    """
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"fractions={fraction} is outside (0, 1]: it is a share of the labelled training samples."
            )
    rising = sorted(set(fractions))
    assert all(a < b for a, b in pairwise(rising))
    return rising
