"""Overlapping windows over a scene of any size, blended in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskwright.core.errors import ConfigError
from maskwright.core.scene import Window

POP_VALUES = 2**22
"""Most values that are normalised at once."""


def starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of windows that cover an axis; the last is flush with its end. One window where it is shorter."""
    if length <= size:
        return [0]
    return [*range(0, length - size, stride), length - size]


def bump(size: int) -> np.ndarray:
    """Weights of a window's pixels along an axis: a raised cosine, highest in the middle, never 0."""
    return np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2


@dataclass(frozen=True)
class Tiling:
    """Where windows lie and how much each of their pixels counts.

    Pixels nearer to the inner edge of a window than half a token would be extrapolated, while a neighbour interpolates
    them; they are left out where the overlap allows. So an encoder whose tokens see nothing but their own patch gives
    the same map in windows as in one piece, if the strides are multiples of its patch.

    Args:
        shape: pixels of the scene along each axis.
        size: pixels of a window along each axis.
        stride: pixels between windows along each axis.
        margin: half a token, in pixels, along each axis.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    margin: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], size: Sequence[int], overlap: float, margin: Sequence[int]) -> Tiling:
        """Windows that overlap by a share of their size.

        Raises:
            ConfigError: an overlap outside [0, 1), or sizes of another number of axes.
        """
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap={overlap} is outside [0, 1): it is a share of a window.")
        if len(size) != len(shape):
            raise ConfigError(f"A window of {len(size)} axes does not fit a scene of {len(shape)}.")
        stride = tuple(max(1, round(s * (1 - overlap))) for s in size)
        return cls(tuple(shape), tuple(size), stride, tuple(margin))

    def axis_starts(self, axis: int) -> list[int]:
        return starts(self.shape[axis], self.size[axis], self.stride[axis])

    def bands(self) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """(first row, first pixels of the windows there along all axes), from top to bottom."""
        others = [self.axis_starts(axis) for axis in range(1, len(self.shape))]
        for row in self.axis_starts(0):
            yield row, [(row, *rest) for rest in itertools.product(*others)]

    def window(self, at: tuple[int, ...]) -> Window:
        """The part of a window that lies inside the scene."""
        ends = zip(at, self.size, self.shape, strict=True)
        return tuple(slice(start, min(start + size, length)) for start, size, length in ends)

    def weights(self, at: tuple[int, ...]) -> list[np.ndarray]:
        """Weights of a window's pixels inside the scene, along each axis."""
        return [self._axis_weights(axis, start) for axis, start in enumerate(at)]

    def _axis_weights(self, axis: int, start: int) -> np.ndarray:
        size, length = self.size[axis], self.shape[axis]
        values = bump(size)[: length - start]
        places = self.axis_starts(axis)
        widest = max((b - a for a, b in itertools.pairwise(places)), default=0)
        margin = max(0, min(self.margin[axis], (size - widest) // 2))
        if margin and start > 0:
            values[:margin] = 0
        if margin and start + size < length:
            values[-margin:] = 0
        return values


class Blend:
    """Weighted sums of what windows say, of the rows that are not finished yet.

    In float64, so that windows that agree give exactly what they agree on, in float32.

    Args:
        outputs: values a pixel, K.
        tiling: which windows will come.
    """

    def __init__(self, outputs: int, tiling: Tiling) -> None:
        rows, rest = min(tiling.size[0], tiling.shape[0]), tiling.shape[1:]
        self.tiling, self.first = tiling, 0
        self.sums = np.zeros((outputs, rows, *rest))
        self.weights = np.zeros((rows, *rest))
        self.valid = np.zeros((rows, *rest), dtype=bool)

    def add(self, at: tuple[int, ...], values: np.ndarray | None, valid: np.ndarray) -> None:
        """Add a window whose first row is the first unfinished one.

        Args:
            at: its first pixels.
            values: (K, *window), or None where nothing in it is valid.
            valid: (*window) where the input has data.
        """
        assert at[0] == self.first
        window = self.tiling.window(at)
        place = (slice(0, window[0].stop - self.first), *window[1:])
        self.valid[place] |= valid
        if values is None:
            return
        weights = np.ones(())
        for along in self.tiling.weights(at):
            weights = np.multiply.outer(weights, along)
        self.sums[:, *place] += values * weights
        self.weights[place] += weights

    def pop(self, stop: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Finish the rows before `stop`: (rows, (K, rows, *rest) float32 means, validity), some rows at a time."""
        done = stop - self.first
        chunk = max(1, POP_VALUES // max(1, len(self.sums) * math.prod(self.tiling.shape[1:])))
        for start in range(0, done, chunk):
            rows = slice(start, min(start + chunk, done))
            weights = self.weights[rows]
            means = self.sums[:, rows] / np.where(weights > 0, weights, 1)
            yield slice(self.first + rows.start, self.first + rows.stop), means.astype(np.float32), self.valid[rows]
        kept = self.sums.shape[1] - done
        for array, axis in ((self.sums, 1), (self.weights, 0), (self.valid, 0)):
            moved = np.moveaxis(array, axis, 0)
            for row in range(kept):  # row by row: no copy of the whole band
                moved[row] = moved[row + done]
            moved[kept:] = 0
        self.first = stop
