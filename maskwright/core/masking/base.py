"""Grid, Mask and Masking: scores over the tokens of a grid become masks with exact counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Grid:
    """The layout of tokens.

    Args:
        shape: (14, 14) for an image, (8, 14, 14) for a clip or volume, (T,) for a sequence, (N,) for scattered tokens.
        positions: coordinates of scattered tokens, (N, d) or (B, N, d). A lattice has none; its coordinates are its
            indices.
    """

    shape: tuple[int, ...]
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise ConfigError(f"A grid needs at least one token along each axis, not {self.shape}.")

    @property
    def count(self) -> int:
        """Number of tokens N."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def scattered(self) -> bool:
        return self.positions is not None

    def coordinates(self, device: torch.device | str = "cpu") -> Tensor:
        """Coordinates in token units, raster order: (N, d) float32, or (B, N, d) where samples differ."""
        if self.positions is not None:
            return self.positions.to(device)
        axes = [torch.arange(size, device=device, dtype=torch.float32) for size in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(self.count, self.ndim)


@dataclass(frozen=True, eq=False)
class Mask:
    """Which tokens are hidden. Every sample of a batch has the same counts, so tensors stay dense.

    Args:
        visible: (B, V) indices of visible tokens.
        masked: (B, H) indices of hidden tokens.
        restore: (B, N) positions that undo `cat([visible, masked], 1)`.
    """

    visible: Tensor
    masked: Tensor
    restore: Tensor

    @property
    def hidden(self) -> Tensor:
        """(B, N) bool, True where a token is hidden."""
        return self.restore >= self.visible.shape[1]

    @property
    def ratio(self) -> float:
        """Share of tokens that is hidden."""
        return self.masked.shape[1] / self.restore.shape[1]

    def __len__(self) -> int:
        return self.restore.shape[0]


def mask_from_scores(scores: Tensor, hidden_count: int) -> Mask:
    """Hide the `hidden_count` tokens of highest score in each row of (B, N) `scores`.

    Ties go to the later token, on every device alike. NaN counts as the highest score.

    Raises:
        ConfigError: `hidden_count` leaves no visible token, or is negative.
    """
    batch, count = scores.shape
    if not 0 <= hidden_count < count:
        raise ConfigError(
            f"{hidden_count} of {count} tokens cannot be hidden: at least one must stay visible. "
            f"Lower masking.ratio, or give more tokens (a larger input or a smaller patch_size)."
        )
    order = torch.argsort(scores, dim=1, stable=True)
    restore = torch.empty_like(order)
    restore.scatter_(1, order, torch.arange(count, device=scores.device).expand(batch, count))
    return Mask(order[:, : count - hidden_count], order[:, count - hidden_count :], restore)


class Masking(ABC):
    """A score over the grid; the core turns scores into a mask. Subclasses implement `score`.

    Args:
        ratio: share of tokens to hide, in [0, 1). The visible count is int(N * (1 - ratio)), as in MAE.
    """

    grid_dims: ClassVar[tuple[int, ...]] = (1, 2, 3)
    """Numbers of grid axes that this strategy has a meaning on."""
    scattered: ClassVar[bool] = False
    """Whether it works on scattered tokens, which have no lattice."""
    uniform_marginals: ClassVar[bool] = False
    """Whether every token is hidden equally often. Promised here, checked by the contract test."""
    needs_guide: ClassVar[bool] = False
    """Whether a score must come from outside."""
    variants: ClassVar[tuple[dict[str, str], ...]] = ()
    """Options worth seeing side by side: a preview draws one picture for each, unless the user sets them."""

    epoch: int = 0
    """0-based epoch, set by the trainer before each step; strategies with a schedule look at it."""

    def __init__(self, ratio: float = 0.75) -> None:
        if not 0 <= ratio < 1:
            raise ConfigError(f"masking.ratio={ratio} is outside [0, 1): it is the share of tokens to hide.")
        self.ratio = ratio

    def hidden_count(self, grid: Grid) -> int:
        """Number of tokens hidden in each sample."""
        # rounding guards against 1 - 0.9 = 0.0999...; MAE's int() truncates the kept count
        return grid.count - int(round(grid.count * (1 - self.ratio), 6))

    @abstractmethod
    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, N) float scores; the highest are hidden. `keys` (B,) as in `random_keys`, `guide` (B, N) from outside."""

    def check(self, grid: Grid) -> None:
        """Raise ConfigError if this strategy has no meaning on `grid`."""
        name = type(self).__name__
        if grid.scattered and not self.scattered:
            raise ConfigError(f"{name} needs a lattice of tokens, not scattered ones. Use masking.name=random.")
        if not grid.scattered and grid.ndim not in self.grid_dims:
            raise ConfigError(
                f"{name} works on grids of {' or '.join(map(str, self.grid_dims))} dimensions, not on {grid.shape}."
            )

    def __call__(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Mask:
        """Make the masks of a batch, on the device of `keys` (B,).

        Raises:
            ConfigError: the grid does not suit the strategy, or a guide is missing.
        """
        self.check(grid)
        if self.needs_guide and guide is None:
            raise ConfigError(f"{type(self).__name__} needs a score from outside, and this method gives none.")
        if guide is not None and guide.shape != (len(keys), grid.count):
            raise ConfigError(
                f"The guide has shape {tuple(guide.shape)}; {(len(keys), grid.count)} was expected: one score for each "
                f"of {grid.count} tokens."
            )
        return mask_from_scores(self.score(grid, keys, guide), self.hidden_count(grid))
