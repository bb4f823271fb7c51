"""Judging features: every protocol on every fold, share of labels and seed, summed over test groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskwright.core.encoder.base import Encoder
from maskwright.core.encoder.outside import fresh
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.evaluation.features import Survey, encode, labels_of_items, survey
from maskwright.core.evaluation.heads import Budget, predict_samples, train_model
from maskwright.core.evaluation.leaks import find_leaks, shared_groups
from maskwright.core.evaluation.metrics import by_group, pixel_statistics, retrieval_statistics, statistics
from maskwright.core.evaluation.protocol import FeatureProtocol, FineTune, Problem, Protocol, Training
from maskwright.core.evaluation.splits import Fold, groups_of, join, keep_away, make_folds, take_fraction
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader
from maskwright.core.trainer.guard import effective_rank, uniformity

OURS, RANDOM, SCRATCH = "pre-trained", "random init", "supervised from scratch"
BASELINES = ("random-init", "simple", "supervised")
RETRIEVAL = "retrieval by cosine"
MAX_BAD = 0.05
"""Share of the samples that may be unreadable."""


@dataclass(frozen=True)
class Key:
    """What a score is of: whose features, judged by which protocol, with which share of the labels."""

    features: str
    protocol: str
    fraction: float


@dataclass(frozen=True)
class Design:
    """How an encoder is judged; see `evaluate`. `given`: index of the first test sample, where test data are given."""

    protocols: dict[str, Protocol]
    fractions: list[float]
    budget: FineTune
    seeds: int = 5
    folds: int = 5
    split: str = "group"
    buffer: float = 0.0
    given: int | None = None
    baselines: tuple[str, ...] = BASELINES
    join_duplicates: bool = True
    batch_size: int = 64
    workers: int = 0
    device: str = "cpu"


class Judge:
    """One evaluation. Sums are kept of each key, seed and test group; all scores and intervals come from them."""

    def __init__(self, encoder: Encoder, loader: Loader, targets: Targets, design: Design) -> None:
        self.encoder, self.loader, self.targets, self.design = encoder, loader, targets, design
        self.problem = Problem(targets.kind, targets.outputs)
        self.sums: dict[Key, np.ndarray] = {}
        """(S, G, K) sums over the items of each seed and test group."""
        self.predictions: dict[str, list[Any]] = {}
        self.collapse: dict[str, dict[str, float]] = {}
        protocols = design.protocols.values()
        self.tuned = any(isinstance(protocol, FineTune) for protocol in protocols)
        self.feature_protocols = [protocol for protocol in protocols if isinstance(protocol, FeatureProtocol)]
        self._prepare()

    # data ----------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        labelled = self.targets.labelled(len(self.loader))
        self.known: Survey = survey(
            self.loader, self.targets, labelled, self.encoder.to(self.design.device), 0, self.design.batch_size, self.design.workers,
            "simple" in self.design.baselines,
        )  # fmt: skip
        bad = len(self.known.bad)
        if bad > MAX_BAD * len(labelled):
            first = self.known.bad[0]
            raise TrainingStopped(
                f"{bad} of {len(labelled)} samples cannot be used, more than {MAX_BAD:.0%}; the first is {first.path}: "
                f"{first.reason} See `maskwright inspect`."
            )
        known = self.known
        groups = groups_of(self.design.split, self.loader, known.metas)
        self.is_test = np.array(
            [self.design.given is not None and index >= self.design.given for index in known.indices]
        )
        if self.design.given is not None and (self.is_test.all() or not self.is_test.any()):
            raise DataError("test", "training or test data hold no labelled sample")
        sides = ["test" if side else "train" for side in self.is_test] if self.design.given is not None else groups
        leaks = find_leaks(known.prints, known.metas, sides)
        self.joined = 0
        if self.design.join_duplicates and self.design.given is None and self.design.split != "random":
            pairs = [(leak.first, leak.second) for leak in leaks if leak.kind != "near duplicate"]
            before = len(set(groups))
            groups = join(groups, pairs)
            self.joined = before - len(set(groups))
        self.leaks = leaks
        self.shared = []
        if self.design.given is not None:
            train = [meta for meta, side in zip(known.metas, self.is_test, strict=True) if not side]
            self.shared = shared_groups(train, [m for m, side in zip(known.metas, self.is_test, strict=True) if side])
        self.group_names, self.group_of = np.unique(np.asarray(groups), return_inverse=True)
        self.y = labels_of_items(self.targets, known)
        self.owner = known.item_sample if known.item_sample is not None else np.arange(len(known.metas))
        self.item_group = self.group_of[self.owner]

    def _sample_classes(self) -> np.ndarray | None:
        """Class of each sample, for even folds and subsets; None where it has none."""
        return self.y if self.targets.kind in ("classification", "retrieval") else None

    def _folds(self, seed: int) -> list[Fold]:
        known = self.known
        if self.design.given is not None:
            return [Fold(np.flatnonzero(~self.is_test), np.flatnonzero(self.is_test))]
        names = self.group_names[self.group_of].tolist()
        folds = make_folds(names, self._sample_classes(), self.design.folds, seed)
        kept = [keep_away(fold, known.metas, self.design.buffer) for fold in folds]
        if any(not len(fold.train) for fold in kept):
            raise ConfigError(f"buffer={self.design.buffer:g} leaves no training sample in a fold. Lower --buffer.")
        return kept

    # judging -------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Run everything; what comes out is in `sums`, `predictions` and `collapse`."""
        tokens = any(protocol.needs == "tokens" for protocol in self.feature_protocols)
        options = {"batch_size": self.design.batch_size, "workers": self.design.workers, "device": self.design.device}
        ours = encode(self.encoder, self.loader, self.known, tokens, **options)  # type: ignore[arg-type]
        self.collapse = {OURS: self._collapse(ours[0])}
        simple = {name: (x, None) for name, x in self.known.simple.items()}
        for seed in range(self.design.seeds):
            features: dict[str, tuple[np.ndarray, np.ndarray | None]] = {OURS: ours}
            if "random-init" in self.design.baselines:
                random = fresh(self.encoder, seed)
                features[RANDOM] = encode(random, self.loader, self.known, tokens, **options)  # type: ignore[arg-type]
                if seed == 0:
                    self.collapse[RANDOM] = self._collapse(features[RANDOM][0])
            features |= simple
            for fold in self._folds(seed):
                for fraction in self.design.fractions:
                    train = take_fraction(fold.train, self._sample_classes(), fraction, seed)
                    for name, (x, all_tokens) in features.items():
                        self._judge_features(name, x, all_tokens, train, fold.test, fraction, seed)
                    self._judge_training(train, fold.test, fraction, seed)

    @staticmethod
    def _collapse(x: np.ndarray) -> dict[str, float]:
        some = torch.from_numpy(x[:: max(1, len(x) // 2000)].copy()).float()
        return {"effective rank": effective_rank(some), "uniformity": uniformity(some)}

    def _add(self, key: Key, seed: int, stats: np.ndarray, groups: np.ndarray) -> None:
        shape = (self.design.seeds, len(self.group_names), stats.shape[1])
        sums = self.sums.setdefault(key, np.zeros(shape))
        sums[seed] += by_group(stats, groups, shape[1])

    def _judge_features(
        self,
        name: str,
        x: np.ndarray,
        tokens: np.ndarray | None,
        train: np.ndarray,
        test: np.ndarray,
        fraction: float,
        seed: int,
    ) -> None:
        train_items, test_items = (np.flatnonzero(np.isin(self.owner, part)) for part in (train, test))
        if self.targets.kind == "retrieval":
            stats = retrieval_statistics(x[test_items], self.y[test_items], x[train_items], self.y[train_items])
            self._add(Key(name, RETRIEVAL, fraction), seed, stats, self.item_group[test_items])
            return
        for protocol in self.feature_protocols:
            if protocol.needs == "tokens" and tokens is None:
                continue
            source = tokens if protocol.needs == "tokens" and tokens is not None else x
            training = Training(source[train_items], self.y[train_items], self.item_group[train_items])
            says = protocol.predict(training, source[test_items], self.problem, seed)
            self._count(Key(name, protocol.title, fraction), seed, says, test_items)

    def _count(self, key: Key, seed: int, says: np.ndarray, items: np.ndarray) -> None:
        """Add what scores (m, K), or (R, m, K) of repetitions, mean for the metrics."""
        truth = self.known.pixels[items] if self.known.pixels is not None else self.y[items]
        repetitions = says if says.ndim == 3 else says[None]
        for one in repetitions:
            predicted = one.argmax(1) if self.targets.kind in ("classification", "segmentation") else one
            scores = one if self.targets.kind == "classification" else None
            stats = statistics(self.targets.kind, truth, predicted, self.targets.outputs, scores)
            self._add(key, seed, stats / len(repetitions), self.item_group[items])
        if (
            key.features == OURS
            and seed == 0
            and key.fraction == self.design.fractions[-1]
            and self.known.pixels is None
        ):
            column = self.predictions.setdefault(key.protocol, [None] * len(self.known.metas))
            for item, row in zip(items, repetitions[0], strict=True):
                column[item] = self.shown(row)

    def shown(self, row: np.ndarray) -> Any:
        """Scores or numbers of a sample as people write them: a class, classes, or numbers."""
        if self.targets.kind == "classification":
            return self.targets.classes[int(row.argmax())]
        if self.targets.kind == "multilabel":
            return ";".join(name for name, value in zip(self.targets.classes, row, strict=True) if value > 0.5)
        return float(row[0]) if len(row) == 1 else [float(value) for value in row]

    def _judge_training(self, train: np.ndarray, test: np.ndarray, fraction: float, seed: int) -> None:
        """Fine-tuning, and training from scratch with the same budget."""
        if self.targets.kind == "retrieval":
            return
        budget = self.design.budget
        if self.tuned:
            self._train(
                Key(OURS, FineTune.title, fraction), self.encoder, budget, train, test, seed, budget.layer_decay
            )
        if "supervised" in self.design.baselines:
            key = Key(SCRATCH, FineTune.title, fraction)
            self._train(key, fresh(self.encoder, seed), budget, train, test, seed, None)

    def _train(
        self,
        key: Key,
        encoder: Encoder,
        budget: FineTune,
        train: np.ndarray,
        test: np.ndarray,
        seed: int,
        layer_decay: float | None,
    ) -> None:
        known = self.known
        spent = Budget(budget.steps, budget.batch_size, budget.lr, budget.weight_decay, layer_decay)
        # a training window that is moved at random could reach into a test block of the same image
        whole_groups = self.design.split == "group" and self.design.buffer == 0
        model = train_model(
            encoder,
            self.targets,
            self.loader,
            known.indices[train].tolist(),
            spent,
            seed,
            self.design.device,
            augment=whole_groups or self.design.given is not None,
        )
        where = {int(index): at for at, index in enumerate(known.indices)}
        rows: list[np.ndarray] = []
        samples: list[int] = []
        for index, says in predict_samples(
            model, self.loader, known.indices[test].tolist(), self.design.batch_size, self.design.device
        ):
            sample = where[index]
            if self.targets.read is None:
                rows.append(says)
                samples.append(sample)
                continue
            truth = self.targets.read(self.loader.read(index))
            flat = pixel_statistics(truth, says.argmax(0), self.targets.outputs)
            self._add(key, seed, flat[None], self.group_of[[sample]])
        if rows:
            self._count(key, seed, np.stack(rows), np.array(samples))
