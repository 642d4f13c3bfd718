"""Baselines beside networks on feature vectors: a similarity-weighted vote, a random forest, a logistic regression."""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from jaxdti.evaluation.baselines import FOREST_LEAF, FOREST_TREES, POWER

VECTOR_BASELINES = ("similarity", "random_forest", "logistic_regression")

_BLOCK = 1024  # rows that vote at a time


def vector_baseline(
    name: str, features: np.ndarray, label: np.ndarray, classes: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a baseline to labelled rows; no setting is tuned.

    ``similarity`` gives a class the share of the weights that its training rows have: T^4 with the Tanimoto similarity
    T where all training features are 0 or 1, otherwise the cosine^4 of features less the training means, 0 where the
    cosine is negative; the classes' shares of the training rows where all weights are 0. ``random_forest`` has 300
    trees with leaves of two rows or more, ``logistic_regression`` scikit-learn's settings.

    Args:
      name: one of ``VECTOR_BASELINES``.
      features: float [N, F], N at least 1.
      label: int [N], 0 to ``classes`` - 1.
      seed: of the forest.

    Returns:
      A function of features float [M, F] that gives scores float64 [M, classes]; the largest names the class.

    Raises:
      ValueError: no such baseline.
    """
    if name not in VECTOR_BASELINES:
        raise ValueError(f"baseline {name!r}: choose from {', '.join(VECTOR_BASELINES)}")
    votes = np.eye(classes)[label]
    if name == "similarity":
        return _vote(features, votes)
    if len(np.unique(label)) == 1:  # scikit-learn refuses a single class
        return lambda asked: np.repeat(votes[:1], len(asked), axis=0)
    if name == "random_forest":
        # In one thread: between several scikit-learn 1.9 may lose the filters of warnings, and then warns at each tree.
        model = RandomForestClassifier(FOREST_TREES, min_samples_leaf=FOREST_LEAF, random_state=seed)
    else:
        model = LogisticRegression(max_iter=2000)
    model.fit(features, label)

    def score(asked: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(asked), classes))
        scores[:, model.classes_] = model.predict_proba(asked)
        return scores

    return score


def _vote(features: np.ndarray, votes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Similarity-weighted mean of the votes float [N, K] of the rows [N, F]."""
    shares = votes.mean(0)
    similarity = _tanimoto if np.isin(features, (0, 1)).all() else _centred_cosine

    def score(asked: np.ndarray) -> np.ndarray:
        blocks = [asked[first : first + _BLOCK] for first in range(0, len(asked), _BLOCK)]
        scores = [np.zeros((0, votes.shape[1]))]
        for block in blocks:
            weight = similarity(features, block).astype(np.float64) ** POWER
            total = weight.sum(1, keepdims=True)
            scores.append(np.where(total > 0, weight @ votes / np.where(total > 0, total, 1.0), shares))
        return np.concatenate(scores)

    return score


def _tanimoto(train: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[M, N] of features 0 or 1."""
    common = asked @ train.T
    either = asked.sum(1)[:, None] + train.sum(1)[None, :] - common
    return common / np.maximum(either, 1.0)


def _centred_cosine(train: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[M, N], from 0 on."""
    mean = train.mean(0)
    unit = lambda x: (x - mean) / np.maximum(np.linalg.norm(x - mean, axis=1, keepdims=True), 1e-12)
    return np.maximum(unit(asked) @ unit(train).T, 0.0)
