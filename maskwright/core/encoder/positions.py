"""Where a token is: additive tables, rotations of queries and keys, and distance biases.

All are computed from the coordinates of the tokens that are really there, so that any grid size works and nothing is
gathered from a table over all pairs of positions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid
from maskwright.core.masking.hide import take

PositionKind = Literal["sincos", "learned", "rope", "alibi", "none"]


def coordinates_at(grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
    """Coordinates of the tokens at `index` (B, V): (B, V, d); of all tokens without it: (1 or B, N, d)."""
    coordinates = grid.coordinates(device)
    if coordinates.ndim == 2:
        return coordinates[None] if index is None else coordinates[index]
    return coordinates if index is None else take(coordinates, index)


def sincos(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine-cosine embedding of (..., d) coordinates: (..., dim) float32.

    Each axis gets dim / d numbers, [sin, cos] concatenated; the last axis (the column) comes first, as in MAE. Numbers
    left over where dim is no multiple of 2 d are zero.
    """
    axes = coordinates.shape[-1]
    half = dim // (2 * axes)
    omega = temperature ** (-torch.arange(half, device=coordinates.device, dtype=torch.float64) / half)
    parts = []
    for axis in reversed(range(axes)):
        angle = coordinates[..., axis, None].double() * omega
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=-1).float()
    return F.pad(table, (0, dim - table.shape[-1]))


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of ALiBi (Press et al. 2022) for each head: (num_heads,) float32.

    A geometric series 2^(-8 k / n) where n is a power of two; otherwise the series of the power of two below, filled up
    with every second slope of the series of twice that.
    """

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * k / n) for k in range(1, n + 1)]

    below = 2 ** int(math.log2(num_heads))
    slopes = series(below)
    if below < num_heads:
        slopes += series(2 * below)[0::2][: num_heads - below]
    return torch.tensor(slopes)


def alibi_bias(query_at: Tensor, key_at: Tensor, slopes: Tensor) -> Tensor:
    """Attention bias -slope_h * Euclidean distance (CROMA, section 3: 2D-ALiBi; X-ALiBi where the two sides differ).

    Args:
        query_at, key_at: coordinates (B, Q, d) and (B, K, d) in token units.
        slopes: (H,).

    Returns:
        (B, H, Q, K), to be added to scaled scores before the softmax.
    """
    distance = torch.cdist(query_at, key_at, compute_mode="donot_use_mm_for_euclid_dist")
    return distance[:, None] * -slopes[:, None, None]


class Positions(nn.Module):
    """A kind of position. An encoder asks for all three forms and uses those that are not None.

    `grid` is the full layout, `index` (B, V) the tokens that are there (None: all of them).
    """

    def add(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor | None:
        """Table to add to tokens, (1 or B, V, D)."""
        return None

    def rotation(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor | None:
        """Angles for rotary attention, (1 or B, 1, V, head_dim / 2)."""
        return None

    def bias(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor | None:
        """Attention bias, (1 or B, heads, V, V)."""
        return None


class SinCosPositions(Positions):
    """Fixed sine-cosine table, on a grid of any shape and number of axes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._tables: dict[tuple, Tensor] = {}  # by grid shape and device: a table costs more than its use

    def add(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
        if grid.scattered:
            return sincos(coordinates_at(grid, index, device), self.dim)
        table = self._table(grid, device)
        return table[None] if index is None else F.embedding(index, table)

    def _table(self, grid: Grid, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():  # filling the cache would make it compile a second time
            return sincos(grid.coordinates(device), self.dim)
        key = (grid.shape, device)
        if key not in self._tables:
            self._tables[key] = sincos(grid.coordinates(device), self.dim)
        return self._tables[key]


class LearnedPositions(Positions):
    """Trained table on a base grid, interpolated to others."""

    def __init__(self, dim: int, grid: Grid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.table = nn.Parameter(torch.randn(1, grid.count, dim) * 0.02)

    def add(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
        if grid.scattered:
            raise ConfigError("Learned positions need a lattice. Use positions=sincos or rope for scattered tokens.")
        table: Tensor = self.table
        if grid.shape != self.shape:
            mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[grid.ndim]
            maps = table.transpose(1, 2).unflatten(2, self.shape)
            table = F.interpolate(maps, size=grid.shape, mode=mode, align_corners=False).flatten(2).transpose(1, 2)
        return table if index is None else F.embedding(index, table[0])


class RotaryPositions(Positions):
    """Rotary embedding (Su et al. 2021) on any number of axes: head_dim is shared out evenly among them."""

    def __init__(self, head_dim: int, axes: int, temperature: float = 100.0) -> None:
        super().__init__()
        if head_dim < 2 * axes:
            raise ConfigError(
                f"Rotary positions on {axes} axes need at least {2 * axes} numbers a head, not {head_dim}."
            )
        self.head_dim, self.axes, self.temperature = head_dim, axes, temperature

    def rotation(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
        at = coordinates_at(grid, index, device)
        pairs = self.head_dim // 2 // self.axes
        omega = self.temperature ** (-torch.arange(pairs, device=device, dtype=torch.float32) / pairs)
        angles = (at[..., None] * omega).flatten(-2)  # (B, V, axes * pairs)
        return F.pad(angles, (0, self.head_dim // 2 - angles.shape[-1])).unsqueeze(1)


class ALiBiPositions(Positions):
    """Euclidean distance bias on any number of axes (2D-ALiBi of CROMA on two)."""

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(num_heads), persistent=False)

    def bias(self, grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
        at = coordinates_at(grid, index, device)
        return alibi_bias(at, at, self.slopes)


def make_positions(kind: PositionKind, dim: int, num_heads: int, grid: Grid) -> Positions:
    """Build a kind of position by name, for tokens of width `dim` on grids like `grid`."""
    if kind == "sincos":
        return SinCosPositions(dim)
    if kind == "learned":
        return LearnedPositions(dim, grid)
    if kind == "rope":
        return RotaryPositions(dim // num_heads, grid.ndim)
    if kind == "alibi":
        return ALiBiPositions(num_heads)
    if kind == "none":
        return Positions()
    raise ConfigError(f'positions="{kind}" is none of sincos, learned, rope, alibi, none.')


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of (B, H, N, head_dim) by (1 or B, 1, N, head_dim / 2) angles."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
