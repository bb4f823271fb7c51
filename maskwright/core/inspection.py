"""What is in a file or folder, before anything is trained on it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from maskwright.core.build import open_loader
from maskwright.core.component import Component
from maskwright.core.errors import DataError, PluginError
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.sample import BadFile
from maskwright.core.statistics import spread

READ = 1000
"""Samples that are read to find broken ones."""


def inspect_data(path: str | Path, loader: str = "auto") -> list[dict[str, Any]]:
    """Rows about the files at `path`, as the first loader that understands them sees them.

    A loader may have a classmethod `inspect(path) -> list[dict]` with rows of its own: values are text, numbers, or a
    list of dicts for a table inside the row (statistics of each band); a row with `problem` is a file that cannot be
    used. A loader without it is opened, and its tensors and bad files are the rows, those among them that are found by
    reading up to `READ` samples, evenly spread.

    Raises:
        DataError: nothing is there, or no loader understands it. ConfigError: there is no such loader.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(path, "there is no such file or folder", mend="Give an existing path")
    host = get_host()
    if loader != "auto":
        return _rows(host.component("loader", loader), path)
    usable = []
    for component in host.components("loader").values():
        with contextlib.suppress(PluginError):  # a broken library of one domain is no reason to refuse another's files
            usable.append((component, component.load()))
    ending = path.suffix.lower()
    accepting = [component for component, loader_class in usable if loader_class.accepts(path)]
    # a broken file is refused by everybody; the loader of its ending says what is wrong with it
    of_ending = [component for component, loader_class in usable if ending and ending in loader_class.suffixes]
    for component in accepting or of_ending:
        return _rows(component, path)
    open_loader(path)  # raises with what each loader says
    raise DataError(path, "no loader understands it")


def _rows(component: Component, path: Path) -> list[dict[str, Any]]:
    loader_class = component.load()
    if hasattr(loader_class, "inspect"):
        return loader_class.inspect(path)
    return _opened(open_loader(path, component.name)[1])


def _unreadable(loader: Loader) -> list[BadFile]:
    """What turns out to be broken only when it is read."""
    found = []
    for index in spread(len(loader), READ):
        try:
            loader.read(index)
        except DataError as error:
            found.append(BadFile(error.path, str(error).removeprefix(f"{error.path}: ")))
    return found


def _opened(loader: Loader) -> list[dict[str, Any]]:
    """Rows of a loader that has no `inspect`: one for each tensor, then one for each bad file."""
    unreadable = _unreadable(loader)
    statistics = loader.statistics() if len(unreadable) < len(loader) else {}
    rows: list[dict[str, Any]] = []
    for name, spec in loader.spec.items():
        row: dict[str, Any] = {"tensor": name, "samples": len(loader), "dimensions": spec.dims, "unit": spec.unit}
        row["channels"] = spec.channel_count
        if name in statistics:
            found = statistics[name]
            names = spec.channels if isinstance(spec.channels, tuple) else tuple(map(str, range(len(found.mean))))
            columns = zip(names, found.mean, found.std, found.minimum, found.maximum, strict=True)
            row["statistics"] = [
                dict(zip(("channel", "mean", "std", "minimum", "maximum"), values, strict=True)) for values in columns
            ]
        rows.append(row)
    return rows + [{"file": one.path, "problem": one.reason} for one in [*loader.bad_files, *unreadable]]
