"""Speech features as entries of a learned codebook, and the losses that keep the codebook in use (wav2vec 2.0)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.errors import ConfigError
from maskwright.core.masking import uniform


@dataclass(frozen=True, eq=False)
class Quantized:
    """M quantised steps.

    Args:
        vectors: (M, D) codebook entries, with a straight-through gradient to the logits in training.
        ids: (M,) which entries; no gradient.
        probabilities: (M, V) softmax of the logits, without noise and temperature.
    """

    vectors: Tensor
    ids: Tensor
    probabilities: Tensor


class GumbelQuantizer(nn.Module):
    """One codebook of V entries, chosen by logits of each step (Baevski et al. 2020, section 2; Jang et al. 2017).

    In training an entry is drawn with Gumbel noise and the gradient passes as if the choice were soft, at `temperature`;
    in evaluation the likeliest is taken. The temperature of optimiser step s is max(`lowest`, `highest` * `decay` ** s).

    Args:
        in_dim: width of the features.
        codes: entries V.
        code_dim: width D of an entry.
        highest, lowest, decay: schedule of the temperature.

    Raises:
        ConfigError: fewer than two entries, or no falling temperature above 0.
    """

    def __init__(
        self,
        in_dim: int,
        codes: int = 1024,
        code_dim: int = 1024,
        highest: float = 2.0,
        lowest: float = 0.1,
        decay: float = 0.999995,
    ) -> None:
        super().__init__()
        if codes < 2:
            raise ConfigError(f"method.codes={codes} must be 2 or more entries.")
        if not (0 < lowest <= highest and 0 < decay <= 1):
            raise ConfigError(
                f"Temperatures fall from method.temperature={highest} to method.lowest_temperature={lowest}, above 0, by "
                f"a factor of method.temperature_decay={decay} in (0, 1] each step."
            )
        self.logits = nn.Linear(in_dim, codes)
        self.codebook = nn.Parameter(torch.rand(codes, code_dim))
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.highest, self.lowest, self.decay = highest, lowest, decay
        self.temperature = highest

    def start_step(self, step: int) -> None:
        """Set the temperature of an optimiser step, counted from 0."""
        self.temperature = max(self.lowest, self.highest * self.decay**step)

    def forward(self, x: Tensor, keys: Tensor) -> Quantized:
        """Quantise (M, in_dim); `keys` (M,) decide the noise of each step."""
        logits = self.logits(x).float()
        probabilities = logits.softmax(-1)
        if not self.training:
            ids = logits.argmax(-1)
            return Quantized(self.codebook[ids], ids, probabilities)
        noisy = logits + gumbel(keys, logits.shape[-1])
        ids = noisy.argmax(-1)
        soft = (noisy / self.temperature).softmax(-1)
        hard = F.one_hot(ids, len(self.codebook)).to(soft.dtype)
        straight = hard - soft.detach() + soft
        return Quantized(straight.to(self.codebook.dtype) @ self.codebook, ids, probabilities)


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise, (M, count) for keys (M,)."""
    return -(-(uniform(keys, count) + 2.0**-25).log()).log()


def step_keys(keys: Tensor, steps: Tensor) -> Tensor:
    """A key for each step of an utterance: keys (M,) of the utterances and the numbers (M,) of steps, to (M,)."""
    return keys + (steps + 1) * -0x61C8864680B583EB  # odd: steps of one utterance never share a key


def perplexity(probabilities: Tensor) -> Tensor:
    """exp of the entropy of the mean of (M, V) distributions: V if all codes are used alike, 1 if one alone is.

    0 log 0 is kept away by 1e-7 inside the logarithm, as in fairseq.
    """
    mean = probabilities.mean(0)
    return (-(mean * (mean + 1e-7).log()).sum()).exp()


def diversity_loss(probabilities: Tensor) -> Tensor:
    """(V - perplexity) / V: 0 if all codes are used alike, (V - 1) / V if one alone is."""
    codes = probabilities.shape[-1]
    return (codes - perplexity(probabilities)) / codes
