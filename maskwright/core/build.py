"""From a recipe to a loader and a method that are ready to train."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskwright.core.errors import ConfigError, DataError, PluginError
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.masking.base import Masking
from maskwright.core.options import check_options, fail_if_any, option_types, takes
from maskwright.core.recipe import Component, DataSection, MethodSection, Recipe, merge
from maskwright.core.sample import InputSpec, check_inputs
from maskwright.core.trainer.method import Method


@dataclass(frozen=True)
class Built:
    """A loader and a method ready to train, and the recipe with every option as it was used."""

    loader: Loader
    method: Method
    recipe: Recipe


Wanted = Callable[[InputSpec], Collection[str]]
"""Names of the inputs that a method would take of a loader that gives these. Raises ConfigError if it can use none."""


def open_loader(
    path: str | Path, name: str = "auto", wanted: Wanted | None = None, **options: Any
) -> tuple[str, Loader]:
    """The loader for `path` and its name: the named one, or the first that accepts the path and gives what is `wanted`.

    Raises:
        DataError: nothing is there, or no loader understands it.
        ConfigError: an option that the loader does not have.
    """
    if not Path(path).exists():
        raise DataError(path, "there is no such file or folder", mend="Give an existing path with --data or data.path")
    host = get_host()
    if name != "auto":
        component = host.component("loader", name)
        return component.name, _make_loader(component.load(), path, options)
    refusals = []
    # the core's own loader takes plain arrays of anything, so a domain that knows more comes before it
    for component in sorted(host.components("loader").values(), key=lambda component: component.plugin == "core"):
        absent = component.missing()
        if absent:
            refusals.append(f'{component.name}: needs {", ".join(absent)} (pip install "{component.extra}")')
            continue
        try:
            loader_class = component.load()
        except PluginError as error:  # a broken library of one domain does not hide the others' loaders
            refusals.append(f"{component.name}: {error}")
            continue
        if not loader_class.accepts(Path(path)):
            refusals.append(f"{component.name}: does not find its files ({component.summary.rstrip('.')})")
            continue
        loader = _make_loader(loader_class, path, options)
        try:
            names = set() if wanted is None else set(wanted(loader.spec))
        except ConfigError as error:
            refusals.append(f"{component.name}: {error}")
            continue
        if not names <= set(loader.spec):
            refusals.append(f"{component.name}: gives {', '.join(loader.spec)}, not {', '.join(sorted(names))}")
            continue
        return component.name, loader
    raise DataError(
        path,
        "no loader can use it for this method" if wanted else "no loader understands it",
        mend="What each loader says:\n" + "\n".join(f"  - {line}" for line in refusals) + "\nSee `maskwright inspect`",
    )


def _make_loader(loader_class: Any, path: str | Path, options: dict[str, Any]) -> Loader:
    problems: list[str] = []
    checked = check_options("data", loader_class, options, problems)
    fail_if_any(problems)
    return loader_class(path, **checked)


def build_masking(section: Component) -> Masking:
    """The masking that a recipe's section names.

    Raises:
        ConfigError: unknown name or option.
    """
    target = get_host().component("masking", section.name).load()
    problems: list[str] = []
    options = check_options("masking", target, section.options, problems)
    fail_if_any(problems)
    return target(**options)


def build(recipe: Recipe) -> Built:
    """Open the data and construct the method. Order of options: constructor, preset, data, recipe; the later wins.

    Raises:
        ConfigError: all problems of the recipe's components at once, or data that do not suit the method.
        DataError: data that cannot be read.
    """
    host = get_host()
    component = host.component("method", recipe.method.name)
    method_class = component.load()
    preset = method_class.presets.get(recipe.method.preset, {}).get("method", {})
    problems: list[str] = []
    if recipe.masking is not None:
        masking_class = host.component("masking", recipe.masking.name).load()
        masking_options = check_options("masking", masking_class, recipe.masking.options, problems)
    explicit = merge(preset, recipe.method.options)
    check_options("method", method_class, explicit, problems)
    fail_if_any(problems)

    wanted = _wanted(method_class, explicit)
    loader_name, loader = open_loader(recipe.data.path, recipe.data.loader, wanted, **recipe.data.options)
    if len(loader) == 0:
        raise DataError(
            recipe.data.path,
            f"holds no usable sample; {len(loader.bad_files)} files were left out"
            + (f", the first because: {loader.bad_files[0].reason}" if loader.bad_files else ""),
        )
    from_data = _options_from_data(method_class, loader.spec, explicit)
    options = check_options("method", method_class, merge(from_data, explicit), problems)
    fail_if_any(problems)
    if recipe.masking is not None and takes(method_class, "masking"):
        options_and_masking = {**options, "masking": masking_class(**masking_options)}
    else:
        options_and_masking = options
    with torch.random.fork_rng(devices=[]):  # torch initialises weights from its global generator
        torch.manual_seed(recipe.seed)
        method = method_class(**options_and_masking)
    check_inputs(loader.spec, method.inputs, f'loader "{loader_name}"', f'method "{component.name}"')

    resolved = recipe.model_copy(
        update={
            "method": MethodSection(name=component.name, preset=recipe.method.preset, **options),
            "data": DataSection(
                path=str(Path(recipe.data.path).resolve()), loader=loader_name, **_loader_options(loader, recipe)
            ),
        }
    )
    if recipe.masking is not None:
        resolved.masking = Component(name=recipe.masking.name, **masking_options)
    return Built(loader, method, resolved)


def _loader_options(loader: Loader, recipe: Recipe) -> dict[str, Any]:
    return check_options("data", type(loader), recipe.data.options, [])


def _options_from_data(method_class: type[Method], given: InputSpec, explicit: dict[str, Any]) -> dict[str, Any]:
    """Options that follow from the data; of the one input that `input_name` names, where the user set it."""
    name = explicit.get("input_name")
    if name is None or "input_name" not in option_types(method_class):
        return method_class.options_for(given)
    return method_class.options_for({name: given[name]}) if name in given else {}


def _wanted(method_class: type[Method], explicit: dict[str, Any]) -> Wanted:
    """A method with an option `input_name` takes whichever input `options_for` or the user names; others are fixed."""
    if "input_name" in option_types(method_class):
        return lambda given: {merge(_options_from_data(method_class, given, explicit), explicit)["input_name"]}
    inputs = wanted_inputs(method_class)
    needed = {name for name, spec in inputs.items() if not spec.optional}
    return lambda given: needed or set(inputs) & set(given) or set(inputs)


def wanted_inputs(method_class: type[Method]) -> InputSpec:
    """What a method needs, without allocating its weights."""
    with torch.device("meta"):
        return method_class(**method_class.presets.get("tiny", {}).get("method", {})).inputs
