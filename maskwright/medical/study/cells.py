"""Cells of the study, one a method, share of the labels and seed: what the model said of each test sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

from maskwright.core.errors import DataError
from maskwright.core.trainer.files import write_with

METRICS = ("accuracy", "micro F1", "AUC")
"""What is reported, as in Wolf et al. 2023; of single classes micro F1 equals accuracy. The first gives the verdict."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuned model on the test part.

    Args:
        method: name of the method.
        fraction: share of the training part whose labels were used.
        seed: draw of that share, of first weights and of pre-training.
        tested: (n,) positions in the loader; truth: (n,) class numbers; said: (n, K) probabilities.
        samples: labelled samples that were trained on.
        best_step: step that was kept.
    """

    method: str
    fraction: float
    seed: int
    tested: np.ndarray
    truth: np.ndarray
    said: np.ndarray
    samples: int
    best_step: int

    @property
    def name(self) -> str:
        return cell_name(self.method, self.fraction, self.seed)

    def scores(self) -> dict[str, float]:
        """Accuracy, micro F1 and macro one-against-rest AUC over the classes that are both in and out of the test part."""
        predicted = self.said.argmax(1)
        present = [number for number in np.unique(self.truth) if (self.truth != number).any()]
        areas = [roc_auc_score(self.truth == number, self.said[:, number]) for number in present]
        values = (
            float((predicted == self.truth).mean()),
            float(f1_score(self.truth, predicted, average="micro")),
            float(np.mean(areas)) if areas else float("nan"),
        )
        return dict(zip(METRICS, values, strict=True))


def cell_name(method: str, fraction: float, seed: int) -> str:
    """Name of a cell's file without its ending."""
    return f"{method}-{fraction:.6g}-seed{seed}"


def save_cell(folder: Path, cell: Cell) -> None:
    """Write a cell, atomically: one that is there is whole."""
    arrays = {"tested": cell.tested, "truth": cell.truth, "said": cell.said}
    numbers = {"fraction": cell.fraction, "seed": cell.seed, "samples": cell.samples, "best_step": cell.best_step}
    folder.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, method=np.array(cell.method), **arrays, **numbers)

    write_with(folder / f"{cell.name}.npz", write)


def load_cell(path: Path) -> Cell:
    """Read a cell.

    Raises:
        DataError: damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            return Cell(
                str(held["method"]),
                float(held["fraction"]),
                int(held["seed"]),
                held["tested"],
                held["truth"],
                held["said"],
                int(held["samples"]),
                int(held["best_step"]),
            )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(path, f"cannot be read ({error})", mend="Remove it; it will be computed again") from error
