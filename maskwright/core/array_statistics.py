"""Per-channel statistics of arrays, over all rows or evenly spread ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.loader import Statistics
from maskwright.core.statistics import Running, spread

MAX_VALUES = 2**26
"""Numbers that are looked at: quick enough that nothing has to be cached."""
BLOCK_VALUES = 2**21


def channel_statistics(
    read: Callable[[np.ndarray], np.ndarray], rows: int, sizes: tuple[int, ...], where: str
) -> Statistics:
    """Mean, standard deviation and extremes of each channel, block by block.

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
    chosen = np.array(spread(rows, max(1, MAX_VALUES // values)))
    running = Running(sizes[0])
    for block in np.array_split(chosen, max(1, math.ceil(len(chosen) * values / BLOCK_VALUES))):
        samples = read(block).reshape(len(block), sizes[0], -1)
        samples = samples[np.isfinite(samples).all((1, 2))]
        if len(samples):
            running.add(samples.swapaxes(0, 1))
    if not running.count.min():
        raise DataError(where, f"none of {len(chosen)} rows looked at holds finite numbers only")
    return running.result()
