"""Random numbers that belong to a sample, not to its place in a batch.

A seeded `torch.Generator` draws one 64-bit key a sample; everything random about that sample's mask is a pure function
of its key. So a mask does not depend on the neighbours in the batch, on the number of workers or processes, or on the
device, and it can be made for a whole batch at once on that device. The function is the SplitMix64 finaliser (Steele,
Lea, Flood 2014, "Fast splittable pseudorandom number generators") applied to key + counter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_INVERSE = -0xE217C1E66C88CC3  # 0xF1DE83E19937733D, with _INVERSE * _GOLDEN = 1 modulo 2**64
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def sample_keys(generator: torch.Generator, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw one key a sample from a seeded generator: (B,) int64."""
    keys = torch.randint(-(2**63), 2**63 - 1, (batch_size,), generator=generator, device=generator.device)
    return keys.to(device)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts signed integers arithmetically


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def fold(keys: Tensor, stream: int) -> Tensor:
    """Keys of an independent stream: (B,) to (B,). Use one stream number for each thing that is drawn."""
    return _mix(keys ^ _mix(torch.tensor((stream + 1) * 0x2545F4914F6CDD1D % 2**63, device=keys.device)))


def uniform(keys: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) with 24 random bits: (B, *shape) float32."""
    count = math.prod(shape)
    counter = torch.arange(1, count + 1, device=keys.device)
    # key + counter * golden, factored: torch.compile would make that product a loop index in C++, where it may not wrap
    state = ((keys * _INVERSE)[:, None] + counter) * _GOLDEN
    bits = _shift_right(_mix(state), 40)
    return (bits.to(torch.float32) * 2.0**-24).view(len(keys), *shape)


def normal(keys: Tensor, *shape: int) -> Tensor:
    """Standard normal numbers by inversion: (B, *shape) float32, all finite."""
    # the middle of each of 2 ** 24 steps between -1 and 1: exact in this order, while 1 - 2 ** -25 would round to 1
    return torch.erfinv(uniform(keys, *shape).mul_(2).sub_(1).add_(2.0**-24)).mul_(math.sqrt(2))
