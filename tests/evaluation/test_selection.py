"""Selection without target labels against scikit-learn, densities that are known, and losses on the target itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy, norm

from jaxdti.evaluation.selection import deep_embedded_validation, importance_weights, prediction_information


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy(probability):
    p = np.array(probability)
    both = np.stack([p, 1 - p])
    expected = entropy(both.mean(1)) - entropy(both).mean()
    found = prediction_information(p)
    assert found == pytest.approx(expected, abs=1e-12) and -1e-12 <= found <= np.log(2) + 1e-12


def test_information_is_largest_for_sure_predictions_of_both_classes():
    assert prediction_information(np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    assert prediction_information(np.array([1.0, 1.0])) == 0.0 == prediction_information(np.array([0.5, 0.5]))


def test_weights_are_the_ratio_of_the_densities():
    rng = np.random.default_rng(0)
    source, target = rng.normal(0.0, 1.0, (40_000, 1)), rng.normal(0.5, 1.0, (20_000, 1))
    x = np.linspace(-1.5, 2.0, 9)[:, None]
    expected = norm.pdf(x, 0.5) / norm.pdf(x, 0.0)
    np.testing.assert_allclose(importance_weights(source, target, x), expected[:, 0], rtol=0.06)


def test_weights_stay_finite_where_the_domains_are_apart():
    source, target = np.full((30, 2), -1e6), np.full((30, 2), 1e6)
    assert np.all(np.isfinite(importance_weights(source, target, np.concatenate([source, target]))))


def test_the_risk_follows_numpy_and_equal_weights_give_the_mean():
    rng = np.random.default_rng(1)
    loss, weight = rng.random(50), rng.random(50) * 2
    covariance = np.cov(weight * loss, weight, ddof=0)
    eta = -covariance[0, 1] / covariance[1, 1]
    expected = np.mean(weight * loss) + eta * np.mean(weight) - eta
    assert deep_embedded_validation(loss, weight) == pytest.approx(expected)
    assert deep_embedded_validation(loss, np.ones(50)) == pytest.approx(loss.mean())


def test_the_risk_estimates_that_on_the_target_with_less_variance_than_plain_weighting():
    rng = np.random.default_rng(2)
    risk = lambda x: (x - 2.0) ** 2
    truth = risk(rng.normal(0.5, 1.0, 1_000_000)).mean()
    estimates, plain = [], []
    for _ in range(300):
        x = rng.normal(0.0, 1.0, 400)
        weight = norm.pdf(x, 0.5) / norm.pdf(x, 0.0)
        estimates.append(deep_embedded_validation(risk(x), weight))
        plain.append(np.mean(weight * risk(x)))
    assert np.mean(estimates) == pytest.approx(truth, abs=0.1) and np.std(estimates) < np.std(plain)
