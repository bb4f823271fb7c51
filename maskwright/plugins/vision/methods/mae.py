"""MAE: masked autoencoders are scalable vision learners (He, Chen, Xie, Li, Dollár, Girshick, CVPR 2022).

An input is cut into patches and most of them, 75 % in the paper, are hidden at random. A plain vision transformer
encodes the visible ones only; a small second transformer, given one shared mask token for every hidden patch, predicts
their values. The error is taken over hidden patches alone. Afterwards the decoder is thrown away.

Where this departs from the released code: any number of channels, and series and volumes beside images; the numbers of
a patch are ordered (channel, row, column), not (row, column, channel), which changes no loss, and `mae_published`
reorders the weights it reads; each input is scaled by the statistics of the data, not by ImageNet's; `mlp_ratio` is the
encoder's alone, the decoder's is 4 as in all published models. Random crops and flips are the loader's affair.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from maskwright.core.encoder import MaskTokenDecoder, Tokens, VisionTransformer
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.patches import as_tuple
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Mask, Masking, RandomMasking
from maskwright.core.objective import masked_reconstruction
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.patch_method import PatchMethod
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Step

AXES = {"C T": 1, "C H W": 2, "C D H W": 3}
"""Inputs that can be cut into patches, with their number of axes besides the channels."""
PATCHES = 14
"""Patches along each axis of the size that is written down where none is given, as in the paper at 224 pixels."""

# Paper, appendix A.1, table 8: AdamW, weight decay 0.05, batch 4096, 40 of 800 epochs of warm-up, cosine. The learning
# rate is scaled with the batch by the trainer, so that any batch size keeps it.
_PUBLISHED = {"base_lr": 1.5e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "epochs": 800, "warmup": 0.05}


class Mae(PatchMethod):
    """MAE on any single input: an image (C, H, W), a series (C, T) or a volume (C, D, H, W). Defaults are ViT-B/16.

    Args:
        dims: dimensions of the input. Taken from the data if left out.
        img_size: pixels along each axis that the encoder is made for, written down with it; positions are computed, so
            that any size that divides into patches is taken. Without it 14 patches along each axis.
        patch_size: pixels along each side of a patch, or one number for each axis.
        in_chans: channels. Taken from the data if left out.
        embed_dim: width D of the encoder.
        depth: blocks of the encoder.
        num_heads: heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over D.
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: heads of the decoder.
        norm_pix_loss: standardise the values of each target patch, all channels together.
        pool: pooled embedding from the "mean" of patch tokens, as in fine-tuning, or from the class "token", as in the
            paper's linear probe.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read. Taken from the data if they hold one that can be cut into patches.
        masking: strategy that chooses the hidden patches.

    Shapes:
        input (B, C, *size) in physical units; tokens (B, N, C * prod(patch_size)); visible features (B, 1 + V, D).

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    summary = "Reconstruction of hidden patches of any single image, volume or series."
    presets = {
        "tiny": {
            "method": {
                "patch_size": 8,
                "embed_dim": 96,
                "depth": 4,
                "num_heads": 4,
                "decoder_embed_dim": 64,
                "decoder_depth": 2,
                "decoder_num_heads": 4,
                "norm_pix_loss": False,
            },
            "trainer": {"base_lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05},
        },
        "small": {
            "method": {
                "embed_dim": 384,
                "num_heads": 6,
                "decoder_embed_dim": 256,
                "decoder_depth": 4,
                "decoder_num_heads": 8,
            },
            "trainer": _PUBLISHED,
        },
        "base": {"method": {}, "trainer": _PUBLISHED},
        "large": {"method": {"embed_dim": 1024, "depth": 24, "num_heads": 16}, "trainer": _PUBLISHED},
        "huge": {
            "method": {"img_size": 224, "patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
            "trainer": _PUBLISHED,
        },
    }

    encoder: VisionTransformer

    def __init__(
        self,
        dims: Literal["C H W", "C T", "C D H W"] = "C H W",
        img_size: int | tuple[int, ...] | None = None,
        patch_size: int | tuple[int, ...] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = True,
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
        patch_values = in_chans * math.prod(patch)
        if norm_pix_loss and patch_values < 2:
            raise ConfigError(
                "A patch of one number has no variance to standardise it by. Set method.norm_pix_loss=false, or a larger "
                "method.patch_size."
            )
        self.encoder = VisionTransformer(
            img_size=size,
            patch_size=patch,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            pool=pool,
            input_name=input_name,
            normalization=normalization,
        )
        self.decoder = MaskTokenDecoder(
            embed_dim, patch_values, decoder_embed_dim, decoder_depth, decoder_num_heads, num_prefix_tokens=1
        )
        init_transformer(self.decoder)
        self.masking = masking or RandomMasking(0.75)
        self.norm_pix_loss = norm_pix_loss

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one input that can be cut into patches, with its dimensions and channels.

        Raises:
            ConfigError: there is none, or several.
        """
        usable = {name: spec for name, spec in given.items() if spec.dims in AXES}
        shown = ", ".join(f"{name} ({spec.dims})" for name, spec in given.items())
        if not usable:
            raise ConfigError(f"mae reads an input of dimensions {' or '.join(AXES)}, but the data hold {shown}.")
        if len(usable) > 1:
            raise ConfigError(
                f"mae reads one input, but the data hold {shown}. Set method.input_name={next(iter(usable))}."
            )
        ((name, spec),) = usable.items()
        count = {"in_chans": spec.channel_count} if spec.channel_count else {}
        return {"input_name": name, "dims": spec.dims, **count}

    def decode(self, tokens: Tokens, mask: Mask) -> Tensor:
        """What the decoder makes of the visible tokens: (B, N, P), standardised by patch with `norm_pix_loss`."""
        return self.decoder(self.encoder(tokens, mask), mask, tokens.grid)

    def loss(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Mean squared error of hidden patches (section 3, "Reconstruction target")."""
        return masked_reconstruction(self.decode(tokens, mask), tokens.values, mask, standardise=self.norm_pix_loss)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        loss = self.loss(tokens, self.masking(tokens.grid, keys))
        return Step(loss, {"reconstruction": loss.detach()})

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches (B, N, P) in network units. No statistic of a hidden patch is used."""
        values = self.decode(tokens, mask).float()
        if self.norm_pix_loss:  # a hidden patch's own mean and deviation are not known; its neighbours' stand in
            mean, std = visible_patch_statistics(tokens.values, mask, tokens.grid)
            values = values * std + mean
        return values


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
