"""Training a head on an encoder by gradient: fine-tuning, or the head alone. Then predicting with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.evaluation.frozen_heads import attentive_probe, batchnorm_lars_probe
from maskwright.core.evaluation.task import IGNORE, Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.loader import Loader
from maskwright.core.sample import BadFile, Batch, Sample, collate
from maskwright.core.trainer.data import ORDER, SampleReader, derive_seed, generator_for, read_batches
from maskwright.core.trainer.optim import lr_at, parameter_groups

__all__ = ["Budget", "TaskModel", "attentive_probe", "batchnorm_lars_probe", "predict_samples", "train_model"]

PUBLISHED_LR, PUBLISHED_BATCH, PUBLISHED_WIDTH = 2e-3, 1024, 768
"""MAE's fine-tuning of ViT-B: base rate 5e-4 at 256, so 2e-3 at its batch of 1024."""
FAR = 1000
"""Widths of a sample by which a grid is moved to see whether labels follow it."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train.

    Args:
        steps: optimiser steps.
        batch_size: samples a step; all there are, where there are fewer.
        lr: peak learning rate; without it MAE's 2e-3 for a width of 768 at a batch of 1024, times
            sqrt(batch / 1024) (the rule for Adam, Malladi et al. 2022; the linear rule would leave small batches
            untrained) and sqrt(768 / width) (narrow networks take larger rates; fits what was best for width 64).
        weight_decay: AdamW's; none for tensors of one axis.
        layer_decay: factor on the rate, a block down; None for one rate.
        warmup: share of the steps during which the rate rises from 0; half a cosine down after it.
        label_smoothing: of the cross-entropy.
    """

    steps: int = 200
    batch_size: int = 32
    lr: float | None = None
    weight_decay: float = 0.05
    layer_decay: float | None = 0.75
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr is None or (self.lr > 0 and math.isfinite(self.lr)),
            "weight_decay": self.weight_decay >= 0,
            "layer_decay": self.layer_decay is None or 0 < self.layer_decay <= 1,
            "warmup": 0 <= self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
        }
        wrong = [f"budget.{name}={getattr(self, name)}" for name, holds in rules.items() if not holds]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)}: steps and batch_size are at least 1, lr is above 0, layer_decay in (0, 1], warmup "
                "and label_smoothing in [0, 1)."
            )

    def peak_lr(self, batch: int, width: int) -> float:
        """Learning rate for batches of so many samples and an encoder of this width."""
        if self.lr is not None:
            return self.lr
        return PUBLISHED_LR * math.sqrt(batch / PUBLISHED_BATCH * PUBLISHED_WIDTH / width)


def train_model(
    encoder: Encoder,
    targets: Targets,
    loader: Loader,
    indices: Sequence[int],
    budget: Budget,
    seed: int,
    device: str = "cpu",
    frozen: bool = False,
    augment: bool = True,
    progress: Callable[[int, float], None] | None = None,
) -> TaskModel:
    """Train a copy of an encoder and a new head on labelled samples. The encoder given is never changed.

    Args:
        indices: samples to train on; those without a label are left out.
        seed: decides the head's first weights, the order of samples and their augmentation. On a CPU one seed gives
            one result, bit by bit.
        frozen: train the head alone.
        augment: read with the loader's own random crops and flips, wherever the labels can follow them. Where windows
            of an image are moved, a sample-level label may no longer be that of its window, so that it is read plainly.
        progress: called with (steps done, loss) after each step.

    Raises:
        DataError: no sample has a label, or none can be read.
        TrainingStopped: the loss is no longer finite.
    """
    labelled = set(targets.labelled(len(loader)).tolist())
    chosen = [int(index) for index in indices if int(index) in labelled]
    if not chosen:
        raise DataError("labels", f"give none of the {len(indices)} training samples a label", "one label or more")
    with torch.random.fork_rng(devices=_cuda_devices(device)):  # layers draw weights and dropout from the global one
        torch.manual_seed(derive_seed(seed, len(chosen)))
        model = TaskModel(copy.deepcopy(encoder).cpu(), targets).to(device)
        if targets.kind == "regression":
            assert targets.values is not None
            model.fit_targets(targets.values[chosen])
        model.label_smoothing = budget.label_smoothing
        model.encoder.requires_grad_(not frozen)
        _train(model, _Reading(loader, targets, seed, augment), chosen, budget, seed, device, frozen, progress)
    model.requires_grad_(False)
    return model.eval()


def _cuda_devices(device: str) -> list[int]:
    return [torch.device(device).index or 0] if torch.device(device).type == "cuda" else []


def _train(
    model: TaskModel,
    reading: _Reading,
    chosen: list[int],
    budget: Budget,
    seed: int,
    device: str,
    frozen: bool,
    progress: Callable[[int, float], None] | None,
) -> None:
    batch_size = min(budget.batch_size, len(chosen))
    groups = parameter_groups(model, budget.weight_decay, None if frozen else budget.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
    peak, warmup = budget.peak_lr(batch_size, model.encoder.embed_dim), round(budget.steps * budget.warmup)
    order = _order(chosen, batch_size, seed)
    for step in range(budget.steps):
        batch, truth = reading.batch(order)
        _set_modes(model, frozen, len(batch))
        loss = model.loss(model(batch.to(device)), truth.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            sources = ", ".join(sorted({meta.source for meta in batch.metas})[:3])
            raise TrainingStopped(
                f"The loss became {value} at step {step} of training on the labels; files of that step: {sources}. Lower "
                f"the learning rate (budget.lr, now {peak:.2g}), or look at these files with `maskwright inspect`."
            )
        model.losses.append(value)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr_at(step, budget.steps, warmup, peak)
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        if progress is not None:
            progress(step + 1, value)


def _set_modes(model: TaskModel, frozen: bool, samples: int) -> None:
    """Training mode, but a frozen encoder keeps still, and batch norms learn nothing from a batch of one."""
    model.train()
    if frozen:
        model.encoder.eval()
    if samples == 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _order(chosen: list[int], batch_size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of (epoch, index): fresh permutations one after another, every batch full."""
    epoch, waiting = 0, list[tuple[int, int]]()
    while True:
        while len(waiting) < batch_size:
            shuffled = torch.randperm(len(chosen), generator=generator_for(seed, ORDER, epoch)).tolist()
            waiting += [(epoch, chosen[at]) for at in shuffled]
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


class _Reading:
    """Samples with their labels. The first reading of each is plain; later ones are augmented where labels can follow."""

    def __init__(self, loader: Loader, targets: Targets, seed: int, augment: bool) -> None:
        self.reader, self.targets, self.augment = SampleReader(loader, seed), targets, augment
        self.plain_window: dict[int, tuple[int, ...] | None] = {}
        self.bad: dict[int, BadFile] = {}
        self.checked = False

    def batch(self, order: Iterator[list[tuple[int, int]]]) -> tuple[Batch, Tensor]:
        """The next samples of which at least one can be read, and their labels."""
        while True:
            keys = next(order)
            pairs = [pair for key in keys if (pair := self._sample(*key)) is not None]
            if pairs:
                return collate([sample for sample, _ in pairs]), _stack([label for _, label in pairs])
            if all(index in self.bad for _, index in keys) and len(self.bad) > len(self.plain_window):
                first = next(iter(self.bad.values()))
                raise DataError(first.path, f"no labelled sample could be read; {first.reason}")

    def _sample(self, epoch: int, index: int) -> tuple[Sample, np.ndarray] | None:
        if index in self.bad:
            return None
        first = index not in self.plain_window
        sample = self.reader[(None if first or not self.augment else epoch, index)]
        if isinstance(sample, Sample) and not first and not self.targets.dense and self._moved(sample, index):
            self.augment = False
            sample = self.reader[(None, index)]
        if isinstance(sample, BadFile):
            self.bad[index] = sample
            return None
        try:
            label = self._label(sample, index)
        except DataError as error:
            self.bad[index] = BadFile(error.path, str(error))
            return None
        self.plain_window.setdefault(index, sample.meta.window)
        return sample, label

    def _moved(self, sample: Sample, index: int) -> bool:
        return sample.meta.window != self.plain_window[index]

    def _label(self, sample: Sample, index: int) -> np.ndarray:
        if self.targets.read is None:
            assert self.targets.values is not None
            return np.asarray(self.targets.values[index])
        label = self.targets.read(sample)
        if not self.checked and (label != IGNORE).any():  # once: samples of one loader are alike
            self.checked = True
            self.augment = self.augment and labels_follow(self.targets, sample)
        return label


def labels_follow(targets: Targets, sample: Sample) -> bool:
    """Whether the labels of pixels are found by the sample's georeference, so that they follow its flips and crops."""
    meta = sample.meta
    if targets.read is None or meta.crs is None or meta.transform is None:
        return False
    a, b, c, d, e, f = meta.transform
    width = next(iter(sample.tensors.values())).shape[-1] * FAR
    elsewhere = replace(sample, meta=replace(meta, transform=(a, b, c + a * width, d, e, f + d * width)))
    try:
        return not np.array_equal(targets.read(sample), targets.read(elsewhere))
    except DataError:  # it looked there, and found nothing
        return True


def _stack(labels: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(labels))


def predict_samples(
    model: TaskModel, loader: Loader, indices: Sequence[int], batch_size: int = 32, device: str = "cpu"
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, what the model says) of each sample that can be read, in order, read without anything random.

    Returns:
        Probabilities of classes or labels (K,), numbers (K,), or probabilities of each pixel (K, *size); float32.
    """
    model = model.to(device)
    for batch in read_batches(loader, batch_size, indices):
        if batch.metas:
            for meta, says in zip(batch.metas, model.predict(batch).numpy(), strict=True):
                yield meta.index, says
