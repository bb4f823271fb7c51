import numpy as np
import pytest

from maskwright.core.evaluation.probes import PROBES, accuracies, linear_probe


def _clusters(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    centres = np.array([[0, 0, 5], [5, 0, 0], [0, 5, 0]], float)
    return centres[labels] + generator.normal(size=(count, 3)), labels


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_probes_find_clusters_and_not_noise(probe):
    train_x, train_y = _clusters(300, 0)
    test_x, test_y = _clusters(200, 1)
    assert (probe(train_x, train_y, test_x) == test_y).mean() > 0.95
    shuffled = np.random.default_rng(2).permutation(train_y)
    assert (probe(train_x, shuffled, test_x) == test_y).mean() < 0.55


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_scale_of_a_feature_does_not_matter(probe):
    train_x, train_y = _clusters(100, 0)
    test_x, _ = _clusters(50, 1)
    scale = np.array([1, 1000, 0.001])
    assert (probe(train_x, train_y, test_x) == probe(train_x * scale, train_y, test_x * scale)).mean() > 0.97


def test_one_class_and_few_samples():
    assert linear_probe(np.zeros((3, 2)), np.array([4, 4, 4]), np.zeros((2, 2))).tolist() == [4, 4]
    for probe in PROBES.values():
        assert len(probe(np.eye(3), np.array([0, 1, 2]), np.eye(3))) == 3


def test_accuracies():
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])
    assert accuracies(truth, predicted) == {"accuracy": 0.75, "balanced accuracy": 0.5}
