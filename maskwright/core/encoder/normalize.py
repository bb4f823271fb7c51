"""From physical units to what a network sees, and back. Part of the encoder, saved with its weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from maskwright.core.errors import ConfigError
from maskwright.core.loader import Statistics

NormalizationKind = Literal["standard", "two-sigma", "none"]


class Normalizer(nn.Module):
    """Per-channel affine scaling of one named input.

    `standard`: (x - mean) / std. `two-sigma`: lo = mean - 2 std, hi = mean + 2 std, clip((x - lo) / (hi - lo), 0, 1),
    as in CROMA and SatMAE. `none`: as it is. Until `fit`, values pass unscaled (`two-sigma` clips them still).
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, channels: int, kind: NormalizationKind = "standard") -> None:
        super().__init__()
        if kind not in ("standard", "two-sigma", "none"):
            raise ConfigError(f'normalization="{kind}" is none of standard, two-sigma, none.')
        self.kind = kind
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def fit(self, statistics: Statistics) -> None:
        """Take mean and standard deviation of each channel from a loader's statistics.

        Raises:
            ConfigError: another number of channels.
        """
        mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
        if len(mean) != len(self.offset):
            raise ConfigError(f"Statistics of {len(mean)} channels do not fit an encoder for {len(self.offset)}.")
        std = torch.where(std > 0, std, torch.ones_like(std))  # a constant channel stays constant
        if self.kind == "standard":
            self.offset.copy_(mean)
            self.scale.copy_(std)
        elif self.kind == "two-sigma":
            self.offset.copy_(mean - 2 * std)
            self.scale.copy_(4 * std)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return (-1, *[1] * (x.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) in physical units to network units."""
        if x.shape[1] != len(self.offset):
            raise ConfigError(
                f"This encoder was built for {len(self.offset)} channels, but the input has {x.shape[1]} "
                f"(shape {tuple(x.shape)}, channels second)."
            )
        if self.kind == "none":
            return x
        shape = self._shape(x)
        x = (x - self.offset.view(shape)) / self.scale.view(shape)
        return x.clamp(0, 1) if self.kind == "two-sigma" else x

    def invert(self, x: Tensor) -> Tensor:
        """(B, C, ...) in network units to physical units. What was clipped stays clipped."""
        shape = self._shape(x)
        return x * self.scale.view(shape) + self.offset.view(shape)
