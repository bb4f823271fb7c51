"""`maskwright new-plugin`: a package of one's own, ready to install."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.show import print_line
from maskwright.core.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    app.command("new-plugin")(new_plugin)


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the package and the plugin, such as bird-songs.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write, new or empty; ./NAME without it.")] = None,
) -> None:
    """Write a complete plugin package: a masking, a loader, a method, a task, a command, and a test of them all."""
    from maskwright.core import template

    distribution, _ = template.names_of(name)
    root = context.find_root()
    if distribution in root.command.list_commands(root):  # type: ignore[attr-defined]
        raise ConfigError(f'"{distribution}" is a command of maskwright. Choose another name.')
    folder = template.new_plugin(name, out)
    print_line(f"Wrote {folder}. What comes next:")
    place = shlex.quote(str(folder))
    # a name with a slash in it, so that pip does not look for a package of that name elsewhere
    source = place if "/" in place or place == "." else f"./{place}"
    print_line(f"  pip install -e {source} pytest")
    print_line("  maskwright plugins")
    print_line(f"  python -m pytest {place}")
