"""Metrics from sums over groups equal scikit-learn's on the items, and the interval behaves as one."""

import numpy as np
import pytest
from sklearn import metrics as reference

from maskwright.core.evaluation.metrics import (
    METRICS,
    by_group,
    metrics_of,
    paired_interval,
    retrieval_statistics,
    statistics,
)


def _value(kind, name, truth, predicted, classes):
    stats = statistics(kind, truth, predicted, classes)
    groups = np.random.default_rng(0).integers(0, 7, len(stats))
    sums = by_group(stats, groups, 7).sum(0, keepdims=True)
    metric = next(one for one in METRICS[kind] if one.name == name)
    return float(metric.value(sums)[0])


def test_classification_equals_scikit_learn():
    generator = np.random.default_rng(1)
    truth, predicted = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    for name, function in (
        ("accuracy", reference.accuracy_score),
        ("balanced accuracy", reference.balanced_accuracy_score),
        ("macro F1", lambda t, p: reference.f1_score(t, p, average="macro")),
    ):
        assert _value("classification", name, truth, predicted, 5) == pytest.approx(function(truth, predicted))


def _auc(truth, scores):
    predicted = scores.argmax(1)
    stats = statistics("classification", truth, predicted, 2, scores)
    metric = next(one for one in METRICS["classification"] if one.name == "AUC")
    accuracy = next(one for one in METRICS["classification"] if one.name == "accuracy")
    sums = by_group(stats, np.arange(len(truth)) % 7, 7).sum(0, keepdims=True)
    assert accuracy.value(sums)[0] == pytest.approx((truth == predicted).mean())
    return float(metric.value(sums)[0])


def test_auc_equals_scikit_learn():
    generator = np.random.default_rng(7)
    truth = (generator.random(120) > 0.7).astype(int)
    margin = generator.normal(size=120) + truth
    scores = np.stack([-margin, margin], axis=1) / 2
    assert _auc(truth, scores) == pytest.approx(reference.roc_auc_score(truth, margin), abs=1e-12)
    ties = np.stack([np.zeros(120), margin.round()], axis=1)
    assert _auc(truth, ties) == pytest.approx(reference.roc_auc_score(truth, margin.round()), abs=1e-12)
    many = (generator.random(5000) > 0.5).astype(int)
    margin = generator.normal(size=5000) + many
    exact = reference.roc_auc_score(many, margin)
    assert _auc(many, np.stack([0 * margin, margin], axis=1)) == pytest.approx(exact, abs=1e-3)
    assert np.isnan(_auc(np.zeros(9, int), generator.normal(size=(9, 2))))  # one class alone has none


def test_auc_is_reported_for_two_classes_only():
    assert "AUC" in [one.name for one in metrics_of("classification", 2)]
    assert "AUC" not in [one.name for one in metrics_of("classification", 3)]


def test_segmentation_counts_pixels_and_equals_scikit_learn():
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 5, (60, 3))
    predicted = generator.integers(0, 3, 60)
    truth = np.concatenate([np.repeat(np.arange(3), row) for row in pixels])
    says = np.repeat(predicted, pixels.sum(1))
    assert _value("segmentation", "mean IoU", pixels, predicted, 3) == pytest.approx(
        reference.jaccard_score(truth, says, average="macro")
    )
    assert _value("segmentation", "pixel accuracy", pixels, predicted, 3) == pytest.approx((truth == says).mean())


def test_regression_and_multilabel_equal_scikit_learn():
    generator = np.random.default_rng(3)
    truth = generator.normal(size=(80, 2)) * 3 + 5
    predicted = truth + generator.normal(size=(80, 2))
    assert _value("regression", "R2", truth, predicted, 2) == pytest.approx(reference.r2_score(truth, predicted))
    assert _value("regression", "RMSE", truth, predicted, 2) == pytest.approx(
        reference.root_mean_squared_error(truth, predicted)
    )
    assert _value("regression", "mean absolute error", truth, predicted, 2) == pytest.approx(
        reference.mean_absolute_error(truth, predicted)
    )
    yes, says = generator.random((80, 4)) > 0.6, generator.random((80, 4))
    for name, average in (("macro F1", "macro"), ("micro F1", "micro")):
        assert _value("multilabel", name, yes.astype(float), says, 4) == pytest.approx(
            reference.f1_score(yes, says > 0.5, average=average)
        )


def test_retrieval_equals_average_precision_a_query():
    generator = np.random.default_rng(4)
    gallery, queries = generator.normal(size=(50, 6)), generator.normal(size=(20, 6))
    gallery_y, query_y = generator.integers(0, 3, 50), generator.integers(0, 4, 20)  # class 3 has no partner
    stats = retrieval_statistics(queries, query_y, gallery, gallery_y)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    similarity = unit(queries) @ unit(gallery).T
    for row, label, scores in zip(stats, query_y, similarity, strict=True):
        relevant = gallery_y == label
        assert row[0] == relevant.any()
        if relevant.any():
            assert row[1] == pytest.approx(reference.average_precision_score(relevant, scores))
            assert row[2] == relevant[scores.argmax()]


def _sums(right, groups=40, seeds=3, members=10, seed=0):
    """(S, G, 4) confusion sums of two even classes of which a share is right."""
    generator = np.random.default_rng(seed)
    hits = generator.binomial(members, right, size=(seeds, groups, 2))
    return np.stack([hits[..., 0], members - hits[..., 0], members - hits[..., 1], hits[..., 1]], -1).astype(float)


def test_interval_covers_the_difference_as_often_as_it_says():
    metric = METRICS["classification"][1]
    covered = 0
    for trial in range(100):
        ours, theirs = _sums(0.8, seeds=1, seed=2 * trial), _sums(0.7, seeds=1, seed=2 * trial + 1)
        difference, low, high = paired_interval(metric, ours, theirs, seed=trial, draws=400)
        assert low <= difference <= high
        covered += low <= 0.1 <= high
    assert 88 <= covered <= 100  # 95 are expected


def test_pairing_makes_the_interval_narrow_where_groups_vary():
    metric = METRICS["classification"][1]
    generator = np.random.default_rng(0)
    easy = generator.random(40)  # how easy a group is, for both alike
    hits = np.round(100 * easy)
    base = np.stack([hits, 100 - hits, 100 - hits, hits], -1)[None]
    better = np.minimum(hits + 3, 100)
    ours = np.stack([better, 100 - better, 100 - better, better], -1)[None]
    _, low, high = paired_interval(metric, ours, base)
    assert 0 < low < high < 0.04


def test_less_is_better_turns_the_sign():
    rmse = next(one for one in METRICS["regression"] if one.name == "RMSE")
    y = np.random.default_rng(0).normal(size=(50, 1))
    near = statistics("regression", y, y + 0.1, 1)[None]
    far = statistics("regression", y, y + 0.5, 1)[None]
    difference, low, _ = paired_interval(rmse, near, far)
    assert difference == pytest.approx(0.4)
    assert low > 0
