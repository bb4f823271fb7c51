"""Statistics of data that are seen block by block."""

from __future__ import annotations

import numpy as np

from maskwright.core.loader import Statistics


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
