"""Options of components: the typed keyword arguments of their constructors, validated and described."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from pydantic import ConfigDict

from maskwright.core.errors import ConfigError, nearest

HANDED_OVER = {"self", "path", "masking"}
"""Constructor arguments that are not options: the recipe fills them from other sections."""


def constructors(target: Any) -> list[Any]:
    """A function itself; of a class its constructor and, as long as one hands on `**options`, that of its base class."""
    if not inspect.isclass(target):
        return [target]
    found = []
    for owner in target.__mro__:
        if "__init__" in owner.__dict__ and owner is not object:
            found.append(owner.__dict__["__init__"])
            kinds = {parameter.kind for parameter in inspect.signature(found[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


def takes(target: Any, name: str) -> bool:
    """Whether a constructor has an argument of this name, its own or handed on to its base class."""
    return any(name in _named(function) for function in constructors(target))


def _named(function: Any) -> dict[str, inspect.Parameter]:
    """Arguments of a function that have a name of their own, by it."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind not in variadic}


def option_types(target: Any) -> dict[str, tuple[Any, Any]]:
    """(type, default) of each option of a constructor or function; the default is `...` where there is none.

    A constructor that hands on `**options` has those of its base class as well; what it names itself goes before.
    """
    options: dict[str, tuple[Any, Any]] = {}
    for function in constructors(target):
        hints = typing.get_type_hints(inspect.unwrap(function))
        for name, parameter in _named(function).items():
            if name not in HANDED_OVER:
                default = ... if parameter.default is parameter.empty else parameter.default
                options.setdefault(name, (hints.get(name, Any), default))
    return options


def describe_options(target: Any) -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of each option; descriptions come from the docstrings' `Args:`."""
    docs: dict[str, str] = {}
    for owner in reversed(target.__mro__) if inspect.isclass(target) else [target]:
        docs |= argument_docs(inspect.cleandoc(owner.__doc__ or ""))
    rows = []
    for name, (kind, default) in option_types(target).items():
        shown = kind.__name__ if inspect.isclass(kind) else str(kind).replace("typing.", "")
        rows.append((name, shown, "required" if default is ... else repr(default), docs.get(name, "")))
    return rows


def argument_docs(doc: str) -> dict[str, str]:
    """Descriptions in the `Args:` section of a docstring, by argument; `a, b: text` describes both."""
    docs: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line.strip() in ("Args:", "Arguments:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and (match := re.match(r" {4}(\w[\w, ]*):\s*(.*)", line)):
            names = [name.strip() for name in match[1].split(",")]
            docs.update(dict.fromkeys(names, match[2].strip()))
        elif inside and line.strip():
            for name in names:
                docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs


def check_options(section: str, target: Any, options: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Options of one component, converted to their types; what does not fit is added to `problems`."""
    fields = option_types(target)
    model = pydantic.create_model(
        "Options",
        __config__=ConfigDict(
            # settings are read as YAML, so a name that looks like a number arrives as one
            extra="forbid",
            arbitrary_types_allowed=True,
            allow_inf_nan=False,
            coerce_numbers_to_str=True,
        ),
        **typing.cast(Any, fields),
    )
    try:
        checked = model.model_validate(options)
    except pydantic.ValidationError as error:
        problems += explain(error, section, fields)
        return {}
    return {name: getattr(checked, name) for name in fields}


def explain(
    error: pydantic.ValidationError,
    section: str,
    known: Iterable[str],
    nested: Mapping[str, Iterable[str]] | None = None,
) -> list[str]:
    """One line for each problem: dotted key, what is wrong, and the nearest name where a key is unknown.

    Args:
        known: names that exist in this section; `nested` those of its sub-sections by name.
    """
    lines = []
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        location = [part for part in parts if not part.startswith(("function-", "union", "literal["))]
        where = ".".join([section, *location] if section else location)
        if problem["type"] == "extra_forbidden":
            names = (nested or {}).get(location[0], ()) if len(location) > 1 else known
            lines.append(f"{where}: there is no such option.{nearest(location[-1], names)}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: is required.")
        else:
            lines.append(f"{where}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}.")
    return list(dict.fromkeys(lines))


def fail_if_any(problems: list[str]) -> None:
    if problems:
        head = "This recipe cannot be used:" if len(problems) > 1 else "This recipe cannot be used."
        raise ConfigError("\n".join([head, *(f"  - {problem}" for problem in problems)]))
