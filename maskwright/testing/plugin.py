"""All checks on all that an installed plugin adds: the one line of a plugin's test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maskwright.core.component import Component
from maskwright.core.encoder import Encoder
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.task import Task
from maskwright.core.host import Host
from maskwright.core.loader import Loader
from maskwright.core.masking import Masking
from maskwright.core.options import option_types
from maskwright.core.sample import Batch, InputSpec, collate
from maskwright.core.trainer.method import Method
from maskwright.testing.data import batch_for
from maskwright.testing.encoder import check_encoder
from maskwright.testing.loader import check_loader
from maskwright.testing.masking import check_masking
from maskwright.testing.method import check_method
from maskwright.testing.require import require
from maskwright.testing.task import check_task

BASES: dict[str, type] = {"masking": Masking, "encoder": Encoder, "method": Method, "loader": Loader, "task": Task}
LARGE = 20_000_000
"""Parameters above which an encoder is not built for a check unless options make it smaller."""


def check_plugin(
    name: str,
    data: Mapping[str, str | Path] | str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Check that a plugin is found and that all it adds keeps its contract.

    Methods run in their preset "tiny" where they have one, on samples of a loader in `data` that gives their inputs,
    else on a made-up batch; their encoders are checked with them. Tasks are checked on a loader that has their labels.

    Args:
        name: the plugin's entry point name, or the stem of its file in `MASKWRIGHT_PLUGINS`.
        data: a path for each loader, by the loader's name: `{"npy": "tests/images"}`; or one path for all that accept it.
        options: constructor options by kind and name: `{"encoder:vit": {"img_size": 32, "depth": 2}}`.

    Returns:
        One line for each component: what was checked, or why it was not.

    Raises:
        AssertionError: the plugin is not found or not ready, or a component breaks its contract.
    """
    record = next((record for record in Host(only=name).plugins if record.name == name), None)
    require(record is not None, f'No plugin "{name}" is installed. Is its entry point in the group "maskwright"?')
    assert record is not None
    require(record.status == "ready", f'Plugin "{name}" is {record.status}: {record.reason}. {record.repair}')
    targets = [(kind, component, _load(kind, component)) for kind, component in record.components]
    chosen = {key: dict(value) for key, value in (options or {}).items()}
    known = {component.name: target for kind, component, target in targets if kind == "loader"}
    if isinstance(data, (str, Path)):
        data = {loader: data for loader, target in known.items() if target.accepts(Path(data))}
    loaders = {
        loader: target(data[loader], **chosen.get(f"loader:{loader}", {}))
        for loader, target in known.items()
        if data is not None and loader in data
    }
    lines = []
    for kind, component, target in targets:
        own = chosen.get(f"{kind}:{component.name}", {})
        try:
            result = _check(kind, component, target, own, loaders)
        except AssertionError as error:
            raise AssertionError(f'{kind} "{component.name}" of plugin "{name}": {error}') from error
        lines.append(f"{kind} {component.name}: {result}")
    return lines


def _load(kind: str, component: Component) -> Any:
    target = component.load()
    require(bool(component.summary), f'{kind} "{component.name}" has no summary.')
    base = BASES.get(kind)
    if base is not None:
        fits = isinstance(target, type) and issubclass(target, base)
        require(fits, f'{kind} "{component.name}": {component.target} is no subclass of {base.__name__}.')
    else:
        require(callable(target), f'{kind} "{component.name}": {component.target} cannot be called.')
    return target


def _check(kind: str, component: Component, target: Any, options: dict[str, Any], loaders: dict[str, Loader]) -> str:
    if kind == "masking":
        check_masking(target(**options))
    elif kind == "encoder":
        return _check_encoder(target, options, loaders)
    elif kind == "method":
        return _check_method(target, options, loaders)
    elif kind == "loader":
        if component.name not in loaders:
            return f'not checked: give data={{"{component.name}": PATH}}'
        check_loader(loaders[component.name])
    elif kind == "task":
        return _check_task(component.name, target, options, loaders)
    else:
        return "loads"
    return "keeps its contract"


def _check_task(name: str, target: type[Task], options: dict[str, Any], loaders: dict[str, Loader]) -> str:
    """Check a task on the first loader whose samples have labels for it, if any is given."""
    needed = [key for key, (_, default) in option_types(target).items() if default is ... and key not in options]
    if needed:
        return f'loads; to check it, give options={{"task:{name}": {{"{needed[0]}": ...}}}}'
    reasons = []
    for source, loader in loaders.items():
        task = target(**options)
        try:
            task.targets(loader)
        except (ConfigError, DataError) as error:
            reasons.append(f"{source}: {error}")
            continue
        check_task(task, loader)
        return f"keeps its contract (labels of loader {source})"
    require(not options or not reasons, f"its options do not suit the data. {'; '.join(reasons)}")
    return f"loads; to check it, give data that have labels for it{f' ({reasons[0]})' if reasons else ''}"


def _check_encoder(target: type[Encoder], options: dict[str, Any], loaders: dict[str, Loader]) -> str:
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in target(**options).parameters())
    if size > LARGE:
        return f"built without memory only: {size:,} parameters; give options that make it smaller"
    encoder = target(**options)
    batch, source = _batch(encoder, encoder.inputs, loaders)
    check_encoder(lambda: target(**options), batch)
    return f"keeps its contract ({source})"


def _check_method(target: type[Method], options: dict[str, Any], loaders: dict[str, Loader]) -> str:
    preset = dict(target.presets.get("tiny", {}).get("method", {}))
    wanted = target(**{**preset, **options}).inputs
    if all(spec.optional for spec in wanted.values()) and len(wanted) > 1:  # each input alone: a batch holds one
        found = {
            name: _check_method(
                target, {**target.options_for({name: replace(spec, optional=False)}), **options}, loaders
            )
            for name, spec in wanted.items()
        }
        return "; ".join(f"{name}: {result}" for name, result in found.items())
    given = next((loader.spec for loader in loaders.values() if set(wanted) <= set(loader.spec)), {})
    sizes = {**(target.options_for(given) if given else {}), **preset, **options}

    def factory() -> Method:
        return target(**sizes)

    method = factory()
    batch, source = _batch(method.encoder, method.inputs, loaders)
    check_method(factory, batch)
    check_encoder(lambda: factory().encoder, batch)
    return f"keeps its contract, and so does its encoder ({source})"


def _batch(encoder: Encoder, inputs: InputSpec, loaders: dict[str, Loader]) -> tuple[Batch, str]:
    """Samples of the first loader that gives these inputs, else a made-up batch; and a word on where it is from."""
    for name, loader in loaders.items():
        fits = all(key in loader.spec and loader.spec[key].dims == spec.dims for key, spec in inputs.items())
        if fits and len(loader) >= 2:
            batch = collate([loader.read(index) for index in range(min(4, len(loader)))])
            return batch, f"{len(batch)} samples of loader {name}"
    try:
        return batch_for(encoder), "made-up input"
    except ConfigError as error:
        raise AssertionError(f"{error} Give a loader that suits it: data={{NAME: PATH}}.") from error
