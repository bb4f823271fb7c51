"""Per-channel statistics of arrays, over all rows or evenly spread ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.loader import Statistics

MAX_VALUES = 2**26
"""Numbers that are looked at: quick enough that nothing has to be cached."""
BLOCK_VALUES = 2**21


def channel_statistics(
    read: Callable[[np.ndarray], np.ndarray], rows: int, sizes: tuple[int, ...], where: str
) -> Statistics:
    """Mean, standard deviation and extremes of each channel, in float64, block by block (Chan et al. 1983).

    Rows that hold anything but finite numbers count for nothing, as they are never given out.

    Args:
        read: gives samples (n, C, ...) of row numbers (n,).
        rows: how many there are.
        sizes: (C, ...) of one sample.
        where: for messages.

    Raises:
        DataError: no row is whole.
    """
    values = math.prod(sizes)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, max(1, MAX_VALUES // values))).round().astype(np.int64))
    count, mean, squares = 0, np.zeros(sizes[0]), np.zeros(sizes[0])
    low, high = np.full(sizes[0], np.inf), np.full(sizes[0], -np.inf)
    for block in np.array_split(chosen, max(1, math.ceil(len(chosen) * values / BLOCK_VALUES))):
        samples = read(block).astype(np.float64).reshape(len(block), sizes[0], -1)
        samples = samples[np.isfinite(samples).all((1, 2))]
        if not len(samples):
            continue
        added = samples.shape[0] * samples.shape[2]
        own = samples.mean((0, 2))
        delta, total = own - mean, count + added
        squares += ((samples - own[:, None]) ** 2).sum((0, 2)) + delta**2 * count * added / total
        mean, count = mean + delta * added / total, total
        low, high = np.minimum(low, samples.min((0, 2))), np.maximum(high, samples.max((0, 2)))
    if count == 0:
        raise DataError(where, f"none of {len(chosen)} rows looked at holds finite numbers only")
    std = np.sqrt(squares / max(count - 1, 1))
    return Statistics(mean.tolist(), std.tolist(), low.tolist(), high.tolist(), count)
