"""`maskwright finetune`: from an encoder and labels to a model that predicts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskwright.cli.show import print_line, readable_duration

if TYPE_CHECKING:
    from maskwright.core.task_folder import TaskFolder

LINE_SECONDS = 30.0
"""Time between lines of progress on standard error."""


def add_commands(app: typer.Typer) -> None:
    app.command("finetune")(finetune)


def _complete_task(incomplete: str) -> list[str]:
    from maskwright.core.host import get_host

    return [name for name in get_host().components("task") if name.startswith(incomplete)]


def finetune(
    run: Annotated[Path | None, typer.Argument(help="Run directory whose encoder is trained further.")] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled files; the run's own data without it.")] = None,
    task: Annotated[
        str, typer.Option(help="What is predicted (`maskwright list task`).", autocompletion=_complete_task)
    ] = "classification",
    labels: Annotated[
        str | None, typer.Option(help="folder, label, FILE.csv:COLUMN, FILE.npy, or a folder of label rasters.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Instead of a run: timm:NAME, torch:package.module:Class, or a folder.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as budget.steps=400, data.size=64, task.ignore=[0]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/tasks/TASK without it.")] = None,
    holdout: Annotated[
        float, typer.Option(min=0, help="Share of the samples, in whole groups, to score and not train on; 0: none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the head alone.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train an encoder further on your labels and write a model for `maskwright predict`."""
    from maskwright.core.finetune import finetune as train

    said = time.monotonic()

    def line(step: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            print(f"step {step}, loss {loss:.4g}", file=sys.stderr, flush=True)

    show_task_model(
        train(
            run,
            data,
            task,
            labels=labels,
            encoder=encoder,
            out=out,
            holdout=holdout,
            seed=seed,
            frozen=frozen,
            settings=settings or [],
            device=device,
            progress=line,
        )
    )


def show_task_model(folder: TaskFolder) -> None:
    """Say what was trained, on how much, and how it does on what was held out."""
    facts = folder.facts
    losses = facts["losses"]
    print_line(
        f"{facts['kind']}: {len(facts['classes'])} outputs, {facts['samples']} samples, {len(losses)} steps in "
        f"{readable_duration(facts['seconds'])}, loss {losses[0]:.4g} to {losses[-1]:.4g}"
    )
    if facts["holdout_score"] is not None:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in facts["holdout_score"].items())
        print_line(f"{facts['held_out']} held-out samples: {scores}")
        print_line(f"Note: {facts['holdout_note']}", "yellow")
    for note in facts["notes"]:
        print_line(f"Note: {note}", "yellow")
    print_line(f"model: {folder.path}")
