"""`maskwright predict`: a task model on new data."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskwright.cli.show import print_line, readable_duration

if TYPE_CHECKING:
    from maskwright.core.predict import Predicted

LINE_SECONDS = 30.0
"""Time between lines of progress on standard error."""


def add_commands(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that `maskwright finetune` wrote.")],
    data: Annotated[Path, typer.Option(help="File or folder to predict on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overlap: Annotated[float, typer.Option(help="Share of a window that its neighbour sees too; maps only.")] = 0.5,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of a window; those of training without it.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of each class; maps only.")
    ] = False,
    shard: Annotated[str, typer.Option(help="I/N: take one of N shares.")] = "1/1",
    batch_size: Annotated[int, typer.Option(min=1, help="Windows or samples a forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of the data that may be unreadable.")] = 0.05,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="data.OPTION=VALUE, on top of the training data's options.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that the model's folder names (an encoder from torch:).")
    ] = False,
) -> None:
    """Predict on new data: maps that lie where the images lie, or a table. The same command goes on after a stop."""
    from maskwright.core.predict import predict as work

    said = time.monotonic()

    def line(done: int, total: int, name: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            print(f"{done} of {total}, the last is {name}", file=sys.stderr, flush=True)

    show(
        work(
            model,
            data,
            out,
            overlap=overlap,
            size=size,
            probabilities=probabilities,
            shard=shard,
            batch_size=batch_size,
            device=device,
            max_bad=max_bad,
            settings=settings or [],
            trust=trust,
            progress=line,
        )
    )


def show(done: Predicted) -> None:
    """Say what was written, and what could not be."""
    if done.made:
        print_line(f"{done.made} predicted in {readable_duration(done.seconds)}")
    else:
        print_line("nothing was left to predict")
    if len(done.outputs) == 1:
        print_line(f"output: {done.outputs[0]}")
    else:
        print_line(f"outputs: {len(done.outputs)} files in {done.path}")
    if done.bad_list is not None:
        print_line(f"{len(done.bad)} could not be used: {done.bad_list}", "yellow")
