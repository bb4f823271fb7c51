"""Alterations of a spectrogram along time, frequency and magnitude (TERA, Liu, Li, Lee, TASLP 2021, section III).

Everything is drawn from the key of each utterance, for a whole batch at once. Only true frames are altered or selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Masking, fold, normal, uniform
from maskwright.core.masking.spans import SpanMasking, chosen, covered, hidden_rows, within

_STARTS, _PHASE, _SOURCES, _KIND, _WIDTH, _BAND, _NOISE, _VALUES, _MASKING = range(9)
"""Streams of random numbers of an utterance."""
ZEROED, REPLACED, KEPT = range(3)
"""What happens to the chosen frames of an utterance."""


@dataclass(frozen=True, eq=False)
class Altered:
    """A batch of altered spectrograms.

    Args:
        values: (B, T, F), altered.
        selected: (B, T, F) bool, the cells whose clean values are to be predicted.
        frames: (B, T) bool, the frames chosen along time.
        kind: (B,) what happened to them: `ZEROED`, `REPLACED` by other frames of the utterance, or `KEPT` as they were.
    """

    values: Tensor
    selected: Tensor
    frames: Tensor
    kind: Tensor


def span_starts(keys: Tensor, lengths: Tensor, count: int, share: float, span: int, overlap: bool = True) -> Tensor:
    """Where the spans of time alteration start: (B, count) bool, round(length * share / span) in each row.

    Starts are drawn without replacement from 0 ... length - span - 1, so that the last frame is never covered. Without
    `overlap` they come from a grid with a step of round(1.5 * span) frames and a random phase.

    Args:
        lengths: (B,) true frames; `count` is the longest or more.
    """
    room = lengths - span
    allowed = within(room, count)
    if not overlap:
        phase = (uniform(fold(keys, _PHASE), 1) * room.clamp(1, span)[:, None]).long()
        allowed &= (torch.arange(count, device=keys.device) - phase) % round(1.5 * span) == 0
        allowed &= torch.arange(count, device=keys.device) >= phase
    priority = torch.where(allowed, uniform(fold(keys, _STARTS), count), -1)
    return chosen(priority, (lengths.double() * share / span).round().long())


def replaced_frames(values: Tensor, starts: Tensor, keys: Tensor, lengths: Tensor, span: int) -> Tensor:
    """Frames (B, T, F) in which the spans at `starts` (B, T) hold other spans of the same utterance.

    As many source spans as there are spans are drawn without replacement, independently, so that the two may overlap.
    """
    count = values.shape[1]
    at = torch.arange(count, device=values.device)
    priority = torch.where(within(lengths - span, count), uniform(fold(keys, _SOURCES), count), -1)
    sources = priority.argsort(dim=1, descending=True, stable=True)
    newest = torch.where(starts, at, 0).cummax(1).values
    number = (starts.cumsum(1) - 1).clamp(min=0)  # the newest span up to each frame
    source = torch.where(covered(starts, span), sources.gather(1, number) + at - newest, at)
    return values.gather(1, source[..., None].expand_as(values))


def altered_kind(keys: Tensor) -> Tensor:
    """One die for each utterance: `ZEROED` in 80, `REPLACED` in 10, `KEPT` in 10 of 100, (B,) int64."""
    die = uniform(fold(keys, _KIND), 1)[:, 0]
    return (die >= 0.8).long() + (die >= 0.9).long()


def frequency_band(keys: Tensor, bins: int, share: float) -> Tensor:
    """Bins of frequency alteration: (B, bins) bool, one band a row, w ~ U{0 ... floor(bins * share)} bins wide.

    It starts at U{0 ... bins - w - 1}, so that the last bin is never part of it.
    """
    widest = int(round(bins * share, 6))
    width = (uniform(fold(keys, _WIDTH), 1).double() * (widest + 1)).long()
    start = (uniform(fold(keys, _BAND), 1).double() * (bins - width)).long()
    at = torch.arange(bins, device=keys.device)
    return (at >= start) & (at < start + width)


class Alteration:
    """The policy of TERA: time spans, a frequency band and noise, each drawn by itself.

    Args:
        masking: which frames are altered along time: `SpanMasking` lays round(length * ratio / span) spans as published,
            which may overlap and cover less than `ratio`; of any other masking the exact share. A ratio of 0 leaves
            time alone.
        overlap: whether published spans may overlap.
        band_share: widest frequency band as a share of the bins; 0 leaves frequency alone.
        noise_share: share of utterances that get noise; 0 leaves magnitude alone.
        noise_std: standard deviation of the noise, in network units.
        noise_first: noise is added to the clean values, so that zeroed cells are zero; else to the altered ones.

    Raises:
        ConfigError: a share out of range, or nothing at all to alter.
    """

    def __init__(
        self,
        masking: Masking,
        overlap: bool = True,
        band_share: float = 0.2,
        noise_share: float = 0.15,
        noise_std: float = 0.2,
        noise_first: bool = True,
    ) -> None:
        for name, value in (("band_share", band_share), ("noise_share", noise_share)):
            if not 0 <= value <= 1:
                raise ConfigError(f"method.{name}={value} is a share, 0 to 1.")
        if band_share == 1:
            raise ConfigError("method.band_share=1 would hide all of an utterance. Choose less than 1, such as 0.2.")
        if noise_std < 0:
            raise ConfigError(f"method.noise_std={noise_std} must be 0 or more.")
        if not (masking.ratio or band_share or noise_share):
            raise ConfigError(
                "Nothing is altered, so nothing can be learned. Set masking.ratio, method.band_share or "
                "method.noise_share above 0."
            )
        self.masking, self.overlap, self.band_share = masking, overlap, band_share
        self.noise_share, self.noise_std, self.noise_first = noise_share, noise_std, noise_first

    def __call__(self, values: Tensor, lengths: Tensor, keys: Tensor, alone: bool = False) -> Altered:
        """Alter (B, T, F) values in network units; `values` stays as it is.

        Args:
            lengths: (B,) true frames.
            alone: hide the chosen cells whatever the die says, and add no noise, so that nothing is left of them.
        """
        real = within(lengths, values.shape[1])[..., None]
        frames, starts = self.frames(keys, lengths, values.shape[1])
        kind = torch.zeros_like(lengths) if alone else altered_kind(keys)
        band = frequency_band(keys, values.shape[2], self.band_share)[:, None]
        noise = None if alone or not self.noise_share else self.noise(values, keys)
        x = values if noise is None or not self.noise_first else values + noise
        if not alone:
            span = self.masking.span if isinstance(self.masking, SpanMasking) else 1
            x = torch.where((kind == REPLACED)[:, None, None], replaced_frames(x, starts, keys, lengths, span), x)
        x = torch.where((frames & (kind == ZEROED)[:, None])[..., None] | band, 0, x)
        x = x if noise is None or self.noise_first else x + noise
        selected = frames[..., None] | band
        if not (self.masking.ratio or self.band_share):  # noise alone: all of it is to be taken away again
            selected = torch.ones_like(selected)
        return Altered(torch.where(real, x, 0), selected.expand_as(values) & real, frames, kind)

    def frames(self, keys: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Frames chosen along time, and where their spans start (single frames of a masking without spans)."""
        masking = self.masking
        if isinstance(masking, SpanMasking):
            starts = span_starts(keys, lengths, count, masking.ratio, masking.span, self.overlap)
            return covered(starts, masking.span), starts
        frames = hidden_rows(masking, fold(keys, _MASKING), lengths, count)
        return frames, frames

    def noise(self, values: Tensor, keys: Tensor) -> Tensor:
        """(B, T, F) noise; 0 for utterances that get none. One die for each utterance."""
        noisy = uniform(fold(keys, _NOISE), 1)[..., None] < self.noise_share
        return torch.where(noisy, normal(fold(keys, _VALUES), *values.shape[1:]) * self.noise_std, 0)
