"""How remote sensing draws its tensors."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from maskwright.remote_sensing import bands


def draw(tensor: Tensor, names: tuple[str, ...]) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of (C, H, W): true colour, radar as VV, VH and their difference, or the first bands.

    Each colour is stretched between its 2nd and 98th percentile.
    """
    image = tensor.float().numpy()
    if all(name in names for name in bands.RGB):
        image = image[[names.index(name) for name in bands.RGB]]
    elif names[:2] == bands.S1:
        image = np.stack([image[0], image[1], image[0] - image[1]])
    else:
        image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = np.nanpercentile(image, (2, 98), axis=(1, 2), keepdims=True)
    stretched = (image - low) / np.maximum(high - low, 1e-6)
    return (np.nan_to_num(stretched).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
