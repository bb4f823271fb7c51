"""CROMA: contrastive radar-optical masked autoencoders (Fuller, Millard, Green, NeurIPS 2023).

Two transformers look at one place through two sensors, each at its own random quarter of the patches. Their pooled
vectors are pulled together across the batch; a third, fusing transformer (radar tokens ask optical tokens) gives tokens
from which a one-block decoder rebuilds the hidden patches of both sensors. Position enters the encoders only as an
attention bias that falls with the distance between patches, so a model trained at 120 x 120 px runs on larger images.

Where this departs from the released code: biases are computed from the coordinates of visible tokens, not sliced from a
table of all pairs (equal values); the number of channels, the patch size and the grid are options; one process needs no
process group; the official code makes one surplus mask token that it never uses, we do not. `fusion_bias="official"`
keeps the released code's radar-to-optical bias in the fusion encoder's self-attention; `"consistent"` (radar to radar)
is what inference computes. Loss weights of 1 and 1, the optimiser settings and the augmentation are from secondary
sources, not from the released code.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskwright.core.encoder import (
    Block,
    CrossBlock,
    Embedding,
    Encoder,
    MaskTokenDecoder,
    Mlp,
    Tokens,
    alibi_bias,
    alibi_slopes,
    patchify,
    unpatchify,
)
from maskwright.core.encoder.patches import patch_grid, patch_mask_to_pixels
from maskwright.core.encoder.positions import coordinates_at
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, Masking, RandomMasking, drop, fold
from maskwright.core.objective import info_nce, masked_reconstruction, standardise_patches
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.sample import Batch, InputSpec, TensorSpec
from maskwright.core.trainer.method import Method, Panel, Step

_EPS = 1e-5  # the framework's default for layer norms


class SensorTransformer(nn.Module):
    """Linear patch embedding, pre-norm blocks with a 2D-ALiBi bias, final norm: (B, V, P) to (B, V, D)."""

    def __init__(self, patch_values: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(patch_values, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=False, norm_eps=_EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, patches: Tensor, bias: Tensor) -> Tensor:
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class FusionTransformer(nn.Module):
    """Radar stream (B, R, D) that asks optical tokens (B, O, D): (B, R, D)."""

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(dim, num_heads, qkv_bias=False, norm_eps=_EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, radar: Tensor, optical: Tensor, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        x = radar
        for block in self.blocks:
            x = block(x, optical, self_bias, cross_bias)
        return self.norm(x)


class PoolHead(nn.Module):
    """Mean over tokens, norm, D to 4 D to D with GELU: (B, V, D) to (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens.mean(1)))


class CromaEncoder(Encoder):
    """What CROMA keeps: two sensor encoders, two pooling heads, the fusion encoder. Defaults are CROMA-B.

    Args:
        optical_chans, sar_chans: channels of the two sensors (12 Sentinel-2 bands without B10; VV, VH).
        patch_size: pixels along each side of a patch.
        embed_dim, num_heads: width D and heads of all three transformers.
        optical_depth, sar_depth, fusion_depth: their numbers of blocks.
        normalization: "two-sigma" as in the paper, "standard" or "none".
        fusion_bias: bias of the fusion encoder's self-attention under masking, see the module's docstring.

    Shapes:
        optical (B, 12, H, W) and sar (B, 2, H, W) in physical units; H and W multiples of `patch_size`.
        `embed`: pooled (B, D) joint, tokens (B, N, D) joint; `parts["optical"]`, `parts["sar"]` of one sensor each.
    """

    def __init__(
        self,
        optical_chans: int = 12,
        sar_chans: int = 2,
        patch_size: int = 8,
        embed_dim: int = 768,
        num_heads: int = 16,
        optical_depth: int = 12,
        sar_depth: int = 6,
        fusion_depth: int = 6,
        normalization: Literal["two-sigma", "standard", "none"] = "two-sigma",
        fusion_bias: Literal["official", "consistent"] = "official",
    ) -> None:
        super().__init__()
        if fusion_bias not in ("official", "consistent"):
            raise ConfigError(f'method.fusion_bias="{fusion_bias}" is neither "official" nor "consistent".')
        self.embed_dim, self.patch_size, self.fusion_bias = embed_dim, (patch_size, patch_size), fusion_bias
        self.inputs = {
            "optical": TensorSpec("C H W", optical_chans, "reflectance x 10000"),
            "sar": TensorSpec("C H W", sar_chans, "dB"),
        }
        self.add_normalizers(normalization)
        pixels = patch_size * patch_size
        self.optical = SensorTransformer(pixels * optical_chans, embed_dim, optical_depth, num_heads)
        self.sar = SensorTransformer(pixels * sar_chans, embed_dim, sar_depth, num_heads)
        self.fusion = FusionTransformer(embed_dim, fusion_depth, num_heads)
        self.optical_pool = PoolHead(embed_dim)
        self.sar_pool = PoolHead(embed_dim)
        self.register_buffer("slopes", alibi_slopes(num_heads), persistent=False)

    slopes: Tensor

    def tokenize(self, batch: Batch) -> dict[str, Tokens]:
        normal = self.normalize(batch)
        sizes = {name: tuple(x.shape[2:]) for name, x in normal.items()}
        if sizes["optical"] != sizes["sar"]:
            raise ConfigError(
                f"optical has {sizes['optical']} pixels but sar has {sizes['sar']}: both sensors must lie on one grid. "
                f"Read them with data.loader=s1s2, which resamples them."
            )
        grid = patch_grid(sizes["optical"], self.patch_size, "optical")
        return {name: Tokens(patchify(x, self.patch_size), grid) for name, x in normal.items()}

    def forward(self, tokens: dict[str, Tokens], mask: dict[str, Mask] | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Features of visible tokens: `optical`, `sar` and, at the radar's places, `joint`, each (B, V, D)."""
        grid, device = tokens["sar"].grid, tokens["sar"].values.device
        at: dict[str, Tensor] = {}
        for name in ("optical", "sar"):
            at[name] = coordinates_at(grid, mask[name].visible if mask else None, device)
        values = {name: drop(t.values, mask[name]) if mask else t.values for name, t in tokens.items()}
        # equations in the paper's order: 2D-ALiBi within each sensor, X-ALiBi from radar to optical
        sar_bias = alibi_bias(at["sar"], at["sar"], self.slopes)
        optical_bias = alibi_bias(at["optical"], at["optical"], self.slopes) if mask else sar_bias
        cross_bias = alibi_bias(at["sar"], at["optical"], self.slopes) if mask else sar_bias
        sar = self.sar(values["sar"], sar_bias)
        optical = self.optical(values["optical"], optical_bias)
        self_bias = cross_bias if self.fusion_bias == "official" else sar_bias
        if self_bias.shape[-1] != sar.shape[1]:
            raise ConfigError(
                f"fusion_bias=official needs equally many visible tokens of both sensors, not {sar.shape[1]} and "
                f"{optical.shape[1]}. Set method.fusion_bias=consistent."
            )
        joint = self.fusion(sar, optical, self_bias, cross_bias)
        return {"optical": optical, "sar": sar, "joint": joint}

    def embed_batch(self, batch: Batch) -> Embedding:
        tokens = self.tokenize(batch)
        features, grid = self(tokens), tokens["sar"].grid
        parts = {
            "optical": Embedding(self.optical_pool(features["optical"]), features["optical"], grid),
            "sar": Embedding(self.sar_pool(features["sar"]), features["sar"], grid),
        }
        return Embedding(features["joint"].mean(1), features["joint"], grid, parts)


class Croma(Method):
    """CROMA pre-training: contrast of the two sensors plus reconstruction of both. Defaults are CROMA-B, 12 + 2 bands.

    Args:
        optical_chans, sar_chans: channels of the two sensors. Taken from the data if left out.
        patch_size: pixels along each side of a patch.
        embed_dim: width D of all three transformers.
        num_heads: heads of all three transformers.
        optical_depth: blocks of the optical encoder.
        sar_depth: blocks of the radar encoder.
        fusion_depth: blocks of the fusion encoder.
        decoder_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: heads of the decoder.
        masking: strategy for both sensors, drawn independently for each.
        contrastive_weight: weight of the contrastive loss; 0 leaves it out.
        reconstruction_weight: weight of the reconstruction loss; 0 leaves it out.
        detach_keys: no gradient through the gathered side of the contrastive loss, as in the released code.
        fusion_bias: "official" or "consistent", see the module's docstring.
        normalization: "two-sigma" as in the paper, "standard" or "none".
    """

    summary = "Contrast and joint reconstruction of radar and optical images with distance-biased attention."
    presets = {
        "tiny": {
            "method": {
                "embed_dim": 128,
                "num_heads": 8,
                "optical_depth": 4,
                "sar_depth": 2,
                "fusion_depth": 2,
                "decoder_dim": 128,
                "decoder_heads": 4,
            },
            "trainer": {"base_lr": 2e-3, "betas": (0.9, 0.999), "weight_decay": 0.01},
        },
        "base": {
            "method": {},
            "trainer": {"base_lr": 4e-6, "betas": (0.9, 0.999), "weight_decay": 0.01, "epochs": 300},
        },
        "large": {
            "method": {"embed_dim": 1024, "optical_depth": 24, "sar_depth": 12, "fusion_depth": 12},
            "trainer": {"base_lr": 4e-6, "betas": (0.9, 0.999), "weight_decay": 0.01, "epochs": 600},
        },
    }

    encoder: CromaEncoder

    def __init__(
        self,
        optical_chans: int = 12,
        sar_chans: int = 2,
        patch_size: int = 8,
        embed_dim: int = 768,
        num_heads: int = 16,
        optical_depth: int = 12,
        sar_depth: int = 6,
        fusion_depth: int = 6,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        decoder_heads: int = 8,
        masking: Masking | None = None,
        contrastive_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        detach_keys: bool = True,
        fusion_bias: Literal["official", "consistent"] = "official",
        normalization: Literal["two-sigma", "standard", "none"] = "two-sigma",
    ) -> None:
        super().__init__()
        self.encoder = CromaEncoder(
            optical_chans=optical_chans,
            sar_chans=sar_chans,
            patch_size=patch_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            optical_depth=optical_depth,
            sar_depth=sar_depth,
            fusion_depth=fusion_depth,
            normalization=normalization,
            fusion_bias=fusion_bias,
        )
        self.masking = masking or RandomMasking(0.75)
        self.contrastive_weight, self.reconstruction_weight = contrastive_weight, reconstruction_weight
        self.detach_keys = detach_keys
        self.optical_values = optical_chans * patch_size**2
        self.chans = {"optical": optical_chans, "sar": sar_chans}
        self.optical_projection = nn.Linear(embed_dim, embed_dim)
        self.sar_projection = nn.Linear(embed_dim, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.decoder = MaskTokenDecoder(
            embed_dim,
            patch_size**2 * (optical_chans + sar_chans),
            decoder_dim,
            decoder_depth,
            decoder_heads,
            qkv_bias=False,
            norm_eps=_EPS,
        )

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        counts = {name: given[name].channel_count for name in ("optical", "sar") if name in given}
        return {f"{name}_chans": count for name, count in counts.items() if count}

    def masks(self, grid: Grid, keys: Tensor) -> dict[str, Mask]:
        """An independent mask for each sensor."""
        return {name: self.masking(grid, fold(keys, stream)) for stream, name in enumerate(("optical", "sar"))}

    def encode(self, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.masks(tokens["sar"].grid, keys))

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        grid = tokens["sar"].grid
        masks = self.masks(grid, keys)
        features = self.encoder(tokens, masks)
        loss = features["joint"].new_zeros(())
        terms: dict[str, Tensor] = {}
        if self.contrastive_weight:
            optical = self.optical_projection(self.encoder.optical_pool(features["optical"]))
            sar = self.sar_projection(self.encoder.sar_pool(features["sar"]))
            terms["contrastive"] = info_nce(optical, sar, self.log_scale.exp(), self.detach_keys)
            loss = loss + self.contrastive_weight * terms["contrastive"]
        if self.reconstruction_weight:
            prediction = self.decoder(features["joint"], masks["sar"], grid)
            # the values of a patch are standardised over both sensors together
            target = standardise_patches(torch.cat([tokens["optical"].values, tokens["sar"].values], dim=-1))
            cut = self.optical_values
            terms["optical"] = masked_reconstruction(prediction[..., :cut], target[..., :cut], masks["optical"])
            terms["sar"] = masked_reconstruction(prediction[..., cut:], target[..., cut:], masks["sar"])
            loss = loss + self.reconstruction_weight * (terms["optical"] + terms["sar"])
        return Step(loss, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens = self.encoder.tokenize(batch)
        grid = tokens["sar"].grid
        masks = self.masks(grid, keys)
        features = self.encoder(tokens, masks)
        prediction = self.decoder(features["joint"], masks["sar"], grid).float()
        mean, std = both_sensors_statistics({name: t.values for name, t in tokens.items()}, masks, grid)
        filled = prediction * std + mean
        panels = {}
        for name, part in (("optical", slice(None, self.optical_values)), ("sar", slice(self.optical_values, None))):
            hidden = masks[name].hidden
            patches = torch.where(hidden[..., None], filled[..., part], tokens[name].values)
            image = unpatchify(patches, grid, self.encoder.patch_size, self.chans[name])
            panels[name] = Panel(
                original=batch[name],
                hidden=patch_mask_to_pixels(hidden, grid, self.encoder.patch_size),
                reconstruction=self.encoder.normalizers[name].invert(image),  # type: ignore[operator]
            )
        return panels


def both_sensors_statistics(values: dict[str, Tensor], masks: dict[str, Mask], grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation to undo patch standardisation for a picture, without looking at hidden pixels.

    Each sensor's are taken from its own visible patches, then put together as those of one patch of all sensors.

    Args:
        values: (B, N, P) of each sensor.

    Returns:
        two tensors (B, N, 1).
    """
    total = sum(x.shape[-1] for x in values.values())
    parts = [(x.shape[-1] / total, *visible_patch_statistics(x, masks[name], grid)) for name, x in values.items()]
    mean = sum((share * own for share, own, _ in parts), start=torch.zeros(()))
    var = sum((share * (std**2 + (own - mean) ** 2) for share, own, std in parts), start=torch.zeros(()))
    return mean, var.sqrt()
