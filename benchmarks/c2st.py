"""Classifier two-sample test as in sbi-benchmark: 0.5 is indistinguishable, 1 is disjoint."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier


def c2st(draws: NDArray[np.float64], reference: NDArray[np.float64], seed: int = 1) -> float:
    """Mean accuracy over five folds of a network that tells `draws` from `reference`, both (draw, dim)."""
    middle, spread = reference.mean(0), reference.std(0)
    size = draws.shape[1]
    together = np.concatenate([(draws - middle) / spread, (reference - middle) / spread])
    labels = np.repeat([0, 1], [len(draws), len(reference)])
    classifier = MLPClassifier((10 * size, 10 * size), max_iter=1_000, solver="adam", random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(classifier, together, labels, cv=folds).mean())
