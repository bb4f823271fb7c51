"""Several runs side by side: one table and one figure for each task that they were judged on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.figures import draw_scores
from maskwright.core.evaluation.report import data_url, evaluations_of, read_scores, render
from maskwright.core.evaluation.scores import Score
from maskwright.core.trainer.files import write_text
from maskwright.core.trainer.run import Run

SAME = ("data", "test", "labels", "samples", "groups", "split", "folds", "seeds", "classes")
"""Facts in which evaluations must agree to be comparable."""


@dataclass
class ComparedTask:
    """One task over runs: rows of (run or baseline, cells), and what makes the comparison unfair."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    scores: list[Score]
    metric: str
    notes: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What `compare` found. `training` holds a row a run under `training_columns`."""

    tasks: list[ComparedTask]
    training_columns: list[str]
    training: list[list[str]]


def compare(runs: Sequence[Run | str | Path], out: str | Path | None = None) -> Comparison:
    """Compare runs on all tasks that two of them, or the only one, were judged on.

    Args:
        out: HTML page to write.

    Raises:
        ConfigError: no run was evaluated. DataError: a folder that holds no run.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    names = _names([run.path for run in opened])
    by_task: dict[str, list[tuple[str, Path]]] = {}
    for name, run in zip(names, opened, strict=True):
        for folder in evaluations_of(run):
            by_task.setdefault(folder.name, []).append((name, folder))
    if not by_task:
        raise ConfigError(
            f"None of {', '.join(names)} was evaluated yet. Run `maskwright evaluate {opened[0].path} --data LABELLED`."
        )
    comparison = Comparison(
        [_task(name, parts) for name, parts in by_task.items()],
        ["run", "method", "preset", "masking", "steps", "last loss", "seed"],
        [_training(name, run) for name, run in zip(names, opened, strict=True)],
    )
    if out is not None:
        _write(comparison, Path(out), names)
    return comparison


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    length = next((n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(set(parts))), 1)
    return ["/".join(p[-length:]) for p in parts]


def _stored(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "scores.json").read_text())
    except ValueError as error:
        raise DataError(folder / "scores.json", f"is no JSON ({error})", mend="Evaluate the run again") from error


def _task(name: str, parts: list[tuple[str, Path]]) -> ComparedTask:
    facts = {run: _stored(folder).get("facts", {}) for run, folder in parts}
    first = next(iter(facts.values()))
    notes = []
    for what in SAME:
        values = {run: str(fact.get(what)) for run, fact in facts.items()}
        if len(set(values.values())) > 1:
            shown = "; ".join(f"{run}: {value[:60]}" for run, value in values.items())
            notes.append(f"Not on one footing: {what} differs ({shown}).")
    scores: list[Score] = []
    for run, folder in parts:
        table = read_scores(folder / "scores.json")
        assert table is not None
        share = max(row.fraction for row in table.rows)
        for row in table.rows:
            if row.fraction != share:
                continue
            label = run if row.features == "pre-trained" else f"{row.features} ({run})"
            scores.append(Score(label, row.protocol, row.metric, row.values, row.fraction))
    scores = _merge_equal(scores)
    columns = list(dict.fromkeys((row.protocol, row.metric) for row in scores))
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in scores:
        cells.setdefault(row.features, {})[row.protocol, row.metric] = str(row)
    order = sorted(cells, key=lambda label: label not in facts)  # runs first, baselines after them
    rows = [(label, [cells[label].get(column, "") for column in columns]) for label in order]
    metric = first.get("metric", scores[0].metric)
    return ComparedTask(name, [f"{p}, {m}" for p, m in columns], rows, scores, metric, notes)


def _merge_equal(scores: list[Score]) -> list[Score]:
    """Baselines that several runs share with equal values, once: raw features are the same for all of them."""
    by_values: dict[tuple[Any, ...], list[Score]] = {}
    for row in scores:
        base = row.features.rpartition(" (")[0] or row.features
        by_values.setdefault((base, row.protocol, row.metric, tuple(row.values)), []).append(row)
    shared = {
        (base, row.features)
        for (base, *_), rows in by_values.items()
        if len(rows) > 1
        for row in rows
        if base != row.features
    }
    # a baseline is merged only where all its scores are equal, else its rows would fall apart
    unequal = {
        (base, row.features)
        for (base, *_), rows in by_values.items()
        if len(rows) == 1
        for row in rows
        if (base, row.features) in shared
    }
    merged: dict[tuple[str, str, str], Score] = {}
    for row in scores:
        base = row.features.rpartition(" (")[0] or row.features
        label = base if (base, row.features) in shared - unequal else row.features
        merged.setdefault(
            (label, row.protocol, row.metric), Score(label, row.protocol, row.metric, row.values, row.fraction)
        )
    return list(merged.values())


def _training(name: str, run: Run) -> list[str]:
    recipe, metrics = run.recipe(), run.metrics()
    last = metrics[-1] if metrics else {}
    loss = last.get("loss")
    return [
        name,
        recipe.method.name,
        recipe.method.preset,
        recipe.masking.name if recipe.masking else "",
        str(last.get("step", "")),
        f"{loss:.4g}" if loss is not None else "",
        str(recipe.seed),
    ]


def _write(comparison: Comparison, out: Path, names: list[str]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    tasks = [
        {
            "name": task.name,
            "columns": task.columns,
            "rows": task.rows,
            "notes": task.notes,
            "figure": data_url(draw_scores(task.scores, task.metric)),
            "caption": f"{task.metric}; bars are one standard deviation over seeds.",
        }
        for task in comparison.tasks
    ]
    page = render(
        "comparison.html",
        title="Comparison of runs",
        subtitle=", ".join(names),
        tasks=tasks,
        training_columns=comparison.training_columns,
        training=comparison.training,
    )
    write_text(out, page)
