"""Dropout with a traced rate: how much is dropped, the mean, the gradient, and vmap over rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.dropout import dropout

KEY = np.array([0, 3], np.uint32)


@jax.jit
def both(x, rate, key):
    """The result and the gradient of its sum."""
    (_, y), slope = jax.value_and_grad(lambda x: ((y := dropout(x, rate, key)).sum(), y), has_aux=True)(x)
    return y, slope


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_rate_zero_changes_nothing():
    x = normal(40, 5)
    y, slope = both(x, 0.0, KEY)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(slope, np.ones_like(x))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.95])
def test_share_dropped_and_scale(rate):
    x = np.ones((300, 333), np.float32)  # the number of entries is not a multiple of 8
    y = np.asarray(both(x, rate, KEY)[0])
    rounded = round(rate * 256) / 256
    assert abs(rounded - rate) <= 1 / 512
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / (1 - rounded)], rtol=1e-6)
    # Five standard errors of a share over 99,900 independent draws.
    assert abs((y == 0).mean() - rounded) < 5 * np.sqrt(rounded * (1 - rounded) / y.size)
    # Neighbours share a random word, so look for dependence between them too.
    dropped = (y.reshape(-1) == 0).astype(float)
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(dropped[lag:], dropped[:-lag])[0, 1]) < 5 / np.sqrt(y.size)


def test_gradient_is_the_mask_that_was_used():
    y, slope = both(normal(40, 5), 0.25, KEY)
    assert 0 < (np.asarray(y) == 0).sum() < 200
    np.testing.assert_allclose(slope, np.where(np.asarray(y) == 0, 0.0, 4 / 3), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.997, 0.999, 0.99999])
def test_rates_near_one_stay_finite(rate):
    y, slope = both(normal(40, 5), rate, KEY)
    assert np.isfinite(y).all() and np.isfinite(slope).all()


def test_vmapped_rates_and_keys_equal_one_by_one():
    x = normal(40, 5)
    rates, keys = np.float32([0.0, 0.3, 0.6]), np.arange(6, dtype=np.uint32).reshape(3, 2)
    together = jax.jit(jax.vmap(dropout, in_axes=(None, 0, 0)))(x, rates, keys)
    for i in range(3):
        np.testing.assert_array_equal(together[i], both(x, rates[i], keys[i])[0])


def test_dtype_is_kept():
    x = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)
    assert jax.eval_shape(dropout, x, 0.5, KEY).dtype == jnp.bfloat16
