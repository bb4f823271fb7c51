"""Modules from outside, built from a text: models of timm by name, and what the user's own code makes.

`timm:NAME,option=value,...` and `torch:package.module:Callable,option=value,...`; options go to the model's constructor.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.core.errors import ConfigError, DataError, PluginError
from maskwright.core.recipe import parse_settings
from maskwright.core.weights import read_state

KINDS = ("timm", "torch")
NOT_THE_MODEL = {
    "num_classes",
    "in_chans",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
}
"""Arguments of timm.create_model that would load something, or make a model of another kind; no text may set them."""
MOST_NAMED = 5
"""Tensors that a message names before it only counts them."""

_trusted: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("trusted", default=frozenset())


@dataclass(frozen=True)
class ModelText:
    """A parsed `timm:` or `torch:` text. Settings stay text, so that it can be written back as it came."""

    kind: str
    target: str
    settings: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> ModelText:
        """Read a text.

        Raises:
            ConfigError: another form; says which part.
        """
        head, *parts = text.split(",")
        kind, _, target = head.strip().partition(":")
        if kind not in KINDS or not target:
            raise ConfigError(f'"{text}" names no model: write timm:NAME or torch:package.module:Callable.')
        settings = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals or not key.strip().isidentifier():
                raise ConfigError(f'"{part}" in "{text}" is no setting: write option=value, with commas between.')
            settings[key.strip()] = value.strip()
        return cls(kind, target.strip(), settings)

    def __str__(self) -> str:
        return ",".join([f"{self.kind}:{self.target}", *(f"{key}={value}" for key, value in self.settings.items())])

    def split(self, names: set[str]) -> tuple[ModelText, dict[str, Any]]:
        """The text without the settings in `names`, and the values of these."""
        taken = {key: read_value(key, value) for key, value in self.settings.items() if key in names}
        rest = {key: value for key, value in self.settings.items() if key not in names}
        return replace(self, settings=rest), taken

    def values(self) -> dict[str, Any]:
        return {key: read_value(key, value) for key, value in self.settings.items()}


def read_value(key: str, text: str) -> Any:
    """A setting's value: `96x128` is a size, anything else is read as YAML reads a scalar."""
    parts = text.split("x")
    if len(parts) > 1 and all(part.isdigit() for part in parts):
        return tuple(map(int, parts))
    return parse_settings([f"{key}={text}"])[key]


# code that may be imported ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def trusted(*texts: str) -> Iterator[None]:
    """Allow the code that these `torch:` texts name to be imported and called inside the block; "*" allows any."""
    token = _trusted.set(_trusted.get() | set(texts))
    try:
        yield
    finally:
        _trusted.reset(token)


def build_torch(model: ModelText) -> nn.Module:
    """Call the user's own code.

    Raises:
        ConfigError: nobody but a file asked for it, or it does not make a module.
        PluginError: it cannot be imported, or fails.
    """
    if not _trusted.get() & {"*", str(model)}:
        raise ConfigError(
            f'"{model}" stands in a file, and code is not run because a file names it. If you know that code, name it '
            f"yourself: {model},folder=FOLDER (with the folder of the encoder), or use "
            f"open_encoder(FOLDER, trust=True) in Python."
        )
    module_name, colon, name = model.target.partition(":")
    if not colon or not name:
        raise ConfigError(f'"torch:{model.target}" must read torch:package.module:Callable.')
    made = _call(model.target, _find(module_name, name), model.values())
    if not isinstance(made, nn.Module):
        raise ConfigError(f"torch:{model.target} made a {type(made).__name__}; a torch.nn.Module was expected.")
    return made


def _find(module_name: str, name: str) -> Any:
    target = f"{module_name}:{name}"
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # an installed command does not look in its folder, `python` does
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"torch:{target}: {module_name} cannot be imported ({type(error).__name__}: {error}). Install its package "
            f"here, or run the command in the folder that holds it."
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            raise PluginError(f'torch:{target}: {module_name} has no "{name}".')
        found = getattr(found, part)
    return found


def _call(target: str, function: Any, settings: dict[str, Any]) -> Any:
    try:
        return function(**settings)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise PluginError(f"torch:{target}({given}) failed: {type(error).__name__}: {error}") from error


# timm ---------------------------------------------------------------------------------------------------------------


def import_timm() -> Any:
    """The library timm.

    Raises:
        PluginError: it is not installed; names the command.
    """
    try:
        import timm
    except ImportError as error:
        raise PluginError('timm:NAME needs the library timm. Run: pip install "maskwright[timm]"') from error
    return timm


def build_timm(model: ModelText, in_chans: int, **loading: Any) -> nn.Module:
    """A model of timm without its classifier. It takes any input size where timm supports that (`dynamic_img_size`).

    Args:
        loading: `pretrained=True` and `pretrained_cfg_overlay` of timm; nothing is downloaded without them.

    Raises:
        ConfigError: unknown model or option.
    """
    timm = import_timm()
    name = model.target
    if ":" in name:
        raise ConfigError(f'"{model}": only models of timm\'s own list are built. Give other weights by weights=FILE.')
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f'Did you mean "{close[0]}"?' if close else "timm.list_models() lists all."
        raise ConfigError(f'timm has no model "{name}". {hint}')
    settings = model.values()
    refused = sorted(settings.keys() & NOT_THE_MODEL)
    if refused:
        raise ConfigError(f'"{model}": {", ".join(refused)} cannot be set here.')
    options = {"num_classes": 0, "in_chans": in_chans, "pretrained": False, **settings, **loading}
    try:
        try:
            return timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            return timm.create_model(name, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if loading:
            raise
        raise ConfigError(f'"{model}" cannot be built: {" ".join(str(error).split())}.') from error


def load_pretrained(module: nn.Module, model: ModelText, in_chans: int) -> None:
    """Take the weights that timm downloads for this model.

    Raises:
        ConfigError: there are none, or they cannot be fetched.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            source = build_timm(model, in_chans, pretrained=True)
    except Exception as error:  # whatever the network, the hub or timm's registry raises
        raise ConfigError(
            f"The pretrained weights of timm:{model.target} cannot be had ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Without a network, download them elsewhere and give "
            f"weights=FILE.safetensors, or start from random weights with pretrained=false."
        ) from error
    module.load_state_dict(source.state_dict())


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, .pt or .pth file, alone or under `state_dict` or `model`.

    Raises:
        DataError: missing, unreadable, or with anything in it but tensors.
    """
    state = read_state(path, "weights as .safetensors, .pt or .pth")
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(path, "holds no dict of tensors", "a state_dict, alone or under state_dict or model")
    return state


def load_weights(module: nn.Module, model: ModelText, in_chans: int, path: Path) -> list[str]:
    """Take a timm model's weights from a file. Every tensor of the file and of the model is accounted for.

    timm itself adapts the first layer to another number of channels, and position tables to another image size.

    Returns:
        Sentences on what was left over (the classifier) and what was adapted.

    Raises:
        DataError: tensors that are missing, that do not belong to the model, or that do not fit it.
    """
    state = read_weights(path)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    heads = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    over = sorted(state.keys() - wanted.keys())
    head = [name for name in over if name.startswith(tuple(f"{prefix}." for prefix in heads))]
    unknown, missing = sorted(set(over) - set(head)), sorted(wanted.keys() - state.keys())
    if unknown or missing:
        found = [f"holds {named(unknown)} that the model has not"] if unknown else []
        found += [f"lacks {named(missing)}"] if missing else []
        raise DataError(path, " and ".join(found), f"the tensors of timm:{model.target}")
    try:
        with torch.random.fork_rng(devices=[]):
            overlay = {"state_dict": dict(state)}
            source = build_timm(model, in_chans, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as error:
        raise DataError(path, f"does not fit timm:{model.target} ({_one_line(error)})") from error
    other = [
        name
        for name in wanted
        if state[name].shape == wanted[name] and not source[name].equal(_as(state, source, name))
    ]
    if other:
        raise DataError(path, f"was not taken as it is: timm changes {named(other)}", f"weights of timm:{model.target}")
    module.load_state_dict(source)
    adapted = [name for name in wanted if state[name].shape != wanted[name]]
    notes = [f"{path.name}: left over, the classifier: {named(head)}."] if head else []
    return notes + ([f"{path.name}: adapted to this input by timm: {named(adapted)}."] if adapted else [])


def _as(state: dict[str, Tensor], source: dict[str, Tensor], name: str) -> Tensor:
    return state[name].to(source[name].dtype)


def named(names: list[str]) -> str:
    """Names in a sentence; only counted beyond a few."""
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
