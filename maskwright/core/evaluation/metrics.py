"""Metrics as sums over groups, so that a score and its bootstrap over groups cost one pass over the predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskwright.core.evaluation.task import IGNORE, Kind


@dataclass(frozen=True)
class Metric:
    """One figure of merit.

    Args:
        name: what it is called in tables.
        value: from sums over groups (R, K) to the figure (R,).
        better: +1 where more is better, -1 where less is.
        worth: the smallest difference that is worth having; below it a gain counts as none.
        of_two: defined for two classes only.
    """

    name: str
    value: Callable[[np.ndarray], np.ndarray]
    better: int = 1
    worth: float = 0.01
    of_two: bool = False


BINS = 128
"""Ranks of scores that the area under the curve tells apart."""


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom != 0)


def _confusion(sums: np.ndarray) -> np.ndarray:
    """(R, C * C) to (R, C, C): rows are the truth, columns the prediction."""
    if sums.shape[-1] == 4 + 2 * BINS:  # two classes, and their scores beside
        sums = sums[..., :4]
    classes = round(sums.shape[-1] ** 0.5)
    return sums.reshape(-1, classes, classes)


def accuracy(sums: np.ndarray) -> np.ndarray:
    """Share of right answers."""
    table = _confusion(sums)
    return _ratio(np.trace(table, axis1=1, axis2=2), table.sum((1, 2)))


def balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of the share of their members that were recognised."""
    table = _confusion(sums)
    return np.nanmean(_ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(2)), axis=1)


def _f1(sums: np.ndarray) -> np.ndarray:
    """(R, C) F1 of each class, NaN where a class neither occurs nor was predicted."""
    table = _confusion(sums)
    right = np.diagonal(table, axis1=1, axis2=2)
    return _ratio(2 * right, table.sum(1) + table.sum(2))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur or were predicted."""
    return np.nanmean(_f1(sums), axis=1)


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """Mean over classes of intersection over union, of the classes that occur or were predicted."""
    f1 = _f1(sums)
    return np.nanmean(f1 / (2 - f1), axis=1)


def area_under_curve(sums: np.ndarray) -> np.ndarray:
    """Probability that a member of the second class has a higher score than one of the first; ties count half."""
    first, second = np.moveaxis(sums[..., 4:].reshape(len(sums), 2, BINS), 1, 0)
    below = first.cumsum(1) - first / 2
    return _ratio((second * below).sum(1), first.sum(1) * second.sum(1))


def r2(sums: np.ndarray) -> np.ndarray:
    """Mean over the columns of 1 - squared error / variance; sums are (n, e^2, |e|, y, y^2) a column."""
    n, squares, _, total, total_squares = np.moveaxis(sums.reshape(len(sums), -1, 5), -1, 0)
    return np.mean(1 - _ratio(squares, total_squares - _ratio(total**2, n)), axis=1)


def rmse(sums: np.ndarray) -> np.ndarray:
    """Root of the mean squared error, mean over the columns."""
    n, squares, *_ = np.moveaxis(sums.reshape(len(sums), -1, 5), -1, 0)
    return np.mean(np.sqrt(_ratio(squares, n)), axis=1)


def mae(sums: np.ndarray) -> np.ndarray:
    """Mean absolute error, mean over the columns."""
    n, _, absolute, *_ = np.moveaxis(sums.reshape(len(sums), -1, 5), -1, 0)
    return np.mean(_ratio(absolute, n), axis=1)


def _label_f1(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, wrong, missed = np.moveaxis(sums.reshape(len(sums), -1, 3), -1, 0)
    return right, wrong, missed


def label_micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 over all labels of all samples."""
    right, wrong, missed = (part.sum(1) for part in _label_f1(sums))
    return _ratio(2 * right, 2 * right + wrong + missed)


def label_macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur or were predicted."""
    right, wrong, missed = _label_f1(sums)
    return np.nanmean(_ratio(2 * right, 2 * right + wrong + missed), axis=1)


def _mean_of(position: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: _ratio(sums[:, position], sums[:, 0])


METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": (
        Metric("balanced accuracy", balanced_accuracy),
        Metric("accuracy", accuracy),
        Metric("macro F1", macro_f1),
        Metric("AUC", area_under_curve, of_two=True),
    ),
    "segmentation": (
        Metric("mean IoU", mean_iou),
        Metric("pixel accuracy", accuracy),
        Metric("balanced pixel accuracy", balanced_accuracy),
    ),
    "multilabel": (Metric("macro F1", label_macro_f1), Metric("micro F1", label_micro_f1)),
    "regression": (Metric("R2", r2), Metric("RMSE", rmse, -1, 0.0), Metric("mean absolute error", mae, -1, 0.0)),
    "retrieval": (Metric("mean average precision", _mean_of(1)), Metric("precision at 1", _mean_of(2))),
}
"""What is reported for each kind of task; the first decides the verdict."""


def metrics_of(kind: Kind, classes: int) -> list[Metric]:
    """What is reported for a task of so many classes or columns."""
    return [metric for metric in METRICS[kind] if classes == 2 or not metric.of_two]


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of (n,) scores among each other, 0 to `BINS` - 1; equal scores have one rank.

    Exact for up to `BINS` different scores; more are put together, which moves an area under the curve by less than
    1 / `BINS`.
    """
    values, rank = np.unique(scores, return_inverse=True)
    return rank if len(values) <= BINS else rank * BINS // len(values)


def statistics(
    kind: Kind, truth: np.ndarray, predicted: np.ndarray, classes: int, scores: np.ndarray | None = None
) -> np.ndarray:
    """What each item adds to the sums: (n, K).

    Args:
        truth: classification (n,) class numbers; segmentation (n, C) pixels of each class in an item; multilabel (n, C);
            regression (n, K).
        predicted: classification and segmentation (n,) class numbers; multilabel (n, C) scores, above 0.5 is yes;
            regression (n, K).
        scores: (n, C) of a classification, for the area under the curve of two classes; without them the predictions
            themselves are ranked. Items that are counted together are ranked among each other.
    """
    n = len(truth)
    if kind == "classification":
        table = np.zeros((n, classes * classes + (2 * BINS if classes == 2 else 0)), np.float64)
        table[np.arange(n), truth * classes + predicted] = 1
        if classes == 2:
            rank = ranks(predicted if scores is None else scores[:, 1] - scores[:, 0])
            table[np.arange(n), 4 + truth * BINS + rank] = 1
        return table
    if kind == "segmentation":
        tables = np.zeros((n, classes, classes), np.float64)
        tables[np.arange(n), :, predicted] = truth
        return tables.reshape(n, -1)
    if kind == "multilabel":
        yes, says = truth > 0.5, predicted > 0.5
        return np.stack([yes & says, ~yes & says, yes & ~says], axis=-1).reshape(n, -1).astype(np.float64)
    error = predicted.reshape(n, -1) - truth.reshape(n, -1)
    y = truth.reshape(n, -1)
    return np.stack([np.ones_like(y), error**2, np.abs(error), y, y**2], axis=-1).reshape(n, -1).astype(np.float64)


def pixel_statistics(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """What the pixels of one sample add to the sums of a segmentation: (C * C,). Truth -1 is ignored."""
    known = truth != IGNORE
    return np.bincount(truth[known] * classes + predicted[known], minlength=classes * classes).astype(np.float64)


def retrieval_statistics(
    test_x: np.ndarray, test_y: np.ndarray, gallery_x: np.ndarray, gallery_y: np.ndarray
) -> np.ndarray:
    """(1, average precision, precision at 1) of each query by cosine similarity: (m, 3).

    Queries whose class the gallery lacks count nothing.
    """
    out = np.zeros((len(test_x), 3))
    norm_gallery = gallery_x / (np.linalg.norm(gallery_x, axis=1, keepdims=True) + 1e-12)
    norm_test = test_x / (np.linalg.norm(test_x, axis=1, keepdims=True) + 1e-12)
    for start in range(0, len(test_x), 256):
        block = slice(start, start + 256)
        order = np.argsort(-(norm_test[block] @ norm_gallery.T), axis=1, kind="stable")
        relevant = gallery_y[order] == test_y[block, None]
        found = relevant.sum(1)
        precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
        average = _ratio((precision * relevant).sum(1), found)
        there = found > 0
        out[block] = np.stack([there, np.where(there, average, 0), relevant[:, 0] & there], axis=1)
    return out


def by_group(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sums of (n, K) over the items of each group: (G, K)."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def paired_interval(
    metric: Metric, ours: np.ndarray, baseline: np.ndarray, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Difference of a metric and its 95 % bootstrap interval; groups, and seeds where there are several, drawn anew.

    Args:
        ours, baseline: (S, G, K) sums of each seed and test group. The same groups are drawn for both.

    Returns:
        (difference, low, high), in the direction in which more is better.
    """
    generator = np.random.default_rng(seed)
    seeds, groups, _ = ours.shape
    drawn = np.apply_along_axis(np.bincount, 1, generator.integers(groups, size=(draws, groups)), minlength=groups)
    seed_rows = generator.integers(seeds, size=(draws, seeds)) if seeds > 1 else np.zeros((draws, 1), int)

    def values(sums: np.ndarray) -> tuple[float, np.ndarray]:
        each = np.stack([metric.value(drawn @ sums[s]) for s in range(seeds)], axis=1)  # (R, S)
        whole = np.mean([metric.value(sums[s].sum(0, keepdims=True))[0] for s in range(seeds)])
        return float(whole), np.take_along_axis(each, seed_rows, axis=1).mean(1)

    our_value, our_draws = values(ours)
    their_value, their_draws = values(baseline)
    difference = metric.better * (our_draws - their_draws)
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return metric.better * (our_value - their_value), -np.inf, np.inf
    low, high = np.quantile(difference, [0.025, 0.975])
    return metric.better * (our_value - their_value), float(low), float(high)
