"""Fine-tuning as in the study: the backbone rests at first, then all is trained, and the best validation step is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.evaluation.task import Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.loader import Loader
from maskwright.core.sample import BadFile, Batch, Sample, collate
from maskwright.core.trainer.data import ORDER, SampleReader, derive_seed, generator_for

Mode = Literal["thaw", "all", "head"]
"""Backbone frozen at first; trained from the first step on; never trained."""
CACHE_BYTES = 2**30
"""Samples are kept in memory up to here."""


@dataclass(frozen=True)
class Finetuning:
    """How to fine-tune. Defaults are those of Wolf et al. 2023, counted in steps instead of epochs.

    Args:
        steps: optimiser steps, the same for every share of the labels.
        batch_size: samples a step; all there are, where there are fewer.
        lr: rate of Adam, constant.
        weight_decay: Adam's L2 penalty.
        frozen_share: of the steps, during which the backbone rests: 10 of 70 epochs.
        checks: looks at the validation samples, evenly spread; the first of the best is kept.
    """

    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-4
    weight_decay: float = 5e-4
    frozen_share: float = 1 / 7
    checks: int = 10

    def __post_init__(self) -> None:
        rules = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0 and math.isfinite(self.lr),
            "weight_decay": self.weight_decay >= 0,
            "frozen_share": 0 <= self.frozen_share <= 1,
            "checks": self.checks >= 1,
        }
        wrong = [f"finetune.{name}={getattr(self, name)}" for name, holds in rules.items() if not holds]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)}: steps, batch_size and checks are at least 1, lr is above 0, weight_decay 0 or "
                f"more, frozen_share in [0, 1]."
            )


class Samples:
    """Samples of a loader as they are read without anything random; kept in memory where they fit."""

    def __init__(self, loader: Loader) -> None:
        self.reader = SampleReader(loader, 0)
        self.room = CACHE_BYTES // max(1, loader.bytes_per_sample())
        self.kept: dict[int, Sample | BadFile] = {}

    def read(self, index: int) -> Sample | BadFile:
        """A sample, or why it cannot be read."""
        if index not in self.kept:
            found = self.reader[(None, index)]
            if len(self.kept) >= self.room:
                return found
            self.kept[index] = found
        return self.kept[index]

    def batch(self, indices: Sequence[int]) -> tuple[Batch, list[int]]:
        """What can be read, and which samples that are."""
        found = [(index, self.read(index)) for index in indices]
        return collate([sample for _, sample in found]), [i for i, sample in found if isinstance(sample, Sample)]


def fine_tune(
    encoder: Encoder,
    targets: Targets,
    samples: Samples,
    train: Sequence[int],
    validation: Sequence[int],
    settings: Finetuning,
    seed: int,
    device: str = "cpu",
    mode: Mode = "thaw",
    watch: Callable[[int, TaskModel], None] | None = None,
) -> tuple[TaskModel, int]:
    """Train a copy of an encoder and a new linear head; the encoder given stays as it is.

    While the backbone rests, neither its parameters nor its batch norms' running statistics move.

    Args:
        train, validation: positions of labelled samples.
        seed: decides the head's first weights and the order of samples.
        watch: called with (steps done, model) after each step.

    Returns:
        The model of the step with the best validation accuracy, and that step.

    Raises:
        DataError: no sample of a part can be read. TrainingStopped: the loss is no longer finite.
    """
    assert targets.values is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, len(train)))
        model = TaskModel(copy.deepcopy(encoder).cpu(), targets)
        model.head = nn.Linear(encoder.embed_dim, targets.outputs)  # type: ignore[assignment]
        model.to(device)
        resting = {"thaw": round(settings.steps * settings.frozen_share), "all": 0, "head": settings.steps}[mode]
        optimizer = torch.optim.Adam(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
        order = _Order(train, settings.batch_size, seed)
        looks = {round(settings.steps * (number + 1) / settings.checks) for number in range(settings.checks)}
        best, best_step, kept = -1.0, 0, {}
        for step in range(settings.steps):
            batch, indices = samples.batch(order.next())
            if indices:
                _set_modes(model, resting=step < resting, samples=len(indices))
                loss = model.loss(model(batch.to(device)), torch.from_numpy(targets.values[indices]).to(device))
                if not bool(loss.isfinite()):
                    raise TrainingStopped(
                        f"The loss became {loss.item()} in step {step} of fine-tuning. Lower finetune.lr={settings.lr:g}."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if watch is not None:
                watch(step + 1, model)
            if step + 1 in looks or step + 1 == settings.steps:
                accuracy = _accuracy(model, targets, samples, validation)
                if accuracy > best:
                    best, best_step = accuracy, step + 1
                    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.requires_grad_(False).eval(), best_step


def _set_modes(model: TaskModel, resting: bool, samples: int) -> None:
    """Training mode; a resting backbone neither learns nor counts, and no batch norm learns from a batch of one."""
    model.train()
    head = getattr(model.encoder.module, "head", None)
    model.encoder.requires_grad_(not resting)
    if isinstance(head, nn.Module):  # stands behind the last map, nothing trains it
        head.requires_grad_(False)
    if resting or samples == 1:
        model.encoder.eval()


class _Order:
    """Endless batches: fresh permutations one after another, every batch full."""

    def __init__(self, indices: Sequence[int], batch_size: int, seed: int) -> None:
        self.indices, self.seed = [int(index) for index in indices], seed
        self.batch_size, self.epoch = min(batch_size, len(self.indices)), 0
        self.waiting: list[int] = []

    def next(self) -> list[int]:
        while len(self.waiting) < self.batch_size:
            generator = generator_for(self.seed, ORDER, self.epoch)
            order = torch.randperm(len(self.indices), generator=generator).tolist()
            self.waiting += [self.indices[at] for at in order]
            self.epoch += 1
        taken, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        return taken


def probabilities(model: TaskModel, samples: Samples, indices: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Probabilities (n, K) float32 of the samples that can be read, and which those are.

    Raises:
        DataError: none of them can be read.
    """
    rows, read = [], list[int]()
    for start in range(0, len(indices), 64):
        batch, known = samples.batch([int(index) for index in indices[start : start + 64]])
        if known:
            rows.append(model.predict(batch).numpy())
            read += known
    if not rows:
        raise DataError("validation or test samples", "none of them can be read")
    return np.concatenate(rows), read


def _accuracy(model: TaskModel, targets: Targets, samples: Samples, indices: Sequence[int]) -> float:
    assert targets.values is not None
    says, known = probabilities(model, samples, indices)
    return float((says.argmax(1) == targets.values[known]).mean())
