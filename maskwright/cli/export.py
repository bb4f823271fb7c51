"""`maskwright export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.show import print_line


def add_commands(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(help="Run directory, or a folder that holds an encoder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist, or be empty.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="safetensors, onnx or huggingface; may be repeated.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels of the ONNX file's input: 120, or 96x128. The data's without it.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that the folder names (encoders made of your own module).")
    ] = False,
) -> None:
    """Write a run's encoder with a model card: safetensors, ONNX, or the layout of the Hugging Face hub."""
    from maskwright.core.export import export as export_run

    done = export_run(run, out, formats or ["safetensors"], _size(size), trust)
    for path in done.files:
        print_line(str(path))
    for name, far in done.check.get("max_difference_relative_to_std", {}).items():
        print_line(f"ONNX and torch, {name}: largest difference {far:.1e} standard deviations")
    if done.check:
        print_line(f"checked on {done.check['checked_on']}")


def _size(text: str | None) -> tuple[int, ...] | None:
    from maskwright.core.errors import ConfigError

    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--size {text}: write a number of pixels, such as 120, or one for each axis, such as 96x128."
        )
    return tuple(map(int, parts))
