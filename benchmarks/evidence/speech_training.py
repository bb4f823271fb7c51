"""What benchmarks.evidence.speech judges: folds of a set, utterances kept in memory, and many small encoders."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.build import Built
from maskwright.core.encoder.base import Encoder
from maskwright.core.evaluation.judge import Key
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking.base import Grid
from maskwright.core.sample import Sample
from maskwright.core.trainer.data import FORWARD, KEYS, PREPARE, derive_seed, generator_for, make_dataloader
from maskwright.core.trainer.files import write_text, write_with
from maskwright.core.trainer.method import Progress
from maskwright.core.trainer.optim import lr_at, make_optimizer
from maskwright.core.trainer.pretrain import make_plan, peak_lr, resolve_trainer


@dataclass(frozen=True)
class Fold:
    """Names of the files to train on, without what is held out, and of those to test on."""

    name: str
    train: frozenset[str]
    test: frozenset[str]


def read_labels(folder: Path) -> list[dict[str, str]]:
    """Rows of a set's labels.csv; `file` is made absolute."""
    with (folder / "labels.csv").open(newline="") as file:
        return [{**row, "file": str((folder / row["file"]).resolve())} for row in csv.DictReader(file)]


def folds_of(rows: list[dict[str, str]], held_out: str) -> list[Fold]:
    """One fold a value of the column `held_out`, which is tested; of the column `split` the one fold that it says."""

    def fold(name: str, column: str, value: str) -> Fold:
        test = frozenset(row["file"] for row in rows if row[column] == value)
        return Fold(name, frozenset(row["file"] for row in rows) - test, test)

    if held_out == "split":
        return [fold("split", "split", "test")]
    return [fold(value, held_out, value) for value in sorted({row[held_out] for row in rows})]


def write_tables(rows: list[dict[str, str]], label: str, folds: list[Fold], out: Path) -> Path:
    """OUT/all.csv, and OUT/FOLD.csv without what the fold tests: file, label and, if speakers are held out, speaker."""
    out.mkdir(parents=True, exist_ok=True)
    grouped = len(folds) > 1
    parts = {"all": frozenset(row["file"] for row in rows), **{fold.name: fold.train for fold in folds}}
    for name, files in parts.items():
        chosen = [row for row in rows if row["file"] in files]
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["file", "label", *(["speaker"] if grouped else [])])
        table.writerows([row["file"], row[label], *([row["speaker"]] if grouped else [])] for row in chosen)
        write_text(out / f"{name}.csv", text.getvalue())
    return out / "all.csv"


class Kept(Loader):
    """Samples of another loader that were read once, without anything random, and stay in memory.

    Args:
        loader: gives samples that are the same each time, such as whole utterances.
        memory: samples and simple features by file, shared by loaders of the same options.
        rows: which samples, in this order; all without it.
    """

    def __init__(self, loader: Loader, memory: dict[str, Any], rows: list[int] | None = None) -> None:
        self.loader, self.memory = loader, memory
        self.rows = list(range(len(loader))) if rows is None else rows
        self.spec, self.bad_files = loader.spec, loader.bad_files

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        source = self.sources(index)[0]
        if source not in self.memory:
            self.memory[source] = self.loader.read(self.rows[index])
        sample = self.memory[source]
        meta = replace(sample.meta, index=index, group=self.group(index), label=self.label(index))
        return replace(sample, meta=meta)

    def group(self, index: int) -> str:
        return self.loader.group(self.rows[index])

    def label(self, index: int) -> Any:
        return self.loader.label(self.rows[index])

    def sources(self, index: int) -> list[str]:
        return self.loader.sources(self.rows[index])

    def statistics(self) -> dict[str, Statistics]:
        return self.loader.statistics()

    def buckets(self) -> np.ndarray | None:
        found = self.loader.buckets()
        return None if found is None else found[self.rows]

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return self.loader.picture(name, tensor)

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        key = f"simple features of {sample.meta.source}"
        if key not in self.memory:
            self.memory[key] = self.loader.simple_features(sample, cells)
        return self.memory[key]


def open_fold(whole: Kept, fold: Fold) -> tuple[Kept, Targets, int]:
    """Samples of a fold, those to train on first; their classes; and how many are to train on."""
    train, test = (
        [row for row in range(len(whole)) if whole.sources(row)[0] in files] for files in (fold.train, fold.test)
    )
    loader = Kept(whole.loader, whole.memory, train + test)
    labels = [loader.label(index) for index in range(len(loader))]
    classes = tuple(sorted(set(labels)))
    return loader, Targets("classification", classes, np.array([classes.index(one) for one in labels])), len(train)


def train(built: Built, memory: dict[str, Any]) -> Encoder:
    """The encoder that `maskwright.pretrain` gives, bit by bit on a CPU, without a run folder, pictures and a report:
    of a hundred encoders of a few seconds each these would take most of the time.
    """
    method, loader, seed = built.method, Kept(built.loader, memory), built.recipe.seed
    settings = resolve_trainer(built.recipe.trainer, len(loader))
    plan = make_plan(settings, len(loader), loader.buckets())
    method.prepare(loader, generator_for(seed, PREPARE))
    optimizer, warmup = make_optimizer(method, settings), round(settings.warmup * plan.steps)
    epochs = (plan.steps - 1) // plan.micro_per_epoch + 1
    method.train()
    for step, batch in enumerate(make_dataloader(loader, plan, seed, 0, 0, 0, False)):
        epoch = step // plan.micro_per_epoch
        method.start_step(Progress(step, plan.steps, epoch, epochs))
        torch.manual_seed(derive_seed(seed, FORWARD, step, 0))
        keys = [derive_seed(seed, KEYS, epoch, meta.index) for meta in batch.metas]
        method(batch, torch.tensor(keys, dtype=torch.int64)).loss.backward()
        parameters = [p for p in method.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_grad or float("inf"))
        for group in optimizer.param_groups:
            lr = lr_at(step, plan.steps, warmup, peak_lr(settings, plan), settings.min_lr_ratio)
            group["lr"], group["weight_decay"] = lr * group["lr_scale"], settings.weight_decay * group["decays"]
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, plan.steps)
    return method.encoder.eval()


def stored(path: Path) -> dict[Key, np.ndarray] | None:
    """What `store` wrote, None if it did not yet."""
    if not path.is_file():
        return None
    return {Key(*key.split("|"), 1.0): sums for key, sums in np.load(path).items()}


def store(path: Path, found: dict[Key, np.ndarray]) -> None:
    """Sums by features and protocol into one file."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **{f"{key.features}|{key.protocol}": sums for key, sums in found.items()})

    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, save)
