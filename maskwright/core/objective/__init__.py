"""Losses as pure functions of tensors."""

from maskwright.core.objective.contrastive import info_nce
from maskwright.core.objective.distillation import cosine_distance, soft_cross_entropy, token_regression
from maskwright.core.objective.ranking import pairwise_ranking
from maskwright.core.objective.reconstruction import masked_reconstruction, standardise_patches

__all__ = [
    "cosine_distance",
    "info_nce",
    "masked_reconstruction",
    "pairwise_ranking",
    "soft_cross_entropy",
    "standardise_patches",
    "token_regression",
]
