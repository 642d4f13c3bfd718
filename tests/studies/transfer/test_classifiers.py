"""Shallow classifiers: logistic regressions against scikit-learn, rows of weight 0, and the sign of the scores."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxdti.studies.transfer import classifiers as shallow
from jaxdti.studies.transfer.classifiers import logistic_regressions, random_forest, support_vectors
from jaxdti.training import replicas as vectors

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 5)).astype(np.float32) * [1, 3, 0.3, 1, 2]
LABEL = (X @ [1, -0.5, 2, 0, 0.3] + 0.3 * RNG.normal(size=70) > 0.4).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("one_by_one", [True, False])
def test_logistic_regressions_match_scikit_learn(one_by_one, monkeypatch):
    monkeypatch.setattr(vectors, "runs_one_by_one", lambda *_: one_by_one)
    shallow._solve.clear_cache()
    weight = np.stack([np.ones(70), np.arange(70) < 31, RNG.integers(0, 3, 70)]).astype(np.float32)
    label = np.stack([LABEL, np.where(np.arange(70) < 31, LABEL, np.nan), 1 - LABEL])
    strength = np.asarray([1.0, 0.05, 20.0])
    w, b = logistic_regressions(X, label, weight, strength)
    assert w.shape == (3, 5) and b.shape == (3,)
    for i in range(3):
        used = weight[i] > 0
        expected = LogisticRegression(C=strength[i], tol=1e-8, max_iter=1000)
        expected.fit(X[used], label[i][used], sample_weight=weight[i][used])
        np.testing.assert_allclose(w[i], expected.coef_[0], rtol=5e-3, atol=2e-3)
        np.testing.assert_allclose(b[i], expected.intercept_[0], rtol=5e-3, atol=5e-3)


def test_scores_of_svm_and_forest_are_above_zero_for_class_one():
    for scores in (support_vectors(X[:50], LABEL[:50], X[50:]), random_forest(X[:50], LABEL[:50], X[50:], 0)):
        assert scores.dtype == np.float32 and scores.shape == (20,)
        assert np.mean((scores > 0) == LABEL[50:]) > 0.6


def test_a_forest_repeats_with_its_seed():
    one, same, other = (random_forest(X[:50], LABEL[:50], X[50:], seed) for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
