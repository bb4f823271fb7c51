"""Probes: simple classifiers on frozen features. scikit-learn does the work."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def knn_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, k: int = 20) -> np.ndarray:
    """Predict classes by cosine-weighted vote of the k nearest training features: (n, D), (n,), (m, D) to (m,).

    Features are standardised by the training features first; k is at most n.
    """
    vote = KNeighborsClassifier(
        n_neighbors=min(k, len(train_y)), metric="cosine", weights=lambda distance: 1 - distance + 1e-6
    )
    return make_pipeline(StandardScaler(), vote).fit(train_x, train_y).predict(test_x)


def linear_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, c: float = 0.1) -> np.ndarray:
    """Predict classes by multinomial logistic regression on standardised features: (n, D), (n,), (m, D) to (m,).

    Args:
        c: inverse strength of the L2 penalty.
    """
    if len(np.unique(train_y)) < 2:
        return np.full(len(test_x), train_y[0])
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
    with warnings.catch_warnings():  # 300 steps are the protocol, converged or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return regression.fit(train_x, train_y).predict(test_x)


PROBES = {"kNN (k = 20)": knn_probe, "linear probe": linear_probe}


def accuracies(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Share of right answers, and its mean over the classes that occur in `truth`."""
    with warnings.catch_warnings():  # a class that is predicted but absent from a fold is not an error
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(truth, predicted)
    return {"accuracy": float((truth == predicted).mean()), "balanced accuracy": float(balanced)}
