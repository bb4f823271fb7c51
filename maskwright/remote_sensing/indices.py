"""Normalised differences of bands: what an analyst computes before any network."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.core.sample import InputSpec, Sample

INDICES = {"NDVI": ("B8", "B4"), "NDWI": ("B3", "B8"), "NDBI": ("B11", "B8"), "NBR": ("B8", "B12")}
"""Vegetation, open water, built-up, burn: (a - b) / (a + b) of two Sentinel-2 bands."""


def normalised_differences(sample: Sample, spec: InputSpec) -> Tensor | None:
    """The indices whose bands a sample has, (K, H, W) in [-1, 1]; None where it has none. Values of 0 / 0 are 0."""
    found = []
    for name, tensor in sample.tensors.items():
        bands = spec[name].channels
        if not isinstance(bands, tuple):
            continue
        for first, second in INDICES.values():
            if first in bands and second in bands:
                a, b = tensor[bands.index(first)].float(), tensor[bands.index(second)].float()
                total = a + b
                ratio = torch.where(total.abs() > 1e-6, (a - b) / total.clamp_min(1e-6), torch.zeros_like(total))
                found.append(ratio.clamp(-1, 1))
    return torch.stack(found) if found else None
