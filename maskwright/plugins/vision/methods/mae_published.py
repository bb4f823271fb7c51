"""Reading MAE checkpoints in the layout of their publication: `{"model": {...}}`, with the decoder or without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.core.encoder import MaskTokenDecoder, VisionTransformer, sincos
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Statistics
from maskwright.core.masking import Grid
from maskwright.core.weights import read_state
from maskwright.plugins.vision.methods.mae import Mae

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of the published encoders (B, L, H) by width; shapes of weights do not tell them."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1], by which the published models were fed."""
TABLE_TOLERANCE = 1e-4
"""By how much a stored position table may differ from the formula."""

_BLOCK = re.compile(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_ENCODER = {"cls_token", "norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"}
_DECODER = {"embed": "embed", "norm": "norm", "pred": "head"}
_TABLES = ("pos_embed", "decoder_pos_embed")


def from_published(
    state: Mapping[str, Any],
    source: str = "checkpoint",
    num_heads: int | None = None,
    decoder_num_heads: int = 16,
) -> tuple[VisionTransformer, MaskTokenDecoder | None]:
    """Build an encoder, and the decoder if it is there, from a published state dict.

    Sizes follow from the shapes. The encoder takes RGB in 0 to 255: its scaling is that of the publication, times 255;
    call `fit_normalizers` for other data.

    Args:
        num_heads: heads of the encoder; without it those of the published sizes.
        decoder_num_heads: heads of the decoder; 16 in all published models.

    Raises:
        DataError: a tensor is missing, has no place, has another shape, or a position table is not the fixed one.
    """
    encoder_state: dict[str, Tensor] = {}
    decoder_state: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise DataError(source, f'holds "{name}", a {type(value).__name__}', "tensors only")
        if name in _TABLES:
            continue
        if name in _ENCODER or _BLOCK.fullmatch(name):
            encoder_state[name.replace("patch_embed.proj", "patch_embed")] = value
        elif (ours := _decoder_name(name)) is not None:
            decoder_state[ours] = value
        else:
            hint = "a fine-tuned model; only pre-trained ones are read" if name.startswith(("head", "fc_norm")) else ""
            raise DataError(
                source, f'holds "{name}", which has no place in MAE', "MAE's layout", hint and f"It is {hint}"
            )
    absent = [name for name in (*sorted(_ENCODER), "blocks.0.mlp.fc1.weight", "pos_embed") if name not in state]
    if absent:
        raise DataError(source, f"lacks {', '.join(absent)}", "a pre-trained MAE")
    encoder = _build_encoder(state, encoder_state, source, num_heads)
    if not decoder_state:
        if "decoder_pos_embed" in state:
            raise DataError(source, "holds decoder_pos_embed but no decoder", "a whole decoder, or none")
        return encoder, None
    return encoder, _build_decoder(state, decoder_state, encoder, source, decoder_num_heads)


def load_published(path: str | Path, num_heads: int | None = None) -> VisionTransformer:
    """The encoder of a published file (`mae_pretrain_vit_base.pth`) that the user has downloaded. Nothing is executed.

    Raises:
        DataError: the file is missing, holds anything but tensors, or is no pre-trained MAE.
    """
    return from_published(_read(Path(path)), str(path), num_heads)[0]


def load_published_method(
    path: str | Path, norm_pix_loss: bool = True, num_heads: int | None = None, decoder_num_heads: int = 16
) -> Mae:
    """Encoder and decoder of a published file that holds both, such as the visualisation models.

    Args:
        norm_pix_loss: whether it was trained on standardised patches, which the file does not say.

    Raises:
        DataError: as `load_published`, or the file holds the encoder only.
    """
    encoder, decoder = from_published(_read(Path(path)), str(path), num_heads, decoder_num_heads)
    if decoder is None:
        raise DataError(
            path,
            "holds the encoder only",
            "an encoder and a decoder",
            "Use load_published, or the visualisation weights",
        )
    options = encoder.options
    wanted = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
    method = Mae(
        **{name: options[name] for name in wanted},
        decoder_embed_dim=decoder.embed.out_features,
        decoder_depth=len(decoder.blocks),
        decoder_num_heads=decoder_num_heads,
        norm_pix_loss=norm_pix_loss,
    )
    method.encoder.load_state_dict(encoder.state_dict())
    method.decoder.load_state_dict(decoder.state_dict())
    return method


def _decoder_name(name: str) -> str | None:
    """Our name of a decoder's tensor, or None."""
    if name == "mask_token":
        return name
    name = name.removeprefix("decoder_") if name.startswith("decoder_") else ""
    if _BLOCK.fullmatch(name):
        return name
    layer, _, leaf = name.partition(".")
    return f"{_DECODER[layer]}.{leaf}" if layer in _DECODER and leaf in ("weight", "bias") else None


def _build_encoder(
    state: Mapping[str, Tensor], ours: dict[str, Tensor], source: str, num_heads: int | None
) -> VisionTransformer:
    weight = ours["patch_embed.weight"]
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise DataError(source, f"has a patch embedding of shape {tuple(weight.shape)}", "(D, C, p, p)")
    dim, channels, patch, _ = weight.shape
    side = _checked_table(state, "pos_embed", dim, source)
    depth = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("blocks."))
    ours["patch_embed.weight"] = weight.flatten(1)  # a convolution's order, (channel, row, column), is ours
    try:
        encoder = VisionTransformer(
            img_size=side * patch,
            patch_size=patch,
            in_chans=channels,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads or HEADS.get(dim, max(dim // 64, 1)),
            mlp_ratio=ours["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        )
    except ConfigError as error:
        raise DataError(source, f"does not fit: {error}", mend="Give its num_heads") from error
    if channels == len(IMAGENET_MEAN):
        mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        encoder.fit_normalizers({"image": Statistics(mean, std, [0.0] * 3, [255.0] * 3, 0)})
    _fill(encoder, ours, source, "encoder")
    return encoder.eval()


def _build_decoder(
    state: Mapping[str, Tensor], ours: dict[str, Tensor], encoder: VisionTransformer, source: str, num_heads: int
) -> MaskTokenDecoder:
    absent = [name for name in ("embed.weight", "head.weight", "head.bias", "mask_token") if name not in ours]
    if absent or "decoder_pos_embed" not in state:
        raise DataError(
            source, f"lacks {', '.join(absent) or 'decoder_pos_embed'} of the decoder", "a whole one, or none"
        )
    dim = ours["embed.weight"].shape[0]
    side = _checked_table(state, "decoder_pos_embed", dim, source)
    if (side, side) != encoder.grid.shape:
        raise DataError(source, f"decodes {side} x {side} patches", f"{encoder.grid.shape}, as the encoder")
    values, channels = encoder.patch_embed.in_features, encoder.in_chans
    for leaf in ("weight", "bias"):
        head = ours[f"head.{leaf}"]
        if head.shape[0] != values:
            raise DataError(source, f"predicts {head.shape[0]} numbers a patch", f"{values}")
        # published: (row, column, channel); ours: (channel, row, column)
        ours[f"head.{leaf}"] = head.unflatten(0, (values // channels, channels)).transpose(0, 1).flatten(0, 1)
    depth = 1 + max((int(name.split(".")[1]) for name in ours if name.startswith("blocks.")), default=-1)
    try:
        decoder = MaskTokenDecoder(encoder.embed_dim, values, dim, depth, num_heads, num_prefix_tokens=1)
    except ConfigError as error:
        raise DataError(source, f"does not fit: {error}", mend="Give its decoder_num_heads") from error
    _fill(decoder, ours, source, "decoder")
    return decoder.eval()


def _checked_table(state: Mapping[str, Tensor], name: str, dim: int, source: str) -> int:
    """Patches along each side of a stored position table, which must be the fixed one with a class row of zeros."""
    table = state[name]
    side = round(max(table.shape[1] - 1, 0) ** 0.5) if table.ndim == 3 else 0
    if side < 1 or tuple(table.shape) != (1, 1 + side * side, dim):
        raise DataError(source, f"{name} has shape {tuple(table.shape)}", f"(1, 1 + a square number, {dim})")
    fixed = torch.cat([torch.zeros(1, dim), sincos(Grid((side, side)).coordinates(), dim)])
    far = float((table[0].float() - fixed).abs().max())
    if not far <= TABLE_TOLERANCE:
        raise DataError(
            source,
            f"{name} differs from the fixed sine-cosine table by {far:.2g}",
            "positions that were not trained",
            "Use pre-trained weights, not fine-tuned ones",
        )
    return side


def _fill(module: nn.Module, ours: dict[str, Tensor], source: str, what: str) -> None:
    """Load weights so that every tensor of both sides is accounted for."""
    try:
        missing, unexpected = module.load_state_dict(ours, strict=False)
    except RuntimeError as error:
        raise DataError(
            source, f"does not fit: {' '.join(str(error).split())[:300]}", f"shapes of one {what}"
        ) from error
    missing = [name for name in missing if not name.startswith("normalizers.")]
    if missing or unexpected:
        raise DataError(
            source, f"{what} lacks {missing} and has no place for {unexpected}", "every tensor accounted for"
        )


def _read(path: Path) -> Mapping[str, Any]:
    state = read_state(
        path,
        "a published MAE checkpoint",
        "Download mae_pretrain_vit_base.pth from the authors' page and give its path",
    )
    return state["model"] if isinstance(state.get("model"), dict) else state
