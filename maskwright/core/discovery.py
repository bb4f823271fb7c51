"""Where plugins are found: entry points of installed distributions, and single files. Imports no plugin."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from maskwright.core.component import Component

GROUP = "maskwright"
"""Entry point group that plugins declare."""
OWN = "maskwright"
"""Our own distribution."""
FILES_VARIABLE = "MASKWRIGHT_PLUGINS"
"""Environment variable with single-file plugins, separated as in PATH."""
SLOW_IMPORT_SECONDS = 1.0
"""A plugin whose import takes longer is noted as slow."""


@dataclass
class PluginRecord:
    """What is known of one plugin.

    `status` is "ready", "missing extra" (a library of its is not installed; `repair` names the command), "conflict" (a
    component was refused because of its name, the others work) or "broken" (nothing of it is used); `reason` says why.
    `seconds` is the time that its import took. `components` are (kind, component) pairs.
    """

    name: str
    distribution: str
    version: str
    origin: str
    summary: str = ""
    status: str = "ready"
    reason: str = ""
    repair: str = ""
    seconds: float = 0.0
    components: list[tuple[str, Component]] = field(default_factory=list)
    module: Any = None

    @property
    def slow(self) -> bool:
        return self.seconds > SLOW_IMPORT_SECONDS

    @property
    def faulty(self) -> bool:
        return self.status != "ready" or self.slow

    @property
    def from_file(self) -> bool:
        return self.distribution.startswith("file ")

    def break_off(self, reason: str, repair: str = "") -> None:
        """Mark as broken; none of its components is used."""
        self.status, self.reason, self.repair, self.components = "broken", reason, repair or self.reinstall, []

    @property
    def reinstall(self) -> str:
        """What mends most broken plugins."""
        if self.from_file:
            return f"mend {self.origin}, or take it out of {FILES_VARIABLE}"
        command = f"pip install --upgrade --force-reinstall {self.distribution}"
        return command if self.distribution == OWN else f"{command}, or pip uninstall {self.distribution}"


def describe(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else error.code}) was called"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def entry_points() -> list[tuple[metadata.EntryPoint, metadata.Distribution]]:
    """Entry points of the group with their distributions: ours first, then by distribution and name."""
    found: dict[tuple[str, str], tuple[metadata.EntryPoint, metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
            for point in points:  # a distribution found twice: the first on sys.path wins, as it does for imports
                found.setdefault((distribution.metadata["Name"] or "unnamed", point.name), (point, distribution))
        except Exception as error:  # unreadable metadata of a stranger must not stop anything
            warnings.warn(f"The entry points of {distribution} cannot be read: {describe(error)}", stacklevel=2)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != OWN, key))]


def plugin_files() -> list[Path]:
    """Single-file plugins that the environment variable names."""
    texts = os.environ.get(FILES_VARIABLE, "").split(os.pathsep)
    return [Path(text).expanduser() for text in dict.fromkeys(texts) if text.strip()]


def plugin_names() -> dict[str, str]:
    """Names of all plugins but the core, each with one line about it from its metadata. Imports no plugin."""
    names: dict[str, str] = {}
    for point, distribution in entry_points():
        own = distribution.metadata["Name"] == OWN
        if not (own and point.name == "core"):
            names.setdefault(point.name, "" if own else distribution.metadata["Summary"] or "")
    for path in plugin_files():
        names.setdefault(path.stem, f"Single file {path}.")
    return names


def version_problem(distribution: metadata.Distribution) -> str:
    """Why this distribution does not fit the installed maskwright, from its metadata alone; empty if it does."""
    from packaging.requirements import InvalidRequirement, Requirement

    installed = metadata.version(OWN)
    for text in distribution.requires or []:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.name.lower() != OWN or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            return f"it needs maskwright {wanted.specifier}, but {installed} is installed"
    return ""


def discover() -> Iterator[tuple[PluginRecord, Callable[[], Any]]]:
    """Each plugin's record with the function that imports it; what cannot be imported is marked broken already."""
    for point, distribution in entry_points():
        name = distribution.metadata["Name"] or "unnamed"
        record = PluginRecord(
            point.name, name, distribution.version or "", point.value, distribution.metadata["Summary"] or ""
        )
        problem = "" if name == OWN else version_problem(distribution)
        if problem:
            record.break_off(problem, f"pip install --upgrade maskwright {name}")
        yield record, point.load
    for path in plugin_files():
        record = PluginRecord(path.stem, f"file {path}", "", str(path))
        if not path.is_file():
            record.break_off(f"{FILES_VARIABLE} names {path}, which is no file", f"correct or unset {FILES_VARIABLE}")
        yield record, functools.partial(load_file, path)


def load_file(path: Path) -> Any:
    """Import a single-file plugin under a module name of its own, `maskwright_plugin_NAME`."""
    name = "maskwright_plugin_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # targets of its components are looked up by this name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
