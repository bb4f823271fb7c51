"""Pictures of spectral features and waveforms."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from torch import Tensor


def spectrogram(frames: Tensor) -> np.ndarray:
    """(C, T) as an image (C, T, 3) uint8, from the lowest value (dark) to the highest (light); rows in their order."""
    x = frames.detach().float().cpu().numpy()
    low, high = float(x.min()), float(x.max())
    shade = (x - low) / max(high - low, 1e-12)
    return (colormaps["magma"](shade)[..., :3] * 255).round().astype(np.uint8)
