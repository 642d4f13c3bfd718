"""Baselines on feature vectors, against definitions by hand."""

import numpy as np
import pytest

from jaxdti.evaluation.vector_baselines import VECTOR_BASELINES, vector_baseline


def test_the_vote_on_bits_is_weighted_by_tanimoto_to_the_fourth():
    train, label = np.asarray([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]], np.float32), np.array([0, 2, 2])
    asked = np.asarray([[1, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    found = vector_baseline("similarity", train, label, 3, 0)(asked)
    weight = np.array([2 / 3, 1 / 3, 1 / 4]) ** 4
    np.testing.assert_allclose(found[0], [weight[0] / weight.sum(), 0, weight[1:].sum() / weight.sum()], rtol=1e-6)
    np.testing.assert_allclose(found[1], [1 / 3, 0, 2 / 3])  # like nothing: the shares of the classes


def test_the_vote_on_numbers_is_weighted_by_the_cosine_about_the_mean():
    train, label = np.asarray([[6, 5], [4, 5], [5, 6], [5, 4]], np.float32), np.array([0, 1, 1, 1])
    found = vector_baseline("similarity", train, label, 2, 0)(np.asarray([[7, 6]], np.float32))  # (2, 1) from the mean
    weight = np.array([2.0, 1.0]) ** 4  # of the first and the third; the cosines of the others are negative
    np.testing.assert_allclose(found[0], weight / weight.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", VECTOR_BASELINES)
def test_what_can_be_told_is_told_and_a_class_without_rows_is_never_called(name):
    rng = np.random.default_rng(0)
    label = rng.choice([0, 2], 80)
    x = (rng.normal(scale=0.3, size=(80, 3)) + label[:, None] * [1.0, -1.0, 0.0]).astype(np.float32)
    scores = vector_baseline(name, x[:60], label[:60], 4, 0)(x[60:])
    assert scores.shape == (20, 4) and (scores[:, [1, 3]] == 0).all()
    np.testing.assert_array_equal(scores.argmax(1), label[60:])
    assert vector_baseline(name, x[:5], np.full(5, 2), 4, 0)(x[:2]).argmax(1).tolist() == [2, 2]


def test_no_such_baseline():
    with pytest.raises(ValueError, match="'forest': choose from similarity, random_forest"):
        vector_baseline("forest", np.zeros((1, 1)), np.zeros(1, int), 2, 0)
