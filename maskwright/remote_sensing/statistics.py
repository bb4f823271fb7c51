"""Per-band statistics of a loader, computed once and cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.loader import Statistics
from maskwright.core.statistics import Running, spread
from maskwright.core.trainer.files import DiskFullError, write_text

WINDOWS = 64
"""Windows that statistics are taken from, evenly spread over the data."""


def cache_folder() -> Path:
    """`MASKWRIGHT_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("MASKWRIGHT_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maskwright"
    return base / "statistics"


def fingerprint(files: Iterable[str], options: dict[str, Any]) -> str:
    """Changes when a file is added, removed or changed, or an option differs.

    Raises:
        DataError: a file has gone.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for file in sorted(files):
        try:
            status = os.stat(file)
        except OSError as error:
            raise DataError(file, f"cannot be found any more ({error.strerror})") from error
        digest.update(f"{os.path.abspath(file)}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def compute(length: int, read: Callable[[int], dict[str, np.ndarray]], path: object) -> dict[str, Statistics]:
    """Statistics over up to `WINDOWS` of `length` samples; NaN is no data; unreadable samples are left out.

    Args:
        read: gives {name: (C, ...)} of a sample.

    Raises:
        DataError: nothing could be read, or a band holds no data at all.
    """
    running: dict[str, Running] = {}
    reasons = []
    for index in spread(length, WINDOWS):
        try:
            arrays = read(index)
        except DataError as error:
            reasons.append(str(error))
            continue
        for name, values in arrays.items():
            running.setdefault(name, Running(len(values))).add(values)
    if not running:
        raise DataError(
            path, f"no sample could be read for statistics; the first reason: {(reasons or ['no samples'])[0]}"
        )
    for name, state in running.items():
        if state.count.min() == 0:
            raise DataError(
                path, f'channel {int(state.count.argmin())} of "{name}" holds no data in any window looked at'
            )
    return {name: state.result() for name, state in running.items()}


def cached(
    key: str, channels: dict[str, int | None], make: Callable[[], dict[str, Statistics]]
) -> dict[str, Statistics]:
    """Read statistics from the cache, or make and store them. A damaged or unwritable cache costs time only.

    Args:
        key: name of the entry.
        channels: number of channels of each tensor; an entry of others is not believed.
        make: computes the statistics.
    """
    path = cache_folder() / f"{key}.json"
    try:
        return _parse(path.read_text(), channels)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        pass
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({name: statistics.as_dict() for name, statistics in made.items()}))
    except (OSError, DiskFullError):
        pass
    return made


def _parse(text: str, channels: dict[str, int | None]) -> dict[str, Statistics]:
    stored = json.loads(text)
    found = {name: Statistics(**stored[name]) for name in channels}
    for name, statistics in found.items():
        lists = np.array([statistics.mean, statistics.std, statistics.minimum, statistics.maximum], dtype=float)
        if lists.ndim != 2 or not np.isfinite(lists).all() or channels[name] not in (None, lists.shape[1]):
            raise ValueError(f'"{name}" in the cache is damaged')
    return found
