"""Groups of neighbouring pixels or tokens: random rectangles that may overlap (GMML, Atito et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Masking
from maskwright.core.masking.random_keys import fold, uniform
from maskwright.core.masking.rectangles import MOST, first_cover, union_areas

DRAWS = 64
"""Sets of 126 rectangles that are drawn, at most."""


def group_corruption(
    keys: Tensor,
    size: Sequence[int],
    share: float | Tensor,
    align: int,
    max_block: float = 0.3,
) -> Tensor:
    """Which pixels GMML overwrites: the union of random rectangles, (B, *size) bool, True where corrupted.

    Each sample draws a target n ~ U(min(0.5, share), share) of its pixels, and takes rectangles until their union has
    n or more; the last may overshoot. Along an axis of length L a rectangle starts at a multiple of `align` below
    L - align, and is randint(align, floor(max_block * L)) pixels long (the upper bound is excluded), cut at the border
    and rounded to a multiple of `align`. So it never starts in the last `align` pixels, and the first pixels of an axis
    are covered least often: at a share of 0.75 about 0.3 in the first row of patches against 0.7 inside. That is the
    published rule. The target and all rectangles are pure functions of the sample's key; there is no loop over samples.

    Args:
        keys: (B,) as in `random_keys`.
        size: pixels along each of one to three axes: (T,), (H, W), (D, H, W).
        share: largest share of pixels, in [0, 1), for all samples or (B,) for each.
        align: grain of starts and lengths in pixels: 1 as released, or the patch size for whole tokens.
        max_block: longest side of a rectangle as a share of the axis, excluded.

    Raises:
        ConfigError: `floor(max_block * L) <= align`, which leaves no length to draw; `align` or `share` out of range;
            a share that rectangles of these sizes cannot cover.
    """
    _check_blocks(size, align, max_block)
    shares = torch.as_tensor(share, dtype=torch.float64, device=keys.device).expand(len(keys))
    if len(keys):
        _check_share(float(shares.min()), float(shares.max()), size, align, max_block)
    cells = tuple(-(-length // align) for length in size)
    area = _cell_areas(size, align, keys.device)
    target = corruption_target(keys, size, shares)
    most = MOST
    first = _first_of_draw(keys, 0, size, align, max_block)
    areas = union_areas(first, area, most)
    while bool((areas[:, -1] < target).any()):
        if most == MOST * DRAWS:
            raise ConfigError(
                f"share={float(shares.max()):g} was not covered by {most} rectangles. Lower it, or raise max_block."
            )
        later = _first_of_draw(keys, most // MOST, size, align, max_block) + most
        first = torch.where(first < most, first, later)
        most += MOST
        areas = union_areas(first, area, most)
    count = (areas < target[:, None]).sum(1)
    hidden = (first < count[:, None]).view(len(keys), *cells)
    for axis, length in enumerate(size, start=1):
        hidden = hidden.repeat_interleave(align, dim=axis).narrow(axis, 0, length)
    return hidden


def _first_of_draw(keys: Tensor, draw: int, size: Sequence[int], align: int, max_block: float) -> Tensor:
    """First rectangle of a set of 126 that covers each cell: (B, N) int32."""
    starts, stops = group_rectangles(fold(keys, draw + 1), size, align, max_block, MOST)
    cells = [-(-length // align) for length in size]
    return first_cover(starts // align, (stops + align - 1) // align, cells)


def corruption_target(keys: Tensor, size: Sequence[int], share: Tensor) -> Tensor:
    """Pixels that each sample's union must reach: (B,) float64, for `share` (B,) float64."""
    low = share.clamp(max=0.5)
    return (low + uniform(fold(keys, 0), 1)[:, 0].double() * (share - low)) * math.prod(size)


def group_rectangles(
    keys: Tensor, size: Sequence[int], align: int, max_block: float, count: int
) -> tuple[Tensor, Tensor]:
    """First pixel inside and first beyond of `count` rectangles a sample: two (B, count, d) int64 tensors."""
    random = uniform(keys, count, len(size), 2).double()
    length = torch.tensor(size, device=keys.device)
    longest = torch.tensor([_longest(each, max_block) for each in size], device=keys.device)
    starts = (random[..., 0] * (length - align)).long() // align * align
    sides = (align + random[..., 1] * (longest - align)).long().minimum(length - starts)
    sides = (sides / align).round().long() * align  # halves go to the even multiple, as in Python and NumPy
    return starts, (starts + sides).minimum(length)


def _longest(length: int, max_block: float) -> int:
    return int(round(max_block * length, 6))


def _cell_areas(size: Sequence[int], align: int, device: torch.device) -> Tensor:
    """(N,) int64 pixels of each cell of `align` pixels a side; the last of an axis may be smaller."""
    area = torch.ones(1, dtype=torch.int64, device=device)
    for length in size:
        starts = torch.arange(0, length, align, device=device)
        area = (area[:, None] * (length - starts).clamp(max=align)).flatten()
    return area


def _check_blocks(size: Sequence[int], align: int, max_block: float) -> None:
    if not 1 <= len(size) <= 3:
        raise ConfigError(f"Groups have one to three axes, not {len(size)}.")
    if align < 1:
        raise ConfigError(f"align={align} must be 1 or more pixels.")
    if not 0 < max_block <= 1:
        raise ConfigError(f"max_block={max_block} is outside (0, 1]: it is a share of each axis.")
    for length in size:
        if _longest(length, max_block) <= align:
            raise ConfigError(
                f"No block fits: max_block={max_block} of {length} pixels is {_longest(length, max_block)}, which must "
                f"be more than align={align}. Lower align, raise max_block, or use larger inputs."
            )


def _check_share(lowest: float, highest: float, size: Sequence[int], align: int, max_block: float) -> None:
    if not (lowest >= 0 and highest < 1):
        raise ConfigError(f"share={lowest if lowest < 0 else highest:g} is outside [0, 1): it is the share of pixels.")
    reach = math.prod(_reach(length, align, max_block) / length for length in size)
    if highest > reach:
        raise ConfigError(
            f"share={highest:g} cannot be covered: blocks of max_block={max_block} and align={align} reach "
            f"{reach:.2f} of {' x '.join(map(str, size))} pixels. Lower share, or raise max_block."
        )


def _reach(length: int, align: int, max_block: float) -> int:
    """Pixels of an axis that a rectangle can reach."""
    longest = _longest(length, max_block) - 1
    starts = range(0, (length - align - 1) // align * align + 1, align)
    return max(min(start + round(min(longest, length - start) / align) * align, length) for start in starts)


class GroupMasking(Masking):
    """Tokens are hidden rectangle by rectangle until the count is exact: GMML's groups on a grid of tokens.

    Along an axis of n tokens a rectangle starts anywhere but at the last token, and is U(1, max_block * n) tokens long,
    rounded and cut at the border, as `group_corruption` draws it when `align` is the patch size. A token's score is the
    number of the first rectangle that covers it; of the last rectangle that is needed, tokens at random. Tokens at the
    upper and left border are hidden less often than inside.

    Args:
        ratio: share of tokens to hide.
        max_block: longest side of a rectangle as a share of the axis; never less than 2 tokens.
    """

    def __init__(self, ratio: float = 0.75, max_block: float = 0.3) -> None:
        super().__init__(ratio)
        if not 0 < max_block <= 1:
            raise ConfigError(f"masking.max_block={max_block} is outside (0, 1]: it is a share of each axis.")
        self.max_block = max_block

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        wanted, most = self.hidden_count(grid), MOST * DRAWS
        first = torch.full((len(keys), grid.count), most, device=keys.device, dtype=torch.int32)
        for draw in range(DRAWS):
            missing = (first < most).sum(1, keepdim=True) < wanted
            if not bool(missing.any()):
                break
            starts, stops = self._rectangles(fold(keys, draw + 1), grid)
            new = first_cover(starts, stops, grid.shape)
            # a complete sample draws no more, so that its mask does not depend on the others
            first = torch.where(missing & (new < MOST), first.minimum(new + draw * MOST), first)
        # single precision would leave too few bits to the noise beside thousands of rectangles
        return uniform(fold(keys, 0), grid.count).double() - first

    def _rectangles(self, keys: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        random = uniform(keys, MOST, grid.ndim, 2).double()
        length = torch.tensor(grid.shape, device=keys.device)
        longest = (self.max_block * length.double()).clamp(min=2)
        starts = (random[..., 0] * (length - 1).clamp(min=1)).long()
        sides = (1 + random[..., 1] * (longest - 1)).round().long()
        return starts, (starts + sides).minimum(length)
