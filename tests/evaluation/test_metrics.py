import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxdti.evaluation.metrics import (
    classification_metrics,
    concordance_index,
    expected_calibration_error,
    modified_r2,
    regression_metrics,
    weighted_concordance,
)

# Few distinct values make ties, wide floats make awkward magnitudes.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-(2.0**100), 2.0**100, width=32))


def columns(count):
    return st.integers(1, 30).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=VALUES)] * count))


def brute_concordance(label, prediction, weight):
    above = label[:, None] > label[None, :]
    points = (prediction[:, None] > prediction[None, :]) + 0.5 * (prediction[:, None] == prediction[None, :])
    pair = weight[:, None] * weight[None, :] * above
    return np.sum(pair * points) / np.sum(pair) if np.sum(pair) else np.nan


@pytest.fixture(params=range(4))
def binary(request):
    rng = np.random.default_rng(request.param)
    label = (rng.random(157) < 0.3).astype(np.float32)
    score = np.round(rng.normal(size=157) + label, 1).astype(np.float32)  # rounded: with ties
    return label, score, 1 / (1 + np.exp(-score))


def test_classification_metrics_match_sklearn(binary):
    label, score, probability = binary
    called = probability >= 0.6
    confusion = sklearn.metrics.confusion_matrix(label, called)
    expected = {
        "auroc": sklearn.metrics.roc_auc_score(label, score),
        "auprc": sklearn.metrics.average_precision_score(label, score),
        "accuracy": sklearn.metrics.accuracy_score(label, called),
        "f1": sklearn.metrics.f1_score(label, called),
        "sensitivity": sklearn.metrics.recall_score(label, called),
        "specificity": confusion[0, 0] / confusion[0].sum(),
        "precision": sklearn.metrics.precision_score(label, called),
        "mcc": sklearn.metrics.matthews_corrcoef(label, called),
        "brier": sklearn.metrics.brier_score_loss(label, probability),
    }
    found = classification_metrics(label, score, probability, 0.6)
    assert list(found) == [*expected, "ece"]
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_calibration_error_of_known_bins():
    # 2 bins: [0, 0.5) has mean probability 0.2 and rate 0.5; [0.5, 1] has 0.75 and 1.
    probability, label = np.array([0.1, 0.3, 0.5, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    assert expected_calibration_error(label, probability, bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.25)
    assert expected_calibration_error(label, label) == 0.0


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_missing_class_gives_nan_not_a_warning(value, rows):
    label = np.full(rows, value)
    found = classification_metrics(label, np.arange(rows), np.full(rows, 0.5), 0.5)
    assert np.isnan([found["auroc"], found["auprc"], found["specificity" if value else "sensitivity"]]).all()
    assert found["mcc"] == 0.0 and found["brier"] == 0.25 and found["accuracy"] == value


def test_no_positive_call_gives_nan_precision():
    found = classification_metrics(np.array([0, 1]), np.array([0, 1]), np.array([0.1, 0.2]), 0.5)
    assert np.isnan(found["precision"]) and found["f1"] == 0.0 and found["sensitivity"] == 0.0


@given(columns(2))
def test_concordance_equals_all_pairs(case):
    label, prediction = case
    expected = brute_concordance(label, prediction, np.ones(len(label)))
    np.testing.assert_allclose(concordance_index(label, prediction), expected, rtol=1e-12)


@given(columns(2), st.integers(0, 2**32 - 1))
def test_weighted_concordance_equals_all_pairs(case, seed):
    label, prediction = case
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(label))).astype(np.float64)
    expected = [brute_concordance(label, prediction, weight) for weight in weights]
    np.testing.assert_allclose(weighted_concordance(label, prediction, weights), expected, rtol=1e-12)


def test_concordance_of_binary_labels_is_the_auroc(binary):
    label, score, _ = binary
    assert concordance_index(label, score) == pytest.approx(sklearn.metrics.roc_auc_score(label, score), rel=1e-12)


@given(columns(2))
def test_regression_metrics_of_wild_values(case):
    label, prediction = case
    found = regression_metrics(label, prediction)
    assert all(type(value) is float for value in found.values())
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(label, prediction), rel=1e-12)
    constant = np.ptp(label) == 0 or np.ptp(prediction) == 0
    assert np.isnan(found["pearson"]) == np.isnan(found["spearman"]) == np.isnan(found["r2m"]) == constant
    assert np.isnan(found["concordance_index"]) == (np.ptp(label) == 0)
    if not constant:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
            expected = scipy.stats.pearsonr(label, prediction).statistic
        assert found["pearson"] == pytest.approx(expected, abs=1e-6)
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(label, prediction).statistic, abs=1e-9)
        assert found["r2m"] <= 1.0


def test_r2m_against_least_squares():
    rng = np.random.default_rng(1)
    label = rng.normal(6, 1, 80)
    prediction = 0.7 * label + rng.normal(0, 0.4, 80)
    slope = np.linalg.lstsq(prediction[:, None], label, rcond=None)[0]
    r02 = sklearn.metrics.r2_score(label, prediction * slope)
    r2 = np.corrcoef(label, prediction)[0, 1] ** 2
    assert modified_r2(label, prediction) == pytest.approx(r2 * (1 - np.sqrt(abs(r2 - r02))), rel=1e-12)
    assert modified_r2(label, label) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "label, score, message",
    [
        ([0, 1], [0.5, np.nan], ": 1 of 2 values not finite; the first is nan at 1"),
        ([0, 1], [np.inf, 0.5], ": 1 of 2 values not finite; the first is inf at 0"),
        ([np.nan, 1], [0.5, 0.5], "label: 1 of 2 values not finite"),
        ([], [], "label has shape \\(0,\\)"),
        ([0, 1], [0.5], " has shape \\(1,\\)"),
    ],
)
def test_bad_columns_are_refused(label, score, message):
    label, score = np.array(label, float), np.array(score, float)
    with pytest.raises(ValueError, match=message):
        regression_metrics(label, score)
    with pytest.raises(ValueError, match=message):
        classification_metrics(label, score, np.full(len(score), 0.5), 0.5)


def test_values_out_of_range_are_refused():
    half = np.array([0.5, 0.5])
    with pytest.raises(ValueError, match="neither 0 nor 1; the first is 2"):
        classification_metrics(np.array([0, 2]), half, half, 0.5)
    with pytest.raises(ValueError, match="probability spans 0.5 to 1.5"):
        classification_metrics(np.array([0, 1]), half, np.array([0.5, 1.5]), 0.5)
