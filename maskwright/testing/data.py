"""Made-up inputs that fit an `InputSpec`, for checks that need no real file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskwright.core.encoder import Encoder
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import Batch, InputSpec, Meta, Sample

SIZES = (32, 48, 64, 96, 120, 128, 224, 16, 8)
"""Sizes of an axis that are tried, in this order."""


def made_up_batch(inputs: InputSpec, count: int = 4, size: int = 32, seed: int = 0) -> Batch:
    """Smooth waves plus a little noise for every input: a batch of `count` samples.

    Args:
        inputs: what to make; an input of any number of channels gets two, points get three.
        size: length of every axis other than C.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, lengths = {}, {}
    for name, spec in inputs.items():
        channels = spec.channel_count or (3 if "N" in spec.dims.split() else 2)
        shape = [channels if axis == "C" else size for axis in spec.dims.split()]
        wave = torch.zeros(count, *shape)
        for axis, length in enumerate(shape):
            frequency = 4 * torch.rand(count, generator=generator) * 2 * math.pi / max(length, 8)
            phase = torch.arange(length) * frequency[:, None] + 6 * torch.rand(count, 1, generator=generator)
            wave = wave + phase.sin().view(count, *[length if other == axis else 1 for other in range(len(shape))])
        tensors[name] = wave + 0.1 * torch.randn(wave.shape, generator=generator)
        if spec.variable:
            lengths[name] = size - torch.arange(count) % max(1, size // 4)
            for row, length in zip(tensors[name], lengths[name].tolist(), strict=True):
                row[..., length:] = 0
    return Batch(tensors, [Meta(f"made up {i}", group=f"made up {i}", index=i) for i in range(count)], lengths=lengths)


def batch_for(encoder: Encoder, count: int = 4, sizes: Sequence[int] = SIZES) -> Batch:
    """A made-up batch of the first size that the encoder can tokenize.

    Raises:
        ConfigError: none of the sizes suits it.
    """
    problem = ConfigError("no size was tried")
    for size in sizes:
        batch = made_up_batch(encoder.inputs, count, size)
        try:
            encoder.tokenize(batch)
        except ConfigError as error:
            problem = error
        else:
            return batch
    raise ConfigError(f"No made-up batch of sizes {', '.join(map(str, sizes))} suits this encoder: {problem}")


def statistics_of(batch: Batch, inputs: InputSpec) -> dict[str, Statistics]:
    """Per-channel statistics of a batch, as a loader would give them."""
    return {
        name: _statistics(batch[name], spec.dims.split().index("C"))
        for name, spec in inputs.items()
        if "C" in spec.dims.split()
    }


def _statistics(values: Tensor, channel_axis: int) -> Statistics:
    values = values.movedim(channel_axis + 1, 0).flatten(1).double()
    std, mean = torch.std_mean(values, dim=1)
    return Statistics(mean.tolist(), std.tolist(), values.amin(1).tolist(), values.amax(1).tolist(), values.shape[1])


def rows(batch: Batch, index: Sequence[int]) -> Batch:
    """Some samples of a batch, in the order of `index`."""
    return Batch(
        {name: tensor[list(index)] for name, tensor in batch.tensors.items()},
        [batch.metas[i] for i in index],
        lengths={name: lengths[list(index)] for name, lengths in batch.lengths.items()},
    )


class BatchLoader(Loader):
    """The samples of a batch as a loader, for methods that learn something from the data before the first step."""

    def __init__(self, batch: Batch, inputs: InputSpec) -> None:
        self.batch, self.spec, self.bad_files = batch, inputs, []

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.batch)

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        lengths = {name: int(lengths[index]) for name, lengths in self.batch.lengths.items()}
        tensors = {name: tensor[index] for name, tensor in self.batch.tensors.items()}
        cut = {name: tensor[..., : lengths.get(name, tensor.shape[-1])] for name, tensor in tensors.items()}
        return Sample(cut, self.batch.metas[index], frozenset(lengths))

    def group(self, index: int) -> str:
        return self.batch.metas[index].group

    def statistics(self) -> dict[str, Statistics]:
        return statistics_of(self.batch, self.spec)

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        grey = tensor.float().flatten(0, -3).mean(0)
        grey = (grey - grey.amin()) / (grey.amax() - grey.amin()).clamp_min(1e-12) * 255
        return grey.byte()[..., None].expand(*grey.shape, 3).numpy()
