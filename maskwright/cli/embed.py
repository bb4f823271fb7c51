"""`maskwright embed`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskwright.cli.show import console, print_line, readable_duration

if TYPE_CHECKING:
    from maskwright.core.embed_work import Embedded, Progress

LINE_SECONDS = 30.0
"""Time between lines of progress where standard error is no terminal."""


def add_commands(app: typer.Typer) -> None:
    app.command("embed")(embed)


def embed(
    run: Annotated[Path | None, typer.Argument(help="Run directory whose encoder is used.")] = None,
    data: Annotated[Path | None, typer.Option(help="File or folder to embed; the run's own data without it.")] = None,
    out: Annotated[Path, typer.Option(help="File to write, FILE.parquet.")] = Path("embeddings.parquet"),
    encoder: Annotated[
        str | None, typer.Option(help="Instead of a run: timm:NAME, torch:package.module:Class, or a folder.")
    ] = None,
    level: Annotated[str, typer.Option(help="pooled: a row a sample; tokens: a row a token.")] = "pooled",
    part: Annotated[str, typer.Option(help="One of the encoder's parts, such as optical of CROMA.")] = "",
    shard: Annotated[str, typer.Option(help="I/N: work on one of N shares, write FILE-I-of-N.parquet.")] = "1/1",
    merge: Annotated[int | None, typer.Option(min=1, help="Only join the N finished shares into FILE.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    half: Annotated[bool, typer.Option("--half", help="Store float16.")] = False,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")] = 0.05,
    part_samples: Annotated[
        int | None, typer.Option(min=1, help="Samples between two safe points; 2048 or 32 MB without it.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="data.OPTION=VALUE, such as data.size=64; may be repeated.")
    ] = None,
) -> None:
    """Embed an archive into a Parquet file that says where each vector lies. The same command goes on after a stop."""
    from maskwright.core.embed import embed_archive
    from maskwright.core.embed_shards import merge_shards
    from maskwright.core.errors import ConfigError

    if merge is not None:
        show(merge_shards(out, merge))
        return
    if (run is None) == (encoder is None):
        raise ConfigError("Give a run directory, or an encoder (--encoder timm:NAME), and not both.")
    model = run if run is not None else str(encoder)
    with _progress() as progress:
        done = embed_archive(
            model,
            data,
            out,
            level=level,  # type: ignore[arg-type]
            part=part,
            shard=shard,
            batch_size=batch_size,
            workers=workers,
            device=device,
            half=half,
            max_bad=max_bad,
            settings=settings or [],
            part_samples=part_samples,
            progress=progress,
        )
    show(done)


def show(done: Embedded) -> None:
    """Say what was written, and how fast."""
    rows = f", {done.rows} rows" if done.rows != done.samples else ""
    if done.computed:
        speed = f"{readable_duration(done.seconds)}, {done.rate:.1f} samples/s"
        print_line(f"{done.samples} samples{rows}; {done.computed} embedded in {speed}")
    else:
        print_line(f"{done.samples} samples{rows}; nothing was left to embed")
    print_line(f"embeddings: {done.path}")
    if done.bad_list is not None:
        print_line(f"{done.bad} could not be used: {done.bad_list}", "yellow")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, else a line every half minute, on standard error."""
    if not sys.stderr.isatty():
        said = time.monotonic()

        def line(done: int, total: int, rate: float) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                left = readable_duration((total - done) / rate)
                print(f"{done} of {total} samples, {rate:.1f} samples/s, {left} left", file=sys.stderr, flush=True)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("embed", total=None, rate="")

        def draw(done: int, total: int, rate: float) -> None:
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f} samples/s")

        yield draw
