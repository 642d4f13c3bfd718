"""A scored part becomes the numbers that are stored: the right rows, the right units, nothing that is not JSON."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from jaxdti.data.pairs.table import InteractionTable
from jaxdti.evaluation.calibration import Calibration
from jaxdti.evaluation.intervals import bootstrap_interval
from jaxdti.evaluation.metrics import concordance_index
from jaxdti.evaluation.part import evaluate_part, json_ready


def make_table(drug, protein, label) -> InteractionTable:
    rows = len(label)
    return InteractionTable(
        drugs=np.array([f"d{i}" for i in range(max(drug) + 1)], object),
        proteins=np.array([f"p{i}" for i in range(max(protein) + 1)], object),
        drug=np.array(drug, np.int32),
        protein=np.array(protein, np.int32),
        label=np.array(label, np.float32),
        part=np.full(rows, "table", object),
        row=np.arange(rows),
    )


@pytest.fixture
def binary():
    """(table, train, test, scores of test): drugs and proteins of the test part all stand in train."""
    rng = np.random.default_rng(0)
    table = make_table(rng.integers(0, 6, 80), rng.integers(0, 6, 80), rng.integers(0, 2, 80))
    train, test = np.arange(50), np.arange(50, 80)
    return table, train, test, table.label[test] + rng.normal(0, 0.8, 30)


def test_classification_metrics_use_the_calibration(binary):
    table, train, test, score = binary
    calibration = Calibration(threshold=0.7, temperature=0.5, logit_offset=0.2)
    found = evaluate_part(table, train, test, score, task="classification", calibration=calibration, bootstrap=50)
    label = table.label[test]
    called = 1 / (1 + np.exp(-(score - 0.2) / 0.5)) >= 0.7
    assert found["auroc"] == pytest.approx(roc_auc_score(label, score))
    assert found["accuracy"] == pytest.approx(accuracy_score(label, called))
    assert found["f1"] == pytest.approx(f1_score(label, called))
    assert found["pairs"] == 30
    for name in ("auroc", "auprc"):
        assert found[f"{name}_ci"] == list(bootstrap_interval(name, label, score, resamples=50))
    json.dumps(found, allow_nan=False)


def test_no_interval_is_drawn_where_none_is_wanted(binary):
    table, train, test, score = binary
    found = evaluate_part(table, train, test, score, task="classification", calibration=Calibration(), bootstrap=0)
    assert not [name for name in found if name.endswith("_ci")]


def test_rows_without_a_label_do_not_count(binary):
    table, train, test, score = binary
    label = table.label.copy()
    label[test[::3]] = np.nan
    partly = make_table(table.drug, table.protein, label)
    settings = {"task": "classification", "calibration": Calibration(), "bootstrap": 20}
    keep = ~np.isnan(label[test])
    expected = evaluate_part(table, train, test[keep], score[keep], **settings)
    assert evaluate_part(partly, train, test, np.where(keep, score, np.nan), **settings) == expected
    assert expected["pairs"] == 20


def test_whole_drugs_are_resampled_where_train_has_none_of_them():
    rng = np.random.default_rng(1)
    drug = np.concatenate([rng.integers(0, 5, 40), 5 + rng.integers(0, 6, 40)])
    table = make_table(drug, rng.integers(0, 6, 80), rng.integers(0, 2, 80))
    train, test = np.arange(40), np.arange(40, 80)
    score = table.label[test] + rng.normal(0, 1, 40)
    settings = {"task": "classification", "calibration": Calibration(), "bootstrap": 60}
    found = evaluate_part(table, train, test, score, **settings)
    by_drug = bootstrap_interval("auroc", table.label[test], score, groups=table.drug[test], resamples=60)
    by_pair = bootstrap_interval("auroc", table.label[test], score, resamples=60)
    assert found["auroc_ci"] == list(by_drug) != list(by_pair)
    # Nothing was trained on: pairs.
    assert evaluate_part(table, train[:0], test, score, **settings)["auroc_ci"] == list(by_pair)


def test_regression_is_also_given_without_the_pairs_seen_in_train():
    rng = np.random.default_rng(2)
    table = make_table([0, 1, 2, 3, 0, 1, 2, 3, 1, 2], [0, 1, 2, 3, 0, 1, 0, 1, 2, 3], rng.normal(6, 1, 10))
    train, test = np.arange(4), np.arange(4, 10)  # rows 4 and 5 repeat pairs of train
    score = table.label[test] + rng.normal(0, 1, 6)
    settings = {"task": "regression", "calibration": Calibration(), "bootstrap": 30}
    found = evaluate_part(table, train, test, score, **settings)
    label = table.label[test]
    assert found["mse"] == pytest.approx(np.mean((label - score) ** 2), rel=1e-5)
    assert found["pairs"] == 6 and found["pairs_seen_in_train"] == 2
    assert found["unseen_pairs_mse"] == pytest.approx(np.mean((label[2:] - score[2:]) ** 2), rel=1e-5)
    assert found["unseen_pairs_concordance_index"] == pytest.approx(concordance_index(label[2:], score[2:]))
    assert len(found["mse_ci"]) == len(found["concordance_index_ci"]) == 2 and "probability" not in found
    for rows in (test[2:], test[:2]):  # none seen, all seen: the two kinds would be the same or empty
        alone = evaluate_part(table, train, rows, score[: len(rows)], **settings)
        assert "pairs_seen_in_train" not in alone and not [name for name in alone if name.startswith("unseen")]


def test_what_is_undefined_is_none_not_nan(binary):
    table, train, test, score = binary
    positives = test[table.label[test] == 1]
    found = evaluate_part(
        table, train, positives, score[: len(positives)], task="classification", calibration=Calibration(), bootstrap=20
    )
    assert found["auroc"] is None and found["auroc_ci"] == [None, None] and found["sensitivity"] is not None
    json.dumps(found, allow_nan=False)


def test_json_ready_reaches_all_the_way_down():
    value = {"a": [np.float32(1.5), (float("nan"), np.int64(3))], "b": {"c": float("-inf"), "d": np.bool_(True)}}
    found = json_ready(value | {"e": None, "f": "nan", "g": 2})
    assert found == {"a": [1.5, [None, 3]], "b": {"c": None, "d": True}, "e": None, "f": "nan", "g": 2}
    assert type(found["a"][1][1]) is int and type(found["b"]["d"]) is bool
