"""Encoders: what survives pre-training."""

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.blocks import Attention, Block, CrossAttention, CrossBlock, Mlp
from maskwright.core.encoder.crate import CrateBlock, CrateDecoderBlock
from maskwright.core.encoder.decoder import DecoderStack, MaskTokenDecoder
from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.encoder.patches import patchify, unpatchify
from maskwright.core.encoder.positions import Positions, alibi_bias, alibi_slopes, make_positions, sincos
from maskwright.core.encoder.teacher import EMATeacher, FeatureTeacher, freeze
from maskwright.core.encoder.vit import VisionTransformer

__all__ = [
    "Attention",
    "Block",
    "CrateBlock",
    "CrateDecoderBlock",
    "CrossAttention",
    "CrossBlock",
    "DecoderStack",
    "EMATeacher",
    "Embedding",
    "Encoder",
    "FeatureTeacher",
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
