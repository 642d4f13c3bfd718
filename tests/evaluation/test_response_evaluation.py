"""Baselines of raw genes, and how scores of patients are measured."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jaxdti.evaluation import expression_baselines as module
from jaxdti.evaluation.domain_gap import domain_accuracy, principal_components
from jaxdti.evaluation.expression_baselines import elastic_net_scores, forest_scores
from jaxdti.evaluation.response import target_metrics, validation_auroc, within_groups


@pytest.fixture(scope="module")
def problem():
    """Two columns (two folds of one drug) over 90 samples of 12 genes, the last ten without a label."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 12)).astype(np.float32)
    label = (x[:, 0] - x[:, 1] + rng.normal(0, 0.7, 90) > 0).astype(float)
    label[80:] = np.nan
    fold = np.where(np.isnan(label), -1, np.arange(90) % 3)
    return (
        x,
        np.stack([label, label]),
        np.stack([fold, fold]),
        np.array([0, 2]),
        rng.normal(size=(7, 12)).astype(np.float32),
    )


@pytest.mark.parametrize("share", [0.3, 0.02])
def test_elastic_net_matches_scikit_learn(problem, monkeypatch, share):
    x, label, fold, held, others = problem
    monkeypatch.setattr(module, "_PENALTIES", np.array([share]))
    own, foreign = elastic_net_scores(x, label, fold, held, others)
    for i in range(2):
        train = (fold[i] >= 0) & (fold[i] != held[i])
        y = label[i, train]
        largest = np.abs(x[train].T @ (y - y.mean())).max() / train.sum() / module.L1_SHARE
        inverse = 1.0 / (share * largest * train.sum())
        model = LogisticRegression(l1_ratio=module.L1_SHARE, C=inverse, solver="saga", tol=1e-8, max_iter=20_000)
        model.fit(x[train].astype(np.float64), y)
        np.testing.assert_allclose(foreign[i], model.predict_proba(others)[:, 1], atol=1e-3)
        np.testing.assert_allclose(own[i], model.predict_proba(x)[:, 1], atol=1e-3)


def test_a_column_does_not_depend_on_the_others(problem):
    """A drug with few samples beside it once made its steps too short to arrive."""
    x, label, fold, held, others = problem
    few = np.where(np.arange(90) < 9, fold, -1)
    beside = elastic_net_scores(x, label, np.stack([fold[0], few[1]]), held, others)[1][0]
    alone = elastic_net_scores(x, label[:1], fold[:1], held[:1], others)[1][0]
    np.testing.assert_allclose(beside, alone, atol=1e-5)


class Enough(Exception):
    """Raised by a look."""


@pytest.mark.parametrize("scores, most", [(elastic_net_scores, len(module._PENALTIES)), (forest_scores, 2)])
def test_baselines_look_up_between_their_fits(problem, scores, most):
    looks, more = [], () if scores is elastic_net_scores else (0,)
    scores(*problem, *more, look=lambda: looks.append(1))
    assert len(looks) == most

    def stop():
        raise Enough

    with pytest.raises(Enough):
        scores(*problem, *more, look=stop)


def test_the_penalty_is_chosen_on_the_held_out_fold_and_nothing_else(problem):
    x, label, fold, held, others = problem
    own, foreign = elastic_net_scores(x, label, fold, held, others)
    chosen = fold[0] == held[0]
    assert roc_auc_score(label[0, chosen], own[0, chosen]) > 0.8
    # Samples without a label do not matter, whatever stands there.
    moved = x.copy()
    moved[80:] += 0.01
    again = elastic_net_scores(moved, label, fold, held, others)[1]
    np.testing.assert_allclose(again, foreign, atol=2e-3)


def test_forests_learn_from_the_other_folds(problem):
    x, label, fold, held, others = problem
    own, foreign = forest_scores(x, label, fold, held, others, seed=0)
    assert own.shape == (2, 90) and foreign.shape == (2, 7)
    trained = (fold[0] >= 0) & (fold[0] != held[0])
    assert roc_auc_score(label[0, trained], own[0, trained]) > 0.95  # it has seen these
    assert 0.6 < roc_auc_score(label[0, fold[0] == 0], own[0, fold[0] == 0]) < 0.99


def test_validation_auroc_is_the_mean_over_held_out_folds():
    label = np.array([[1, 0, 1, 0, np.nan]] * 2, float)
    fold = np.array([0, 0, 1, 1, -1])
    score = np.array([[0.9, 0.1, 0.0, 1.0, 0.5], [0.0, 0.0, 0.2, 0.8, 0.5]])
    assert validation_auroc(label, fold, score) == 0.5  # 1 in the first fold, 0 in the second
    assert np.isnan(validation_auroc(np.ones((2, 5)), fold, score))


def test_target_metrics_of_labels():
    response = np.array([1, 1, 0, 0, np.nan, 1])
    score = np.array([0.9, 0.4, 0.5, 0.1, 0.99, 0.8])
    metrics = target_metrics(response, score, "binary", bootstrap=100)
    assert (metrics["samples"], metrics["responders"]) == (5, 3)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    low, high = metrics["auroc_ci"]
    assert 0 <= low <= metrics["auroc"] <= high <= 1
    assert "auroc_ci" not in target_metrics(response, score, "binary", bootstrap=0)


@pytest.mark.parametrize("response", [[np.nan] * 4, [1, 1, np.nan, 1], [0, np.nan, np.nan, np.nan]])
def test_one_class_has_counts_but_no_metric(response):
    metrics = target_metrics(np.array(response), np.linspace(0, 1, 4), "binary", bootstrap=10)
    assert metrics["auroc"] is None and metrics["auprc"] is None and "auroc_ci" not in metrics


def test_target_metrics_of_values_count_a_low_value_as_a_response():
    auc = np.array([0.1, 0.2, 0.5, 0.9, 0.7, np.nan])
    metrics = target_metrics(auc, np.array([0.9, 0.8, 0.5, 0.1, 0.3, 0.0]), "continuous", bootstrap=50)
    assert metrics["spearman"] == pytest.approx(1.0) and metrics["concordance_index"] == 1.0
    assert metrics["spearman_ci"][0] <= 1.0 and "responders" not in metrics


def test_within_groups_needs_five_of_each():
    groups = np.array(["a"] * 12 + ["b"] * 12, dtype=object)
    response = np.array([1, 0] * 6 + [1] * 8 + [0] * 4, float)
    found = within_groups(response, response, groups, bootstrap=20)
    expected = {"samples": 12, "responders": 6, "auroc": 1.0, "auprc": 1.0, "auroc_ci": [1, 1], "auprc_ci": [1, 1]}
    assert found == {"a": expected}
    assert within_groups(response, response, np.where(groups == "a", "", groups)) == {}  # no name, no group


def test_domain_accuracy_is_chance_for_alike_and_1_for_separate_domains():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(300, 4)), rng.normal(size=(100, 4))
    assert abs(domain_accuracy(source, target) - 0.5) < 0.1
    target[:, 2] += 20
    assert domain_accuracy(source, target) == 1.0
    assert all(domain_accuracy(source, target[:2], seed) > 0.9 for seed in range(9))  # one in each half
    assert np.isnan(domain_accuracy(source, target[:1]))


def test_the_principal_components_keep_the_two_largest_directions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) * [5, 3, 0.1, 0.1, 0.1]
    one, other = principal_components(x[:150], x[150:])
    assert one.shape == (150, 2) and other.shape == (50, 2)
    centred = x - x.mean(0)
    np.testing.assert_allclose(np.abs(np.concatenate([one, other])[:, 0]), np.abs(centred[:, 0]), atol=0.6)
