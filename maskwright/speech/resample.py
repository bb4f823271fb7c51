"""Other sample rates: the windowed sinc of torchaudio, also for rates that have no small ratio."""

from __future__ import annotations

import functools
import math

import torch
import torchaudio
from torch import Tensor

WIDTH, ROLLOFF = 6, 0.99
"""Zero crossings on either side, and the cut-off as a share of the lower Nyquist rate; torchaudio's defaults."""
MAX_PHASES = 1000
"""With more phases than these torchaudio's table of filters would take gigabytes."""
TABLE = 2**21
"""Filter taps that are computed at once where there is no table."""


def step_of(rate: int, wanted: int) -> int:
    """Samples after which the two rates meet again."""
    return rate // math.gcd(rate, wanted)


def margin(rate: int, wanted: int) -> int:
    """Samples before and after a part that its own ends depend on, a multiple of `step_of`; 0 for equal rates."""
    if rate == wanted:
        return 0
    step = step_of(rate, wanted)
    return -(-(_half(rate, wanted) + 1) // step) * step


def resampled_length(length: int, rate: int, wanted: int) -> int:
    """Samples that `length` of them become."""
    return -(-length * wanted // rate)


def resample(x: Tensor, rate: int, wanted: int) -> Tensor:
    """(L,) at one rate in Hz to (ceil(L * wanted / rate),) at another, filtered below the lower Nyquist rate."""
    if rate == wanted:
        return x
    common = math.gcd(rate, wanted)
    if max(rate, wanted) // common <= MAX_PHASES:
        return _table(rate, wanted)(x)
    return _direct(x, rate // common, wanted // common)


@functools.lru_cache(maxsize=16)
def _table(rate: int, wanted: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate, wanted, lowpass_filter_width=WIDTH, rolloff=ROLLOFF)


def _half(rate: int, wanted: int) -> int:
    """Samples on either side that a filter reaches."""
    return math.ceil(WIDTH * rate / (min(rate, wanted) * ROLLOFF))


def _direct(x: Tensor, rate: int, wanted: int) -> Tensor:
    """The same sum with weights computed for each sample of the result."""
    cut, half = min(rate, wanted) * ROLLOFF, _half(rate, wanted)
    length = resampled_length(len(x), rate, wanted)
    padded = torch.nn.functional.pad(x, (half, half + 2))
    taps = torch.arange(2 * half + 2)
    parts = []
    for at in range(0, length, max(1, TABLE // len(taps))):
        number = torch.arange(at, min(length, at + max(1, TABLE // len(taps))))
        first = number * rate // wanted - half  # integers, so that far places are as exact as near ones
        away = (first[:, None] + taps) - (number.double() * rate / wanted)[:, None]
        phase = (away * cut / rate).clamp(-WIDTH, WIDTH)
        weights = torch.sinc(phase) * torch.cos(phase * math.pi / WIDTH / 2) ** 2 * (cut / rate)
        parts.append((padded[first[:, None] + taps + half] * weights.float()).sum(1))
    return torch.cat(parts)
