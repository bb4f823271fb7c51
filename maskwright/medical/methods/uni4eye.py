"""Uni4Eye: unified 2-D and 3-D masked image modelling for ophthalmic images (Cai, Lin, He, Tang, MICCAI 2022).

Eye clinics own photographs and OCT volumes. One transformer serves both: a picture is cut by a 2-D projection, a volume
by a 3-D one, and everything behind them is shared. Most patches are hidden as in MAE, and two decoders rebuild from one
latent the values (a) and the gradient map (b) of what was hidden, so that edges such as vessels and layers are kept.

Where this departs from the released code: position tables are sine-cosine and set (there they stay zero, so that all
hidden patches of an image get one and the same prediction); gradients are taken in floating point from a grey (H, W)
image (there 16-bit integers of a tensor with channels for rows); kinds take turns batch by batch at random, not epoch by
epoch; each input is scaled by the statistics of the data. Reconstructed, as the paper does not say: the map of each image
is scaled to 0 ... 1 (`gradient_scale`), volumes have their gradients slice by slice.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Block, Embedding, Encoder, MaskTokenDecoder, Tokens, patchify, unpatchify
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.patches import patch_grid, patch_mask_to_pixels
from maskwright.core.encoder.positions import SinCosPositions
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, Masking, RandomMasking, drop
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import unstandardise
from maskwright.core.sample import Batch, InputSpec, TensorSpec
from maskwright.core.trainer.method import Method, Panel, Step

AXES = {"image": 2, "volume": 3}
"""Inputs, and their number of axes besides the channels."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
PUBLISHED = {"base_lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.05, "epochs": 200, "warmup": 0.2}
"""AdamW, 40 of 200 epochs of warm-up, cosine; 64 pictures or 8 volumes a batch."""


class UnifiedTransformer(Encoder):
    """A ViT whose patches come from pictures or from volumes, by what a batch holds. Defaults are ViT-L/16.

    Args:
        image_chans, volume_chans: channels of pictures and volumes; 0 leaves that kind out.
        patch_size: pixels of a patch along each side.
        embed_dim, depth, num_heads: as in timm.
        normalization: "standard", "two-sigma" or "none".

    Shapes:
        image (B, C, H, W) or volume (B, C, D, H, W); tokens (B, N, C * patch_size ** axes); output (B, 1 + V, D).

    Raises:
        ConfigError: both kinds are left out.
    """

    def __init__(
        self,
        image_chans: int = 3,
        volume_chans: int = 1,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        normalization: NormalizationKind = "standard",
    ) -> None:
        super().__init__()
        self.chans = {name: count for name, count in (("image", image_chans), ("volume", volume_chans)) if count}
        if not self.chans or min(self.chans.values()) < 0:
            raise ConfigError("method.image_chans and method.volume_chans: at least one must be 1 or more.")
        dims, several = {"image": "C H W", "volume": "C D H W"}, len(self.chans) > 1
        self.inputs = {name: TensorSpec(dims[name], count, optional=several) for name, count in self.chans.items()}
        self.add_normalizers(normalization)
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.patch_embed = nn.ModuleDict(
            {name: nn.Linear(count * patch_size ** AXES[name], embed_dim) for name, count in self.chans.items()}
        )
        self.positions = SinCosPositions(embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        init_transformer(self)

    def kind(self, batch: Batch) -> str:
        """Which input a batch holds."""
        held = [name for name in self.chans if name in batch.tensors]
        if len(held) != 1:
            raise ConfigError(
                f"This encoder reads {' or '.join(self.chans)}, but the batch holds {list(batch.tensors)}."
            )
        return held[0]

    def patch(self, grid: Grid) -> tuple[int, ...]:
        """Pixels of a patch along each axis of a grid."""
        return (self.patch_size,) * grid.ndim

    def tokenize(self, batch: Batch) -> Tokens:
        name = self.kind(batch)
        x = self.normalizers[name](batch[name])
        patch = (self.patch_size,) * AXES[name]
        return Tokens(patchify(x, patch), patch_grid(tuple(x.shape[2:]), patch, name))

    def forward(self, tokens: Tokens, mask: Mask | None = None) -> Tensor:
        """Features of the visible tokens, class token first."""
        values, index = (tokens.values, None) if mask is None else (drop(tokens.values, mask), mask.visible)
        x = self.patch_embed["image" if tokens.grid.ndim == 2 else "volume"](values)
        x = x + self.positions.add(tokens.grid, index, x.device).to(x.dtype)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed_batch(self, batch: Batch) -> Embedding:
        tokens = self.tokenize(batch)
        x = self(tokens)[:, 1:]
        return Embedding(x.mean(1), x, tokens.grid)


class Uni4Eye(Method):
    """Uni4Eye pre-training on pictures, on volumes, or on both in turns (loader `mixed`). Defaults are ViT-L/16.

    Args:
        image_chans: channels of pictures, 0 for none. Taken from the data if left out.
        volume_chans: channels of volumes, 0 for none. Taken from the data if left out.
        patch_size: pixels along each side of a patch, of pictures and of volumes.
        embed_dim: width of the encoder.
        depth: blocks of the encoder.
        num_heads: heads of the encoder.
        decoder_embed_dim: width of both decoders.
        decoder_depth: blocks of each decoder.
        decoder_num_heads: heads of each decoder.
        gradient_weight: weight of the gradient map's error beside that of the values; 0 leaves that decoder out.
        gradient_scale: "image" brings each image's gradient map to 0 ... 1; "none" leaves it.
        norm_pix_loss: standardise target patches of values, not those of the gradient map.
        normalization: "standard", "two-sigma" or "none".
        masking: strategy that chooses the hidden patches, of pictures and of volumes.
    """

    summary = "One transformer for pictures and volumes; values and gradients of hidden patches are rebuilt."
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
            },
            "trainer": {"base_lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05},
        },
        "base": {"method": {"embed_dim": 768, "depth": 12, "num_heads": 12}, "trainer": PUBLISHED},
        "large": {"method": {}, "trainer": PUBLISHED},
    }

    encoder: UnifiedTransformer

    def __init__(
        self,
        image_chans: int = 3,
        volume_chans: int = 1,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        gradient_weight: float = 1.0,
        gradient_scale: Literal["image", "none"] = "image",
        norm_pix_loss: bool = False,
        normalization: NormalizationKind = "standard",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        self.encoder = UnifiedTransformer(
            image_chans=image_chans,
            volume_chans=volume_chans,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            normalization=normalization,
        )
        self.masking = masking or RandomMasking(0.75)
        self.gradient_weight, self.gradient_scale = gradient_weight, gradient_scale
        self.norm_pix_loss = norm_pix_loss
        targets = ("pixels", "gradient") if gradient_weight else ("pixels",)
        self.decoders = nn.ModuleDict(
            {
                target: MaskTokenDecoder(
                    embed_dim, None, decoder_embed_dim, decoder_depth, decoder_num_heads, num_prefix_tokens=1
                )
                for target in targets
            }
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.heads = nn.ModuleDict(
            {
                f"{target}_{name}": nn.Linear(
                    decoder_embed_dim, patch_size ** AXES[name] * (count if target == "pixels" else 1)
                )
                for target in targets
                for name, count in self.encoder.chans.items()
            }
        )
        init_transformer(self.decoders)
        init_transformer(self.heads)

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """Channels of both kinds; a kind that the data do not have is left out."""
        held = {name: given[name].channel_count or 1 for name in AXES if name in given}
        return {f"{name}_chans": held.get(name, 0) for name in AXES} if held else {}

    def decode(self, target: str, latent: Tensor, mask: Mask, grid: Grid) -> Tensor:
        """What one decoder makes of the latent: patches (B, N, P) of its target."""
        x = self.decoder_norm(self.decoders[target](latent, mask, grid))
        return self.heads[f"{target}_{'image' if grid.ndim == 2 else 'volume'}"](x)

    def gradients(self, tokens: Tokens) -> Tensor:
        """Patches (B, N, patch_size ** axes) of the gradient map, in network units or scaled to 0 ... 1."""
        patch, chans = (
            self.encoder.patch(tokens.grid),
            self.encoder.chans["image" if tokens.grid.ndim == 2 else "volume"],
        )
        x = unpatchify(tokens.values.float(), tokens.grid, patch, chans)
        found = gradient_map(x)
        if self.gradient_scale == "image":
            low, high = found.flatten(1).amin(1), found.flatten(1).amax(1)
            shape = (-1, *[1] * (found.ndim - 1))
            found = (found - low.view(shape)) / (high - low).clamp_min(1e-6).view(shape)
        return patchify(found, patch)

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.masking(tokens.grid, keys))

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.masking(tokens.grid, keys)
        latent = self.encoder(tokens, mask)
        values = self.decode("pixels", latent, mask, tokens.grid)
        loss = masked_reconstruction(values, tokens.values, mask, standardise=self.norm_pix_loss)
        terms = {"pixels": loss.detach()}
        if self.gradient_weight:
            gradient = self.decode("gradient", latent, mask, tokens.grid)
            error = masked_reconstruction(gradient, self.gradients(tokens), mask)
            loss = loss + self.gradient_weight * error
            terms["gradient"] = error.detach()
        return Step(loss, terms)

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        name, tokens = self.encoder.kind(batch), self.encoder.tokenize(batch)
        mask, patch = self.masking(tokens.grid, keys), self.encoder.patch(tokens.grid)
        values = self.decode("pixels", self.encoder(tokens, mask), mask, tokens.grid).float()
        if self.norm_pix_loss:
            values = unstandardise(values, tokens, mask)
        filled = torch.where(mask.hidden[..., None], values, tokens.values)
        image = unpatchify(filled, tokens.grid, patch, self.encoder.chans[name])
        return {
            name: Panel(
                original=batch[name],
                hidden=patch_mask_to_pixels(mask.hidden, tokens.grid, patch),
                reconstruction=self.encoder.normalizers[name].invert(image),  # type: ignore[operator]
            )
        }


def gradient_map(x: Tensor) -> Tensor:
    """0.5 |Gx| + 0.5 |Gy| of the grey image, with Sobel kernels of 5 x 5 (OpenCV's, edges mirrored): one channel.

    Args:
        x: (B, C, H, W), or (B, C, D, H, W), of which each slice along D is an image.

    Returns:
        (B, 1, H, W) or (B, 1, D, H, W).
    """
    weights = x.new_tensor(GREY if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1])
    grey = (x * weights.view(1, -1, *[1] * (x.ndim - 2))).sum(1, keepdim=True)
    images = grey.movedim(2, 1).flatten(0, 1) if x.ndim == 5 else grey
    smooth, slope = x.new_tensor([1.0, 4, 6, 4, 1]), x.new_tensor([-1.0, -2, 0, 2, 1])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    sides = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernels)
    found = 0.5 * sides.abs().sum(1, keepdim=True)
    return found.unflatten(0, (len(x), x.shape[2])).movedim(1, 2) if x.ndim == 5 else found
