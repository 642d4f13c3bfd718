"""Dropout with a traced rate: how much is dropped, the mean, the gradient, and vmap over rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.dropout import dropout

KEY = jax.random.PRNGKey(3)


def test_rate_zero_changes_nothing():
    x = jax.random.normal(KEY, (7, 5))
    np.testing.assert_array_equal(dropout(x, 0.0, KEY), x)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.95])
def test_share_dropped_and_scale(rate):
    x = jnp.ones((300, 333))  # the number of entries is not a multiple of 4
    y = np.asarray(dropout(x, rate, KEY))
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
    x = jax.random.normal(KEY, (40, 5))
    y = dropout(x, 0.25, KEY)
    slope = jax.grad(lambda x: dropout(x, 0.25, KEY).sum())(x)
    np.testing.assert_allclose(slope, np.where(np.asarray(y) == 0, 0.0, 4 / 3), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.997, 0.999, 0.99999])
def test_rates_near_one_stay_finite(rate):
    x = jnp.ones((64, 64))
    y, slope = jax.value_and_grad(lambda x: dropout(x, rate, KEY).sum())(x)
    assert np.isfinite(y) and np.isfinite(slope).all()


def test_vmapped_rates_and_keys_equal_one_by_one():
    x = jax.random.normal(KEY, (6, 7))
    rates, keys = jnp.array([0.0, 0.3, 0.6]), jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(dropout, in_axes=(None, 0, 0)))(x, rates, keys)
    for i in range(3):
        np.testing.assert_array_equal(together[i], dropout(x, float(rates[i]), keys[i]))


def test_dtype_is_kept():
    assert dropout(jnp.ones((4, 4), jnp.bfloat16), 0.5, KEY).dtype == jnp.bfloat16
