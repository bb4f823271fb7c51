"""What came out: a table, a figure, and in words whether pre-training helped at each share of the labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.evaluation.figures import draw_efficiency
from maskwright.core.evaluation.metrics import Metric, accuracy, by_group, paired_interval, statistics
from maskwright.core.evaluation.scores import Score, Verdict
from maskwright.core.trainer.files import write_text, write_with
from maskwright.medical.study.cells import METRICS, Cell

SCRATCH, RANDOM = "scratch", "random"
"""The same backbone trained from random weights on the labels alone, and left as it is with a head trained on it."""
PROTOCOL = "fine-tuning"
DECIDES = Metric("accuracy", accuracy)
"""Metric of the verdicts; 0.01 is the smallest gain that counts."""


@dataclass
class Outcome:
    """Scores of each method and share over its seeds, and gaps (method, verdict against scratch)."""

    rows: list[Score] = field(default_factory=list)
    gaps: list[tuple[str, Verdict]] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Shares of the labels, falling."""
        return sorted({row.fraction for row in self.rows}, reverse=True)

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in order."""
        return list(dict.fromkeys(row.features for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Content of table.json."""
        rows = [{**asdict(row), "mean": row.mean, "std": row.std} for row in self.rows]
        gaps = [{"method": method, **asdict(gap), "words": gap.words} for method, gap in self.gaps]
        return {"rows": rows, "gaps": gaps}


def tabulate(cells: Sequence[Cell], groups: Sequence[str]) -> Outcome:
    """Scores of all cells, and the gap of each pre-trained method to scratch.

    Args:
        groups: of every sample of the loader, by position. Test groups are drawn anew for the intervals.
    """
    outcome = Outcome()
    by_place: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        by_place.setdefault((cell.method, cell.fraction), []).append(cell)
    for (method, fraction), found in by_place.items():
        scores = [cell.scores() for cell in found]
        for metric in METRICS:
            outcome.rows.append(Score(method, PROTOCOL, metric, [one[metric] for one in scores], fraction))
        baseline = by_place.get((SCRATCH, fraction))
        if method not in (SCRATCH, RANDOM) and baseline:
            outcome.gaps.append((method, _gap(fraction, found, baseline, groups)))
    return outcome


def _gap(fraction: float, ours: list[Cell], scratch: list[Cell], groups: Sequence[str]) -> Verdict:
    """Difference in accuracy on the samples and seeds that both have, with its 95 % interval."""
    pairs = [(a, b) for a in ours for b in scratch if a.seed == b.seed]
    tested = sorted(set.intersection(*(set(cell.tested.tolist()) for pair in pairs for cell in pair)))
    _, numbers = np.unique([groups[index] for index in tested], return_inverse=True)
    sides = [np.stack([_sums(pair[side], tested, numbers) for pair in pairs]) for side in (0, 1)]
    difference, low, high = paired_interval(DECIDES, sides[0], sides[1])
    return Verdict(SCRATCH, PROTOCOL, DECIDES.name, difference, low, high, fraction, DECIDES.worth)


def _sums(cell: Cell, tested: list[int], numbers: np.ndarray) -> np.ndarray:
    place = {index: row for row, index in enumerate(cell.tested.tolist())}
    rows = [place[index] for index in tested]
    truth, said = cell.truth[rows], cell.said[rows]
    counted = statistics("classification", truth, said.argmax(1), said.shape[1], said)
    return by_group(counted, numbers, int(numbers.max()) + 1)


def write_results(
    folder: Path, outcome: Outcome, facts: dict[str, Any], notes: Sequence[str], cells: Sequence[Cell]
) -> None:
    """Write table.csv, table.json, table.md, figure.png and report.md."""
    write_text(folder / "table.csv", _csv(cells))
    content = {"facts": facts, "notes": list(notes), **outcome.as_dict()}
    write_text(folder / "table.json", json.dumps(content, indent=1))
    write_text(folder / "table.md", markdown(outcome))
    figure = draw_efficiency(outcome.rows, DECIDES.name)
    if figure is not None:
        write_with(folder / "figure.png", lambda path: path.write_bytes(figure))
    write_text(folder / "report.md", report(outcome, facts, notes, figure is not None))


def _csv(cells: Sequence[Cell]) -> str:
    """A row a cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "fraction", "seed", "labelled samples", "best step", *METRICS])
    for cell in sorted(cells, key=lambda cell: (cell.method, -cell.fraction, cell.seed)):
        scores = [f"{value:.6f}" for value in cell.scores().values()]
        writer.writerow([cell.method, f"{cell.fraction:g}", cell.seed, cell.samples, cell.best_step, *scores])
    return text.getvalue()


def markdown(outcome: Outcome) -> str:
    """A table a metric: methods down, shares of the labels across."""
    lines = []
    for metric in METRICS:
        lines += [f"| {metric} | " + " | ".join(f"{share:g}" for share in outcome.shares) + " |"]
        lines += ["|---" * (len(outcome.shares) + 1) + "|"]
        for method in outcome.methods:
            found = {row.fraction: str(row) for row in outcome.rows if (row.features, row.metric) == (method, metric)}
            lines.append(f"| {method} | " + " | ".join(found.get(share, "") for share in outcome.shares) + " |")
        lines.append("")
    return "\n".join(lines)


def report(outcome: Outcome, facts: dict[str, Any], notes: Sequence[str], figure: bool) -> str:
    """The report as Markdown."""
    shares = outcome.shares
    lines = ["# Small-data study", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", "Mean and standard deviation over the seeds, on the same test samples throughout.", ""]
    lines += [markdown(outcome)]
    if figure:
        lines += ["![Accuracy over the share of the labels](figure.png)", ""]
    lines += ["## Did pre-training help?", "", "Gap in accuracy to the same backbone trained from scratch.", ""]
    lines += [f"- {words(*gap)}" for gap in outcome.gaps] or ["- Nothing was compared with scratch."]
    if len(shares) > 1:
        lines += ["", f"## What each loses from {shares[0]:g} to {shares[-1]:g} of the labels, in accuracy", ""]
        lines += [f"- {line}" for line in _losses(outcome)]
    lines += ["", "## What to know", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def words(method: str, gap: Verdict) -> str:
    """One sentence on a gap."""
    return (
        f"{method} with {gap.fraction:g} of the labels: {gap.words} ({gap.difference:+.3f}, 95 % interval "
        f"{gap.low:+.3f} to {gap.high:+.3f})."
    )


def _losses(outcome: Outcome) -> list[str]:
    most, least = outcome.shares[0], outcome.shares[-1]
    found = {(row.features, row.fraction): row.mean for row in outcome.rows if row.metric == DECIDES.name}
    lost = [
        (name, found[name, most] - found[name, least])
        for name in outcome.methods
        if (name, most) in found and (name, least) in found
    ]
    return [f"{name}: {loss:.3f}" for name, loss in sorted(lost, key=lambda pair: pair[1])]
