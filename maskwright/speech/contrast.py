"""Telling the true code of a hidden step from those of other hidden steps of the same utterance (wav2vec 2.0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.masking import fold
from maskwright.core.masking.spans import within


def hidden_places(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Where (B, N) bool is True, row by row in order: places (B, H) for the longest row, and counts (B,).

    Rows with fewer are filled up with other places.
    """
    counts = hidden.sum(1)
    order = hidden.int().argsort(dim=1, descending=True, stable=True)
    return order[:, : int(counts.max())], counts


def distractors(keys: Tensor, counts: Tensor, longest: int, number: int) -> Tensor:
    """For each of the hidden steps of a row `number` others of them, uniform with replacement: (B, longest, number).

    They are numbers 0 ... counts - 1 of hidden steps, never that of the step itself. What stands behind a row's count,
    and in a row with one hidden step, means nothing.

    Args:
        keys: (B,).
        counts: (B,) hidden steps of each row; `longest` is the most of them.
    """
    amount = longest * number
    counter = torch.arange(1, -(-amount // 2) + 1, device=keys.device)
    # millions are drawn each step: one hashed word gives two numbers of 24 bits
    words = fold(keys[:, None] + counter * -0x61C8864680B583EB, 0).view(torch.int32)[:, :amount]
    bits = words.bitwise_right_shift(8).bitwise_and_(0xFFFFFF).view(len(keys), longest, number)
    others = (counts - 1).clamp(min=1)[:, None, None]
    index = bits.float().mul_(others * 2.0**-24).int()
    own = torch.arange(longest, device=keys.device, dtype=torch.int32)[:, None]
    return index.add_(index >= own)


def contrastive(
    context: Tensor, target: Tensor, ids: Tensor, counts: Tensor, distracting: Tensor, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """-log of the share of the true code among it and K distractors, of each hidden step (wav2vec 2.0, equation 3).

    Similarities of all pairs of a row are one product; no vector is gathered K times.

    Args:
        context: (B, H, D) predictions at the hidden steps of each row.
        target: (B, H, D) their quantised features.
        ids: (B, H) their codes. A distractor of the same code is left out: it is the target.
        counts: (B,) steps of each row that are real.
        distracting: (B, H, K) which other steps, from `distractors`.

    Returns:
        Mean loss over real steps, and the logits (B, H, 1 + K), the true one first; -inf where one is left out.
    """
    similarity = F.normalize(context.float(), dim=-1) @ F.normalize(target.float(), dim=-1).transpose(1, 2)
    similarity = similarity / temperature  # (B, H, H)
    index = distracting.long().clamp(max=similarity.shape[2] - 1)
    same = ids.unsqueeze(1).expand(-1, ids.shape[1], -1).gather(2, index) == ids.unsqueeze(2)
    true = similarity.diagonal(dim1=1, dim2=2).unsqueeze(2)
    logits = torch.cat([true, similarity.gather(2, index).masked_fill(same, float("-inf"))], dim=2)
    each = logits.logsumexp(2) - true[..., 0]
    real = within(counts, ids.shape[1])
    return torch.where(real, each, 0).sum() / real.sum().clamp(min=1), logits
