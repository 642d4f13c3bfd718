import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_curve

from jaxdti.evaluation.calibration import TEMPERATURES, Calibration, fit_calibration, fit_temperature, fit_threshold


def sample(rows, seed=0, shift=0.0):
    """True logits and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(shift, 2, rows)
    return logit, (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)


def test_default_is_the_plain_sigmoid():
    score = np.array([-800.0, -1.0, 0.0, 1.0, 800.0])
    np.testing.assert_allclose(Calibration().probability(score), [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1])
    assert Calibration().threshold == 0.5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(temperature):
    logit, label = sample(20_000)
    assert fit_temperature(label, logit * temperature) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("shift", [0.0, -1.5])
def test_temperature_is_the_minimum_of_the_cross_entropy(shift):
    logit, label = sample(400, seed=3)
    score = 2 * logit + shift
    ones = label.sum()
    goal = np.where(label == 1, (ones + 1) / (ones + 2), 1 / (len(label) - ones + 2))

    def slope(inverse):
        return np.mean((expit(inverse * (score - shift)) - goal) * (score - shift))

    expected = 1 / scipy.optimize.brentq(slope, 0.01, 100)
    assert fit_temperature(label, score, prior_shift=shift) == pytest.approx(expected, rel=1e-4)


def test_class_weights_are_undone_first():
    logit, label = sample(20_000, shift=-2.0)
    offset = float(np.log(5.0))  # as if class 1 had weighed 5 times as much
    fitted = fit_calibration(label, 3 * logit + offset, logit_offset=offset)
    assert fitted.logit_offset == offset
    assert fitted.temperature == pytest.approx(3.0, rel=0.05)
    assert fitted.probability(3 * logit + offset).mean() == pytest.approx(label.mean(), abs=0.01)
    assert json.loads(json.dumps(dataclasses.asdict(fitted))) == dataclasses.asdict(fitted)


def test_separable_scores_keep_a_finite_temperature():
    label = np.repeat([0.0, 1.0], 50)
    score = np.where(label == 1, 3.0, -3.0)
    # Platt's targets: the optimum is where sigmoid(3 / T) = 51 / 52.
    assert fit_temperature(label, score) == pytest.approx(3 / np.log(51), rel=1e-3)
    assert fit_temperature(label, -score) == pytest.approx(TEMPERATURES[1], rel=1e-3)


@pytest.mark.parametrize("label, score", [([1, 1, 1], [1, 2, 3]), ([0, 0], [1, 2]), ([0, 1], [0, 0])])
def test_nothing_to_fit_leaves_temperature_one(label, score):
    assert fit_temperature(np.array(label), np.array(score, float)) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.floats(-1e4, 1e4)), min_size=1, max_size=20))
def test_fits_of_wild_scores_stay_in_bounds(rows):
    label, score = np.array(rows, float).T
    fitted = fit_calibration(label, score)
    assert TEMPERATURES[0] <= fitted.temperature <= TEMPERATURES[1]
    assert 0 < fitted.threshold <= 1


@pytest.mark.parametrize("seed", range(5))
def test_threshold_has_the_best_youden_index(seed):
    logit, label = sample(100, seed)
    probability = np.round(1 / (1 + np.exp(-logit)), 2)
    called = probability >= fit_threshold(label, probability)
    youden = called[label == 1].mean() - called[label == 0].mean()
    false_rate, true_rate, _ = roc_curve(label, probability)
    assert youden == pytest.approx(np.max(true_rate - false_rate))


def test_threshold_lies_in_the_middle_and_near_a_half():
    assert fit_threshold(np.array([0, 1]), np.array([0.1, 0.3])) == pytest.approx(0.2)
    # Equally good between 0.1 and 0.2 and between 0.6 and 0.7: the second middle is nearer to 0.5.
    assert fit_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.6, 0.7])) == pytest.approx(0.65)


def test_threshold_between_neighbouring_floats():
    low, high = np.float64(0.5), np.nextafter(0.5, 1)
    assert fit_threshold(np.array([0, 1]), np.array([low, high])) == high


@pytest.mark.parametrize("label, probability", [([1, 1], [0.1, 0.9]), ([0, 1], [0.3, 0.3]), ([1, 0], [0.1, 0.9])])
def test_no_useful_threshold_gives_a_half(label, probability):
    assert fit_threshold(np.array(label), np.array(probability)) == 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="score: 1 of 2 values not finite"):
        fit_temperature(np.array([0, 1]), np.array([0, np.nan]))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        fit_threshold(np.array([0, 0.5]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="probability spans"):
        fit_threshold(np.array([0, 1]), np.array([0.1, 1.2]))
