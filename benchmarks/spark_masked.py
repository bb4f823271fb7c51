"""SparK's sparse layers as its authors run them: dense layers whose hidden positions are set back to zero after each.

An implementation of its own, from the paper's rules, that shares no code with `maskwright.core.encoder.sparse`: the
other side of the benchmark, and of the parity tests.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedNetwork(nn.Module):
    """A timm ConvNet under a map of active cells.

    Args:
        module: the dense network. Its layers are changed in place; weights and names stay.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.active = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        for layer in module.modules():
            forward = self._forward_for(layer)
            if forward is not None:
                layer.forward = MethodType(forward, layer)

    def forward(self, x: Tensor, active: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W) of all scales, hidden positions 0.

        Args:
            x: (B, C, H, W). active: (B, 1, h, w) bool, True where a cell is visible.
        """
        self.active = active
        last, maps = self.module.forward_intermediates(x * self.at(x))
        return [*maps[:-1], last]

    def at(self, x: Tensor) -> Tensor:
        """The map at the resolution of `x`."""
        rows, columns = (x.shape[axis] // self.active.shape[axis] for axis in (2, 3))
        return self.active.repeat_interleave(rows, 2).repeat_interleave(columns, 3)

    def _forward_for(self, layer: Any) -> Callable[..., Tensor] | None:
        name = type(layer).__name__
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            return self._zeroing(layer)
        if isinstance(layer, nn.BatchNorm2d):
            return self._batch_norm(layer)
        if isinstance(layer, nn.LayerNorm):
            return self._layer_norm(layer, channels_first=name == "LayerNorm2d")
        if name == "Mlp" and isinstance(layer.fc2, nn.Linear):
            return self._zeroing_last(layer)
        if name in ("SEModule", "SqueezeExcite"):
            return self._squeeze(layer)
        return None

    def _zeroing(self, layer: nn.Module) -> Callable[..., Tensor]:
        dense = type(layer).forward

        def forward(own: nn.Module, x: Tensor) -> Tensor:
            y = dense(own, x)
            return y if y.shape[-1] == 1 and x.shape[-1] == 1 and self.active.shape[-1] > 1 else y * self.at(y)

        return forward

    def _zeroing_last(self, layer: nn.Module) -> Callable[..., Tensor]:
        dense = type(layer).forward

        def forward(own: nn.Module, x: Tensor) -> Tensor:  # channels last
            y = dense(own, x)
            return y * self.at(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        return forward

    def _batch_norm(self, layer: nn.Module) -> Callable[..., Tensor]:
        def forward(own: Any, x: Tensor) -> Tensor:
            places = self.at(x).squeeze(1).nonzero(as_tuple=True)
            last = x.permute(0, 2, 3, 1)
            if own.training:
                own.num_batches_tracked.add_(1)
            rows = F.batch_norm(
                last[places],
                own.running_mean,
                own.running_var,
                own.weight,
                own.bias,
                own.training,
                own.momentum,
                own.eps,
            )
            y = torch.zeros_like(last)
            y[places] = rows
            y = y.permute(0, 3, 1, 2)
            return own.act(own.drop(y)) if hasattr(own, "act") else y

        return forward

    def _layer_norm(self, layer: nn.Module, channels_first: bool) -> Callable[..., Tensor]:
        def forward(own: Any, x: Tensor) -> Tensor:
            last = x.permute(0, 2, 3, 1) if channels_first else x
            places = self.at(last.permute(0, 3, 1, 2)).squeeze(1).nonzero(as_tuple=True)
            y = torch.zeros_like(last)
            y[places] = F.layer_norm(last[places], own.normalized_shape, own.weight, own.bias, own.eps)
            return y.permute(0, 3, 1, 2) if channels_first else y

        return forward

    def _squeeze(self, layer: Any) -> Callable[..., Tensor]:
        first, second = (layer.fc1, layer.fc2) if hasattr(layer, "fc1") else (layer.conv_reduce, layer.conv_expand)
        act = layer.act if hasattr(layer, "fc1") else layer.act1

        def forward(own: Any, x: Tensor) -> Tensor:
            mean = x.sum((2, 3), keepdim=True) / self.at(x).sum((2, 3), keepdim=True)
            gate = F.conv2d(act(F.conv2d(mean, first.weight, first.bias)), second.weight, second.bias)
            return x * own.gate(gate)

        return forward
