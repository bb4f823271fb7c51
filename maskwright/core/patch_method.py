"""What every method has in common that hides patches of one input and predicts what was there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from maskwright.core.encoder import Tokens, VisionTransformer, unpatchify
from maskwright.core.encoder.blocks import QkvBias
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.patches import as_tuple, patch_mask_to_pixels
from maskwright.core.encoder.positions import PositionKind
from maskwright.core.encoder.vit import BlockKind
from maskwright.core.errors import ConfigError
from maskwright.core.host import get_host
from maskwright.core.masking import Mask, Masking
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.options import takes
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel

Dims = Literal["C H W", "C T", "C D H W"]
AXES = {"C T": 1, "C H W": 2, "C D H W": 3}
"""Inputs that can be cut into patches, with their number of axes besides the channels."""
PATCHES = 14
"""Patches along each axis of the size that is written down where none is given, as in the papers at 224 pixels."""


class PatchMethod(Method):
    """A method with a visible-token transformer over the patches of one image (C, H, W), series or volume.

    A subclass names the options that it adds or whose defaults differ, and hands on the rest: `**encoder`. It says in
    `predict` what it makes of hidden patches, and in `forward` what that costs; `encode` and `preview` follow.

    Args:
        dims: dimensions of the input. Taken from the data if left out.
        img_size: pixels along each axis that the encoder is made for, written down with it; computed positions fit any
            size that divides into patches, learned ones are interpolated. Without it 14 patches along each axis.
        patch_size: pixels along each side of a patch, or one number for each axis.
        in_chans: channels. Taken from the data if left out.
        embed_dim: width D of the encoder.
        depth: blocks of the encoder.
        num_heads: heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over D.
        qkv_bias: biases of query, key and value: true, false, or "qv" for all but the key's.
        block: blocks of the encoder: "transformer", or "crate" for white-box ones, which have no MLP.
        positions: sincos (fixed), learned, rope, alibi or none.
        layer_scale: initial factor on what a block adds; none for no factor.
        drop_path: share of samples that skip the last block in training, growing linearly from the first.
        pool: pooled embedding from the "mean" of patch tokens, as in fine-tuning, or from the class "token", as in MAE's
            linear probe.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read. Taken from the data if they hold one that can be cut into patches.
        masking: strategy that chooses the hidden patches; without it the class's default.

    Shapes:
        input (B, C, *size) in physical units; tokens (B, N, C * prod(patch_size)); visible features (B, 1 + V, D).

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    encoder: VisionTransformer
    masking: Masking

    def __init__(
        self,
        dims: Dims = "C H W",
        img_size: int | tuple[int, ...] | None = None,
        patch_size: int | tuple[int, ...] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: QkvBias = True,
        block: BlockKind = "transformer",
        positions: PositionKind = "sincos",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        pool: Literal["mean", "token"] = "mean",
        normalization: NormalizationKind = "standard",
        input_name: str = "image",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if dims not in AXES:
            raise ConfigError(f'method.dims="{dims}" is none of {", ".join(AXES)}.')
        patch = _sides("patch_size", patch_size, dims)
        size = tuple(PATCHES * side for side in patch) if img_size is None else _sides("img_size", img_size, dims)
        self.encoder = VisionTransformer(
            img_size=size,
            patch_size=patch,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            positions=positions,
            pool=pool,
            input_name=input_name,
            normalization=normalization,
            block=block,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )
        self.masking = masking or self.made_masking()

    @classmethod
    def made_masking(cls) -> Masking:
        """The masking of `default_masking`."""
        options = {key: value for key, value in cls.default_masking.items() if key != "name"}
        return get_host().component("masking", cls.default_masking["name"]).load()(**options)

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one input that can be cut into patches, with its dimensions and channels.

        Raises:
            ConfigError: there is none, or several.
        """
        found = one_input(cls.__name__, given, AXES)
        return {option: value for option, value in found.items() if takes(cls, option)}

    @property
    def patch_values(self) -> int:
        """Numbers in a patch, all channels together."""
        return self.encoder.patch_embed.in_features

    @abstractmethod
    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches, (B, N, C * prod(patch_size)) in network units, from the visible ones alone."""

    def mask(self, tokens: Tokens, keys: Tensor) -> Mask:
        """What is hidden of a batch's tokens. Override it where more than the masking has a say."""
        return self.masking(tokens.grid, keys)

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.mask(tokens, keys))

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)
        patches = torch.where(mask.hidden[..., None], self.predict(tokens, mask).float(), tokens.values)
        return panel(
            self.encoder,
            batch,
            tokens,
            patches,
            patch_mask_to_pixels(mask.hidden, tokens.grid, self.encoder.patch_size),
        )


def one_input(reader: str, given: InputSpec, dims: Collection[str]) -> dict[str, Any]:
    """Options `input_name`, `dims` and `in_chans` (where the data have a number of channels) of the one suitable input.

    Args:
        reader: who reads it, for messages.
        dims: dimensions that suit, such as "C H W".

    Raises:
        ConfigError: there is none, or several.
    """
    usable = {name: spec for name, spec in given.items() if spec.dims in dims}
    shown = ", ".join(f"{name} ({spec.dims})" for name, spec in given.items())
    if not usable:
        raise ConfigError(f"{reader} reads an input of dimensions {' or '.join(dims)}, but the data hold {shown}.")
    if len(usable) > 1:
        raise ConfigError(
            f"{reader} reads one input, but the data hold {shown}. Set method.input_name={next(iter(usable))}."
        )
    ((name, spec),) = usable.items()
    count = {"in_chans": spec.channel_count} if spec.channel_count else {}
    return {"input_name": name, "dims": spec.dims, **count}


def panel(encoder: Any, batch: Batch, tokens: Tokens, patches: Tensor, hidden: Tensor) -> dict[str, Panel]:
    """A picture of patches (B, N, P) in network units of an encoder with one input that is cut into patches.

    Args:
        hidden: (B, *size) bool, which pixels were not seen.
    """
    name = encoder.input_name
    filled = unpatchify(patches, tokens.grid, encoder.patch_size, encoder.in_chans)
    restored = encoder.normalizers[name].invert(filled)
    return {name: Panel(original=batch[name], hidden=hidden, reconstruction=restored)}


def unstandardise(values: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
    """Network units of predictions (B, N, P) of standardised patches, for a picture.

    A hidden patch's own mean and deviation are not known; those of its visible neighbours stand in.
    """
    mean, std = visible_patch_statistics(tokens.values, mask, tokens.grid)
    return values.float() * std + mean


def _sides(option: str, value: int | tuple[int, ...], dims: str) -> tuple[int, ...]:
    """One length for each axis of `dims`.

    Raises:
        ConfigError: another number of axes, or a length below 1.
    """
    sides = as_tuple(value, AXES[dims])
    if len(sides) != AXES[dims] or min(sides, default=0) < 1:
        raise ConfigError(
            f"method.{option}={value} does not fit an input ({dims}): give one number of 1 or more, or {AXES[dims]} of them."
        )
    return sides
