import numpy as np
import pytest

from maskwright.core.errors import DataError
from maskwright.remote_sensing.tasks import block_folds, token_labels


def test_token_labels_are_majorities():
    classes = np.full((4, 6), 2)
    classes[:2, :2] = [[5, 5], [5, 2]]
    classes[2:, 4:] = [[1, 1], [2, 2]]
    assert token_labels(classes, 2).tolist() == [[5, 2, 2], [2, 2, 1]]
    with pytest.raises(DataError, match="do not divide"):
        token_labels(classes, 4)


def test_block_folds_cover_each_token_once_and_keep_a_moat():
    folds = block_folds((7, 9), blocks=2, gap=1)
    assert len(folds) == 4
    assert np.array_equal(sum(test.astype(int) for _, test in folds), np.ones((7, 9), int))
    for train, test in folds:
        rows, columns = np.nonzero(test)
        train_rows, train_columns = np.nonzero(train)
        apart = np.maximum(
            abs(rows[:, None] - train_rows[None]),
            abs(columns[:, None] - train_columns[None]),
        )
        assert apart.min() == 2  # one token lies between
