"""Statistics of data that are seen block by block, computed once and cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.loader import Statistics
from maskwright.core.trainer.files import DiskFullError, user_folder, write_text

SAMPLES = 64
"""Samples that statistics are taken from, evenly spread over the data."""


class Running:
    """Count, mean, sum of squared deviations and extremes of each of C channels, in float64 (Chan et al. 1983)."""

    def __init__(self, channels: int) -> None:
        self.count = np.zeros(channels)
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Add (C, ...); NaN and Inf count for nothing."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        valid = np.isfinite(flat)
        count = valid.sum(1)
        safe = np.maximum(count, 1)
        mean = np.where(valid, flat, 0).sum(1) / safe
        squares = (np.where(valid, flat - mean[:, None], 0) ** 2).sum(1)
        delta = mean - self.mean
        total = np.maximum(self.count + count, 1)
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count += count
        self.low = np.minimum(self.low, np.where(valid, flat, np.inf).min(1))
        self.high = np.maximum(self.high, np.where(valid, flat, -np.inf).max(1))

    def result(self) -> Statistics:
        """What was seen; `count` is that of the channel that was seen least."""
        std = np.sqrt(self.squares / np.maximum(self.count - 1, 1))
        lists = [values.tolist() for values in (self.mean, std, self.low, self.high)]
        return Statistics(lists[0], lists[1], lists[2], lists[3], int(self.count.min()))


def spread(length: int, count: int) -> list[int]:
    """Up to `count` indices, evenly spread over `length`."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int)).tolist()


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
    """Statistics over up to `SAMPLES` of `length` samples; NaN is no data; unreadable samples are left out.

    Args:
        read: gives {name: (C, ...)} of a sample.

    Raises:
        DataError: nothing could be read, or a channel holds no data at all.
    """
    running: dict[str, Running] = {}
    reasons = []
    for index in spread(length, SAMPLES):
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
                path, f'channel {int(state.count.argmin())} of "{name}" holds no data in any sample looked at'
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
    path = user_folder() / "statistics" / f"{key}.json"
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
