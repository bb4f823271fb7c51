"""Protocols: how features are judged. Each fits on training features and predicts the test features."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.task import Kind
from maskwright.core.trainer.data import derive_seed

C_VALUES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty among which the linear probe chooses."""

MAX_DISTANCES = 8_000_000
"""Distances between test and training items that are in memory at once."""


@dataclass(frozen=True)
class Problem:
    """What has to be predicted: the kind of task and the number of classes or columns."""

    kind: Kind
    outputs: int


@dataclass(frozen=True)
class Training:
    """Labelled training features.

    Args:
        x: (n, D) features; (n, T, D) for protocols that take tokens.
        y: (n,) class numbers; (n, C) 0 or 1; (n, K) numbers.
        groups: (n,) group numbers, so that inner splits do not leak either.
    """

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


class Protocol:
    """How an encoder is judged: by its frozen features (`FeatureProtocol`), or trained further (`FineTune`)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "segmentation", "multilabel", "regression"})
    """Kinds of task that it suits."""
    title: ClassVar[str]
    """What tables call it."""


class FineTune(Protocol):
    """All weights are trained on the labels. Training from scratch gets the same budget.

    Args:
        steps: optimiser steps.
        batch_size: samples a step.
        lr: peak learning rate; without it the one of MAE's fine-tuning scaled with the batch.
        weight_decay: AdamW's.
        layer_decay: factor on the learning rate, a block down; not used from scratch.
    """

    title: ClassVar[str] = "fine-tune"

    def __init__(
        self,
        steps: int = 200,
        batch_size: int = 32,
        lr: float | None = None,
        weight_decay: float = 0.05,
        layer_decay: float | None = 0.75,
    ) -> None:
        if steps < 1 or batch_size < 1:
            raise ConfigError(f"steps={steps}, batch_size={batch_size}: both must be at least 1.")
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.weight_decay, self.layer_decay = weight_decay, layer_decay


class FeatureProtocol(Protocol, ABC):
    """Judges frozen features. Constructor keywords are the protocol's options."""

    needs: ClassVar[Literal["pooled", "tokens"]] = "pooled"
    """One vector an item, or all tokens of a sample."""

    @abstractmethod
    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        """Scores of the test items: (m, C) for classes, the highest wins; (m, C) in [0, 1] for labels, above 0.5 is yes;
        (m, K) numbers for regression. (R, m, ...) where a protocol repeats itself R times.

        Args:
            test_x: (m, D) or (m, T, D).
            seed: decides all that is random.
        """


def one_hot(numbers: np.ndarray, count: int) -> np.ndarray:
    """(n,) to (n, count)."""
    return np.eye(count, dtype=np.float32)[numbers]


class Neighbours(FeatureProtocol):
    """Vote of the k nearest training items by cosine similarity, weighted by it, on standardised features.

    Args:
        k: neighbours; at most as many as there are training items.
    """

    title: ClassVar[str] = "kNN"

    def __init__(self, k: int = 20) -> None:
        if k < 1:
            raise ConfigError(f"k={k}: at least one neighbour is needed.")
        self.k = k

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        scaler = StandardScaler().fit(training.x)
        search = NearestNeighbors(n_neighbors=min(self.k, len(training.x)), metric="cosine").fit(
            scaler.transform(training.x)
        )
        values = training.y if training.y.ndim > 1 else one_hot(training.y, problem.outputs)
        out = np.empty((len(test_x), values.shape[1]), np.float32)
        rows = max(64, MAX_DISTANCES // len(training.x))  # the matrix of distances is what takes memory
        for start in range(0, len(test_x), rows):
            distance, index = search.kneighbors(scaler.transform(test_x[start : start + rows]))
            weights = np.clip(1 - distance, 0, None) + 1e-6
            weights /= weights.sum(1, keepdims=True)
            out[start : start + rows] = np.einsum("mk,mkc->mc", weights, values[index])
        return out


class Linear(FeatureProtocol):
    """Logistic regression, or ridge regression for numbers, on standardised features.

    Args:
        c: inverse strength of the L2 penalty; without it the best of 0.01, 0.1, 1 and 10 on a quarter of the training
            groups, so that features of every width are judged at their own best.
        max_iter: steps of the solver.
    """

    title: ClassVar[str] = "linear probe"

    def __init__(self, c: float | None = None, max_iter: int = 300) -> None:
        if c is not None and not c > 0:
            raise ConfigError(f"c={c}: must be above 0.")
        self.c, self.max_iter = c, max_iter

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        x, y = training.x, training.y
        if problem.kind == "regression":
            model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 5, 15)))
            return model.fit(x, y).predict(test_x).reshape(len(test_x), -1)
        if problem.kind == "multilabel":
            return self._labels(x, y, test_x)
        if len(np.unique(y)) < 2:
            return np.repeat(one_hot(y[:1], problem.outputs), len(test_x), axis=0)
        c = self.c or self._choose(training, seed)
        return self._fit_classes(c, x, y, test_x, problem.outputs)

    def _fit_classes(self, c: float, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, outputs: int) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=self.max_iter))
        with warnings.catch_warnings():  # this many steps are the protocol, converged or not
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        out = np.zeros((len(test_x), outputs), np.float32)
        out[:, model.classes_] = model.predict_proba(test_x)
        return out

    def _choose(self, training: Training, seed: int) -> float:
        """The best of `C_VALUES` on held-out groups; 0.1 where there are too few to hold any out."""
        names = np.unique(training.groups)
        order = np.random.default_rng(derive_seed(seed, len(names))).permutation(len(names))
        held = np.isin(training.groups, names[order[: max(1, len(names) // 4)]])
        fit_y = training.y[~held]
        if len(names) < 4 or held.sum() < 10 or len(np.unique(fit_y)) < 2:
            return 0.1
        truth = training.y[held]
        right = []
        for c in C_VALUES:
            says = self._fit_classes(c, training.x[~held], fit_y, training.x[held], int(training.y.max()) + 1)
            right.append(np.mean([(says.argmax(1) == truth)[truth == label].mean() for label in np.unique(truth)]))
        return C_VALUES[int(np.argmax(right))]

    def _labels(self, x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
        model = make_pipeline(
            StandardScaler(), OneVsRestClassifier(LogisticRegression(C=self.c or 0.1, max_iter=self.max_iter))
        )
        with warnings.catch_warnings():  # labels that all or none of the training samples have
            warnings.simplefilter("ignore")
            return model.fit(x, y.astype(int)).predict_proba(test_x).reshape(len(test_x), -1)


class Clusters(FeatureProtocol):
    """k-means on standardised features without labels; clusters are named by the best one-to-one match on the training
    labels (Hungarian), surplus clusters by their majority.

    Args:
        k: clusters; as many as classes without it.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "segmentation"})
    title: ClassVar[str] = "k-means"

    def __init__(self, k: int | None = None) -> None:
        self.k = k

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        k = min(self.k or problem.outputs, len(training.x))
        scaler = StandardScaler().fit(training.x)
        model = KMeans(k, n_init=5, random_state=derive_seed(seed, k) % 2**32).fit(scaler.transform(training.x))
        table = np.zeros((k, problem.outputs))
        np.add.at(table, (model.labels_, training.y), 1)
        names = table.argmax(1)
        rows, columns = linear_sum_assignment(-table)
        names[rows] = columns
        return one_hot(names[model.predict(scaler.transform(test_x))], problem.outputs)


class FewShot(FeatureProtocol):
    """Nearest class mean of a few labelled training items, by cosine similarity; episodes drawn anew.

    Args:
        shots: labelled items a class.
        episodes: draws; the score is their mean.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification"})

    def __init__(self, shots: int = 5, episodes: int = 100) -> None:
        if shots < 1 or episodes < 1:
            raise ConfigError(f"shots={shots}, episodes={episodes}: both must be at least 1.")
        self.shots, self.episodes = shots, episodes

    title: ClassVar[str] = "few-shot"

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        generator = np.random.default_rng(derive_seed(seed, self.shots))
        scaler = StandardScaler().fit(training.x)
        x, queries = scaler.transform(training.x), scaler.transform(test_x)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True) + 1e-12
        members = [np.flatnonzero(training.y == number) for number in range(problem.outputs)]
        out = np.full((self.episodes, len(test_x), problem.outputs), -np.inf, np.float32)
        for episode in range(self.episodes):
            for number, of_class in enumerate(members):
                if len(of_class):
                    chosen = generator.permutation(of_class)[: self.shots]
                    mean = x[chosen].mean(0)
                    out[episode, :, number] = queries @ (mean / (np.linalg.norm(mean) + 1e-12))
        return out


class BatchNormLinear(FeatureProtocol):
    """MAE's linear probe: BatchNorm without affine, one linear layer, LARS (He et al. 2022, appendix A.1).

    Args:
        epochs: passes over the training features.
        base_lr: learning rate of a batch of 256.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "segmentation", "multilabel"})
    title: ClassVar[str] = "linear probe (BatchNorm, LARS)"

    def __init__(self, epochs: int = 90, base_lr: float = 0.1) -> None:
        self.epochs, self.base_lr = epochs, base_lr

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        from maskwright.core.evaluation.heads import batchnorm_lars_probe

        return batchnorm_lars_probe(
            training.x,
            training.y,
            test_x,
            "classification" if problem.kind == "segmentation" else problem.kind,
            problem.outputs,
            seed,
            epochs=self.epochs,
            base_lr=self.base_lr,
        )


class Attentive(FeatureProtocol):
    """One learned query that attends over the frozen tokens of a sample, then a linear layer.

    Args:
        steps: optimiser steps.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "multilabel", "regression"})
    needs: ClassVar[Literal["pooled", "tokens"]] = "tokens"
    title: ClassVar[str] = "attentive probe"

    def __init__(self, steps: int = 300) -> None:
        self.steps = steps

    def predict(self, training: Training, test_x: np.ndarray, problem: Problem, seed: int) -> np.ndarray:
        from maskwright.core.evaluation.heads import attentive_probe

        return attentive_probe(training.x, training.y, test_x, problem.kind, problem.outputs, seed, steps=self.steps)
