"""`maskwright pretrain`, `resume` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskwright.cli.show import console, print_heading, print_line, print_table, readable_bytes, readable_duration

if TYPE_CHECKING:
    from maskwright.core.trainer.forecast import Forecast
    from maskwright.core.trainer.run import Run


def add_commands(app: typer.Typer) -> None:
    app.command("pretrain")(pretrain)
    app.command("resume")(resume)
    app.command("demo")(demo)


def _complete_method(incomplete: str) -> list[str]:
    from maskwright.core.host import get_host

    return [name for name in get_host().components("method") if name.startswith(incomplete)]


def pretrain(
    method: Annotated[
        str, typer.Argument(help="Name of a method, or a recipe file (.yaml).", autocompletion=_complete_method)
    ],
    data: Annotated[Path | None, typer.Option(help="File or folder to read.")] = None,
    preset: Annotated[str, typer.Option(help="Size of the method, such as tiny.")] = "",
    run: Annotated[Path | None, typer.Option(help="Directory to write; runs/METHOD-TIME without it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as masking.name=colour-noise; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Stop with a checkpoint after 90s, 30m, 2h or HH:MM:SS.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make one step on three samples and forecast the cost.")
    ] = False,
) -> None:
    """Pre-train an encoder on your data and write a run directory."""
    from maskwright.core import recipe as recipes

    given = list(settings or [])
    if epochs is not None:
        given.append(f"trainer.epochs={epochs}")
    if max_time is not None:
        given.append(f'trainer.max_time="{max_time}"')
    recipe = recipes.make_recipe(method, data, preset, given)
    if dry_run:
        from maskwright.core.trainer import forecast

        show_forecast(forecast.dry_run(recipe, run.parent if run else "runs"))
        return
    from maskwright.core.trainer import pretrain as trainer

    show_run(trainer.pretrain(recipe, run=run))


def resume(run: Annotated[Path, typer.Argument(help="Run directory that was interrupted.")]) -> None:
    """Continue an interrupted run, to the weights it would have had without a stop."""
    from maskwright.core.trainer import pretrain as trainer

    show_run(trainer.resume(run))


def show_run(run: Run) -> None:
    """Say where everything of a finished run is."""
    rows = [("run", run.path), ("report", run.path / "report.html"), ("encoder", run.path / "encoder.safetensors")]
    bad = len(run.bad_files())
    if bad:
        rows.append((f"{bad} bad files", run.path / "bad_files.csv"))
    for what, path in rows:
        print_line(f"{what}: {path}")


def show_forecast(forecast: Forecast) -> None:
    """Print what a run would cost."""
    trainer, plan = forecast.recipe.trainer, forecast.plan
    seconds = forecast.hours * 3600
    rows = [
        ("method", f"{forecast.recipe.method.name} {forecast.recipe.method.preset}".rstrip()),
        ("data", f"{forecast.recipe.data.path} ({plan.length} samples, loader {forecast.recipe.data.loader})"),
        ("parameters", f"{forecast.parameters:,}, of which the encoder keeps {forecast.encoder_parameters:,}"),
        ("device", f"{trainer.accelerator}, precision {trainer.precision}"),
        ("steps", f"{plan.steps:,} of {plan.global_batch} samples"),
        ("peak learning rate", f"{forecast.lr:.3g}"),
        ("operations a step", f"{forecast.flops / 1e9:,.1f} GFLOP"),
        ("time a step", readable_duration(forecast.step_seconds)),
        ("reading a sample", f"{forecast.read_seconds * 1e3:.1f} ms, {readable_bytes(forecast.sample_bytes)}"),
        ("read in all", readable_bytes(forecast.read_bytes)),
        ("checkpoint", f"{readable_bytes(forecast.checkpoint_bytes)}; {readable_bytes(forecast.free_bytes)} free"),
        ("peak memory of this test", readable_bytes(forecast.peak_bytes)),
        ("loss of the first step", f"{forecast.loss:.4g}"),
        ("time of the run", f"about {readable_duration(seconds)} on this machine"),
    ]
    print_table(["forecast", ""], rows)
    for note in forecast.notes:
        print_line(f"Note: {note}", "yellow")
    print_heading("The dry run went through. Start with the same command without --dry-run.")


def demo(
    name: Annotated[str, typer.Argument(help="Which demo (`maskwright list demo`).")] = "remote-sensing",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("maskwright-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Pre-training runs, each with its own seed.")] = 3,
) -> None:
    """Run a small complete job on real data that ships with maskwright, from files to a report."""
    from maskwright.core.host import get_host

    get_host().component("demo", name).load()(out, seeds, console())
