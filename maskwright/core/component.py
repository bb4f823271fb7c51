"""Component: the light record by which a plugin announces one thing that it adds. Imports nothing heavy."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Any

from maskwright.core.errors import PluginError

KINDS = (
    "masking",
    "encoder",
    "objective",
    "method",
    "loader",
    "task",
    "protocol",
    "provider",
    "demo",
)


@dataclass(frozen=True)
class Component:
    """One masking, encoder, objective, method, loader, task, protocol, provider or demo.

    Args:
        name: what the user types, in lower case with hyphens (`colour-noise`).
        target: where it is, `package.module:attribute`. Imported only when it is used.
        summary: one line, printed by `maskwright list` and `maskwright info`.
        reference: paper or standard it follows, with year.
        extra: pip requirement that brings its libraries, such as `maskwright[remote-sensing]`.
        requires: importable names of those libraries, such as `("rasterio",)`.
        aliases: other spellings of the name that the user may type.
        plugin, distribution: who added it. Filled in by the host.
    """

    name: str
    target: str
    summary: str
    reference: str = ""
    extra: str = ""
    requires: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    plugin: str = ""
    distribution: str = ""

    def missing(self) -> list[str]:
        """Names in `requires` that are not installed. Looks them up without importing them."""
        absent = []
        for module in self.requires:
            try:
                found = importlib.util.find_spec(module) is not None
            except Exception:  # a dotted name imports its parent, which may fail in any way
                found = False
            if not found:
                absent.append(module)
        return absent

    def load(self) -> Any:
        """Import and return the target.

        Raises:
            PluginError: a library is missing or broken, or the target is not there; names the command that mends it.
        """
        absent = self.missing()
        if absent:
            mend = f' Run: pip install "{self.extra}"' if self.extra else ""
            raise PluginError(f'"{self.name}" needs {", ".join(absent)}, not installed here.{mend}')
        module_name, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f'"{self.name}" ({self.distribution or self.plugin}) could not be loaded from {self.target}: '
                f"{type(error).__name__}: {error}. Run `maskwright doctor` to see which library is at fault."
            ) from error

    def owned_by(self, plugin: str, distribution: str) -> Component:
        return replace(self, plugin=plugin, distribution=distribution)
