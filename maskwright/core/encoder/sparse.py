"""Convolutional networks that compute visible cells only (SparK, Tian et al. 2023, section 3.1).

SparK treats visible pixels as a sparse set: every layer computes at visible positions, and hidden positions stay empty.
Its authors run dense layers and set hidden positions back to zero after each. Here hidden positions are never stored:
the visible cells of a batch lie one after another as small maps, (B * V, C, *side), of 32 x 32 pixels in the picture and
of 1 x 1 in the deepest map of a network of stride 32. On these

- what works on single positions (1 x 1 convolutions, linear layers, activations, layer norms) needs no change;
- a batch norm sees visible positions and no others, so its statistics are those that the paper asks for;
- a convolution or pooling that looks around reads the rim of each cell from its neighbours, and the padding value where
  these are hidden or outside of the map;
- what pools over the whole map or draws one number a sample (squeeze-and-excitation, global response and group norms,
  stochastic depth) sees the visible cells of a sample as one map.

The result is that of the dense layers that are set back to zero, and hidden values cannot reach it: they are not there.

`to_sparse` gives layers this meaning in place by changing their classes, `to_dense` takes it back; parameters, buffers
and their names stay what they were. Outside of `active_of(module).showing(cells)` a converted network is a dense one.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Residual
from maskwright.core.encoder.cells import Cells
from maskwright.core.errors import ConfigError

WHOLE = {"SEModule", "SqueezeExcite", "EffectiveSEModule", "GlobalResponseNorm", "DropPath"}
"""Layers of timm that see the whole map of a sample."""


class Active:
    """Which cells are visible while a network runs: known to this network alone, and to each thread by itself."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def cells(self) -> Cells | None:
        return getattr(self._local, "cells", None)

    @contextlib.contextmanager
    def showing(self, cells: Cells) -> Iterator[None]:
        """Inside the block, converted layers take cells, not maps."""
        before = self.cells
        self._local.cells = cells
        try:
            yield
        finally:
            self._local.cells = before

    def __reduce__(self) -> tuple[type[Active], tuple[()]]:
        return Active, ()  # a copy of a network runs by itself


# layers -------------------------------------------------------------------------------------------------------------


class _Twin:
    """Marks a layer that was converted. `active` belongs to the network that it is part of."""

    active: Active


class _Windowed(_Twin):
    """A convolution or pooling: each cell, with its rim, by itself."""

    fill = 0.0

    def forward(self, x: Tensor) -> Tensor:
        cells = self.active.cells
        reach = _reach(cast(nn.Module, self))
        before, after = [side[0] for side in reach], [max(side[1], 0) for side in reach]
        if cells is None or not any(before + after):
            return super().forward(x)  # type: ignore[misc]
        window = tuple(b + side + a for b, side, a in zip(before, x.shape[2:], after, strict=True))
        if self.light and cells.count * math.prod(window) > cells.grid.count * math.prod(tuple(x.shape[2:])):
            # many rims cost more than the hidden positions between them
            return cells.gather(super().forward(cells.spread(x)))  # type: ignore[misc]
        return self.compute(cells.windows(x, tuple(before), tuple(after), self.fill))

    @property
    def light(self) -> bool:
        """Whether it computes so little at a position that copying costs more."""
        module = cast(Any, self)
        return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels

    @abstractmethod
    def compute(self, windows: Tensor) -> Tensor:
        """What the layer makes of windows (B * V, C, *window), which bring their padding with them."""


class _Convolution(_Windowed):
    def compute(self, windows: Tensor) -> Tensor:
        layer = cast(Any, self)
        function = F.conv2d if windows.ndim == 4 else F.conv3d
        return function(windows, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


class _MaxPool(_Windowed):
    """The largest of the visible values. After a ReLU that is what the paper's code computes on zeros."""

    fill = float("-inf")

    def compute(self, windows: Tensor) -> Tensor:
        layer = cast(Any, self)
        function = F.max_pool2d if windows.ndim == 4 else F.max_pool3d
        return function(windows, layer.kernel_size, layer.stride, 0, layer.dilation)


class _AvgPool(_Windowed):
    def compute(self, windows: Tensor) -> Tensor:
        layer = cast(Any, self)
        function = F.avg_pool2d if windows.ndim == 4 else F.avg_pool3d
        return function(windows, layer.kernel_size, layer.stride, 0)


class _Whole(_Twin):
    """A layer that looks at the whole map of a sample: at its visible cells together."""

    def forward(self, x: Tensor) -> Tensor:
        cells = self.active.cells
        if cells is None:
            return super().forward(x)  # type: ignore[misc]
        channels = -1 if getattr(self, "channel_dim", 1) == -1 else 1
        return cells.by_cell(super().forward(cells.by_sample(x, channels)), channels)  # type: ignore[misc]


_MIXINS: dict[type[nn.Module], type[_Twin]] = {
    nn.Conv2d: _Convolution,
    nn.Conv3d: _Convolution,
    nn.MaxPool2d: _MaxPool,
    nn.MaxPool3d: _MaxPool,
    nn.AvgPool2d: _AvgPool,
    nn.AvgPool3d: _AvgPool,
    nn.GroupNorm: _Whole,
    Residual: _Whole,
}


def _mixin(layer: nn.Module) -> type[_Twin] | None:
    """The sparse meaning of a layer; None if it needs no other than it has."""
    kind = type(layer)
    if kind in _MIXINS:
        return _MIXINS[kind]
    return _Whole if kind.__module__.startswith("timm.") and kind.__name__ in WHOLE else None


_twins: dict[type[nn.Module], type[nn.Module]] = {}
"""Classes of converted layers by those that they had."""


def _twin(kind: Any, mixin: type[_Twin]) -> type[nn.Module]:
    return _twins.setdefault(kind, type(f"Sparse{kind.__name__}", (mixin, kind), {"__module__": __name__}))


def _reach(layer: nn.Module) -> list[tuple[int, int]]:
    """How far a layer looks beyond a cell, before and after it, along each axis. Negative: not to the end of the cell."""
    axes = int(type(layer).__name__[-2])
    each = {
        name: value if isinstance(value, tuple) else (value,) * axes
        for name in ("kernel_size", "stride", "padding", "dilation")
        for value in [getattr(layer, name, 1)]
    }
    return [
        (padding, dilation * (kernel - 1) - padding - stride + 1)
        for kernel, stride, padding, dilation in zip(*each.values(), strict=True)
    ]


def _problem(layer: nn.Module) -> str | None:
    """Why a layer has no sparse meaning; None if it has one, or its name says nothing."""
    kind = type(layer)
    if isinstance(layer, nn.Conv1d):
        return "is one-dimensional"
    convolutions = (nn.Conv2d, nn.Conv3d)
    if isinstance(layer, nn.modules.conv._ConvNd) and kind not in convolutions:
        return "is no plain convolution"
    if not issubclass(_mixin(layer) or object, _Windowed):
        return None
    if isinstance(layer, convolutions) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        return "does not pad with zeros"
    reach = _reach(layer)
    changing = isinstance(layer, nn.AvgPool2d | nn.AvgPool3d) and not (
        layer.count_include_pad and layer.divisor_override is None
    )
    if changing and any(max(pair) > 0 for pair in reach):
        return "averages over overlapping windows of changing size"
    if getattr(layer, "ceil_mode", False) and any(max(pair) > 0 for pair in reach):
        return "rounds the size of its map up"
    stride: Any = layer.stride
    strides = stride if isinstance(stride, tuple) else (stride,) * len(reach)
    if any(not 0 <= before - after < stride for (before, after), stride in zip(reach, strides, strict=True)):
        return "does not divide the size of a map by its stride"
    return None


# networks -----------------------------------------------------------------------------------------------------------


def to_sparse(module: nn.Module) -> nn.Module:
    """Give the layers of a network their sparse meaning, in place; weights and their names stay. Returns the network.

    Raises:
        ConfigError: a layer that has none; says which and why.
    """
    layers = {name: layer for name, layer in module.named_modules() if not isinstance(layer, _Twin)}
    for name, layer in layers.items():
        problem = _problem(layer)
        if problem:
            raise ConfigError(
                f'The layer "{name}" ({type(layer).__name__}) {problem}, so it cannot compute visible positions alone. '
                f"Choose another network, such as a ResNet, ConvNeXt, RegNet or EfficientNet."
            )
    active = Active()
    for layer in layers.values():
        mixin = _mixin(layer)
        if mixin is not None:
            layer.__class__ = _twin(type(layer), mixin)
            layer.active = active
    return module


def to_dense(module: nn.Module) -> nn.Module:
    """Undo `to_sparse`, in place. Returns the network."""
    for layer in module.modules():
        if isinstance(layer, _Twin):
            del layer.active
            layer.__class__ = type(layer).__bases__[1]
    return module


def active_of(module: nn.Module) -> Active:
    """The switch of a converted network.

    Raises:
        ConfigError: it was not converted.
    """
    for layer in module.modules():
        if isinstance(layer, _Twin):
            return layer.active
    raise ConfigError(f"{type(module).__name__} holds no sparse layer. Convert it with to_sparse first.")
