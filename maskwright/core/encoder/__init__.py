"""Encoders: what survives pre-training."""

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.blocks import Attention, Block, CrossAttention, CrossBlock, Mlp
from maskwright.core.encoder.decoder import MaskTokenDecoder
from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.encoder.patches import patchify, unpatchify
from maskwright.core.encoder.positions import Positions, alibi_bias, alibi_slopes, make_positions, sincos
from maskwright.core.encoder.teacher import EMATeacher, freeze
from maskwright.core.encoder.vit import VisionTransformer

__all__ = [
    "Attention",
    "Block",
    "CrossAttention",
    "CrossBlock",
    "EMATeacher",
    "Embedding",
    "Encoder",
    "MaskTokenDecoder",
    "Mlp",
    "Normalizer",
    "Positions",
    "Tokens",
    "VisionTransformer",
    "alibi_bias",
    "alibi_slopes",
    "freeze",
    "make_positions",
    "patchify",
    "sincos",
    "unpatchify",
]
