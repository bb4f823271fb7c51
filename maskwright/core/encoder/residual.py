"""A plain residual network for images and volumes, with as many strides as it has stages."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Residual, drop_path_rates
from maskwright.core.errors import ConfigError


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and what skips them (He et al. 2016, figure 2), the last norm's weight 0 at first."""

    def __init__(self, axes: int, before: int, width: int, stride: int, drop_path: float) -> None:
        super().__init__()
        conv, norm = _layers(axes)
        self.conv1 = conv(before, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.residual = Residual(width, drop_path=drop_path)
        same = stride == 1 and before == width
        self.skip = nn.Identity() if same else nn.Sequential(conv(before, width, 1, stride, 0, bias=False), norm(width))
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.skip(x) + self.residual(y))


class ResidualNetwork(nn.Module):
    """Stages of residual blocks; every stage halves the size of the map, the stem divides it by `stem_stride`.

    Args:
        axes: 2 for images, 3 for volumes.
        in_chans: channels C.
        widths: channels of each stage.
        depths: blocks of each stage.
        stem_stride: stride of the first convolution.
        drop_path: share of samples that skip the last block in training, growing linearly from 0 at the first.

    Shapes:
        input (B, C, *size); output one map a stage, (B, width, *(size / stride)), strides `stem_stride` * 2, 4, 8, ...

    Raises:
        ConfigError: stages without a width or a depth.
    """

    def __init__(
        self,
        axes: int,
        in_chans: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        stem_stride: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths) or min(*widths, *depths, stem_stride) < 1:
            raise ConfigError(
                f"method.widths={list(widths)} and method.depths={list(depths)} need one number of 1 or more for each "
                f"stage, and method.stem_stride={stem_stride} is 1 or more."
            )
        conv, norm = _layers(axes)
        self.widths = tuple(widths)
        self.strides = tuple(stem_stride * 2 ** (stage + 1) for stage in range(len(widths)))
        self.stem = nn.Sequential(conv(in_chans, widths[0], 3, stem_stride, 1, bias=False), norm(widths[0]), nn.ReLU())
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        blocks: list[nn.Module] = []
        self.ends = []
        """Number of the last block of each stage."""
        before = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            for number in range(depth):
                blocks.append(ResidualBlock(axes, before, width, 1 if number else 2, next(rates)))
                before = width
            self.ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return maps


def _layers(axes: int) -> tuple[Any, Any]:
    """Convolution and batch norm of that many axes."""
    return (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
