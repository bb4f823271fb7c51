"""A new plugin package, made from the template that ships with maskwright."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from maskwright.core.discovery import plugin_names
from maskwright.core.errors import ConfigError

TEMPLATE = Path(__file__).parents[1] / "plugin_template"
DISTRIBUTION, MODULE = "example-plugin", "example_plugin"
"""The template's own name in its two spellings; nothing else in it is replaced."""
FILES = ("pyproject.toml", "README.md", f"{MODULE}/*.py", "tests/*.py", "tests/digits/*/*.pgm")


def template_files() -> list[Path]:
    """The template's files, relative to `TEMPLATE`. What an installation in place leaves there is no part of it."""
    return sorted(path.relative_to(TEMPLATE) for pattern in FILES for path in TEMPLATE.glob(pattern))


def new_plugin(name: str, out: str | Path | None = None) -> Path:
    """Write a complete plugin package with this name put in.

    Args:
        name: of the distribution and the plugin, such as "bird-songs"; the module is then `bird_songs`.
        out: folder to write, new or empty; without it a folder of that name in the current one.

    Returns:
        The folder.

    Raises:
        ConfigError: a name that cannot be used, or a folder that is not empty.
    """
    distribution, module = names_of(name)
    out = Path(distribution if out is None else out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty. Choose another folder with --out, or remove it.")
    folder = out.resolve()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        for path in template_files():
            written = unfinished / str(path).replace(MODULE, module)
            written.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATE / path).read_text(encoding="utf-8")
            text = text.replace(MODULE, module).replace(DISTRIBUTION, distribution)
            written.write_text(text, encoding="utf-8")
        _put_in_place(unfinished, folder)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}. Choose another with --out.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """All of it, or nothing; an empty folder stays the same one, as it may be where the user stands."""
    if not folder.exists():
        unfinished.replace(folder)
        return
    for path in unfinished.iterdir():
        path.replace(folder / path.name)


def names_of(name: str) -> tuple[str, str]:
    """A name as distributions are spelt (lower case, hyphens), and as modules are (underscores).

    Raises:
        ConfigError: it is no name of a distribution, is no name of a module, or is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ConfigError(
            f'"{name}" is no name of a package: use letters, digits and hyphens, with a letter or a digit at both ends, '
            "such as bird-songs."
        )
    distribution = re.sub(r"[-_.]+", "-", name).lower()
    module = distribution.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise ConfigError(f'"{name}" gives the module name {module}, which Python cannot import. Begin with a letter.')
    if distribution in {known.lower().replace("_", "-") for known in (*plugin_names(), "core")}:
        raise ConfigError(f'There is already a plugin "{distribution}" (`maskwright plugins`). Choose another name.')
    found = importlib.util.find_spec(module)  # a folder of that name here is no module, and has no origin
    if module in ("tests", *sys.stdlib_module_names) or (found is not None and found.origin is not None):
        raise ConfigError(f"There is already a module {module} here, which this would hide. Choose another name.")
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return distribution, module
    raise ConfigError(f"There is already a package {distribution} here. Choose another name.")
