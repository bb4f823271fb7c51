"""An evaluation on disk: scores, predictions, leaks, and a page that needs no other file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.figures import draw_confusion, draw_efficiency, draw_regression, draw_scores
from maskwright.core.evaluation.metrics import METRICS
from maskwright.core.evaluation.report import data_url, render, score_rows, write_report
from maskwright.core.trainer.files import free_folder, write_text, write_with
from maskwright.core.trainer.run import Run, describe_environment

if TYPE_CHECKING:
    from maskwright.core.evaluation.conclusion import Evaluation

MAX_LEAK_ROWS = 30
"""Leaks listed on the page; all are in leaks.csv."""


def choose_folder(run: Run | None, encoder: Any, task: str, out: str | Path | None) -> Path:
    """Folder of an evaluation: the one asked for, or RUN/evaluations/TASK, numbered where it is taken.

    Raises:
        ConfigError: the folder asked for holds something else.
    """
    if out is not None:
        folder = Path(out)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "scores.json").is_file()):
            raise ConfigError(f"{folder} is not empty and holds no evaluation. Choose another folder with --out.")
        return folder
    name = str(encoder).replace("/", "-").replace(":", "-").split(",")[0] if isinstance(encoder, str) else "encoder"
    base = run.path / "evaluations" / task if run is not None else Path("evaluations") / f"{name}-{task}"
    return free_folder(base)


def _csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_evaluation(result: Evaluation, folder: Path, run: Run | None) -> Path:
    """Write scores.json, report.html and, where there are any, predictions.parquet, leaks.csv, bad_files.csv.

    The report of the run, if there is one, is written anew, so that it shows this evaluation too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("leaks.csv", result.leaks), ("bad_files.csv", result.bad)):
        if rows:
            write_text(folder / name, _csv(rows))
    if result.predictions:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(result.predictions)
        write_with(folder / "predictions.parquet", lambda path: pq.write_table(table, path))
    confusion = result.confusion.tolist() if result.confusion is not None else None
    environment = describe_environment()
    write_text(folder / "report.html", _page(result, environment))
    content = {
        **result.table.as_dict(),
        "headline": result.headline,
        "facts": result.facts,
        "confusion": confusion,
        "environment": environment,
    }
    write_text(folder / "scores.json", json.dumps(content, indent=1, default=str))
    result.path = folder
    if run is not None:
        write_report(run)
    return folder


def _short(place: str) -> str:
    """The last two parts of a path; the facts at the end of the page have the whole of it."""
    return "/".join(Path(place).parts[-2:])


def _page(result: Evaluation, environment: dict[str, Any]) -> str:
    facts, table = result.facts, result.table
    kind, metric = facts["kind"], facts["metric"]
    fractions = facts["fractions"]
    tables = [
        (f"with {share:.3g} of the labels" if len(fractions) > 1 else "", *score_rows(table, share))
        for share in reversed(fractions)
    ]
    known = next(one for one in METRICS[kind] if one.name == metric)
    less = [one.name for one in METRICS[kind] if one.better < 0]
    warnings = [note for note in table.notes if note.startswith(("RANDOM", "Leak check", "Only"))]
    return render(
        "evaluation.html",
        title=f"Did it help? {facts['task']}",
        subtitle=f"{_short(facts['encoder'])} on {_short(facts['data'])}; maskwright {environment.get('maskwright', '')}, "
        f"{environment.get('created', '')}",
        headline=result.headline,
        warnings=warnings,
        notes=[note for note in table.notes if note not in warnings],
        scores=table,
        tables=tables,
        better=f"Less is better for {' and '.join(less)}." if less else "",
        figures=_figures(result),
        per_class=_per_class(result),
        counted="pixels" if kind == "segmentation" else "samples",
        best=facts["best protocol"],
        metric=metric,
        worth=f"{known.worth:g}",
        collapse=facts["collapse"],
        leaks=result.leaks[:MAX_LEAK_ROWS],
        more_leaks=max(0, len(result.leaks) - MAX_LEAK_ROWS),
        facts=json.dumps({k: v for k, v in facts.items() if k not in ("classes", "collapse")}, indent=1, default=str),
        environment=json.dumps(environment, indent=1),
    )


def _figures(result: Evaluation) -> list[tuple[str, str, str]]:
    """(heading, caption, data URL) of each figure."""
    facts, rows = result.facts, result.table.rows
    metric = facts["metric"]
    found = [
        ("Beside its baselines", f"{metric}; bars are one standard deviation over seeds.", draw_scores(rows, metric))
    ]
    curve = draw_efficiency(rows, metric)
    if curve is not None:
        found.append(("With fewer labels", f"{metric} over the share of the training labels.", curve))
    if result.confusion is not None:
        matrix = draw_confusion(result.confusion, facts["classes"])
        if matrix is not None:
            caption = f"Pre-trained, {facts['best protocol']}: shares of each true class, all folds and seeds."
            found.append(("Confusion", caption, matrix))
    if facts["kind"] == "regression" and len(facts["classes"]) == 1:
        says = result.predictions.get(facts["best protocol"], [])
        truth = result.predictions.get("truth", [])
        pairs = [(t, p) for t, p in zip(truth, says, strict=False) if p is not None]
        if pairs:
            picture = draw_regression([t for t, _ in pairs], [p for _, p in pairs], facts["classes"][0])
            found.append(
                ("Prediction and truth", f"Pre-trained, {facts['best protocol']}, seed 0, test folds.", picture)
            )
    return [(name, caption, data_url(picture)) for name, caption, picture in found]


def _per_class(result: Evaluation) -> list[tuple[str, ...]]:
    """(class, members, recall, precision, F1) as text."""
    if result.confusion is None:
        return []
    rows: list[tuple[str, ...]] = []
    for number, name in enumerate(result.facts["classes"]):
        members, said = result.confusion[number].sum(), result.confusion[:, number].sum()
        right = result.confusion[number, number]

        def share(bottom: float, top: float = right) -> str:
            return f"{top / bottom:.3f}" if bottom else ""

        f1 = share(members + said, 2 * right)
        rows.append((name, f"{members:,.0f}", share(members), share(said), f1))
    return rows
