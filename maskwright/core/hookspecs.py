"""The contract between maskwright and its plugins. This page is all of it; read it first.

A plugin is a module (or an object) named by an entry point of the group `maskwright`, or a single file named in the
environment variable `MASKWRIGHT_PLUGINS`. It implements any of the functions below, each marked with `@hookimpl`:

    from maskwright.core.hookspecs import Component, hookimpl

    @hookimpl
    def register_maskings():
        return [Component("checkerboard", "my_package.masking:Checkerboard", "Every other token.")]

The `register_*` hooks are called once, when the host starts, and their lists are put together; they must be light: no
torch, no domain library. Two components of one kind and name: the later one is refused, both origins named. The
distribution declares the versions it works with as usual (`Requires-Dist: maskwright>=0.1,<0.3`); the host checks that
before it imports anything. A hook that raises is reported under its plugin's name and everything else goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from maskwright.core.component import Component

if TYPE_CHECKING:
    import typer

    from maskwright.core.recipe import Recipe
    from maskwright.core.trainer.run import Run

__all__ = ["Component", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("maskwright")
hookimpl = pluggy.HookimplMarker("maskwright")


@hookspec
def register_maskings() -> list[Component]:  # type: ignore[empty-body]
    """Strategies that choose hidden tokens. Targets: subclasses of `maskwright.core.masking.Masking`. Since 0.1."""


@hookspec
def register_encoders() -> list[Component]:  # type: ignore[empty-body]
    """What survives pre-training. Targets: subclasses of `maskwright.core.encoder.Encoder`. Since 0.1."""


@hookspec
def register_objectives() -> list[Component]:  # type: ignore[empty-body]
    """Losses. Targets: pure functions of tensors that return a scalar tensor. Since 0.1."""


@hookspec
def register_methods() -> list[Component]:  # type: ignore[empty-body]
    """Ways to pre-train. Targets: subclasses of `maskwright.core.trainer.Method`. Since 0.1."""


@hookspec
def register_loaders() -> list[Component]:  # type: ignore[empty-body]
    """File formats in, samples out. Targets: subclasses of `maskwright.core.loader.Loader`. Since 0.1."""


@hookspec
def register_tasks() -> list[Component]:  # type: ignore[empty-body]
    """What is predicted downstream. Targets: subclasses of `maskwright.core.evaluation.task.Task`. Since 0.1."""


@hookspec
def register_protocols() -> list[Component]:  # type: ignore[empty-body]
    """How features are judged. Targets: subclasses of `maskwright.core.evaluation.protocol.Protocol`. Since 0.1."""


@hookspec
def register_providers() -> list[Component]:  # type: ignore[empty-body]
    """Frozen outside models behind a few typed calls. Since 0.1."""


@hookspec
def register_demos() -> list[Component]:  # type: ignore[empty-body]
    """Small complete jobs for `maskwright demo NAME`. Targets: `run(out: Path, seeds, console) -> Path`. Since 0.1."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Add commands to `app`, mounted as `maskwright PLUGIN ...`. Called only when that name is used. Since 0.1."""


@hookspec
def diagnose() -> dict[str, str]:  # type: ignore[empty-body]
    """Facts for `maskwright doctor`, such as `{"GDAL": "3.9.3"}`. Called in a process of its own. Since 0.1."""


@hookspec
def configure_trainer(recipe: Recipe) -> dict[str, list[Any]]:  # type: ignore[empty-body]
    """Extra Lightning parts: `{"callbacks": [...], "loggers": [...]}`. All plugins' lists are added. Since 0.1."""


@hookspec
def run_started(run: Run) -> None:
    """A run directory is ready and training is about to begin (also after a resume). Since 0.1."""


@hookspec
def step_finished(run: Run, step: int, metrics: dict[str, float]) -> None:
    """An optimiser step is done and was logged (every `trainer.log_every` steps). Since 0.1."""


@hookspec
def run_finished(run: Run) -> None:
    """Training ended and the encoder and the report are written. Since 0.1."""
