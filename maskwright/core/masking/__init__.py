"""Which tokens are hidden, and what happens to them. True always means hidden."""

from maskwright.core.masking.base import Grid, Mask, Masking, mask_from_scores
from maskwright.core.masking.hide import drop, replace, restore
from maskwright.core.masking.random_keys import fold, normal, sample_keys, uniform
from maskwright.core.masking.strategies import (
    BlockMasking,
    ColourNoiseMasking,
    GuidedMasking,
    RandomMasking,
    UnitMasking,
)

__all__ = [
    "BlockMasking",
    "ColourNoiseMasking",
    "Grid",
    "GuidedMasking",
    "Mask",
    "Masking",
    "RandomMasking",
    "UnitMasking",
    "drop",
    "fold",
    "mask_from_scores",
    "normal",
    "replace",
    "restore",
    "sample_keys",
    "uniform",
]
