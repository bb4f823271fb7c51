"""The report of a run: one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict
from maskwright.core.trainer.files import write_text

if TYPE_CHECKING:
    from maskwright.core.trainer.run import Run

MAX_BAD_ROWS = 50
"""Bad files listed on the page; the rest stay in bad_files.csv."""
_NOT_CURVES = {"step", "epoch", "seconds"}


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def draw_curves(metrics: list[dict[str, Any]]) -> bytes | None:
    """Small curves of every logged quantity over steps, as PNG; None where there are fewer than two rows."""
    if len(metrics) < 2:
        return None
    names = [name for name in metrics[0] if name not in _NOT_CURVES]
    curves = {}
    for name in names:
        points = [(float(row["step"]), value) for row in metrics if (value := _number(row.get(name))) is not None]
        if len(points) > 1:
            curves[name] = points
    if not curves:
        return None
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows), dpi=130)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        axis.plot(*zip(*points, strict=True), linewidth=1.2, color="#0b6e8a")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def render(template: str, **content: Any) -> str:
    """One HTML page that needs no other file."""
    pages = jinja2.PackageLoader("maskwright.core.evaluation", "pages")
    environment = jinja2.Environment(loader=pages, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**content)


def evaluations_of(run: Run) -> list[Path]:
    """Folders of the evaluations that a run holds, by name."""
    return sorted(path.parent for path in (run.path / "evaluations").glob("*/scores.json"))


def _summary(folder: Path) -> dict[str, Any]:
    scores = read_scores(folder / "scores.json")
    assert scores is not None
    columns, table = score_rows(scores)
    facts = json.loads((folder / "scores.json").read_text())
    return {
        "name": folder.name,
        "link": f"evaluations/{folder.name}/report.html",
        "headline": facts.get("headline", ""),
        "title": scores.title,
        "columns": columns,
        "table": table,
    }


def score_rows(scores: ScoreTable, fraction: float | None = None) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Columns (protocol and metric) and rows (features and cells) of a score table.

    Args:
        fraction: share of the labels; the largest without it.
    """
    share = max((row.fraction for row in scores.rows), default=1.0) if fraction is None else fraction
    rows = [row for row in scores.rows if row.fraction == share]
    columns = list(dict.fromkeys((row.protocol, row.metric) for row in rows))
    by_features: dict[str, dict[tuple[str, str], Score]] = {}
    for row in rows:
        by_features.setdefault(row.features, {})[row.protocol, row.metric] = row
    table = [(name, [str(cells[c]) if c in cells else "" for c in columns]) for name, cells in by_features.items()]
    return [f"{protocol}, {metric}" for protocol, metric in columns], table


def read_scores(path: Path) -> ScoreTable | None:
    """Scores written by `write_report`, or None."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    rows = [Score(**{f.name: r[f.name] for f in fields(Score) if f.name in r}) for r in stored["rows"]]
    verdicts = [Verdict(**{f.name: v[f.name] for f in fields(Verdict) if f.name in v}) for v in stored["verdicts"]]
    return ScoreTable(stored["title"], rows, verdicts, stored["notes"])


def _training_summary(metrics: list[dict[str, Any]]) -> str:
    losses = [(row["step"], value) for row in metrics if (value := _number(row.get("loss"))) is not None]
    if not losses:
        return "No step was logged."
    tenth = max(1, len(losses) // 10)
    first = sum(value for _, value in losses[:tenth]) / tenth
    last = sum(value for _, value in losses[-tenth:]) / tenth
    steps = losses[-1][0]
    return f"{steps} steps; loss {first:.4f} at the start, {last:.4f} at the end (means of the first and last tenth)."


def write_report(
    run: Run, scores: ScoreTable | None = None, figures: list[tuple[str, str, Path]] | None = None
) -> Path:
    """Write `report.html` into a run directory, and `scores.json` where scores are given.

    Args:
        scores: score table; without it, one that an earlier call stored is shown again.
        figures: (heading, caption, PNG file) of further pictures.
    """
    stored = run.path / "scores.json"
    if scores is not None:
        write_text(stored, json.dumps(scores.as_dict(), indent=1))
    scores = scores or read_scores(stored)
    metrics = run.metrics()
    curves = draw_curves(metrics)
    bad_path = run.path / "bad_files.csv"
    bad = list(csv.DictReader(bad_path.open())) if bad_path.is_file() else []
    columns, table = score_rows(scores) if scores else ([], [])
    environment = run.environment()
    html = render(
        "run.html",
        title=f"Run {run.path.name}",
        subtitle=f"maskwright {environment.get('maskwright', '')}, {environment.get('created', '')}",
        scores=scores,
        evaluations=[_summary(folder) for folder in evaluations_of(run)],
        columns=columns,
        table=table,
        training=" ".join([_training_summary(metrics), *run.notes()]),
        curves=data_url(curves) if curves else None,
        pictures=[(p.stem, data_url(p.read_bytes())) for p in sorted((run.path / "previews").glob("*.png"))],
        figures=[(name, caption, data_url(path.read_bytes())) for name, caption, path in figures or []],
        bad_files=bad[:MAX_BAD_ROWS],
        more_bad=max(0, len(bad) - MAX_BAD_ROWS),
        recipe=(run.path / "recipe.yaml").read_text(),
        environment=json.dumps(environment, indent=1),
    )
    out = run.path / "report.html"
    write_text(out, html)
    return out
