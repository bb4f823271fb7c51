"""`maskwright completion`: the script that teaches a shell to complete maskwright's commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from maskwright.core.errors import ConfigError

VARIABLE = "_MASKWRIGHT_COMPLETE"
"""Environment variable by which a shell asks for completions."""
Shell = Literal["bash", "zsh", "fish"]


def add_commands(app: typer.Typer) -> None:
    app.command("completion")(print_completion)


def prepare_completion() -> None:
    """Make the shells known, if it is a shell that asks."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init

        completion_init()


def print_completion(
    shell: Annotated[Shell | None, typer.Argument(help="Your shell; without it, the one in $SHELL.")] = None,
) -> None:
    """Print a completion script. Bash: eval "$(maskwright completion bash)" in ~/.bashrc."""
    from typer.completion import get_completion_script

    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in ("bash", "zsh", "fish"):
        raise ConfigError(f'"{chosen}" is no shell that can be completed. Name one of bash, zsh, fish.')
    print(get_completion_script(prog_name="maskwright", complete_var=VARIABLE, shell=chosen))
