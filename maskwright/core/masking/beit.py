"""Block-wise masks as published, with an exact count and without a loop over samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Masking
from maskwright.core.masking.random_keys import fold, uniform

ROUNDS = 200
"""Rounds of proposals, at most. A batch of 256 masks of 14 x 14 tokens takes 10 to 30."""
PROPOSALS = 16
"""Rectangles that a sample draws in each round."""


class BeitBlockMasking(Masking):
    """Rectangles are added until exactly as many tokens are hidden as asked for (BEiT, Bao et al. 2022, algorithm 1).

    A rectangle has an area ~ U(min_area, remaining) (the bounds change places where fewer remain), an aspect ratio
    exp(U(ln min_aspect, -ln min_aspect)), sides rounded and shorter than the grid, and a uniform place; it is taken if
    it hides between 1 and `remaining` further tokens, as in the code of CAE (Chen et al. 2023), whose counts are exact.
    Each sample proposes several rectangles in a round and takes the first that fits, which has the same distribution
    as one proposal after the other. A sample that is not complete after 200 rounds is filled up with single tokens at
    random, which happens only on very narrow grids, such as 2 x 30 tokens at a ratio of 0.9.

    Args:
        ratio: share of tokens to hide.
        min_area: smallest area of a rectangle in tokens; null stands for the published 16 of 14 x 14 tokens, and for
            the same share of another grid (4 of 7 x 7).
        min_aspect: smallest ratio of height to width, in (0, 1]; the largest is its inverse.
    """

    grid_dims = (2,)

    def __init__(self, ratio: float = 0.5, min_area: int | None = None, min_aspect: float = 0.3) -> None:
        super().__init__(ratio)
        if min_area is not None and min_area < 1:
            raise ConfigError(f"masking.min_area={min_area} must be 1 or more tokens.")
        if not 0 < min_aspect <= 1:
            raise ConfigError(f"masking.min_aspect={min_aspect} is outside (0, 1]: it is height over width.")
        self.min_area, self.min_aspect = min_area, min_aspect

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        wanted = min(self.hidden_count(grid), grid.count - 1)
        hidden = torch.zeros(len(keys), *grid.shape, dtype=torch.bool, device=keys.device)
        for number in range(ROUNDS):
            remaining = wanted - hidden.sum((1, 2))
            unfinished = remaining.nonzero().squeeze(1)
            if not len(unfinished):
                break
            before = hidden[unfinished]
            proposal = self._proposal(before, remaining[unfinished], fold(keys[unfinished], number + 1))
            hidden[unfinished] = before | proposal
        # what no rectangle could fill, tokens at random do
        return hidden.flatten(1) + uniform(fold(keys, 0), grid.count)

    def _proposal(self, hidden: Tensor, remaining: Tensor, keys: Tensor) -> Tensor:
        """(B, H, W) bool: each sample's first rectangle that fits, or nothing."""
        height, width = hidden.shape[1:]
        smallest = self.min_area or max(1, round(16 / 196 * height * width))
        # in double precision no rounding of a side hangs on the last bit, which may differ between devices
        random = uniform(keys, 4, PROPOSALS).double()
        bounds = torch.stack([remaining, torch.full_like(remaining, smallest)])
        low, high = bounds.amin(0)[:, None], bounds.amax(0)[:, None]
        area = low + random[:, 0] * (high - low)
        root_aspect = ((random[:, 1] - 0.5) * -math.log(self.min_aspect)).exp()
        h, w = (area.sqrt() * root_aspect).round().long(), (area.sqrt() / root_aspect).round().long()
        longest_h, longest_w = max(height - 1, 1), max(width - 1, 1)
        fits = (h >= 1) & (w >= 1) & (h <= longest_h) & (w <= longest_w)
        h, w = h.clamp(1, longest_h), w.clamp(1, longest_w)
        top = (random[:, 2] * (height - h + 1)).long()
        left = (random[:, 3] * (width - w + 1)).long()

        new = h * w - _sums(hidden, top, left, top + h, left + w)
        fits &= (new >= 1) & (new <= remaining[:, None])
        chosen = fits.int().argmax(1, keepdim=True)  # the first that fits
        top, left, h, w, fits = (values.gather(1, chosen) for values in (top, left, h, w, fits))
        row, column = torch.arange(height, device=keys.device), torch.arange(width, device=keys.device)
        rows = (row >= top) & (row < top + h) & fits
        columns = (column >= left) & (column < left + w)
        return rows[:, :, None] & columns[:, None]


def _sums(hidden: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Hidden tokens in each of (B, K) rectangles, by a summed-area table."""
    table = torch.nn.functional.pad(hidden.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    width = table.shape[2]
    table = table.flatten(1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return table.gather(1, row * width + column)

    return at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
