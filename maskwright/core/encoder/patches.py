"""Cutting an N-dimensional image into patches, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid


def as_tuple(value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """One number for all axes, or one for each."""
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def patch_grid(size: tuple[int, ...], patch_size: tuple[int, ...], name: str = "input") -> Grid:
    """The grid that an input of `size` pixels gives.

    Raises:
        ConfigError: the size is not a multiple of the patch size.
    """
    if len(size) != len(patch_size) or any(s % p or s < p for s, p in zip(size, patch_size, strict=False)):
        fit = tuple(max(s // p, 1) * p for s, p in zip(size, patch_size, strict=False))
        raise ConfigError(
            f'"{name}" of {" x ".join(map(str, size))} pixels does not divide into patches of '
            f"{' x '.join(map(str, patch_size))}. Nearest size that does: {' x '.join(map(str, fit))} "
            f"(set data.size, or another patch_size)."
        )
    return Grid(tuple(s // p for s, p in zip(size, patch_size, strict=True)))


def patchify(x: Tensor, patch_size: tuple[int, ...], channels_last: bool = False) -> Tensor:
    """(B, C, *size) to (B, N, C * prod(patch_size)), patches in raster order.

    Args:
        channels_last: order inside a patch is (pixel, channel) as in MAE's targets, instead of (channel, pixel) as in a
            convolution's weight.
    """
    batch, channels, *size = x.shape
    ndim = len(patch_size)
    split: list[int] = []
    for s, p in zip(size, patch_size, strict=True):
        split += [s // p, p]
    x = x.reshape(batch, channels, *split)
    cells = [2 + 2 * axis for axis in range(ndim)]
    pixels = [3 + 2 * axis for axis in range(ndim)]
    order = [0, *cells, *pixels, 1] if channels_last else [0, *cells, 1, *pixels]
    return x.permute(order).flatten(1, ndim).flatten(2)


def unpatchify(
    patches: Tensor, grid: Grid, patch_size: tuple[int, ...], channels: int, channels_last: bool = False
) -> Tensor:
    """Undo `patchify`: (B, N, C * prod(patch_size)) to (B, C, *size)."""
    batch, ndim = patches.shape[0], grid.ndim
    inside = (*patch_size, channels) if channels_last else (channels, *patch_size)
    x = patches.view(batch, *grid.shape, *inside)
    first = 1 + ndim + (0 if channels_last else 1)
    channel_axis = 1 + 2 * ndim if channels_last else 1 + ndim
    order = [0, channel_axis]
    for axis in range(ndim):
        order += [1 + axis, first + axis]
    size = [g * p for g, p in zip(grid.shape, patch_size, strict=True)]
    return x.permute(order).reshape(batch, channels, *size)


def patch_mask_to_pixels(hidden: Tensor, grid: Grid, patch_size: tuple[int, ...]) -> Tensor:
    """(B, N) bool to (B, *size) bool."""
    pixels = hidden.view(len(hidden), *grid.shape)
    for axis, p in enumerate(patch_size):
        pixels = torch.repeat_interleave(pixels, p, dim=axis + 1)
    return pixels
