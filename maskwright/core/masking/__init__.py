"""Which tokens are hidden, and what happens to them. True always means hidden."""

from maskwright.core.masking.base import Grid, Mask, Masking, mask_from_scores
from maskwright.core.masking.beit import BeitBlockMasking
from maskwright.core.masking.groups import GroupMasking, group_corruption
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
    "BeitBlockMasking",
    "BlockMasking",
    "ColourNoiseMasking",
    "Grid",
    "GroupMasking",
    "GuidedMasking",
    "Mask",
    "Masking",
    "RandomMasking",
    "UnitMasking",
    "drop",
    "fold",
    "group_corruption",
    "mask_from_scores",
    "normal",
    "replace",
    "restore",
    "sample_keys",
    "uniform",
]
