"""The dry run: fail before hour 0, and say what the run would cost."""

from __future__ import annotations

import contextlib
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskwright.core.build import build
from maskwright.core.errors import DataError, TrainingStopped
from maskwright.core.loader import Loader
from maskwright.core.masking import sample_keys
from maskwright.core.recipe import Recipe
from maskwright.core.sample import Batch, Sample, collate
from maskwright.core.statistics import spread
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import PREPARE, READ, Plan, generator_for
from maskwright.core.trainer.optim import make_optimizer
from maskwright.core.trainer.pretrain import check_bad_files, make_plan, peak_lr, resolve_trainer

SAMPLES = 3
"""Samples that a dry run reads."""
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Forecast:
    """What a run would cost, from one real step on three real samples.

    Args:
        recipe: with every option resolved.
        plan: sizes of the run.
        parameters, encoder_parameters: trained numbers, of the method and of what is kept.
        flops: floating point operations of one optimiser step, forward and backward, over all processes.
        step_seconds: measured seconds of a forward and backward pass, scaled to the batch.
        read_seconds: measured seconds to read one sample.
        sample_bytes: bytes of one sample in memory.
        checkpoint_bytes: bytes of one checkpoint.
        peak_bytes: peak memory of the dry run itself; a full batch needs more.
        free_bytes: free disk space where the run would be written.
        loss: loss of the step.
        lr: peak learning rate.
        notes: what a user should know before starting.
    """

    recipe: Recipe
    plan: Plan
    parameters: int
    encoder_parameters: int
    flops: float
    step_seconds: float
    read_seconds: float
    sample_bytes: int
    checkpoint_bytes: int
    peak_bytes: int
    free_bytes: int
    loss: float
    lr: float
    notes: list[str]

    @property
    def hours(self) -> float:
        """Rough hours of the run on this machine: the slower of computing and reading."""
        reading = self.read_seconds * self.plan.global_batch / max(1, self.recipe.trainer.workers)
        if self.recipe.trainer.workers:
            return self.plan.steps * max(self.step_seconds, reading) / 3600
        return self.plan.steps * (self.step_seconds + reading) / 3600

    @property
    def read_bytes(self) -> int:
        """Bytes of samples over the whole run."""
        return self.sample_bytes * self.plan.global_batch * self.plan.steps


def _largest(loader: Loader) -> Sequence[int]:
    """Samples that may share a batch; where there are several kinds, those of the kind whose first has the most bytes."""
    bucket_of = loader.buckets()
    if bucket_of is None:
        return range(len(loader))
    sizes = []
    for one in np.unique(bucket_of):
        members = np.flatnonzero(bucket_of == one).tolist()
        with contextlib.suppress(DataError):
            tensors = loader.read(members[0]).tensors.values()
            sizes.append((sum(t.numel() * t.element_size() for t in tensors), members))
    return max(sizes, key=lambda pair: pair[0])[1] if sizes else range(len(loader))


def _read(loader: Loader, seed: int) -> tuple[list[Sample], float, list[str]]:
    samples, notes, seconds = [], [], 0.0
    choice = _largest(loader)
    length = len(choice)
    if length < len(loader):
        notes.append("Samples are of several kinds, and this forecast is of the largest.")
    for place in spread(length, SAMPLES):
        index = choice[place]
        started = time.perf_counter()
        try:
            samples.append(loader.read(index, generator_for(seed, READ, 0, index)))
        except DataError as error:
            notes.append(f"A sample could not be read: {error}")
        seconds = time.perf_counter() - started  # the last one: caches are warm
    if not samples:
        raise DataError("data", f"none of {min(SAMPLES, length)} samples could be read. {notes[0]}")
    return samples, seconds, notes


def dry_run(recipe: Recipe, out: str | Path = "runs") -> Forecast:
    """Read three samples, make one step, write and read one checkpoint, check the disk, and forecast the run.

    Args:
        recipe: from `make_recipe`.
        out: folder where the run would be written; nothing stays there.

    Raises:
        ConfigError, DataError: what a real run would have met.
        TrainingStopped: the loss of the step is not finite, or the disk cannot hold the checkpoints.
    """
    built = build(recipe)
    check_bad_files(built)
    settings = resolve_trainer(recipe.trainer, len(built.loader))
    plan = make_plan(settings, len(built.loader), built.loader.buckets())
    samples, read_seconds, notes = _read(built.loader, recipe.seed)
    if built.loader.bad_files:
        notes.append(f"{len(built.loader.bad_files)} files are left out, the first: {built.loader.bad_files[0].reason}")
    method = built.method.to(str(settings.accelerator))
    method.prepare(built.loader, generator_for(recipe.seed, PREPARE))
    batch: Batch = collate(samples).to(str(settings.accelerator))
    keys = sample_keys(torch.Generator().manual_seed(recipe.seed), len(batch), batch.device)
    counter = FlopCounterMode(display=False)
    with counter:
        step = method(batch, keys)
        step.loss.backward()
    if not step.loss.isfinite():
        raise TrainingStopped(
            f"The loss of the first step is {step.loss.item()}. Look at the data with `maskwright inspect`."
        )
    started = time.perf_counter()
    method(batch, keys).loss.backward()
    if batch.device.type == "cuda":
        torch.cuda.synchronize()
    pass_seconds = time.perf_counter() - started
    optimizer = make_optimizer(method, settings)
    optimizer.step()
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in checkpoints.optimizer_tensors(optimizer).items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    base = Path(out)
    while not base.exists():
        base = base.parent
    free = shutil.disk_usage(base).free
    if free < (KEPT_CHECKPOINTS + 1) * size:
        raise TrainingStopped(
            f"{base}: {free / 1e6:.0f} MB free, but the checkpoints need {(KEPT_CHECKPOINTS + 1) * size / 1e6:.0f} MB. "
            f"Free some space or choose another place with --run."
        )
    with tempfile.TemporaryDirectory(dir=base, prefix=".maskwright-dry-run-") as folder:
        path = checkpoints.save(Path(folder), checkpoints.Checkpoint(1, tensors))
        again = checkpoints.read(path)
        if any(not torch.equal(again.tensors[name], tensor.cpu()) for name, tensor in tensors.items()):
            raise DataError(base, "a checkpoint read back differs from what was written", mend="Check this disk")
    if batch.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    per_sample = plan.global_batch / len(batch)
    return Forecast(
        recipe=built.recipe.model_copy(update={"trainer": settings}),
        plan=plan,
        parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        encoder_parameters=sum(p.numel() for p in method.encoder.parameters()),
        flops=counter.get_total_flops() * per_sample,
        step_seconds=pass_seconds * per_sample / plan.world,
        read_seconds=read_seconds,
        sample_bytes=sum(t.numel() * t.element_size() for t in samples[0].tensors.values()),
        checkpoint_bytes=size,
        peak_bytes=peak,
        free_bytes=free,
        loss=step.loss.item(),
        lr=peak_lr(settings, plan),
        notes=notes,
    )
