"""The visible cells of a batch of maps, one after another: cutting them out, their rims, and putting them back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.encoder.patches import patchify, unpatchify
from maskwright.core.masking.base import Grid


class Cells:
    """The visible cells of a batch, and how maps are cut into them.

    Args:
        grid: layout of all cells.
        visible: (B, V) places of the visible ones in `grid`, raster order.

    Shapes:
        cells (B * V, C, *side) in the order of `visible`; maps (B, C, *size) with size = grid * side along each axis.
    """

    def __init__(self, grid: Grid, visible: Tensor) -> None:
        self.grid, self.visible = grid, visible
        self.batch, self.count = visible.shape
        self._tables: dict[tuple[Any, ...], Tensor] = {}

    def windows(self, cells: Tensor, before: tuple[int, ...], after: tuple[int, ...], fill: float = 0.0) -> Tensor:
        """Cells with a rim of their visible neighbours; `fill` stands where there is none.

        Args:
            before, after: positions that the rim adds along each axis.

        Returns:
            (B * V, C, *(before + side + after)).
        """
        side = tuple(cells.shape[2:])
        table = self._table(("windows", side, before, after), lambda: self._window_rows(side, before, after))
        return _pick(cells, table, fill)

    def spread(self, cells: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Maps (B, C, *size), with `fill`, one number or (C,), at hidden positions."""
        side = tuple(cells.shape[2:])
        return _pick(cells, self._table(("spread", side), lambda: self._spread_rows(side)), fill)

    def gather(self, maps: Tensor) -> Tensor:
        """The visible cells of maps."""
        side = tuple(size // count for size, count in zip(maps.shape[2:], self.grid.shape, strict=True))
        return _pick(maps, self._table(("gather", side), lambda: self._gather_rows(side)), None)

    def by_sample(self, cells: Tensor, channels: int = 1) -> Tensor:
        """The visible cells of each sample as one map: (B, C, V * side, ...). `channels` is their axis."""
        x = cells.movedim(channels, -1).unflatten(0, (self.batch, self.count)).flatten(1, 2)
        return x.movedim(-1, channels)

    def by_cell(self, samples: Tensor, channels: int = 1) -> Tensor:
        """Undo `by_sample`."""
        x = samples.movedim(channels, -1).unflatten(1, (self.count, -1)).flatten(0, 1)
        return x.movedim(-1, channels)

    # which row of a table stands where; rows are positions, all channels together -----------------------------------

    def _table(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]

    @functools.cached_property
    def _slots(self) -> Tensor:
        """(B * N,) which cell of the batch stands at a place; -1 at hidden ones."""
        device = self.visible.device
        slots = torch.full((self.batch, self.grid.count), -1, device=device)
        numbers = torch.arange(self.batch * self.count, device=device).view(self.batch, self.count)
        return slots.scatter(1, self.visible, numbers).flatten()

    def _window_rows(self, side: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """(B * V, *window) rows of the positions of all cells; their number where nothing is visible."""
        batch, device, axes = self.batch, self.visible.device, len(side)
        place, inner = self._first(axes), torch.zeros(1, dtype=torch.long, device=device)
        inside = torch.ones(1, dtype=torch.bool, device=device)
        for axis, (cell, count) in enumerate(zip(side, self.grid.shape, strict=True)):
            behind = math.prod(self.grid.shape[axis + 1 :])
            at = torch.arange(-before[axis], cell + after[axis], device=device)
            position = (self.visible // behind % count)[..., None] * cell + at  # (B, V, window)
            shape = (batch, self.count, *(len(at) if other == axis else 1 for other in range(axes)))
            within = ((position >= 0) & (position < cell * count)).view(shape)
            inside = inside & within
            place = place + (position.clamp(0, cell * count - 1) // cell * behind).view(shape)
            inner = inner * cell + (position % cell).view(shape)
        slot = self._slots[place]
        volume = math.prod(side)
        rows = torch.where((slot >= 0) & inside, slot * volume + inner, batch * self.count * volume)
        return rows.flatten(0, 1)

    def _first(self, axes: int) -> Tensor:
        """(B, 1, ...) number of the first place of each sample."""
        first = torch.arange(self.batch, device=self.visible.device) * self.grid.count
        return first.view(self.batch, 1, *[1] * axes)

    def _spread_rows(self, side: tuple[int, ...]) -> Tensor:
        """(B, *size) rows of the positions of all cells; their number where hidden."""
        slot, volume = self._slots, math.prod(side)
        inner = torch.arange(volume, device=slot.device)
        rows = torch.where(slot[:, None] < 0, self.batch * self.count * volume, slot[:, None] * volume + inner)
        return unpatchify(rows.view(self.batch, self.grid.count, volume), self.grid, side, 1)[:, 0]

    def _gather_rows(self, side: tuple[int, ...]) -> Tensor:
        """(B * V, *side) rows of the positions of a batch of maps."""
        size = [count * cell for count, cell in zip(self.grid.shape, side, strict=True)]
        numbers = torch.arange(self.batch * math.prod(size), device=self.visible.device).view(self.batch, 1, *size)
        cells = patchify(numbers, side).flatten(0, 1).view(-1, *side)
        return cells[(self._first(0).view(-1, 1) + self.visible).flatten()]


def _pick(x: Tensor, rows: Tensor, fill: Tensor | float | None) -> Tensor:
    """Positions of `x` (n, C, *side) at `rows` (m, *shape): (m, C, *shape), channels last in memory.

    A row beyond the last is `fill`; None where there is no such row. Whole rows are copied, forwards and backwards.
    """
    table, last = x.movedim(1, -1).flatten(0, -2), None
    if fill is not None:
        value = torch.full_like(table[:1], fill) if not isinstance(fill, Tensor) else fill.to(table.dtype)[None]
        last = len(table) if not isinstance(fill, Tensor) else None  # no gradient of a number
        table = torch.cat([table, value])
    return F.embedding(rows, table, padding_idx=last).movedim(-1, 1)
