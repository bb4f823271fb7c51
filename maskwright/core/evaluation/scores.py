"""Scores with their spread, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Score:
    """One row of a score table.

    Args:
        features: what was judged ("CROMA, joint", "random init", "raw pixels").
        protocol: how ("linear probe").
        metric: what was measured ("accuracy").
        values: one value a seed; a single one where nothing is random.
        fraction: share of the training labels that was used.
    """

    features: str
    protocol: str
    metric: str
    values: list[float]
    fraction: float = 1.0

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for a single value."""
        if len(self.values) < 2:
            return 0.0
        return (sum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1)) ** 0.5

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}" if len(self.values) > 1 else f"{self.mean:.3f}"


@dataclass(frozen=True)
class Verdict:
    """Whether pre-training helped against one baseline: the interval of the paired difference and what it says."""

    baseline: str
    protocol: str
    metric: str
    difference: float
    low: float
    high: float
    fraction: float = 1.0
    worth: float = 0.0
    """Smallest difference that is worth having: a gain that is surely below it counts as none."""

    @property
    def words(self) -> str:
        if self.low > 0:
            return "helped"
        if self.high < 0:
            return "did not help, it did worse"
        if self.high < self.worth:
            return "did not help"
        return "cannot tell with this much data"

    def __str__(self) -> str:
        share = "" if self.fraction == 1 else f" with {self.fraction:.3g} of the labels"
        return (
            f"Against {self.baseline} ({self.protocol}, {self.metric}){share}: {self.words} "
            f"({self.difference:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f})."
        )


@dataclass
class ScoreTable:
    """All scores of a report, with what a reader must know to believe them."""

    title: str
    rows: list[Score] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "mean": row.mean, "std": row.std} for row in self.rows]
        verdicts = [{**asdict(verdict), "words": verdict.words} for verdict in self.verdicts]
        return {"title": self.title, "rows": rows, "verdicts": verdicts, "notes": self.notes}


def paired_difference(
    ours: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], seed: int = 0, draws: int = 10_000
) -> tuple[float, float, float]:
    """Mean difference of paired scores and its 95 % bootstrap interval.

    Args:
        ours, baseline: [seed][fold] scores of the same seeds and folds. Folds of one seed share an encoder and, across
            seeds, their test data, so both seeds and folds are drawn anew.

    Returns:
        (difference, low, high).
    """
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(baseline, dtype=torch.float64)
    seeds, folds = difference.shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(seeds, (draws, seeds), generator=generator)
    columns = torch.randint(folds, (draws, folds), generator=generator)
    means = difference[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return difference.mean().item(), low, high
