"""Recipes: the one place where a run's configuration is defined and validated.

A recipe has five sections: `method`, `masking`, `data`, `trainer`, `seed`. The options of a method, masking or loader
are the typed keyword arguments of its constructor; they are validated against that signature, so nothing is declared
twice. Unknown keys are refused with the nearest name, and all problems are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.host import get_host, normalise
from maskwright.core.options import check_options, explain, fail_if_any


class Component(BaseModel):
    """A named component and its options, which are checked against its constructor."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(description="name of the component, see `maskwright list`")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class MethodSection(Component):
    preset: str = Field("", description="size: see `maskwright info METHOD`; empty for the constructor's defaults")


class DataSection(BaseModel):
    model_config = ConfigDict(extra="allow")
    path: str = Field(description="file or folder to read")
    loader: str = Field("auto", description="name of a loader, or auto to try those whose data the method can use")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


_Moment = Annotated[float, Field(ge=0, lt=1)]


class TrainerSection(BaseModel):
    """How to train. Every field is what `--set trainer.NAME=VALUE` sets."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    epochs: int = Field(100, ge=1, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; overrides epochs")
    batch_size: int = Field(64, ge=1, description="samples a process and forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes an optimiser step")
    lr: float | None = Field(None, gt=0, description="peak learning rate; without it base_lr * global batch / 256")
    base_lr: float = Field(1.5e-4, gt=0, description="learning rate of a global batch of 256")
    optimizer: Literal["adamw", "lamb"] = Field("adamw", description="adamw, or lamb for very large batches")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's; none for biases and other one-dimensional tensors")
    weight_decay_end: float | None = Field(None, ge=0, description="where a half cosine takes it; constant without")
    betas: tuple[_Moment, _Moment] = Field((0.9, 0.95), description="AdamW's moments")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps during which the rate rises from 0")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="rate at the end of the cosine, as a share of the peak")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    clip_tensors: bool = Field(False, description="clip_grad holds for each tensor by itself, not for all together")
    layer_decay: float | None = Field(None, gt=0, le=1, description="factor on the rate, a block down")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="export a moving average of the encoder")
    precision: Literal["auto", "32", "bf16"] = Field("auto", description="auto: bf16 where it is really faster")
    compile: bool = Field(False, description="compile the method; pays off on long GPU runs")
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    devices: int | Literal["auto"] = Field(1, description="devices on this machine")
    nodes: int = Field(1, ge=1, description="machines")
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="how several devices share the work")
    threads: int | None = Field(None, ge=1, description="CPU threads; without it torch's own choice")
    workers: int = Field(0, ge=0, description="loader processes")
    checkpoint_minutes: float = Field(10.0, gt=0, description="time between checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="also a checkpoint every so many steps")
    max_time: str | None = Field(None, description="stop and checkpoint after this long: 90s, 30m, 2h or HH:MM:SS")
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.csv")
    on_bad_file: Literal["skip", "raise"] = Field("skip", description="set unreadable files aside, or stop")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="share of samples that may be unreadable")
    max_bad_steps: int = Field(0, ge=0, description="NaN or Inf steps in a row that are left out")

    @pydantic.field_validator("precision", mode="before")
    @classmethod
    def _precision_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads 32 as a number

    @pydantic.field_validator("max_time", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        if value is not None:
            seconds_of(str(value))
            return str(value)
        return value


class Recipe(BaseModel):
    """A whole run. Written into its directory with every option resolved."""

    model_config = ConfigDict(extra="forbid")
    method: MethodSection
    masking: Component | None = None
    data: DataSection
    trainer: TrainerSection = TrainerSection()
    seed: int = Field(0, ge=0, description="seed of everything random")


def seconds_of(text: str) -> float:
    """Seconds in `90s`, `30m`, `2h`, `1d`, `HH:MM:SS` or a plain number.

    Raises:
        ValueError: none of these.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip()):
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", text.strip()):
        return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])
    raise ValueError(f'"{text}" is no duration: write 90s, 30m, 2h, 1d or HH:MM:SS')


def parse_settings(settings: dict[str, Any] | Sequence[str]) -> dict[str, Any]:
    """`["trainer.epochs=3"]` or `{"trainer.epochs": 3}` as a nested dict. Values of text are read as YAML.

    Raises:
        ConfigError: a setting that is not KEY=VALUE, or a value that is no YAML.
    """
    pairs: dict[str, Any] = {}
    if isinstance(settings, dict):
        pairs = dict(settings)
    else:
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f'"{text}" is no setting: write SECTION.OPTION=VALUE, such as trainer.epochs=20.')
            try:
                pairs[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f'The value of "{text}" cannot be read as YAML: {error}') from error
            if isinstance(pairs[key.strip()], str):
                pairs[key.strip()] = _number_or_text(pairs[key.strip()])
    nested: dict[str, Any] = {}
    for key, value in pairs.items():
        *sections, option = key.split(".")
        inside = nested
        for depth, section in enumerate(sections, start=1):
            inside = inside.setdefault(section, {})
            if not isinstance(inside, dict):
                raise ConfigError(f'"{key}" and "{".".join(sections[:depth])}" cannot both be set.')
        inside[option] = value
    return nested


def _number_or_text(text: str) -> Any:
    try:  # YAML 1.1 reads 1e-4 as text
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d+)?[eE][+-]?\d+", text) else text
    except ValueError:
        return text


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as a dict. Plain YAML only: tags that would build objects are refused.

    Raises:
        DataError: missing, unreadable or no mapping.
    """
    if not path.is_file():
        raise DataError(path, "there is no such recipe file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(path, f"is no YAML: {str(error).splitlines()[0]}", "a recipe") from error
    if not isinstance(content, dict):
        raise DataError(path, f"holds a {type(content).__name__}", "a mapping with method, data, trainer")
    return content


def is_recipe_file(text: str | Path) -> bool:
    return str(text).endswith((".yaml", ".yml"))


def make_recipe(
    method_or_file: str | Path,
    data: str | Path | None = None,
    preset: str = "",
    settings: dict[str, Any] | Sequence[str] = (),
) -> Recipe:
    """A recipe from a method's name or a YAML file, data, preset and settings; the later wins.

    Raises:
        ConfigError: all problems at once.
        DataError: the recipe file cannot be read.
    """
    if is_recipe_file(method_or_file):
        content = read_yaml(Path(method_or_file))
    else:
        content = {"method": {"name": str(method_or_file)}}
    if isinstance(content.get("method"), str):
        content["method"] = {"name": content["method"]}
    if preset:
        content = merge(content, {"method": {"preset": preset}})
    if data is not None:
        content = merge(content, {"data": {"path": str(data)}})
    content = merge(content, parse_settings(settings))
    for section in ("method", "data", "trainer"):
        if section in content and not isinstance(content[section], dict):
            raise ConfigError(f"{section}={content[section]!r}: must hold options, such as {section}.NAME=VALUE.")
    if isinstance(content.get("masking"), str):
        content["masking"] = {"name": content["masking"]}
    _check_names(content)
    if "data" not in content:
        raise ConfigError("data.path is required: the file or folder to read (--data PATH).")
    name = content.get("method", {}).get("name")
    if name:
        method_class = get_host().component("method", name).load()
        chosen = content["method"].get("preset", "")
        if chosen and chosen not in method_class.presets:
            raise ConfigError(f'{name} has no preset "{chosen}".{nearest(chosen, method_class.presets)}')
        if chosen:
            content["trainer"] = merge(method_class.presets[chosen].get("trainer", {}), content.get("trainer", {}))
        masking = content.get("masking") or {}
        default = method_class.default_masking
        if "name" not in masking or normalise(masking["name"]) == default["name"]:
            masking = {**default, **masking}
        content["masking"] = masking
        problems = _option_problems(content, method_class)
    else:
        problems = []
    return validated(content, problems)


def _check_names(content: dict[str, Any]) -> None:
    """Refuse names that are no text before anything is looked up by them."""
    if not isinstance(content.get("masking") or {}, dict):
        raise ConfigError(f"masking={content['masking']!r}: must hold options, such as masking.name=random.")
    for section, option in (("method", "name"), ("method", "preset"), ("masking", "name")):
        value = (content.get(section) or {}).get(option, "")
        if not isinstance(value, str):
            raise ConfigError(f"{section}.{option}={value!r}: must be a name, see `maskwright list`.")


def _option_problems(content: dict[str, Any], method_class: Any) -> list[str]:
    """What is wrong with the options of the method and of the masking, by their constructors."""
    problems: list[str] = []
    options = {k: v for k, v in content["method"].items() if k not in ("name", "preset")}
    check_options("method", method_class, options, problems)
    masking = content["masking"]
    target = get_host().component("masking", masking["name"]).load()
    check_options("masking", target, {k: v for k, v in masking.items() if k != "name"}, problems)
    return problems


def validated(content: dict[str, Any], problems: Sequence[str] = ()) -> Recipe:
    """A recipe of a nested dict.

    Args:
        problems: what is known to be wrong already; reported together with what is found here.

    Raises:
        ConfigError: all problems at once.
    """
    try:
        recipe = Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        found = explain(error, "", Recipe.model_fields, {"trainer": TrainerSection.model_fields})
        fail_if_any([*found, *problems])
        raise
    fail_if_any(list(problems))
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe that `save_recipe` wrote, or one of a user's that names everything."""
    content = read_yaml(Path(path))
    return validated(content)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    return Recipe.model_json_schema()
