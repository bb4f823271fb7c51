"""`maskwright inspect` and `preview`: the user's own data, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maskwright.cli.catalogue import complete_names
from maskwright.cli.show import print_heading, print_json, print_line, print_table
from maskwright.core.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    app.command("inspect")(inspect)
    app.command("preview")(preview)


def inspect(
    path: Annotated[Path, typer.Argument(help="File or folder to look at.")],
    loader: Annotated[str, typer.Option(help="Name of a loader (`maskwright list loader`).")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a file or folder: formats, shapes, channels, statistics, and files that cannot be used."""
    from maskwright.core.inspection import inspect_data

    rows = inspect_data(path, loader)
    if as_json:
        print_json(rows)
        return
    good = [row for row in rows if "problem" not in row]
    bad = [row for row in rows if "problem" in row]
    if good:
        show_rows(good)
    if bad:
        print_heading(f"{len(bad)} cannot be used")
        show_rows(bad)
    if not rows:
        print_line(f"{path} holds nothing that can be used.")


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; a value that is a list of rows becomes a table of its own below."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not _is_table(value)))
    print_table(columns, [[_text(row.get(column)) for column in columns] for row in rows])
    for row in rows:
        for key, value in row.items():
            if _is_table(value):
                print_heading(f"{key} of {next(iter(row.values()))}")
                show_rows(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_text(item) for item in value)
    return str(value)


def preview(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Maskings or methods; all maskings without any.", autocompletion=complete_names),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="File or folder to read.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run whose reconstructions to draw instead.")] = None,
    out: Annotated[Path, typer.Option(help="PNG to write; with --run a folder, one PNG an input.")] = Path(
        "preview.png"
    ),
    patch_size: Annotated[int | None, typer.Option(min=1, help="Side of a token in pixels.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples to draw.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as masking.ratio=0.5 or data.size=120.")
    ] = None,
) -> None:
    """Draw what maskings hide in your own data, or what a run reconstructs of it."""
    from maskwright.core.preview import preview_maskings, preview_run

    if run is not None:
        if names or settings or patch_size:
            raise ConfigError("With --run the run's own masking is drawn: leave names, --set and --patch-size out.")
        folder = out.with_suffix("") if out.suffix == ".png" else out
        written = preview_run(run, folder, data, count, seed)
    elif data is not None:
        written = [preview_maskings(names or [], data, out, patch_size, count, seed, settings or [])]
    else:
        raise ConfigError("Give --data PATH to draw maskings on, or --run RUN to draw its reconstructions.")
    for path in written:
        print_line(f"Wrote {path}")
