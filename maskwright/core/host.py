"""The plugin host: finds plugins, isolates broken ones, and knows every component by kind and name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from maskwright.core import hookspecs
from maskwright.core.component import KINDS, Component
from maskwright.core.errors import ConfigError, PluginError, nearest

GROUP = "maskwright"
"""Entry point group that plugins declare."""
FILES_VARIABLE = "MASKWRIGHT_PLUGINS"
"""Environment variable with single-file plugins, separated as in PATH."""
STRICT_VARIABLE = "MASKWRIGHT_STRICT"
"""Environment variable: 1 turns every plugin fault into an error."""
SLOW_IMPORT_SECONDS = 1.0

REGISTER_HOOKS = {
    "register_maskings": "masking",
    "register_encoders": "encoder",
    "register_objectives": "objective",
    "register_methods": "method",
    "register_loaders": "loader",
    "register_tasks": "task",
    "register_protocols": "protocol",
    "register_providers": "provider",
    "register_demos": "demo",
}


@dataclass
class PluginRecord:
    """What is known of one plugin.

    `status` is "ready", "missing extra" (a library of its is not installed; `repair` names the command), "conflict" (a
    component was refused because of its name, the others work) or "broken" (nothing of it is used); `reason` says why.
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
    def faulty(self) -> bool:
        return self.status != "ready" or self.seconds > SLOW_IMPORT_SECONDS

    def break_off(self, reason: str, repair: str = "") -> None:
        """Mark as broken; none of its components is used."""
        self.status, self.reason, self.repair, self.components = "broken", reason, repair, []


def normalise(name: str) -> str:
    """One spelling of a component's name: lower case, hyphens, British colour."""
    return re.sub(r"\bcolor\b", "colour", name.strip().lower().replace("_", "-"))


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code}) when it is imported"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def entry_points() -> list[tuple[metadata.EntryPoint, metadata.Distribution]]:
    """Entry points of the group with their distributions, ours first, then by distribution and name."""
    found = []
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as error:  # a distribution with unreadable metadata is not ours to repair
            warnings.warn(f"Entry points of {distribution} cannot be read: {error}", stacklevel=2)
            continue
        found += [(point, distribution) for point in points]
    unique = {(d.metadata["Name"], p.name): (p, d) for p, d in reversed(found)}  # the first on sys.path wins
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0] != "maskwright", key))]


def plugin_names() -> dict[str, str]:
    """Names under which plugins' commands are mounted, with a line of help. Imports no plugin."""
    names = {}
    for point, distribution in entry_points():
        if point.name != "core":
            own = distribution.metadata["Name"] == "maskwright"
            names[point.name] = "" if own else distribution.metadata["Summary"] or ""
    for path in plugin_files():
        names.setdefault(path.stem, f"single file {path}")
    return names


def plugin_files() -> list[Path]:
    return [Path(text) for text in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if text]


def _version_problem(distribution: metadata.Distribution) -> str:
    """Why this distribution does not fit the installed maskwright, from its metadata alone; empty if it does."""
    from packaging.requirements import InvalidRequirement, Requirement

    installed = metadata.version("maskwright")
    for text in distribution.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name.lower() == "maskwright" and not requirement.specifier.contains(installed, prereleases=True):
            return f"it needs maskwright {requirement.specifier}, but {installed} is installed"
    return ""


class Host:
    """All plugins and what they add. Use `get_host()` for the one of this process.

    Args:
        strict: raise on any fault of a plugin instead of reporting it.
        only: load the plugin of this name alone, besides core.
    """

    def __init__(self, strict: bool = False, only: str | None = None) -> None:
        self.strict = strict
        self.manager = pluggy.PluginManager("maskwright")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: list[PluginRecord] = []
        self._by_kind: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        self._silenced: set[tuple[str, str]] = set()
        for record, load in self._discover():
            if only is not None and record.name not in ("core", only):
                continue
            self.plugins.append(record)
            if record.status == "ready":
                self._load(record, load)
        if strict:
            faults = [f"{r.name} ({r.distribution}): {r.reason or 'slow import'}" for r in self.plugins if r.faulty]
            if faults:
                raise PluginError("Plugins at fault, and strict mode is on:\n" + "\n".join(faults))

    # discovery -----------------------------------------------------------------------------------------------------

    def _discover(self) -> Iterator[tuple[PluginRecord, Any]]:
        for point, distribution in entry_points():
            name = distribution.metadata["Name"]
            record = PluginRecord(point.name, name, distribution.version, point.value)
            record.summary = distribution.metadata["Summary"] or ""
            problem = "" if name == "maskwright" else _version_problem(distribution)
            if problem:
                record.break_off(problem, f'pip install --upgrade "{name}" maskwright')
            yield record, point.load
        for path in plugin_files():
            record = PluginRecord(path.stem, f"file {path}", "", str(path))
            if not path.is_file():
                record.break_off(f"{FILES_VARIABLE} names {path}, which is no file", f"unset {FILES_VARIABLE}")
            yield record, functools.partial(_load_file, path)

    def _load(self, record: PluginRecord, load: Any) -> None:
        started = time.perf_counter()
        try:
            record.module = load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit at import included
            record.break_off(_describe(error), self._repair(record))
            return
        finally:
            record.seconds = time.perf_counter() - started
        if record.seconds > SLOW_IMPORT_SECONDS:
            record.reason = f"slow: its import takes {record.seconds:.1f} s"
        problem = self._register(record) or self._collect(record)
        if problem:
            if self.manager.is_registered(record.module):
                self.manager.unregister(record.module)
            record.break_off(problem, self._repair(record))

    @staticmethod
    def _repair(record: PluginRecord) -> str:
        if record.distribution.startswith("file "):
            return f"mend {record.origin}, or take it out of {FILES_VARIABLE}"
        return f"pip install --upgrade --force-reinstall {record.distribution}, or pip uninstall {record.distribution}"

    def _register(self, record: PluginRecord) -> str:
        """Register with pluggy; the reason if a hook has wrong arguments or is unknown."""
        known = {name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "maskwright_spec")}
        try:
            marked = [name for name in dir(record.module) if self.manager.parse_hookimpl_opts(record.module, name)]
            unknown = sorted(set(marked) - known)
            if unknown:
                return f'unknown hook "{unknown[0]}".{nearest(unknown[0], known)}'
            self.manager.register(record.module, name=f"{record.distribution}:{record.name}")
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"a hook does not fit: {'; '.join(lines)}"
        return ""

    def _collect(self, record: PluginRecord) -> str:
        """Ask a plugin for its components; the reason if a hook raises or returns anything else."""
        collected = []
        for hook, kind in REGISTER_HOOKS.items():
            implementation = getattr(record.module, hook, None)
            if implementation is None or not self.manager.parse_hookimpl_opts(record.module, hook):
                continue
            try:
                components = implementation()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                return f"{hook}() raised {_describe(error)}"
            if not isinstance(components, list) or not all(isinstance(c, Component) for c in components):
                return f"{hook}() must return a list of Component, not {components!r}"[:200]
            for component in components:
                if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", component.name):
                    return f'{hook}(): "{component.name}" is no name: use lower case, digits and hyphens'
                if not re.fullmatch(r"[\w.]+:\w+", component.target):
                    return f'{hook}(): the target of "{component.name}" must read package.module:attribute'
            collected += [(kind, component.owned_by(record.name, record.distribution)) for component in components]
        for kind, component in collected:
            self._add(record, kind, component)
        return ""

    def _add(self, record: PluginRecord, kind: str, component: Component) -> None:
        names = [normalise(name) for name in (component.name, *component.aliases)]
        for name in names:
            other = self._by_kind[kind].get(name)
            if other is not None:
                record.status = "conflict"
                record.reason = (
                    f'{kind} "{name}" of {record.distribution} refused: {other.distribution} ({other.plugin}, '
                    f"{other.target}) already has that name"
                )
                record.repair = f"pip uninstall {record.distribution}, or ask its author for another name"
                return
        for name in names:
            self._by_kind[kind][name] = component
        record.components.append((kind, component))
        absent = component.missing()
        if absent and record.status == "ready":
            record.status = "missing extra"
            record.reason = f"{', '.join(absent)} not installed"
            record.repair = f'pip install "{component.extra or " ".join(absent)}"'

    # use -----------------------------------------------------------------------------------------------------------

    def components(self, kind: str) -> dict[str, Component]:
        """Components of a kind by their own names, aliases left out.

        Raises:
            ConfigError: unknown kind.
        """
        if kind not in self._by_kind:
            raise ConfigError(f'"{kind}" is no kind of component.{nearest(kind, KINDS)}')
        return {component.name: component for component in self._by_kind[kind].values()}

    def component(self, kind: str, name: str) -> Component:
        """A component by its name, an alias, or another spelling of it.

        Raises:
            ConfigError: no plugin adds it; names the nearest.
        """
        known = self.components(kind)
        found = self._by_kind[kind].get(normalise(name))
        if found is None:
            broken = [record.name for record in self.plugins if record.status == "broken"]
            hint = f" Broken plugins: {', '.join(broken)} (see `maskwright plugins`)." if broken else ""
            raise ConfigError(f'There is no {kind} "{name}".{nearest(normalise(name), known)}{hint}')
        return found

    def call(self, hook: str, **arguments: Any) -> list[tuple[PluginRecord, Any]]:
        """Call a hook of every plugin in turn. One that raises is blamed by name, and not asked again in this process.

        Raises:
            PluginError: in strict mode, instead of the warning.
        """
        results = []
        for record in self.plugins:
            if record.status == "broken" or (record.name, hook) in self._silenced:
                continue
            implementation = getattr(record.module, hook, None)
            options = self.manager.parse_hookimpl_opts(record.module, hook) if implementation else None
            if implementation is None or options is None:
                continue
            wanted, _ = pluggy._hooks.varnames(implementation)
            try:
                results.append((record, implementation(**{name: arguments[name] for name in wanted})))
            except Exception as error:
                text = f"{record.name} ({record.distribution}): its hook {hook} raised {_describe(error)}"
                if self.strict:
                    raise PluginError(text) from error
                self._silenced.add((record.name, hook))
                warnings.warn(f"{text}. It is not called again in this run; training goes on.", stacklevel=2)
        return results


def _load_file(path: Path) -> Any:
    name = f"maskwright_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def strict_mode() -> bool:
    return os.environ.get(STRICT_VARIABLE, "") not in ("", "0")


@functools.cache
def get_host() -> Host:
    """The host of this process, made on first use. Strict if MASKWRIGHT_STRICT is 1."""
    return Host(strict=strict_mode())
