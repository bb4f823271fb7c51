"""SparK: designing BERT for convolutional networks (Tian, Jiang, Diao, Lin, Wang, Yuan, ICLR 2023).

A picture is cut into cells as wide as the total stride of a ConvNet, 32 pixels, and 60 % of them are hidden. The network
computes at visible positions only and gives maps of several scales. In each map a learned embedding is put in place of
hidden positions, and a light U-Net decoder repaints them from the deepest map up. The error is taken over hidden cells
alone. Afterwards the decoder is thrown away, and the network is an ordinary dense one.

Where this departs from the released code: hidden cells are not stored instead of being set to zero after every layer
(see `maskwright.core.encoder.sparse`), so any ConvNet of timm works, and squeeze-and-excitation sees visible positions
only; max pooling takes the largest visible value, which is the same after a ReLU; volumes beside images, any number of
channels; inputs are scaled by the statistics of the data, not by ImageNet's; the learning rate warms up from one step's
share of its peak, not from 0.5 % of it. Random crops and flips are the loader's affair.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.base import Tokens
from maskwright.core.encoder.cells import Cells
from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.patches import patch_mask_to_pixels, patchify
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, Masking, RandomMasking, mask_from_scores
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import one_input, panel, unstandardise
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Step

# Paper, appendix, and the released arguments: LAMB, batch 4096, 40 of 1600 epochs of warm-up, weight decay along a half
# cosine. The learning rate is scaled with the batch by the trainer.
RESNET: dict[str, Any] = {
    "optimizer": "lamb",
    "base_lr": 2e-4,
    "betas": (0.9, 0.95),
    "weight_decay": 0.04,
    "weight_decay_end": 0.2,
    "clip_grad": 5.0,
    "epochs": 1600,
    "warmup": 0.025,
    "min_lr_ratio": 0.001,
    "precision": "32",
}
CONVNEXT = {**RESNET, "betas": (0.9, 0.999)}
SHORT = {"base_lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05}
"""AdamW for the sizes that the paper does not have."""


def _preset(backbone: str, drop_path: float, trainer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"method": {"backbone": backbone, "drop_path": drop_path}, "trainer": trainer}


class SparK(Method):
    """SparK on one image (C, H, W) or volume (C, D, H, W). Defaults are ResNet-50.

    Args:
        backbone: a ConvNet of timm by name, for images, or "plain" for images and volumes; see `SparseConvNet`.
        dims: dimensions of the input. Taken from the data if left out.
        in_chans: channels. Taken from the data if left out.
        scales: maps that the decoder is given, from the deepest on.
        widths, depths, stem_stride: of a plain network: channels and blocks of its stages, stride of its first layer.
        drop_path: share of samples that skip the last block of the network in training.
        decoder_width: channels of the decoder at the deepest map; halved at every doubling of the size.
        norm_pix_loss: standardise the values of each target cell, all channels together.
        normalization: of the input, see `Normalizer`.
        input_name: which input is read. Taken from the data if they hold one image or volume.
        masking: strategy that chooses the hidden cells. With "random" and a ratio, round(N * (1 - ratio)) of N cells
            stay visible, 20 of 49, as in the released code, and at least one; other strategies count by themselves.

    Shapes:
        input (B, C, *size) in physical units, each axis a multiple of the network's stride and two cells at least.

    Raises:
        ConfigError: a network without a sparse meaning, or sizes that do not fit each other.
        PluginError: timm is not installed.
    """

    summary = "A ConvNet that computes visible cells only; hidden ones are repainted from maps of several scales."
    default_masking = {"name": "random", "ratio": 0.6}
    presets = {
        "tiny": {
            "method": {
                "backbone": "plain",
                "scales": 3,
                "widths": (16, 32, 64),
                "depths": (1, 1, 1),
                "decoder_width": 32,
            },
            "trainer": SHORT,
        },
        "small": {"method": {"backbone": "resnet18", "decoder_width": 256}, "trainer": SHORT},
        "base": _preset("resnet50", 0.05, RESNET),
        "resnet101": _preset("resnet101", 0.08, RESNET),
        "resnet152": _preset("resnet152", 0.1, RESNET),
        "resnet200": _preset("resnet200", 0.15, RESNET),
        "convnext-small": _preset("convnext_small", 0.2, CONVNEXT),
        "convnext-base": _preset("convnext_base", 0.3, CONVNEXT),
        "convnext-large": _preset("convnext_large", 0.4, CONVNEXT),
        "volume": {
            "method": {"backbone": "plain", "widths": (32, 64, 128, 256), "depths": (2, 2, 2, 2), "decoder_width": 128},
            "trainer": SHORT,
        },
    }

    encoder: SparseConvNet
    masking: Masking

    def __init__(
        self,
        backbone: str = "resnet50",
        dims: Literal["C H W", "C D H W"] = "C H W",
        in_chans: int = 3,
        scales: int = 4,
        widths: tuple[int, ...] = (32, 64, 128),
        depths: tuple[int, ...] = (2, 2, 2),
        stem_stride: int = 1,
        drop_path: float = 0.0,
        decoder_width: int = 768,
        norm_pix_loss: bool = True,
        normalization: NormalizationKind = "standard",
        input_name: str = "image",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        self.encoder = SparseConvNet(
            backbone, dims, in_chans, scales, widths, depths, stem_stride, drop_path, input_name, normalization
        )
        ups = round(math.log2(self.encoder.stride))
        if 2**ups != self.encoder.stride or decoder_width % 2**ups:
            raise ConfigError(
                f"The decoder doubles the size from stride {self.encoder.stride} on and halves its width each time: the "
                f"stride must be a power of two, and method.decoder_width={decoder_width} a multiple of it."
            )
        decoder_widths = [decoder_width // 2**up for up in range(ups + 1)]
        norm = _cell_norm(self.encoder.module, self.encoder.axes)
        self.fills = nn.ModuleList(
            Fill(self.encoder.axes, norm(width), width, ours, 3 if number else 1)
            for number, (width, ours) in enumerate(zip(self.encoder.widths[::-1], decoder_widths, strict=False))
        )
        self.decoder = Decoder(self.encoder.axes, decoder_widths, in_chans)
        self.norm_pix_loss = norm_pix_loss
        self.masking = masking or RandomMasking(self.default_masking["ratio"])

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one image or volume of the data, with its dimensions and channels.

        Raises:
            ConfigError: there is none, or several.
        """
        return one_input("SparK", given, ("C H W", "C D H W"))

    # masking (section 3.1) ------------------------------------------------------------------------------------------

    def mask(self, grid: Grid, keys: Tensor) -> Mask:
        """Which cells are hidden. The ratio of random masking is rounded, where the core cuts off."""
        if grid.count < 2:
            raise ConfigError(
                f"The input is a single cell of {self.encoder.stride} positions along each axis: nothing can be hidden. "
                f"Use larger inputs (data.size), or a network of smaller stride."
            )
        if type(self.masking) is not RandomMasking or self.masking.visible is not None:
            return self.masking(grid, keys)
        self.masking.check(grid)
        visible = min(max(round(grid.count * (1 - self.masking.ratio)), 1), grid.count)
        return mask_from_scores(self.masking.score(grid, keys), grid.count - visible)

    def encode(self, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        """Visible positions of the map of each scale: (B, V * side ** axes, C)."""
        tokens = self.encoder.tokenize(batch)
        maps, cells = self.encoder.pyramid(tokens, self.mask(tokens.grid, keys))
        strides = self.encoder.strides
        return {
            f"stride {stride}": cells.by_sample(x).flatten(2).transpose(1, 2)
            for stride, x in zip(strides, maps, strict=True)
        }

    # decoding (section 3.2) -----------------------------------------------------------------------------------------

    def decode(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all cells (B, N, C * stride ** axes), standardised by cell with `norm_pix_loss`."""
        maps, cells = self.encoder.pyramid(tokens, mask)
        filled = [fill(x, cells) for fill, x in zip(self.fills, maps[::-1], strict=True)]
        return patchify(self.decoder(filled), self.encoder.patch_size)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        """Mean squared error of hidden cells (section 3.3)."""
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens.grid, keys)
        loss = masked_reconstruction(self.decode(tokens, mask), tokens.values, mask, standardise=self.norm_pix_loss)
        return Step(loss, {"reconstruction": loss.detach()})

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens, training = self.encoder.tokenize(batch), self.training
        mask = self.mask(tokens.grid, keys)
        self.eval()  # a picture must not change the statistics of batch norms
        try:
            values = self.decode(tokens, mask).float()
        finally:
            self.train(training)
        values = unstandardise(values, tokens, mask) if self.norm_pix_loss else values
        patches = torch.where(mask.hidden[..., None], values, tokens.values)
        hidden = patch_mask_to_pixels(mask.hidden, tokens.grid, self.encoder.patch_size)
        return panel(self.encoder, batch, tokens, patches, hidden)


# layers -------------------------------------------------------------------------------------------------------------


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, *size)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _cell_norm(module: nn.Module, axes: int) -> Any:
    """The norm before the decoder: of the kind that the network has, batch norm or layer norm."""
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        return nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
    return lambda width: ChannelNorm(width, eps=1e-6)


class Fill(nn.Module):
    """From the visible cells of a map to a whole one: norm, mask embedding at hidden positions, projection.

    Args:
        norm: over visible positions.
        width, decoder_width: channels before and after; a kernel of 1 that would change nothing is left out.
        kernel: of the projection.
    """

    def __init__(self, axes: int, norm: nn.Module, width: int, decoder_width: int, kernel: int) -> None:
        super().__init__()
        self.norm = norm
        self.embedding = nn.Parameter(torch.empty(width))  # of one axis: no weight decay
        nn.init.trunc_normal_(self.embedding, std=0.02, a=-0.02, b=0.02)
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        same = kernel == 1 and width == decoder_width
        self.project = nn.Identity() if same else conv(width, decoder_width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, cells: Cells) -> Tensor:
        return self.project(cells.spread(self.norm(x), self.embedding))


class UpBlock(nn.Module):
    """Twice the size at the same width, then two convolutions, the second of them to the next width."""

    def __init__(self, axes: int, width: int, narrower: int) -> None:
        super().__init__()
        conv, up, norm = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
            if axes == 2
            else (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
        )
        self.up = up(width, width, 4, stride=2, padding=1)
        self.conv1 = conv(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = conv(width, narrower, 3, padding=1, bias=False)
        self.norm2 = norm(narrower)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu6(self.norm1(self.conv1(self.up(x))))))


class Decoder(nn.Module):
    """Up-blocks from the deepest map on; each of the first is given the map of its scale, added to what it gets."""

    def __init__(self, axes: int, widths: list[int], out_chans: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(UpBlock(axes, a, b) for a, b in itertools.pairwise(widths))
        self.project = (nn.Conv2d if axes == 2 else nn.Conv3d)(widths[-1], out_chans, 1)
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Picture (B, out_chans, *size) from maps (B, widths[i], *size / 2 ** i), deepest first."""
        x = maps[0]
        for number, block in enumerate(self.blocks):
            x = block(x + maps[number] if 0 < number < len(maps) else x)
        return self.project(x)
