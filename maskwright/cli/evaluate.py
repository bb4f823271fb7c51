"""`maskwright evaluate`, `compare` and `report`: from a run to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.many import ManyValues
from maskwright.cli.show import print_heading, print_line, print_table


def add_commands(app: typer.Typer) -> None:
    app.command("evaluate", cls=ManyValues)(evaluate)
    app.command("compare")(compare)
    app.command("report")(report)


def _complete(kind: str):  # type: ignore[no-untyped-def]
    def complete(incomplete: str) -> list[str]:
        from maskwright.core.host import get_host

        return [name for name in get_host().components(kind) if name.startswith(incomplete)]

    return complete


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run directory whose encoder is judged.")] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled files; the run's own data without it.")] = None,
    task: Annotated[
        str, typer.Option(help="What is predicted (`maskwright list task`).", autocompletion=_complete("task"))
    ] = "classification",
    labels: Annotated[
        str | None, typer.Option(help="folder, label, FILE.csv:COLUMN, FILE.npy, or a folder of label rasters.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Instead of a run: timm:NAME, torch:package.module:Class, or a folder.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="How (`maskwright list protocol`); several.", autocompletion=_complete("protocol")),
    ] = None,
    fractions: Annotated[list[float] | None, typer.Option(help="Shares of the training labels; several.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions with new folds, label subsets, random encoders.")] = 5,
    split: Annotated[
        str, typer.Option(help="group, block:SIZE, FILE.csv:COLUMN; random is marked in the report.")
    ] = "group",
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-validation over groups.")] = 5,
    buffer: Annotated[
        float, typer.Option(min=0, help="Leave out training samples this near to a test sample (CRS units or pixels).")
    ] = 0.0,
    test: Annotated[Path | None, typer.Option(help="Separate test data, instead of folds.")] = None,
    test_labels: Annotated[str | None, typer.Option(help="Labels of the test data.")] = None,
    baselines: Annotated[
        list[str] | None, typer.Option(help="Of random-init, simple, supervised; all without it; several.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric that decides the verdict.")] = None,
    join_duplicates: Annotated[
        bool, typer.Option(help="Keep identical and overlapping samples on one side of every split.")
    ] = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as data.size=64, knn.k=5, finetune.steps=400.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/evaluations/TASK without it.")] = None,
) -> None:
    """Judge an encoder on your labels, beside a random encoder, simple features and training from scratch."""
    from maskwright.core.evaluation.evaluate import evaluate as judge
    from maskwright.core.evaluation.judge import BASELINES
    from maskwright.core.evaluation.report import score_rows

    result = judge(
        run,
        data,
        task,
        labels=labels,
        encoder=encoder,
        protocols=protocol or ("knn", "linear"),
        fractions=fractions or (1.0,),
        seeds=seeds,
        split=split,
        folds=folds,
        buffer=buffer,
        test=test,
        test_labels=test_labels,
        baselines=BASELINES if baselines is None else [name for name in baselines if name != "none"],
        metric=metric,
        join_duplicates=join_duplicates,
        settings=settings or [],
        batch_size=batch_size,
        workers=workers,
        device=device,
        out=out,
    )
    print_line(result.table.title)
    for share in reversed(result.facts["fractions"]):
        if len(result.facts["fractions"]) > 1:
            print_heading(f"With {share:.3g} of the labels")
        columns, rows = score_rows(result.table, share)
        print_table(["features", *columns], [[name, *cells] for name, cells in rows])
    print_heading("Did it help?")
    print_line(result.headline)
    for note in result.table.notes:
        print_line(f"Note: {note}", "yellow")
    print_line(f"report: {result.path / 'report.html' if result.path else ''}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that were evaluated.")],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("comparison.html"),
) -> None:
    """Put runs side by side: one table and one figure over all tasks that they were judged on."""
    from maskwright.core.evaluation.compare import compare as put_side_by_side

    comparison = put_side_by_side(runs, out)
    for task in comparison.tasks:
        print_heading(task.name)
        print_table(["run", *task.columns], [[name, *cells] for name, cells in task.rows])
        for note in task.notes:
            print_line(f"Note: {note}", "yellow")
    print_line(f"page: {out}")


def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write a run's report anew, with all that was added since."""
    from maskwright.core.evaluation.report import write_report
    from maskwright.core.trainer.run import Run

    print_line(f"report: {write_report(Run.open(run))}")
