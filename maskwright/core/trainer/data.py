"""The order of samples as a pure function of seed and step, and reading that survives bad files.

Nothing about the data has to be stored in a checkpoint: a resumed run starts the same sequence at a later place,
whatever the number of loader processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader
from maskwright.core.sample import BadFile, Batch, Sample, collate


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from several integers, mixed as in SplitMix64."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & (2**64 - 1))) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 31
        state = state * 0x94D049BB133111EB % 2**64
        state ^= state >> 29
    return state >> 1


def generator_for(*parts: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


ORDER, READ, KEYS, FORWARD, PREPARE = 1, 2, 3, 4, 5
"""What a derived generator is for; keeps the streams apart."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Args:
        length: samples in the data.
        batch: samples a process and forward pass.
        world: processes.
        accumulate: forward passes an optimiser step.
        steps: optimiser steps of the whole run.
        buckets: samples of each bucket, where a batch must not mix them; empty where all go together.
    """

    length: int
    batch: int
    world: int
    accumulate: int
    steps: int
    buckets: tuple[int, ...] = ()

    @property
    def global_batch(self) -> int:
        """Samples an optimiser step."""
        return self.batch * self.world * self.accumulate

    @property
    def micro_per_epoch(self) -> int:
        """Forward passes an epoch, over all accumulated ones; the rest of the samples waits for another epoch."""
        return sum(self.blocks_of(size) for size in self.buckets or (self.length,))

    def blocks_of(self, size: int) -> int:
        """Global batches that a bucket of so many samples gives an epoch; a bucket too small for one gives all it has."""
        return max(1, size // (self.batch * self.world)) if size >= self.world else 0

    def epoch_of(self, step: int) -> int:
        """Epoch (0-based) in which optimiser step `step` begins."""
        return step * self.accumulate // self.micro_per_epoch


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from forward pass `start` to the end of the run, for one of several processes.

    Each epoch is a fresh permutation from (seed, epoch); process r takes rows r, r + world, ... of each global batch.

    Args:
        bucket_of: (N,) bucket of each sample, if batches must not mix them. Each bucket is permuted by itself, and then
            the order of all global batches of the epoch.
    """

    def __init__(
        self, plan: Plan, seed: int, start: int = 0, rank: int = 0, bucket_of: np.ndarray | None = None
    ) -> None:
        self.plan, self.seed, self.start, self.rank, self.bucket_of = plan, seed, start, rank, bucket_of

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulate - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        blocks: list[Tensor] = []
        blocks_epoch = -1
        for micro in range(self.start, self.start + len(self)):
            epoch, place = divmod(micro, self.plan.micro_per_epoch)
            if epoch != blocks_epoch:
                blocks, blocks_epoch = self._blocks(epoch), epoch
            yield [(epoch, int(index)) for index in blocks[place][self.rank :: self.plan.world]]

    def _blocks(self, epoch: int) -> list[Tensor]:
        """Indices of each global batch of an epoch."""
        plan, rows = self.plan, self.plan.batch * self.plan.world
        if self.bucket_of is None:
            order = torch.randperm(plan.length, generator=generator_for(self.seed, ORDER, epoch))
            return [order[place * rows : (place + 1) * rows] for place in range(plan.micro_per_epoch)]
        blocks = []
        for number, size in enumerate(plan.buckets):
            members = torch.from_numpy(np.flatnonzero(self.bucket_of == number))
            order = members[torch.randperm(size, generator=generator_for(self.seed, ORDER, epoch, number + 1))]
            blocks += [order[place * rows : (place + 1) * rows] for place in range(plan.blocks_of(size))]
        mixed = torch.randperm(len(blocks), generator=generator_for(self.seed, ORDER, epoch, 0))
        return [blocks[number] for number in mixed]


class SampleReader(Dataset[Sample | BadFile]):
    """Reads (epoch, index); what cannot be read comes back as `BadFile`, never as another sample.

    An epoch of None reads without anything random, as evaluation does.
    """

    def __init__(self, loader: Loader, seed: int) -> None:
        self.loader, self.seed = loader, seed

    def __getitem__(self, key: tuple[int | None, int]) -> Sample | BadFile:
        epoch, index = key
        generator = None if epoch is None else generator_for(self.seed, READ, epoch, index)
        try:
            sample = self.loader.read(index, generator)
        except DataError as error:
            return BadFile(error.path, str(error))
        for name, tensor in sample.tensors.items():
            # a finite sum shows at a third of the cost that all numbers are finite; large numbers may overflow it
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                share = 1 - tensor.isfinite().float().mean().item()
                return BadFile(sample.meta.source, f'"{name}" holds NaN or Inf in {share:.1%} of its values')
        return sample

    def __len__(self) -> int:
        return len(self.loader)


def collate_or_error(samples: Sequence[Sample | BadFile]) -> Batch | ConfigError:
    """A batch, or why there is none: an error raised in a worker would come home with its traceback as its text."""
    try:
        return collate(samples)
    except ConfigError as error:
        return error


def quiet_worker(_: int) -> None:
    # Clusters and terminals signal all processes of a job, but only the main one decides to checkpoint and stop, and
    # needs its workers until then. A second SIGTERM is the main process ending a worker that hangs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    torch.set_num_threads(1)


def make_dataloader(
    loader: Loader, plan: Plan, seed: int, start: int, rank: int, workers: int, pin: bool
) -> DataLoader[Any]:
    """Batches from forward pass `start` on."""
    return DataLoader(
        SampleReader(loader, seed),
        batch_sampler=StepSampler(plan, seed, start, rank, loader.buckets()),
        collate_fn=collate_or_error,
        num_workers=workers,
        worker_init_fn=quiet_worker if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )


def read_batches(
    loader: Loader, batch_size: int = 64, indices: Sequence[int] | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Samples in order, read without anything random; `Batch.metas[i].index` says which each is.

    Args:
        indices: which samples to read; all without it.

    Raises:
        ConfigError: samples of one batch differ in shape.
    """
    wanted = range(len(loader)) if indices is None else indices
    keys = [[(None, i) for i in wanted[at : at + batch_size]] for at in range(0, len(wanted), batch_size)]
    batches = DataLoader(
        SampleReader(loader, 0),
        batch_sampler=keys,
        collate_fn=collate_or_error,
        num_workers=workers,
        worker_init_fn=quiet_worker if workers else None,
    )
    for batch in batches:
        if isinstance(batch, ConfigError):
            raise batch
        yield batch
