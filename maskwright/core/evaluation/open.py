"""Opening what a job is made of: its data and its task, from names and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.task import Task
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import merge
from maskwright.core.trainer.run import Run, check_channels


def open_task(name: str, labels: str | None, options: dict[str, Any]) -> tuple[str, dict[str, Any], Task]:
    """A task by its name: (its own spelling, every option, the task).

    Args:
        labels: its option of that name; wins over none in `options`.

    Raises:
        ConfigError: unknown name or option, or labels are missing.
    """
    component = get_host().component("task", name)
    problems: list[str] = []
    given = {**({"labels": labels} if labels is not None else {}), **options}
    checked = check_options("task", component.load(), given, problems)
    if any(line.startswith("task.labels: is required") for line in problems):
        raise ConfigError(
            f"The task {component.name} needs labels: --labels PLACE, see `maskwright info {component.name}`."
        )
    fail_if_any(problems)
    return component.name, checked, component.load()(**checked)


def open_run_data(
    run: Run | None, data: str | Path | None, options: dict[str, Any]
) -> tuple[str, dict[str, Any], Loader]:
    """The loader of a run on its own or other data: (its name, options given or taken over, the loader).

    Options of the run's own data hold for the same loader, unless they are overridden. `loader` in `options` names one.

    Raises:
        ConfigError: neither data nor a run, an option that the loader does not have, or channels of other names than
            the run was trained on. DataError: unreadable data.
    """
    options = dict(options)
    name = options.pop("loader", None)
    if run is None:
        if data is None:
            raise ConfigError("Give the data with --data PATH.")
        found, loader = open_loader(data, name or "auto", **options)
        return found, options, loader
    section = run.recipe().data
    name = name or section.loader
    if name != "auto" and get_host().component("loader", name).name == section.loader:
        options = merge(section.options, options)
    path = data if data is not None else section.path
    found, loader = open_loader(path, name, **options)
    if (run.path / "encoder.json").is_file():
        check_channels(run.path, loader.spec, path)
    return found, options, loader
