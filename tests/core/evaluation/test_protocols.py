import numpy as np
import pytest
from sklearn.datasets import load_digits

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.protocol import Clusters, FewShot, Linear, Neighbours, Problem, Training, one_hot

DIGITS = load_digits()
ORDER = np.random.default_rng(0).permutation(len(DIGITS.target))
X, Y = DIGITS.data[ORDER].astype(np.float32), DIGITS.target[ORDER]
TRAINING, TEST = Training(X[:600], Y[:600], np.arange(600)), slice(600, 1000)
CLASSES = Problem("classification", 10)


@pytest.mark.parametrize(
    ("protocol", "floor"),
    [(Neighbours(), 0.93), (Linear(), 0.93), (Linear(c=0.1), 0.93), (Clusters(), 0.5), (FewShot(), 0.7)],
)
def test_digits_are_told_apart_and_shuffled_labels_are_not(protocol, floor):
    says = protocol.predict(TRAINING, X[TEST], CLASSES, seed=0)
    assert (says.argmax(-1) == Y[TEST]).mean() > floor
    assert np.array_equal(says, protocol.predict(TRAINING, X[TEST], CLASSES, seed=0))
    shuffled = Training(TRAINING.x, np.random.default_rng(1).permutation(TRAINING.y), TRAINING.groups)
    assert (protocol.predict(shuffled, X[TEST], CLASSES, seed=0).argmax(-1) == Y[TEST]).mean() < 0.35


@pytest.mark.parametrize("protocol", [Neighbours(), Linear(), Clusters(), FewShot(episodes=5)])
def test_scale_of_a_feature_does_not_matter(protocol):
    scale = np.random.default_rng(0).choice([1, 8, 0.125], size=X.shape[1]).astype(np.float32)
    scaled = Training(TRAINING.x * scale, TRAINING.y, TRAINING.groups)
    first = protocol.predict(TRAINING, X[TEST], CLASSES, 0).argmax(-1)
    assert (first == protocol.predict(scaled, X[TEST] * scale, CLASSES, 0).argmax(-1)).mean() > 0.98


def test_numbers_and_labels():
    pixels = Problem("regression", 1)
    y = (X @ np.random.default_rng(0).normal(size=(64, 1)) + 3).astype(np.float32)
    linear = Linear().predict(Training(X[:600], y[:600], np.arange(600)), X[TEST], pixels, 0)
    assert np.corrcoef(linear[:, 0], y[TEST][:, 0])[0, 1] > 0.999
    neighbours = Neighbours().predict(Training(X[:600], y[:600], np.arange(600)), X[TEST], pixels, 0)
    assert neighbours.shape == (400, 1)
    labels = np.stack([Y % 2 == 0, Y > 4], 1).astype(np.float32)
    for protocol in (Linear(), Neighbours()):
        says = protocol.predict(Training(X[:600], labels[:600], np.arange(600)), X[TEST], Problem("multilabel", 2), 0)
        assert ((says > 0.5) == labels[TEST]).mean() > 0.85
        assert says.min() >= 0
        assert says.max() <= 1 + 1e-5


def test_few_items_one_class_and_absent_classes():
    for protocol in (Neighbours(), Linear(), Clusters(), FewShot(episodes=2)):
        tiny = Training(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), np.arange(3))
        assert protocol.predict(tiny, np.eye(3, dtype=np.float32), Problem("classification", 4), 0).shape[-2:] == (3, 4)
    one = Training(np.zeros((3, 2), np.float32), np.array([2, 2, 2]), np.arange(3))
    assert Linear().predict(one, np.zeros((2, 2), np.float32), CLASSES, 0).argmax(1).tolist() == [2, 2]


def test_penalty_is_chosen_on_other_groups(monkeypatch):
    """Copies inside a group must not vote for the weakest penalty."""
    asked = []
    real = Linear._fit_classes

    def spy(self, c, x, y, test_x, outputs):
        asked.append((c, x, test_x))
        return real(self, c, x, y, test_x, outputs)

    monkeypatch.setattr(Linear, "_fit_classes", spy)
    copies = Training(np.repeat(X[:60], 4, 0), np.repeat(Y[:60], 4), np.repeat(np.arange(60), 4))
    Linear().predict(copies, X[TEST], CLASSES, 0)
    for _, inner_train, inner_test in asked[:-1]:
        rows = {row.tobytes() for row in inner_train}
        assert not any(row.tobytes() in rows for row in inner_test)
    assert len(asked) == 5


def test_clusters_get_names_from_training_labels_alone():
    says = Clusters(k=20).predict(TRAINING, X[TEST], CLASSES, 0)
    assert (says.argmax(1) == Y[TEST]).mean() > 0.6
    assert np.array_equal(one_hot(np.array([1, 0]), 2), [[0, 1], [1, 0]])


def test_impossible_options():
    for make in (lambda: Neighbours(0), lambda: Linear(c=0.0), lambda: FewShot(shots=0)):
        with pytest.raises(ConfigError):
            make()
