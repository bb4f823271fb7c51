"""The contract of a task."""

from __future__ import annotations

import numpy as np

from maskwright.core.evaluation.task import IGNORE, Targets, Task
from maskwright.core.loader import Loader
from maskwright.testing.require import require


def check_task(task: Task, loader: Loader) -> None:
    """Check a task on a loader whose samples have labels for it.

    The targets are of the task's kind; classes have distinct names; there is one entry a sample, at least one with a
    label, and none outside of the classes; every class but those of a segmentation occurs; the same targets come out a
    second time. For a segmentation the pixels of the first three samples are read.

    Raises:
        AssertionError: what does not hold, and where.
    """
    name = type(task).__name__
    require(isinstance(task, Task), f"{name} is no maskwright.core.evaluation.task.Task.")
    targets = task.targets(loader)
    where = f"{name}.targets"
    require(isinstance(targets, Targets), f"{where} gave {type(targets).__name__}, not Targets.")
    require(targets.kind == task.kind, f'{where}: kind is "{targets.kind}", but the task\'s own is "{task.kind}".')
    classes = targets.classes
    named = bool(classes) and all(isinstance(known, str) and known for known in classes)
    require(named, f"{where}: classes are {classes!r}; names are wanted.")
    require(len(set(classes)) == len(classes), f"{where}: two classes of one name among {', '.join(classes)}.")
    if targets.colours is not None:
        count = len(targets.colours)
        require(count == len(classes), f"{where}: {count} colours for {len(classes)} classes.")
    if targets.kind == "segmentation":
        _check_pixels(targets, loader, where)
        return
    require(targets.values is not None, f"{where}: values are missing; one entry a sample is wanted.")
    assert targets.values is not None
    _check_values(targets.kind, targets.values, len(classes), len(loader), where)
    require(len(targets.labelled(len(loader))) > 0, f"{where}: no sample has a label.")
    again = task.targets(loader)
    same = again.classes == classes and np.array_equal(targets.values, again.values, equal_nan=True)
    require(same, f"{where}: gives something else the second time.")


def _check_values(kind: str, values: np.ndarray, classes: int, samples: int, where: str) -> None:
    single = kind in ("classification", "retrieval")
    wanted = (samples,) if single else (samples, classes)
    require(values.shape == wanted, f"{where}: values have shape {values.shape}; {wanted} was expected.")
    if single:
        whole = np.issubdtype(values.dtype, np.integer)
        require(whole, f"{where}: values have type {values.dtype}; class numbers must be integers.")
        _check_numbers(values, classes, where)
        absent = sorted(set(range(classes)) - set(values.tolist()))
        require(not absent, f"{where}: no sample is of class {absent[:5]} of {classes}. Leave it out.")
        return
    partial = np.isfinite(values).any(1) & ~np.isfinite(values).all(1)
    if kind == "multilabel":
        require(not partial.any(), f"{where}: sample {partial.argmax()} has NaN for some classes only; give 0 or 1.")
        known = values[np.isfinite(values).all(1)]
        require(bool(np.isin(known, (0, 1)).all()), f"{where}: values must be 0, 1, or rows of NaN.")
    else:
        require(not np.isinf(values).any(), f"{where}: values hold infinity; NaN means that there is no label.")


def _check_numbers(values: np.ndarray, classes: int, where: str) -> None:
    low, high = int(values.min(initial=IGNORE)), int(values.max(initial=IGNORE))
    inside = low >= IGNORE and high < classes
    require(inside, f"{where}: class numbers from {low} to {high}; {IGNORE} to {classes - 1} were expected.")


def _check_pixels(targets: Targets, loader: Loader, where: str) -> None:
    require(targets.read is not None, f"{where}: a segmentation needs `read`, which gives the classes of each pixel.")
    assert targets.read is not None
    count = len(targets.codes)
    require(count == len(targets.classes), f"{where}: {count} codes for {len(targets.classes)} classes.")
    some = False
    for index in range(min(3, len(loader))):
        sample = loader.read(index)
        found = np.asarray(targets.read(sample))
        sizes = {tuple(tensor.shape[-found.ndim :]) for tensor in sample.tensors.values()}
        require(found.shape in sizes, f"{where}.read: sample {index} has labels {found.shape}, but tensors {sizes}.")
        require(np.issubdtype(found.dtype, np.integer), f"{where}.read: labels have type {found.dtype}, not integers.")
        _check_numbers(found, len(targets.classes), f"{where}.read, sample {index}")
        require(np.array_equal(found, targets.read(sample)), f"{where}.read: sample {index} differs the second time.")
        some = some or bool((found != IGNORE).any())
    require(some, f"{where}.read: no pixel of the first samples has a label.")
