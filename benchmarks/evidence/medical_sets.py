"""The four labelled clinical sets of `benchmarks.evidence.medical`, written once as arrays that the loader `arrays` reads.

Each fold is one .npz of all samples, training rows first (`x`, `y`, `group`), and one of what is pre-trained on
(`x`, without labels). Patients are numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.evaluation.splits import make_folds
from maskwright.core.trainer.files import write_text, write_with

FOLDS = 5
HISTOGRAM = np.linspace(-200, 500, 71)
"""Edges in HU of the histogram of a slice: soft tissue, and blood with contrast agent. What lies beyond counts at the ends."""
AIR = -1024
"""HU of what lies outside of the scanned circle, which some files give as -3024."""
SLAB, GAP = 4, 2
"""Slices of a slab, and between slabs, of the volume with organs."""
LEVELS = 2
"""Slices between the part of that scan that is pre-trained on and the part with labels."""
CODES = 9
"""Organ codes that are kept: those that fill most voxels."""
ROWS, COLUMNS = slice(8, 88), slice(4, 116)
"""Part of each slice of that scan: 80 x 112 pixels around the body."""


@dataclass(frozen=True)
class Fold:
    """One training and test set, in files.

    Args:
        unlabelled: .npz with `x`, what is pre-trained on.
        labelled: .npz with `x`, `y`, `group`, and one array for each feature of `SIMPLE` that the set has.
        train: the first so many rows are for training.
    """

    unlabelled: Path
    labelled: Path
    train: int


def contrast(data: Path, folder: Path) -> dict[str, Any]:
    """79 CT slices of 44 patients, with and without contrast agent, averaged to 64 x 64 pixels, HU without a window."""
    stored = np.load(data / "tcia_lung_ct_contrast" / "slices.npz")
    scale = [stored[name][:, None, None] for name in ("rescale_slope", "rescale_intercept")]
    values = (stored["pixels"] * scale[0] + scale[1]).astype(np.float32).clip(AIR)
    small = values.reshape(-1, 64, 8, 64, 8).mean((2, 4))
    labels, patients = stored["contrast"].astype(np.int64), stored["patient"].astype(np.int64)
    shares = np.stack([np.histogram(one.clip(HISTOGRAM[0], HISTOGRAM[-1]), HISTOGRAM)[0] for one in values]) / 512**2
    for number, fold in enumerate(make_folds(list(map(str, patients)), labels, FOLDS, 0)):
        order = np.concatenate([fold.train, fold.test])
        _write(
            folder / f"fold{number}",
            small[fold.train],
            len(fold.train),
            x=small[order],
            y=labels[order],
            group=patients[order],
            histogram=shares[order].astype(np.float32),
        )
    return {"slices": len(small), "patients": len(np.unique(patients)), "with contrast agent": int(labels.sum())}


def pneumonia(data: Path, folder: Path) -> dict[str, Any]:
    """Chest X-rays, 28 x 28 pixels, with and without pneumonia, balanced; its own training and test part."""
    stored = np.load(data / "pneumoniamnist_balanced" / "pneumoniamnist.npz")
    return _given_split(stored, folder, lambda images: images)


def adrenal(data: Path, folder: Path) -> dict[str, Any]:
    """Shapes of adrenal glands, normal and with a mass, 64^3 voxels averaged to 32^3 (eighths); its own parts."""
    stored = np.load(data / "adrenalmnist3d" / "adrenalmnist3d_64.npz")
    return _given_split(
        stored,
        folder,
        lambda images: (images > 0).reshape(-1, 32, 2, 32, 2, 32, 2).sum((2, 4, 6)).astype(np.uint8),
    )


def organs(data: Path, folder: Path) -> dict[str, Any]:
    """One CT at 3 mm: the lower part is pre-trained on; in the upper 30 slices slabs take turns as training and test.

    A label is what a segmentation model said, not what an expert said: pseudo-labels.
    """
    import nibabel

    place = data / "ct_volume_nifti"
    scan, part, codes = (
        np.asarray(nibabel.load(place / f"{name}.nii.gz").dataobj).transpose(2, 1, 0)[:, ROWS, COLUMNS]  # type: ignore[attr-defined]
        for name in ("example_ct", "example_ct_sm", "example_seg")
    )
    below = len(scan) - len(part)
    assert (scan[below:] == part).all(), "the labelled slices are the last ones of the scan"
    found, counts = np.unique(codes[codes > 0], return_counts=True)
    kept = np.sort(found[np.argsort(-counts)[:CODES]])
    names = np.array([0, *kept])
    y = np.full(codes.shape, -1, np.int64)
    for number, code in enumerate(names):
        y[codes == code] = number
    slabs = [np.arange(at, at + SLAB) for at in range(0, len(part) - SLAB + 1, SLAB + GAP)]
    for number in (0, 1):
        sides = [np.concatenate(slabs[number::2]), np.concatenate(slabs[1 - number :: 2])]
        order = np.concatenate(sides)
        _write(
            folder / f"fold{number}",
            None if number else scan[: below - LEVELS].astype(np.float32),
            len(sides[0]),
            x=part[order].astype(np.float32),
            y=y[order],
            group=order // (SLAB + GAP),
        )
    labelled = np.isin(found, kept)
    return {
        "codes": [int(code) for code in names],
        "share of labelled organ voxels": round(float(counts[labelled].sum() / counts.sum()), 3),
        "share of background": round(float((codes == 0).mean()), 3),
        "unlabelled slices": below - LEVELS,
        "slabs": len(slabs),
    }


SETS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "contrast": contrast,
    "pneumonia": pneumonia,
    "adrenal": adrenal,
    "organs": organs,
}


def prepare(name: str, data: Path, out: Path) -> tuple[list[Fold], dict[str, Any]]:
    """The folds of a set, written to OUT/data/NAME unless they are there, and what there is to say of the set."""
    folder = out / "data" / name
    about = folder / "about.json"
    if not about.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(about, json.dumps(SETS[name](data, folder)))
    places = sorted(folder.glob("fold*"))
    folds, unlabelled = [], places[0] / "unlabelled.npz"
    for place in places:
        own = place / "unlabelled.npz"
        unlabelled = own if own.is_file() else unlabelled
        folds.append(Fold(unlabelled, place / "labelled.npz", int((place / "train").read_text())))
    return folds, json.loads(about.read_text())


def _given_split(stored: Any, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Training and test part of a MedMNIST file. Its validation part is not used; patients are not known."""
    images = {part: change(stored[f"{part}_images"]) for part in ("train", "test")}
    y = np.concatenate([stored[f"{part}_labels"][:, 0] for part in images]).astype(np.int64)
    _write(
        folder / "fold0",
        images["train"],
        len(images["train"]),
        x=np.concatenate(list(images.values())),
        y=y,
        group=np.arange(len(y)),
    )
    return {part: len(rows) for part, rows in images.items()} | {
        "share of class 1 in test": round(float(y[len(images["train"]) :].mean()), 3)
    }


def _write(folder: Path, unlabelled: np.ndarray | None, train: int, **arrays: np.ndarray) -> None:
    """Write a fold; without `unlabelled` it has that of the fold before."""
    folder.mkdir(parents=True, exist_ok=True)
    if unlabelled is not None:
        write_with(folder / "unlabelled.npz", lambda path: _save(path, x=unlabelled))
    write_with(folder / "labelled.npz", lambda path: _save(path, **arrays))
    write_text(folder / "train", str(train))


def _save(path: Path, **arrays: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
