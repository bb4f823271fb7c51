"""The strategies that know no domain. Each is a score; the highest scores are hidden."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Masking
from maskwright.core.masking.random_keys import fold, uniform

COLOURS = ("red", "blue", "green", "purple")


class RandomMasking(Masking):
    """White noise: every set of tokens is equally likely (MAE, He et al. 2022).

    Args:
        ratio: share of tokens to hide.
        visible: exact number of tokens that stay visible, whatever the grid (CropMAE, Eymael et al. 2024, keeps 2);
            wins over `ratio`.
    """

    scattered = True
    uniform_marginals = True
    visible: int | None = None

    def __init__(self, ratio: float = 0.75, visible: int | None = None) -> None:
        super().__init__(ratio)
        if visible is not None and visible < 1:
            raise ConfigError(f"masking.visible={visible} must be 1 or more tokens.")
        self.visible = visible

    def hidden_count(self, grid: Grid) -> int:
        if self.visible is None:
            return super().hidden_count(grid)
        if self.visible >= grid.count:
            raise ConfigError(
                f"masking.visible={self.visible} hides nothing of {grid.count} tokens. "
                f"Choose at most {grid.count - 1}, or set masking.ratio instead."
            )
        return grid.count - self.visible

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        return uniform(keys, grid.count)


class UnitMasking(Masking):
    """Whole units of `unit` tokens along each axis are hidden together (SimMIM, Xie et al. 2022, at unit > 1).

    Args:
        ratio: share of units to hide; the number of visible units is int(units * (1 - ratio)).
        unit: tokens along each axis of a unit. The grid must be divisible by it.
    """

    uniform_marginals = True

    def __init__(self, ratio: float = 0.6, unit: int = 2) -> None:
        super().__init__(ratio)
        if unit < 1:
            raise ConfigError(f"masking.unit={unit} must be 1 or more tokens.")
        self.unit = unit

    def _units(self, grid: Grid) -> Grid:
        if any(size % self.unit for size in grid.shape):
            raise ConfigError(
                f"A grid of {grid.shape} tokens does not divide into units of {self.unit} tokens. "
                f"Choose masking.unit as a divisor of {math.gcd(*grid.shape)}, or another input size."
            )
        return Grid(tuple(size // self.unit for size in grid.shape))

    def hidden_count(self, grid: Grid) -> int:
        return super().hidden_count(self._units(grid)) * self.unit**grid.ndim

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        scores = uniform(keys, *self._units(grid).shape)
        # ranks keep the tokens of a unit together even where two units drew the same number
        scores = scores.flatten(1).argsort(1).argsort(1).to(torch.float32).view_as(scores)
        for axis in range(grid.ndim):
            scores = scores.repeat_interleave(self.unit, dim=axis + 1)
        return scores.flatten(1)


class BlockMasking(Masking):
    """A few compact blocks are hidden, as in BEiT (Bao et al. 2022), but with exact counts and no loop over samples.

    Each of `blocks` seeds draws a place and an aspect ratio; a token's score is minus its distance to the nearest seed,
    measured in that seed's own box shape, so that the hidden tokens are the union of equally grown boxes.

    Args:
        ratio: share of tokens to hide.
        blocks: number of boxes.
        max_aspect: longest over shortest side of a box, at most.
    """

    def __init__(self, ratio: float = 0.5, blocks: int = 4, max_aspect: float = 3.0) -> None:
        super().__init__(ratio)
        if blocks < 1:
            raise ConfigError(f"masking.blocks={blocks} must be 1 or more.")
        if max_aspect < 1:
            raise ConfigError(f"masking.max_aspect={max_aspect} must be 1 or more (longest side over shortest).")
        self.blocks, self.max_aspect = blocks, max_aspect

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        size = torch.tensor(grid.shape, device=keys.device, dtype=torch.float32)
        centres = uniform(fold(keys, 0), self.blocks, grid.ndim) * size - 0.5
        aspect = (uniform(fold(keys, 1), self.blocks, grid.ndim) - 0.5) * math.log(self.max_aspect)
        sides = aspect.exp()  # each side lies within sqrt(max_aspect) of 1
        # the distance in a box is the largest of the distances along each axis
        along = []
        for axis, length in enumerate(grid.shape):
            at = torch.arange(length, device=keys.device)
            offset = (at - centres[..., axis, None]).abs() / sides[..., axis, None]
            along.append(
                offset.view(len(keys), self.blocks, *[-1 if other == axis else 1 for other in range(grid.ndim)])
            )
        distance = functools.reduce(torch.maximum, along).amin(1).flatten(1)
        # below the step between true distances: decides ties at the rim at random
        return -distance + uniform(fold(keys, 2), grid.count) * 1e-4


class ColourNoiseMasking(Masking):
    """Filtered noise gives masks a spatial prior (ColorMAE, Hinojosa et al. 2024), on any lattice.

    With W white noise and G_s a Gaussian blur of standard deviation s: red = G_s W, blue = W - G_s W,
    green = G_s1 W - G_s2 W, purple = W - green. The largest values stay visible. The paper does not give its sigmas;
    the defaults are ours. The noise wraps around the grid, so no place is special and every token is hidden equally
    often; a window cut from a larger map, as in the paper, hides its middle more often than its corners (red, sigma 2,
    14 x 14 tokens: 0.76 and 0.73 at a ratio of 0.75).

    Args:
        ratio: share of tokens to hide.
        colour: red (large blobs), blue (even spread), green (clusters of medium size), purple (coarse and fine).
        sigma: s of red and blue, s2 (the wider) of green and purple; in tokens.
        sigma_narrow: s1 of green and purple; in tokens, smaller than sigma.
        schedule: colours of later epochs, as {0-based epoch: colour}; {100: "blue"} changes to blue when epoch 100
            starts. Before its first epoch `colour` holds.
    """

    uniform_marginals = True
    variants = tuple({"colour": colour} for colour in COLOURS)

    def __init__(
        self,
        ratio: float = 0.75,
        colour: Literal["red", "blue", "green", "purple"] = "green",
        sigma: float = 2.0,
        sigma_narrow: float = 1.0,
        schedule: dict[int, str] | None = None,
    ) -> None:
        super().__init__(ratio)
        if colour not in COLOURS:
            raise ConfigError(f'masking.colour="{colour}" is none of {", ".join(COLOURS)}.')
        if not 0 < sigma_narrow < sigma:
            raise ConfigError(f"masking.sigma_narrow={sigma_narrow} must lie between 0 and masking.sigma={sigma}.")
        for start, later in (schedule or {}).items():
            if later not in COLOURS or isinstance(start, bool) or not isinstance(start, int) or start < 0:
                raise ConfigError(
                    f"masking.schedule={schedule}: each entry is a 0-based epoch and one of {', '.join(COLOURS)}, "
                    f"such as {{100: blue}}."
                )
        self.colour, self.sigma, self.sigma_narrow = colour, sigma, sigma_narrow
        self.schedule = dict(sorted((schedule or {}).items()))

    @property
    def current_colour(self) -> str:
        """The colour of the epoch that `epoch` says."""
        begun = [colour for start, colour in self.schedule.items() if start <= self.epoch]
        return begun[-1] if begun else self.colour

    def noise(self, grid: Grid, keys: Tensor) -> Tensor:
        """The filtered noise map of the current colour, (B, *shape)."""
        colour = self.current_colour
        white = uniform(keys, *grid.shape) - 0.5
        if colour in ("red", "blue"):
            low = _blur(white, self.sigma)
            return low if colour == "red" else white - low
        green = _blur(white, self.sigma_narrow) - _blur(white, self.sigma)
        return green if colour == "green" else white - green

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        # ranks alone decide: to divide a map by its maximum first, as the official code does, turns the order around
        # where the whole map is negative, which red noise often is
        return -self.noise(grid, keys).flatten(1)


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, *shape) along every axis, with wrap-around; the kernel reaches 3 sigma."""
    radius = max(1, math.ceil(3 * sigma))
    weights = {shift: math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-radius, radius + 1)}
    total = sum(weights.values())
    for axis in range(1, maps.ndim):
        # shifted maps are added in one order, so that not a bit depends on the batch size or the device
        shifted = (maps.roll(shift, axis) * (weight / total) for shift, weight in weights.items())
        maps = functools.reduce(torch.add, shifted)
    return maps


class GuidedMasking(Masking):
    """A score comes from outside: a teacher's attention, a predicted loss, the share of valid pixels.

    The guide is ranked within each sample, then mixed with noise, so that its scale does not matter.

    Args:
        ratio: share of tokens to hide.
        strength: 0 ignores the guide, 1 follows it alone; between, a share of the rank comes from the guide.
        hide: hide tokens of "high" or of "low" guide values.
    """

    scattered = True
    needs_guide = True

    def __init__(self, ratio: float = 0.75, strength: float = 0.5, hide: Literal["high", "low"] = "high") -> None:
        super().__init__(ratio)
        if not 0 <= strength <= 1:
            raise ConfigError(f"masking.strength={strength} is outside [0, 1].")
        if hide not in ("high", "low"):
            raise ConfigError(f'masking.hide="{hide}" is neither "high" nor "low".')
        self.strength, self.hide = strength, hide

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        assert guide is not None  # checked by the caller
        guide = guide.float() if self.hide == "high" else -guide.float()
        rank = guide.argsort(dim=1, stable=True).argsort(1) / grid.count
        return self.strength * rank + (1 - self.strength) * uniform(keys, grid.count)
