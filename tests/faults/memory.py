"""How the memory of work that goes on and on develops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil


def resident() -> float:
    """Resident memory of this process, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def growth(once: Callable[[int], object], times: int, warm_up: int) -> tuple[float, float]:
    """Memory over `times` calls of `once(number)` after `warm_up` calls.

    Returns:
        Growth in percent of what was resident after the warm-up, by a straight line of least squares through all calls,
        so that one late page does not count as a trend; and the slope in MB a thousand calls.
    """
    for number in range(warm_up):
        once(number)
    seen = []
    for number in range(times):
        once(warm_up + number)
        if number % max(1, times // 200) == 0:
            seen.append((number, resident()))
    number, memory = np.array(seen).T
    slope, start = np.polyfit(number, memory, 1)
    return float(100 * slope * times / start), float(1000 * slope)
