import time

import numpy as np
import pytest
import sklearn.metrics

from jaxdti.data.pairs.table import InteractionTable
from jaxdti.evaluation.intervals import (
    INTERVAL_METRICS,
    bootstrap_interval,
    paired_difference_interval,
    unseen_groups,
    weighted_auprc,
)
from jaxdti.evaluation.metrics import weighted_concordance

SKLEARN = {
    "auroc": sklearn.metrics.roc_auc_score,
    "auprc": sklearn.metrics.average_precision_score,
    "mse": sklearn.metrics.mean_squared_error,
    "rmse": sklearn.metrics.root_mean_squared_error,
    "concordance_index": sklearn.metrics.roc_auc_score,  # the labels of these tests are binary
}


def pairs(rows, seed=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.4).astype(np.float32)
    return label, np.round(rng.normal(size=rows) + label, 1).astype(np.float32)


@pytest.mark.parametrize("name", INTERVAL_METRICS)
def test_weighted_metrics_equal_sklearn_on_repeated_rows(name):
    label, score = pairs(90)
    counts = np.random.default_rng(1).integers(0, 4, (5, 90))
    found = INTERVAL_METRICS[name](label.astype(float), score.astype(float), counts.astype(float))
    expected = [SKLEARN[name](np.repeat(label, n), np.repeat(score, n)) for n in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [weighted_concordance, weighted_auprc])
def test_a_resample_of_one_class_is_undefined(function):
    label, score = np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0])
    weights = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(function(label, score, weights), [np.nan, np.nan, np.nan, 1.0])


def test_interval_covers_the_truth_as_often_as_it_says():
    truth = 0.760250  # P(x + 1 > y) of independent standard normal x, y
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        label = np.repeat([0.0, 1.0], 150)
        low, high = bootstrap_interval("auroc", label, rng.normal(size=300) + label, resamples=200, seed=seed)
        hits += low <= truth <= high
    assert 178 <= hits <= 199  # 95 % of 200, give or take 3 standard deviations and the small bootstrap


def test_groups_of_one_row_are_pairs():
    label, score = pairs(120)
    order = np.random.default_rng(2).permutation(120)
    ids = np.arange(120)
    assert bootstrap_interval("auroc", label, score, groups=ids) == bootstrap_interval("auroc", label, score)
    assert bootstrap_interval("auroc", label, score, groups=ids[:, None]) == bootstrap_interval("auroc", label, score)
    assert bootstrap_interval("auroc", label, score, groups=order) != bootstrap_interval("auroc", label, score)


def test_copies_of_rows_do_not_narrow_a_group_interval():
    label, score = pairs(150)
    ids = np.arange(150)
    copied = [np.tile(column, 20) for column in (label, score, ids)]
    width = np.ptp(bootstrap_interval("auroc", label, score))
    assert np.ptp(bootstrap_interval("auroc", *copied[:2], groups=copied[2])) == pytest.approx(width)
    assert np.ptp(bootstrap_interval("auroc", *copied[:2])) < 0.4 * width


def test_two_ways_are_wider_than_either():
    rng = np.random.default_rng(3)
    drug, protein = (grid.ravel() for grid in np.meshgrid(np.arange(30), np.arange(30)))
    error = rng.normal(size=30)[drug] + rng.normal(size=30)[protein]
    width = lambda groups: np.ptp(bootstrap_interval("mse", np.zeros(900), error, groups=groups))
    both = width(np.stack([drug, protein], axis=1))
    assert both > width(drug) > 2 * width(None) and both > width(protein) > 2 * width(None)


def test_paired_difference_keeps_the_pairing():
    label, score = pairs(300)
    assert paired_difference_interval("auroc", label, score, score) == (0.0, 0.0)
    worse = score + np.random.default_rng(4).normal(size=300)
    low, high = paired_difference_interval("auroc", label, score, worse)
    assert 0 < low < SKLEARN["auroc"](label, score) - SKLEARN["auroc"](label, worse) < high
    assert high - low < np.ptp(bootstrap_interval("auroc", label, worse)) + 0.05
    assert paired_difference_interval("auroc", label, worse, score) == pytest.approx((-high, -low))


def test_seed_and_level():
    label, score = pairs(200)
    assert bootstrap_interval("auroc", label, score, seed=1) == bootstrap_interval("auroc", label, score, seed=1)
    assert bootstrap_interval("auroc", label, score, seed=1) != bootstrap_interval("auroc", label, score, seed=2)
    low, high = bootstrap_interval("auroc", label, score, level=0.5)
    wide = bootstrap_interval("auroc", label, score, level=0.99)
    assert wide[0] < low < SKLEARN["auroc"](label, score) < high < wide[1]


def test_one_class_gives_nan():
    assert np.isnan(bootstrap_interval("auroc", np.ones(5), np.arange(5))).all()


def test_blocks_do_not_change_the_interval(monkeypatch):
    label, score = pairs(100)
    groups = np.random.default_rng(5).integers(0, 20, (100, 2))
    whole = bootstrap_interval("auroc", label, score, groups=groups, resamples=50)
    monkeypatch.setattr("jaxdti.evaluation.intervals._BLOCK_ELEMENTS", 700)
    assert bootstrap_interval("auroc", label, score, groups=groups, resamples=50) == whole


def test_a_thousand_resamples_of_five_thousand_rows_are_quick():
    label, score = pairs(5000)
    start = time.process_time()
    bootstrap_interval("auroc", label, score)
    assert time.process_time() - start < 2.0  # seconds of one core; 0.1 to 0.6 when measured


def test_bad_input_is_refused():
    label, score = pairs(10)
    with pytest.raises(ValueError, match="metric 'aurocc' has no bootstrap; choose from auroc, auprc"):
        bootstrap_interval("aurocc", label, score)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        bootstrap_interval("auroc", score, score)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval("auroc", label, np.full(10, np.nan))
    with pytest.raises(ValueError, match="groups has 9 rows where label has 10"):
        bootstrap_interval("auroc", label, score, groups=np.arange(9))
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap_interval("auroc", label, score, resamples=0)


@pytest.mark.parametrize(
    "test_drug, test_protein, expected",
    [
        ([0, 5], [0, 6], None),
        ([5, 6], [0, 6], [[5], [6]]),
        ([0, 6], [5, 6], [[5], [6]]),
        ([5, 7], [6, 8], [[5, 6], [7, 8]]),
    ],
)
def test_unseen_entities_are_the_groups(test_drug, test_protein, expected):
    table = InteractionTable(
        drugs=np.array([f"d{i}" for i in range(9)], object),
        proteins=np.array([f"p{i}" for i in range(9)], object),
        drug=np.array([0, 1, *test_drug], np.int32),
        protein=np.array([0, 1, *test_protein], np.int32),
        label=np.zeros(4, np.float32),
        part=np.array(["train"] * 2 + ["test"] * 2, object),
        row=np.arange(4),
    )
    found = unseen_groups(table, np.array([0, 1]), np.array([2, 3]))
    assert found is None if expected is None else np.array_equal(found, expected)
