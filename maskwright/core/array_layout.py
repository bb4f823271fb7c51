"""Axes and columns of arrays whose files do not name them, and how such samples are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from maskwright.core.errors import ConfigError, nearest

DIMS = {1: "C T", 2: "C H W", 3: "C D H W"}
"""How a sample is given out, by its number of axes besides the channels."""
DEFAULT_AXES = {1: "T", 2: "H W", 3: "C H W", 4: "C D H W"}
"""How the axes of a sample are understood where nothing is said."""
FEW_CHANNELS = 4
"""An image whose last axis is this short, and whose first is longer, looks as if its channels came last."""


def find_axes(shape: tuple[int, ...], axes: str, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How to turn a sample of `shape` into channels first.

    Args:
        axes: names of the axes as stored; empty for the usual ones.
        where: for messages.

    Returns:
        order of the stored axes, and the sizes (C, ...) of what is given out; C is 1 where no axis is called C.

    Raises:
        ConfigError: unknown or wrongly many axes, or a guess that would be one too many.
    """
    if not axes:
        if len(shape) not in DEFAULT_AXES:
            raise ConfigError(f"Samples of {where} have shape {shape}: one to four axes can be read. See data.shape.")
        if len(shape) == 3 and shape[2] <= FEW_CHANNELS < shape[0]:
            raise ConfigError(
                f'Samples of {where} have shape {shape}. Say where the channels are: data.axes="H W C" if last, '
                f'"C H W" if first, or "D H W" if it is a volume.'
            )
        axes = DEFAULT_AXES[len(shape)]
    names = axes.split()
    wanted = next((dims.split() for dims in DIMS.values() if set(dims.split()) == {*names, "C"}), None)
    if wanted is None or len(set(names)) != len(names):
        raise ConfigError(
            f'data.axes="{axes}" is no layout of a sample. Use each of C T, C H W or C D H W once, in the order in which '
            f"they are stored; C may be left out."
        )
    if len(names) != len(shape):
        raise ConfigError(f'data.axes="{axes}" names {len(names)} axes, but samples of {where} have shape {shape}.')
    order = tuple(names.index(name) for name in wanted if name in names)
    sizes = tuple(shape[axis] for axis in order)
    return order, sizes if "C" in names else (1, *sizes)


def pick_columns(columns: Any, count: int, names: Sequence[str], where: str) -> list[int]:
    """Positions of chosen columns.

    Args:
        columns: None for all, a slice as text (`"0:36"`), one name, or a list of names and positions from 0.
        count: number of columns there are.
        names: their names, or nothing.

    Raises:
        ConfigError: no such column, none at all, or one twice.
    """
    if columns is None:
        return list(range(count))
    if isinstance(columns, int):
        raise ConfigError(
            f"data.columns={columns}: quote a slice, as YAML reads 1:36 as a number to the base of 60 "
            f"(--set \"data.columns='1:36'\"); one column alone is [{columns}]."
        )
    if isinstance(columns, str) and columns not in names:
        match = re.fullmatch(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*", columns)
        if match:
            chosen = list(range(count))[slice(*(int(part) if part else None for part in match.groups()))]
            stop = int(match[2] or 0)
            if not chosen or stop > count:
                raise ConfigError(f'data.columns="{columns}" does not fit {where}, which has {count} columns.')
            return chosen
        columns = [part.strip() for part in columns.split(",")]
    chosen = [_position(column, count, names, where) for column in ([columns] if isinstance(columns, str) else columns)]
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(f"data.columns={columns} must name one column or more, each once.")
    return chosen


def _position(column: str | int, count: int, names: Sequence[str], where: str) -> int:
    if isinstance(column, int):
        if not 0 <= column < count:
            raise ConfigError(f"{where}: there is no column {column}; positions go from 0 to {count - 1}.")
        return column
    if list(names).count(column) > 1:
        raise ConfigError(f'{where}: several columns are called "{column}". Give positions from 0 instead.')
    if column not in names:
        hint = nearest(column, names) if names else f" They have no names: give positions from 0 to {count - 1}."
        raise ConfigError(f'{where}: there is no column "{column}".{hint}')
    return list(names).index(column)


def draw(tensor: Tensor) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of a sample (C, T), (C, H, W) or (C, D, H, W).

    A series is a row of grey cells a channel, each channel stretched between its 2nd and 98th percentile; an image shows
    its first three channels, or the first alone, stretched alike; a volume its middle slice.
    """
    values = tensor.float().numpy()
    if values.ndim == 2:
        grey = np.repeat(_stretched(values, 1), max(1, 8 // len(values)), axis=0)
        return np.repeat(grey[..., None], 3, axis=-1)
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    values = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    return _stretched(values, (1, 2)).transpose(1, 2, 0)


def _stretched(values: np.ndarray, axis: Any) -> np.ndarray:
    low, high = np.nanpercentile(values, (2, 98), axis=axis, keepdims=True)
    return (np.nan_to_num((values - low) / np.maximum(high - low, 1e-6)).clip(0, 1) * 255).astype(np.uint8)
