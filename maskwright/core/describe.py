"""What a component is and takes, from its class: for `maskwright info`, and for anyone who asks in a script."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from maskwright.core.component import Component
from maskwright.core.errors import ConfigError, nearest
from maskwright.core.host import get_host, normalise


@dataclass(frozen=True)
class Description:
    """One component in full.

    Args:
        kind: such as "method".
        component: its record.
        text: first paragraph of its docstring.
        options: (name, type, default, description) of each option.
        presets: {preset: {"method": {...}, "trainer": {...}}} of a method.
        inputs: (name, dimensions, channels, unit) of each input that a method needs.
        notes: what else is known, by name.
    """

    kind: str
    component: Component
    text: str = ""
    options: list[tuple[str, str, str, str]] = field(default_factory=list)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    inputs: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def find_components(name: str) -> list[tuple[str, Component]]:
    """(kind, component) of all components of a name, in any spelling, whatever their kind.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    host = get_host()
    by_name = [(kind, component) for record in host.plugins for kind, component in record.components]
    wanted = normalise(name)
    found = [
        (kind, component)
        for kind, component in by_name
        if wanted in {normalise(known) for known in (component.name, *component.aliases)}
    ]
    if not found:
        hint = nearest(wanted, {component.name for _, component in by_name})
        raise ConfigError(f'There is no component "{name}".{hint} See `maskwright list`.')
    return found


def describe_component(kind: str, component: Component) -> Description:
    """Describe a component; imports it, and torch with it.

    Raises:
        PluginError: a library of it is missing, or it cannot be imported.
    """
    from maskwright.core.options import describe_options

    target = component.load()
    paragraph = " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())
    description = Description(kind, component, paragraph, describe_options(target))
    if kind == "method":
        from maskwright.core.build import wanted_inputs

        description.presets.update(target.presets)
        description.inputs.extend(
            (name, spec.dims, _channels(spec.channels), spec.unit) for name, spec in wanted_inputs(target).items()
        )
        masking = dict(target.default_masking)
        options = ", ".join(f"{key}={value}" for key, value in masking.items() if key != "name")
        description.notes["masking unless told otherwise"] = f"{masking['name']} ({options})"
    if kind == "masking":
        axes = ", ".join(str(count) for count in target.grid_dims)
        description.notes["works on"] = f"grids of {axes} axes" + (", scattered tokens" if target.scattered else "")
        description.notes["every token hidden equally often"] = "yes" if target.uniform_marginals else "not promised"
        if target.needs_guide:
            description.notes["needs"] = "a score from outside, which the method must give"
    if kind == "loader" and target.suffixes:
        description.notes["reads"] = ", ".join(target.suffixes)
    return description


def _channels(channels: tuple[str, ...] | int | None) -> str:
    if channels is None:
        return "any"
    return str(channels) if isinstance(channels, int) else f"{len(channels)}: {', '.join(channels)}"
