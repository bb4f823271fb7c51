"""`maskwright plugins`, `list` and `info`: what is installed, and what it does."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from maskwright.cli.show import print_heading, print_json, print_line, print_table
from maskwright.core.component import KINDS, Component
from maskwright.core.errors import ConfigError, nearest
from maskwright.core.host import PluginRecord, get_host

STYLES = {"ready": "green", "missing extra": "yellow", "conflict": "yellow", "broken": "bold red"}


def add_commands(app: typer.Typer) -> None:
    app.command("plugins")(plugins)
    app.command("list")(list_components)
    app.command("info")(info)


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_names(incomplete: str) -> list[str]:
    """Names of all components that begin so."""
    names = {component.name for record in get_host().plugins for _, component in record.components}
    return sorted(name for name in names if name.startswith(incomplete))


def _adds(record: PluginRecord) -> str:
    counts = Counter(kind for kind, _ in record.components)
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())


def _as_json(record: PluginRecord) -> dict[str, Any]:
    content = {key: value for key, value in vars(record).items() if key != "module"}
    content["components"] = [{"kind": kind, **asdict(component)} for kind, component in record.components]
    return content


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all plugins: version, origin, what each adds, and what mends a broken one."""
    records = get_host().plugins
    if as_json:
        print_json([_as_json(record) for record in records])
        return
    rows = [(r.name, f"{r.distribution} {r.version}".rstrip(), r.origin, _adds(r), r.status) for r in records]
    print_table(["plugin", "from", "origin", "adds", "status"], rows)
    for record in records:
        if record.reason:
            mend = f" To mend it: {record.repair}" if record.repair else ""
            text = f"{record.name} ({record.distribution}), {record.status}: {record.reason}.{mend}"
            print_line(text, STYLES[record.status] if record.status != "ready" else "yellow")


def _kind(text: str) -> str:
    kind = text.lower().removesuffix("s") if text.lower() not in KINDS else text.lower()
    if kind not in KINDS:
        raise ConfigError(f'"{text}" is no kind of component.{nearest(kind, KINDS)}')
    return kind


def _status(component: Component) -> str:
    absent = component.missing()
    if not absent:
        return "ready"
    return f'missing extra: pip install "{component.extra or " ".join(absent)}"'


def list_components(
    kind: Annotated[
        str | None, typer.Argument(help=f"{', '.join(KINDS)}; all kinds without it.", autocompletion=_complete_kind)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the components of one kind, or of all."""
    host = get_host()
    kinds = [_kind(kind)] if kind else [known for known in KINDS if host.components(known)]
    found = {known: list(host.components(known).values()) for known in kinds}
    if as_json:
        print_json({known: [asdict(component) for component in components] for known, components in found.items()})
        return
    for known, components in found.items():
        rows = [(c.name, c.summary, c.plugin, c.reference, _status(c)) for c in components]
        if rows:
            print_table([known, "what it does", "plugin", "reference", "status"], rows)
        else:
            print_line(f"No installed plugin adds a {known}.")
        if known != kinds[-1]:
            print_line()


def info(
    name: Annotated[
        str | None, typer.Argument(help="Name of a component, such as croma.", autocompletion=complete_names)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe.")] = False,
) -> None:
    """Show what a component does: summary, reference, options with types and defaults, presets, inputs."""
    from maskwright.core.describe import describe_component, find_components

    if schema:
        from maskwright.core.recipe import recipe_schema

        print_json(recipe_schema())
        return
    if name is None:
        raise ConfigError(
            "Name a component, such as `maskwright info croma` (see `maskwright list`), or give --schema."
        )
    for number, (kind, component) in enumerate(find_components(name)):
        if number:
            print_line()
        _show_head(kind, component)
        if component.missing():
            print_line(f"Its options cannot be shown: {_status(component)}", "yellow")
            continue
        description = describe_component(kind, component)
        if description.text and description.text != component.summary:
            print_line(description.text)
        _show_facts(list(description.notes.items()))
        if description.options:
            print_heading("Options")
            print_table(["option", "type", "default", "meaning"], description.options)
        if description.inputs:
            print_heading("Inputs")
            print_table(["input", "dimensions", "channels", "unit"], description.inputs)
        if description.presets:
            print_heading("Presets")
            rows = [
                (preset, _join(p.get("method", {})), _join(p.get("trainer", {})))
                for preset, p in description.presets.items()
            ]
            print_table(["preset", "method", "trainer"], rows)


def _join(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "(defaults)"


def _show_head(kind: str, component: Component) -> None:
    print_line(f"{component.name} ({kind})", "bold")
    print_line(component.summary)
    facts = [
        ("reference", component.reference),
        ("aliases", ", ".join(component.aliases)),
        ("plugin", f"{component.plugin} ({component.distribution})"),
        ("class", component.target),
        ("needs", component.extra),
    ]
    _show_facts([(what, text) for what, text in facts if text])


def _show_facts(facts: list[tuple[str, str]]) -> None:
    for what, text in facts:
        print_line(f"  {what}: {text}")
