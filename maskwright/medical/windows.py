"""Windows: the range of values that a picture of a CT shows, as centre and width in Hounsfield units (HU).

Values below the range become its lower end, values above its upper end. -1000 HU is air, 0 HU is water (DICOM PS3.3,
C.11.1.1.2); of the window functions of DICOM (PS3.3, C.11.2.1) this is LINEAR_EXACT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from maskwright.core.errors import ConfigError, nearest

PRESETS = {
    "lung": (-600.0, 1500.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
    "soft-tissue": (40.0, 400.0),
}
"""(centre, width) in HU: lung shows -1350 to 150, brain 0 to 80, bone -500 to 1300, soft-tissue -160 to 240."""

Range = tuple[float, float]
"""Lowest and highest value of a window."""


def window_range(window: str | Sequence[float] | None) -> Range | None:
    """The range of a window by name, or by centre and width; None for no window.

    Raises:
        ConfigError: an unknown name, or a width that is not positive.
    """
    if window is None:
        return None
    if isinstance(window, str):
        if window not in PRESETS:
            raise ConfigError(
                f'There is no window "{window}".{nearest(window, PRESETS)} Or give [centre, width] in HU.'
            )
        centre, width = PRESETS[window]
    else:
        if len(window) != 2 or not all(math.isfinite(value) for value in window) or window[1] <= 0:
            raise ConfigError(f"window={list(window)}: centre and width in HU are needed, the width above 0.")
        centre, width = window
    return centre - width / 2, centre + width / 2


def clip(values: np.ndarray, limits: Range | None) -> np.ndarray:
    """Values of any shape, brought into the range in place."""
    return values if limits is None else np.clip(values, *limits, out=values)


def min_max(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Values of any shape so that `low` becomes 0 and `high` 255, float32; all 0 where they are equal.

    The scale in HU is lost: one grey is another density in the next slice (SparK-CT, Wolf et al. 2023).
    """
    return ((values - low) / np.where(high > low, high - low, np.inf) * 255).astype(np.float32)


def to_bytes(values: np.ndarray, limits: Range, bits: int = 8) -> np.ndarray:
    """Values of any shape as integers of a picture: 0 at the lower end of the range, 255 (or 65535) at the upper."""
    low, high = limits
    highest = 2**bits - 1
    scaled = (np.clip(values, low, high) - low) * (highest / max(high - low, 1e-12))
    return scaled.round().astype(np.uint8 if bits == 8 else np.uint16)
