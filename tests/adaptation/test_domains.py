"""Class probabilities, entropy, weighted means, and the batch of two domains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxdti.adaptation.domains import Domains, class_probabilities, entropy
from jaxdti.layers.means import weighted_mean


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_probabilities_are_a_softmax(classes):
    logits = 3 * np.random.default_rng(0).normal(size=(2, 5, classes))
    expected = scipy.special.softmax(logits, -1)
    np.testing.assert_allclose(class_probabilities(np.float32(logits)), expected, rtol=1e-5)
    assert class_probabilities(jnp.asarray(logits, jnp.bfloat16)).dtype == jnp.float32


def test_a_single_logit_is_the_second_class_of_two():
    logits = np.float32([[-200.0], [-1.5], [0.0], [0.3], [200.0]])
    got = class_probabilities(logits)
    np.testing.assert_allclose(got[:, 1:], scipy.special.expit(logits.astype(float)), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(jnp.sum(got, 1), np.ones(5), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 50])
def test_entropy(classes):
    p = np.random.default_rng(0).dirichlet(np.ones(classes), size=(2, 3))
    np.testing.assert_allclose(entropy(np.float32(p)), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    expected = -np.sum(p * np.log(p + 1e-5), -1)
    np.testing.assert_allclose(entropy(np.float32(p), 1e-5), expected, rtol=1e-5, atol=1e-7)


def test_entropy_of_certainty_is_zero_and_safe():
    p = np.float32([[1.0, 0.0], [0.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(entropy(p)))(p)
    assert value == 0 and np.all(np.isfinite(gradient))
    of_logits = jax.jit(jax.value_and_grad(lambda x: jnp.sum(entropy(class_probabilities(x)))))
    for size in (50.0, 88.0, 95.0, 103.0, 1e4):  # through the numbers below float32's normal range
        value, gradient = of_logits(np.float32([[size, 0.0, -size]]))
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        np.testing.assert_allclose(gradient, np.zeros((1, 3)), atol=1e-6)


def test_weighted_mean():
    x, w = np.random.default_rng(0).random((2, 3, 4))
    got, (of_x, of_w) = jax.value_and_grad(lambda x, w: jnp.sum(weighted_mean(x, w)), argnums=(0, 1))(
        *np.float32([x, w])
    )
    mean, total = np.average(x, axis=1, weights=w)[:, None], w.sum(1, keepdims=True)
    np.testing.assert_allclose(got, mean.sum(), rtol=1e-6)
    np.testing.assert_allclose(of_x, w / total, rtol=1e-5)
    np.testing.assert_allclose(of_w, (x - mean) / total, rtol=1e-4, atol=1e-6)


def test_weight_zero_hides_anything():
    x = np.float32([[1.0, np.nan, 3.0], [np.inf, np.nan, -np.inf]])
    w = np.float32([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(weighted_mean(x, w), [2.5, 0.0])
    gradient = jax.grad(lambda x: jnp.sum(weighted_mean(x, w)))(x)
    np.testing.assert_allclose(gradient, [[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]])


def test_visible_rows_and_completeness():
    mask = np.array([[True, False], [True, True]])
    domains = Domains(features=jnp.ones((2, 2, 3), jnp.float16), logits=np.full((2, 2, 1), np.nan, "f"), mask=mask)
    seen = domains.visible
    assert seen.features.dtype == seen.logits.dtype == jnp.float32
    np.testing.assert_array_equal(seen.features[0], [[1, 1, 1], [0, 0, 0]])
    assert np.isnan(seen.logits[0, 0, 0]) and seen.logits[0, 1, 0] == 0  # of a valid row it must show
    for i, expected in enumerate((True, False, False)):
        assert bool(domains.replace(mask=np.arange(2)[:, None] + np.zeros((2, 2)) >= i).complete) is expected
