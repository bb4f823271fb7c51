"""NeRF-MAE: masked autoencoders for neural radiance fields (Irshad, Zakharov, Guizilini, Gaidon, Kira, Ambrus, ECCV 2024).

A radiance field is sampled once on a regular grid, so that a scene is a dense volume of colour and opacity. Blocks of
16 voxels a side are hidden: a learned token stands in their place in a Swin transformer on volumes. A decoder of
convolutions with skips from all stages rebuilds colour and opacity of every voxel. Opacity is scored where voxels were
hidden, colour where the scene is opaque. Afterwards decoder and token are thrown away.

Where this departs from the released code: each sample has a mask of its own with an exact number of hidden blocks
(`mask="official"` draws one for the whole batch, each block by itself, so that the number varies); what fills maps up
to whole windows is kept out of the attention (`mask_padding=false` lets it in); axes are (z, y, x) with z up, where
the release has (x, y, z), and axes of the position table have another order; the learning rate rises along a line and
not along a cosine. A batch without hidden or opaque voxels costs 0 there, and not a division by zero.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.base import Tokens
from maskwright.core.encoder.patches import patch_mask_to_pixels
from maskwright.core.encoder.swin import SwinTransformer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Grid, Mask, Masking, UnitMasking, fold, uniform
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Step

RGB, ALPHA = slice(0, 3), slice(3, 4)
OPAQUE = 0.01
"""Opacity above which a voxel's colour counts, as released."""
VALID = "valid"
"""Tensor (B, 1, D, H, W) that is 1 inside of the scene and 0 where a volume was filled up. All is valid without it."""
RgbScope = Literal["opaque", "opaque_hidden", "hidden"]

# Released script: 8 processes of 4 samples, one cycle of the learning rate with 30 % of rise; the results are of epoch
# 1200 out of 2000.
PUBLISHED: dict[str, Any] = {
    "lr": 1e-4,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-3,
    "clip_grad": 0.1,
    "epochs": 1200,
    "batch_size": 4,
    "warmup": 0.3,
}
SHORT: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-3, "batch_size": 4, "warmup": 0.1}


def radiance_loss(
    prediction: Tensor,
    target: Tensor,
    hidden: Tensor,
    valid: Tensor,
    rgb_scope: RgbScope = "opaque",
    channels: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, Tensor]:
    """Errors of colour and of opacity, each over all chosen voxels of the batch together.

    Args:
        prediction: (B, 4, D, H, W): colour as it is, and the logit of the opacity.
        target: (B, 4, D, H, W): colour and opacity in 0 to 1.
        hidden, valid: (B, 1, D, H, W) bool, True where a voxel was hidden, and where it belongs to the scene.
        rgb_scope: voxels whose colour is scored: "opaque", hidden or not, as released; "opaque_hidden", those of them
            that were hidden; "hidden", hidden and valid voxels of any opacity.
        channels: whether squared errors of the three colours of a voxel are added up, as released, or averaged, so that
            colour weighs as much as opacity.

    Returns:
        two scalars; 0 where no voxel is chosen.
    """
    opaque = target[:, ALPHA] > OPAQUE
    scope = {"opaque": opaque, "opaque_hidden": opaque & hidden, "hidden": hidden}[rgb_scope] & valid
    colour = (prediction[:, RGB] - target[:, RGB]).square()
    colour = colour.sum(1, keepdim=True) if channels == "sum" else colour.mean(1, keepdim=True)
    opacity = (prediction[:, ALPHA].sigmoid() - target[:, ALPHA]).square()
    return _mean_over(colour, scope), _mean_over(opacity, hidden & valid)


def _mean_over(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0).sum() / where.sum().clamp_min(1)


class NerfMae(Method):
    """NeRF-MAE on a volume (4, D, H, W) of red, green, blue and opacity. Defaults are Swin-S with windows of 4.

    Volumes of 160 voxels a side give 1,000 blocks. In smaller ones choose smaller blocks or tokens, such as
    `masking.unit=2` or `patch_size=2` at 32 voxels.

    Args:
        patch_size: voxels along each side of a token.
        width: channels of the first stage, doubled in each further one.
        depths, num_heads: blocks and heads of each stage; at least two stages.
        window_size: tokens along each side of a window.
        mlp_ratio: width of MLPs over that of their stage.
        drop_path: share of samples that skip the last block in training, growing linearly from the first.
        mask_padding: keep what fills maps up to whole windows out of the attention; the release does not.
        mask: "exact" lets the masking choose, for each sample; "official" hides each block of the masking with
            probability `masking.ratio`, the same ones in all samples of a batch. Then what is seen of a sample depends
            on its batch.
        rgb_scope: voxels whose colour is scored: opaque, opaque_hidden or hidden; see `radiance_loss`.
        rgb_channels: whether errors of the three colours are added up ("sum", as released) or averaged ("mean").
        input_name: which input is read. Taken from the data if they hold one volume of four channels.
        masking: strategy that chooses hidden tokens; units of 4 x 4 x 4 tokens if left out.

    Shapes:
        input (B, 4, D, H, W), values in 0 to 1, each axis a multiple of `patch_size`; optionally "valid"
        (B, 1, D, H, W), 1 inside of the scene; maps of stage s (B, width * 2 ** s, *size / (patch_size * 2 ** s)).

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    summary = "Colour and opacity of hidden blocks of a radiance field, by a Swin transformer on volumes."
    default_masking = {"name": "unit", "ratio": 0.75, "unit": 4}
    presets = {
        "tiny": {
            "method": {
                "patch_size": 2,
                "width": 24,
                "depths": (1, 1, 2),
                "num_heads": (2, 4, 8),
                "drop_path": 0.0,
            },
            "trainer": SHORT,
        },
        "small": {"method": {"width": 48, "depths": (2, 2, 6, 2)}, "trainer": SHORT},
        "base": {"method": {}, "trainer": PUBLISHED},
    }

    encoder: SwinTransformer
    masking: Masking

    def __init__(
        self,
        patch_size: int = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        mask_padding: bool = True,
        mask: Literal["exact", "official"] = "exact",
        rgb_scope: RgbScope = "opaque",
        rgb_channels: Literal["sum", "mean"] = "sum",
        input_name: str = "grid",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if mask not in ("exact", "official"):
            raise ConfigError(f'method.mask="{mask}" is neither exact nor official.')
        if rgb_scope not in ("opaque", "opaque_hidden", "hidden"):
            raise ConfigError(f'method.rgb_scope="{rgb_scope}" is none of opaque, opaque_hidden, hidden.')
        if rgb_channels not in ("sum", "mean"):
            raise ConfigError(f'method.rgb_channels="{rgb_channels}" is neither sum nor mean.')
        if len(depths) < 2 or width % 2:
            raise ConfigError(
                f"method.depths={list(depths)} must name two stages or more, for the decoder to have a skip, and "
                f"method.width={width} must be even: the decoder halves it."
            )
        self.encoder = SwinTransformer(
            dims="C D H W",
            in_chans=4,
            patch_size=patch_size,
            width=width,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            positions="sincos",
            mask_padding=mask_padding,
            final_norm=False,  # the decoder is given the stages as they are
            input_name=input_name,
            normalization="none",  # values are in 0 to 1
        )
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = Decoder(self.encoder.widths, patch_size, 4)
        self.masking = masking or UnitMasking(self.default_masking["ratio"], self.default_masking["unit"])
        self.official, self.rgb_scope, self.rgb_channels = mask == "official", rgb_scope, rgb_channels
        if self.official and not isinstance(self.masking, UnitMasking):
            raise ConfigError("method.mask=official hides units: set masking.name=unit, or method.mask=exact.")

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one volume of four channels in the data.

        Raises:
            ConfigError: there is none, or several.
        """
        found = [name for name, spec in given.items() if spec.dims == "C D H W" and spec.channel_count in (4, None)]
        if len(found) != 1:
            shown = ", ".join(f"{name} ({spec.dims}, {spec.channel_count} channels)" for name, spec in given.items())
            raise ConfigError(
                f"NeRF-MAE reads one volume (C D H W) of four channels, red, green, blue and opacity, but the data hold "
                f"{shown}. Set method.input_name to one of such, or data.loader=grids."
            )
        return {"input_name": found[0]}

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        """Nothing is learnt from the data before the first step: values are in 0 to 1 as they are."""

    # masking --------------------------------------------------------------------------------------------------------

    def mask(self, grid: Grid, keys: Tensor) -> Mask:
        """Which tokens are hidden."""
        if not self.official:
            return self.masking(grid, keys)
        assert isinstance(self.masking, UnitMasking)  # checked by the constructor
        self.masking.hidden_count(grid)  # refuses a grid that does not divide into units
        units = [size // self.masking.unit for size in grid.shape]
        hidden = uniform(fold(keys[:1], 1), *units) < self.masking.ratio
        for axis in range(grid.ndim):
            hidden = hidden.repeat_interleave(self.masking.unit, dim=axis + 1)
        order = hidden.flatten(1).long().argsort(dim=1, stable=True).expand(len(keys), -1)
        visible = grid.count - int(hidden.sum())
        return Mask(order[:, :visible], order[:, visible:], order.argsort(1))

    # network --------------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        """Maps of all stages, the mask token in place of hidden tokens: (B, positions, C)."""
        tokens = self.encoder.tokenize(batch)
        maps = self.encoder.pyramid(tokens, self.mask(tokens.grid, keys), self.mask_token)
        return {f"stage {number}": x.flatten(2).transpose(1, 2) for number, x in enumerate(maps, start=1)}

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Colour and logits of opacity of all voxels: (B, 4, D, H, W) float32."""
        return self.decoder(self.encoder.pyramid(tokens, mask, self.mask_token)).float()

    def hidden_voxels(self, mask: Mask, grid: Grid) -> Tensor:
        """(B, D, H, W) bool."""
        return patch_mask_to_pixels(mask.hidden, grid, self.encoder.patch_size)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens.grid, keys)
        hidden = self.hidden_voxels(mask, tokens.grid)[:, None]
        valid = batch[VALID] > 0.5 if VALID in batch.tensors else torch.ones_like(hidden)
        target = batch[self.encoder.input_name].float()
        rgb, alpha = radiance_loss(self.predict(tokens, mask), target, hidden, valid, self.rgb_scope, self.rgb_channels)
        return Step(rgb + alpha, {"rgb": rgb.detach(), "alpha": alpha.detach()})

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens.grid, keys)
        hidden = self.hidden_voxels(mask, tokens.grid)
        prediction = self.predict(tokens, mask)
        made = torch.cat([prediction[:, RGB].clamp(0, 1), prediction[:, ALPHA].sigmoid()], dim=1)
        original = batch[self.encoder.input_name]
        return {self.encoder.input_name: Panel(original, hidden, torch.where(hidden[:, None], made, original))}


# decoder ------------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two convolutions of 3 voxels with instance norms, and a shortcut: (B, C, *size) to (B, C', *size)."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_chans, out_chans, 3, padding=1)
        self.conv2 = nn.Conv3d(out_chans, out_chans, 3, padding=1)
        self.shortcut = nn.Conv3d(in_chans, out_chans, 1) if in_chans != out_chans else None

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.shortcut is None else F.instance_norm(self.shortcut(x))
        x = F.leaky_relu(F.instance_norm(self.conv1(x)), 0.01)
        return F.leaky_relu(F.instance_norm(self.conv2(x)) + same, 0.01)


class Decoder(nn.Module):
    """Up from the last stage: twice the size, the map of the stage before beside it, a residual block.

    At last as many times the size as a token has voxels, at half the width of the first stage and without a skip.

    Args:
        widths: channels of the stages.
        patch_size: voxels along each side of a token.
        out_chans: channels of the volume.
    """

    def __init__(self, widths: tuple[int, ...], patch_size: int, out_chans: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(reversed(widths)))
        self.ups = nn.ModuleList(nn.ConvTranspose3d(wide, narrow, 2, stride=2) for wide, narrow in pairs)
        self.blocks = nn.ModuleList(ResidualBlock(2 * narrow, narrow) for _, narrow in pairs)
        last = widths[0] // 2
        self.last_up = nn.ConvTranspose3d(widths[0], last, patch_size, stride=patch_size)
        self.last_block = ResidualBlock(last, last)
        self.project = nn.Conv3d(last, out_chans, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Volume (B, out_chans, D, H, W) from the maps of all stages, the last stage last.

        Raises:
            ConfigError: a stage before the last has a single position, over which nothing can be normalised.
        """
        if maps[-2][0, 0].numel() < 2:
            raise ConfigError(
                f"The volume shrinks to a single position before the last of {len(maps)} stages. Use larger volumes "
                f"(data.size), a smaller method.patch_size, or fewer stages (method.depths and method.num_heads)."
            )
        x = maps[-1]
        for up, block, skip in zip(self.ups, self.blocks, reversed(maps[:-1]), strict=True):
            x = up(x)[..., : skip.shape[-3], : skip.shape[-2], : skip.shape[-1]]  # merging fills odd maps up
            x = block(torch.cat([x, skip], dim=1))
        return self.project(self.last_block(self.last_up(x)))
