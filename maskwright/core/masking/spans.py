"""Spans of neighbouring steps of a sequence, and masks of rows that differ in length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Masking, mask_from_scores
from maskwright.core.masking.random_keys import fold, uniform

_STARTS, _TIES = 0, 1
"""Streams of random numbers of a row."""


def within(lengths: Tensor, count: int) -> Tensor:
    """(B, count) bool, True at the first `lengths` (B,) steps of each row."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def covered(starts: Tensor, span: int) -> Tensor:
    """Steps of spans of `span` steps that begin where `starts` (B, N) is True: (B, N) bool. Spans end with the row."""
    at = torch.arange(starts.shape[1], device=starts.device)
    # the newest start up to each step; a step without one is as far away as a span is long
    newest = torch.where(starts, at, at.new_full((), -span)).cummax(1).values
    return at - newest < span


def chosen(scores: Tensor, number: Tensor) -> Tensor:
    """The `number` (B,) highest of (B, N) `scores`, of which negative ones are never chosen: (B, N) bool."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = within(number, scores.shape[1])
    return torch.zeros_like(first).scatter_(1, order, first) & (scores >= 0)


class SpanMasking(Masking):
    """Spans of `span` steps, laid one after the other at random places until the count is exact; they may overlap.

    On grids of several axes spans run along the last one and end with it. Every step draws a priority, and a span
    starts at each step in the order of priorities. Of the last span that is needed, steps at random are hidden. Spans
    that reach beyond the last step are cut there, so that the first steps are covered least often. w2v-BERT and TERA
    read `ratio` and `span` as well where they lay spans in their own ways.

    Args:
        ratio: share of steps to hide; 0.4894 is what spans of 10 steps cover that start with a probability of 0.065.
        span: steps of a span.
    """

    def __init__(self, ratio: float = 0.4894, span: int = 10) -> None:
        super().__init__(ratio)
        if span < 1:
            raise ConfigError(f"masking.span={span} must be 1 or more steps.")
        self.span = span

    @property
    def start_probability(self) -> float:
        """Probability that a span starts at a step, if independent starts are to cover `ratio` of a long row."""
        return 1 - (1 - self.ratio) ** (1 / self.span)

    def score(self, grid: Grid, keys: Tensor, guide: Tensor | None = None) -> Tensor:
        priority = uniform(fold(keys, _STARTS), grid.count).double().view(-1, grid.shape[-1])
        # a step is as early hidden as the first span that covers it
        scores = F.max_pool1d(F.pad(priority, (self.span - 1, 0)), self.span, stride=1)
        return scores.view(len(keys), grid.count) + 1e-9 * uniform(fold(keys, _TIES), grid.count)

    def independent(self, keys: Tensor, lengths: Tensor, count: int) -> Tensor:
        """Every step of a row starts a span with probability `start_probability` (wav2vec 2.0; w2v-BERT).

        A row in which no step does, as happens in short ones, starts one where its priority is highest.

        Args:
            lengths: (B,) steps of each row; `count` is the longest or more.

        Returns:
            (B, count) bool. Rows hide different numbers of steps, `ratio` of long ones on average.
        """
        real = within(lengths, count)
        priority = torch.where(real, uniform(fold(keys, _STARTS), count), -1)
        lowest = priority.amax(1, keepdim=True).clamp(max=1 - self.start_probability)
        return covered(priority >= lowest, self.span) & real

    def equal(self, keys: Tensor, lengths: Tensor, count: int) -> Tensor:
        """The same number of hidden steps in every row, as fairseq2 samples them; it depends on the whole batch.

        The shortest row decides the number of spans, int(start_probability * (length - 1)). Each row draws their starts
        with replacement, so that whole spans fit. Then rows lose single steps at random until all hide as many as the
        one that hides fewest. Overlaps are lost, too: at a `ratio` of 0.49, 8 rows of 100 steps hide 0.37 of them.

        Raises:
            ConfigError: a row is no longer than a span, or too short for two spans.
        """
        shortest = int(lengths.min())
        number = int(round(self.start_probability * (shortest - 1), 3))
        if shortest <= self.span or number < 2:
            raise ConfigError(
                f"A row of {shortest} steps has no room for two spans of {self.span} steps at a ratio of {self.ratio:g}. "
                f"Use longer samples, lower masking.span, or set method.spans=independent."
            )
        room = (lengths - self.span + 1)[:, None]
        starts = (uniform(fold(keys, _STARTS), number).double() * room).long()
        flags = torch.zeros(len(keys), count, dtype=torch.bool, device=keys.device).scatter_(1, starts, True)
        hidden = covered(flags, self.span)
        scores = hidden + uniform(fold(keys, _TIES), count)
        return mask_from_scores(scores, int(hidden.sum(1).min())).hidden


def hidden_rows(masking: Masking, keys: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Any masking on rows of different lengths: (B, count) bool, in each row the exact count of its own length.

    Rows of one length are masked at once. A row's mask depends on its key and length only.

    Args:
        lengths: (B,) steps of each row; `count` is the longest or more.
    """
    hidden = torch.zeros(len(keys), count, dtype=torch.bool, device=keys.device)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        hidden[rows, :length] = masking(Grid((length,)), keys[rows]).hidden
    return hidden
