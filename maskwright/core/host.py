"""The plugin host: loads plugins, isolates broken ones, and knows every component by kind and name."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

from maskwright.core import hookspecs
from maskwright.core.component import KINDS, Component
from maskwright.core.discovery import PluginRecord, describe, discover
from maskwright.core.errors import ConfigError, PluginError, nearest

if TYPE_CHECKING:
    import typer

__all__ = ["Host", "PluginRecord", "get_host", "normalise", "strict_mode"]

STRICT_VARIABLE = "MASKWRIGHT_STRICT"
"""Environment variable: 1 turns every plugin fault into an error."""

REGISTER_HOOKS = {f"register_{kind}s": kind for kind in KINDS}
"""Hooks that return components, with the kind of each."""

HOOKS = frozenset(name for name, value in vars(hookspecs).items() if hasattr(value, "maskwright_spec"))
"""All hooks there are."""


def normalise(name: str) -> str:
    """One spelling of a component's name: lower case, hyphens, British colour."""
    return re.sub(r"\bcolor\b", "colour", name.strip().lower().replace("_", "-").replace(" ", "-"))


def strict_mode() -> bool:
    """Whether the environment asks for strictness."""
    return os.environ.get(STRICT_VARIABLE, "") not in ("", "0")


@functools.cache
def get_host() -> Host:
    """The host of this process, made on first use. Strict if MASKWRIGHT_STRICT is 1."""
    return Host(strict=strict_mode())


class Host:
    """All plugins and what they add. Use `get_host()` for the one of this process.

    Args:
        strict: raise on any fault of a plugin instead of reporting it.
        only: load the plugin of this name alone, besides our own core.

    Raises:
        PluginError: in strict mode; names every plugin at fault.
    """

    def __init__(self, strict: bool = False, only: str | None = None) -> None:
        self.strict = strict
        self.plugins: list[PluginRecord] = []
        self._manager = pluggy.PluginManager("maskwright")
        self._manager.add_hookspecs(hookspecs)
        self._by_kind: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        self._silenced: set[tuple[str, str]] = set()
        for record, load in discover():
            if only is not None and record.name not in ("core", only):
                continue
            self.plugins.append(record)
            if record.status == "ready":
                self._load(record, load)
        faulty = [record for record in self.plugins if record.faulty]
        if strict and faulty:
            lines = [f"  - {r.name} ({r.distribution}), {r.status}: {r.reason}" for r in faulty]
            raise PluginError("Strict mode is on, and these plugins are at fault:\n" + "\n".join(lines))

    # loading -------------------------------------------------------------------------------------------------------

    def _load(self, record: PluginRecord, load: Callable[[], Any]) -> None:
        """Import, register and question one plugin. Whatever goes wrong is noted in its record alone."""
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints must not spoil our output
                record.module = load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit at import included
            record.break_off(f"its import failed: {describe(error)}")
            return
        finally:
            record.seconds = time.perf_counter() - started
        if record.slow:
            record.reason = f"slow: its import takes {record.seconds:.1f} s"
        problem = self._register(record) or self._collect(record)
        if problem:
            if self._manager.get_plugin(_key(record)) is not None:
                self._manager.unregister(name=_key(record))
            record.break_off(problem)

    def _register(self, record: PluginRecord) -> str:
        """Register with pluggy; the reason if a hook is unknown or has wrong arguments."""
        try:
            for attribute in dir(record.module):
                options = self._manager.parse_hookimpl_opts(record.module, attribute)
                if options is None:
                    continue
                hook = options["specname"] or attribute
                if hook not in HOOKS:
                    return f'unknown hook "{hook}".{nearest(hook, HOOKS)}'
                if options["wrapper"] or options["hookwrapper"]:
                    return f"{hook} is a hook wrapper, which maskwright does not use"
            self._manager.register(record.module, name=_key(record))
        except Exception as error:
            return f"a hook does not fit: {' '.join(str(error).split())}"
        return ""

    def _implementations(self, hook: str, record: PluginRecord) -> list[Any]:
        """The functions of one plugin that implement a hook, as pluggy keeps them."""
        caller = getattr(self._manager.hook, hook)
        return [
            implementation for implementation in caller.get_hookimpls() if implementation.plugin_name == _key(record)
        ]

    def _collect(self, record: PluginRecord) -> str:
        """Ask a plugin for its components; the reason if a hook raises or returns anything else."""
        collected = []
        for hook, kind in REGISTER_HOOKS.items():
            for implementation in self._implementations(hook, record):
                try:
                    components = implementation.function()
                    problem = _components_problem(components)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    return f"{hook}() failed: {describe(error)}"
                if problem:
                    return f"{hook}() {problem}"
                collected += [(kind, item.owned_by(record.name, record.distribution)) for item in components]
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
                    f'{kind} "{name}" of {record.distribution} ({component.target}) refused: {other.distribution} '
                    f"({other.target}) already has that name"
                )
                record.repair = f"remove {record.distribution}, or ask its author for another name"
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

    def required_libraries(self) -> list[str]:
        """Names of the libraries that any component requires, in order."""
        return sorted({name for kind in self._by_kind.values() for one in kind.values() for name in one.requires})

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
        """Call a hook of every plugin in turn. One that fails is blamed by name, and not asked again in this process.

        Returns:
            (plugin, what its hook returned) of those that did not fail.

        Raises:
            PluginError: in strict mode, instead of the warning.
        """
        results = []
        for record in self.plugins:
            if record.status == "broken" or (_key(record), hook) in self._silenced:
                continue
            for implementation in self._implementations(hook, record):
                try:
                    result = implementation.function(*(arguments[name] for name in implementation.argnames))
                    _check_result(hook, result)
                except (Exception, SystemExit) as error:
                    text = f"Plugin {record.name} ({record.distribution}): its hook {hook} failed: {describe(error)}"
                    if self.strict:
                        raise PluginError(text) from error
                    self._silenced.add((_key(record), hook))
                    warnings.warn(f"{text}. It is not called again; everything else goes on.", stacklevel=2)
                    break
                results.append((record, result))
        return results

    def mount_commands(self, name: str, app: typer.Typer) -> None:
        """Let the plugin `name` add its commands to `app`.

        Raises:
            PluginError: the plugin is broken, adds no commands, or fails when it is asked for them.
        """
        record = next(record for record in self.plugins if record.name == name)
        if record.status == "broken":
            raise PluginError(f"Plugin {name} ({record.distribution}) is broken: {record.reason}. Run: {record.repair}")
        implementations = self._implementations("register_commands", record)
        if not implementations:
            raise PluginError(f"Plugin {name} adds no commands. What it adds: `maskwright plugins`.")
        for implementation in implementations:
            try:
                implementation.function(*([app] if implementation.argnames else []))
            except (Exception, SystemExit) as error:
                text = f"Plugin {name} ({record.distribution}): its hook register_commands failed: {describe(error)}"
                raise PluginError(text) from error


def _key(record: PluginRecord) -> str:
    return f"{record.distribution}:{record.name}"


def _check_result(hook: str, result: Any) -> None:
    """Raise TypeError if a hook that is called in training returned what its spec does not say."""
    if hook == "configure_trainer":
        fits = isinstance(result, dict) and all(isinstance(value, list) for value in result.values())
        if not fits or not set(result) <= {"callbacks", "loggers"}:
            raise TypeError(f'it must return {{"callbacks": [...], "loggers": [...]}}, not {result!r:.80}')


def _components_problem(components: Any) -> str:
    """What is wrong with the list that a register hook returned; empty if nothing."""
    if not isinstance(components, list) or not all(isinstance(item, Component) for item in components):
        return f"must return a list of Component, not {components!r:.120}"
    for item in components:
        texts = (item.name, item.target, item.summary, item.reference, item.extra, *item.aliases, *item.requires)
        if not all(isinstance(text, str) for text in texts):
            return f"returned a component whose fields are not all text: {item!r:.120}"
        if isinstance(item.requires, str) or isinstance(item.aliases, str):
            return f'"{item.name}": requires and aliases are tuples of names, such as ("rasterio",)'
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", item.name):
            return f'"{item.name}" is no name: use lower case, digits and hyphens'
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", item.target):
            return f'the target of "{item.name}" must read package.module:attribute, not "{item.target}"'
    return ""
