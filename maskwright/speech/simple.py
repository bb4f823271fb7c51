"""Features of speech that need no network, which pre-training must beat to be worth its while."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.speech.features import with_deltas

PARTS = 8
"""Equal stretches of time that an utterance is averaged over."""


def utterance_features(frames: Tensor) -> dict[str, Tensor]:
    """What is known of an utterance (C, T) without its order of time, with the changes in it, and with a rough order.

    Returns:
        "channel statistics" (2 C,): mean and deviation over time; "statistics with deltas" (6 C,): also of the slopes and
        their slopes; "averages in time" (8 C,): means of eight stretches of equal length.
    """
    x = frames.float()
    return {
        "channel statistics": _statistics(x),
        "statistics with deltas": _statistics(with_deltas(x, 2)),
        "averages in time": F.adaptive_avg_pool1d(x[None], PARTS).flatten(),
    }


def _statistics(x: Tensor) -> Tensor:
    return torch.cat([x.mean(1), x.std(1, correction=0)])
