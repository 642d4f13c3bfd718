"""Gradient reversal and the schedule of its strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.reversal import ramp, reverse_gradient

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_the_value_stays_and_the_gradient_turns(dtype):
    x = jnp.asarray(X, dtype)
    value, pull = jax.vjp(lambda x: reverse_gradient(x, 0.25), x)
    np.testing.assert_array_equal(value, x)
    assert value.dtype == dtype
    upstream = jnp.asarray(np.arange(15.0).reshape(3, 5), dtype)
    (gradient,) = pull(upstream)
    np.testing.assert_array_equal(gradient, -0.25 * upstream)  # a power of two: exact in each of them
    assert gradient.dtype == dtype


def test_only_what_is_below_it_is_reversed():
    w, v = np.float32(1.5), np.float32(-0.7)
    loss = lambda w, v, strength: jnp.sum(v * reverse_gradient(jnp.sin(w * X), strength))
    of_w, of_v = jax.grad(loss, argnums=(0, 1))(w, v, 0.3)
    wide = X.astype(float)
    np.testing.assert_allclose(of_w, -0.3 * np.sum(v * wide * np.cos(w * wide)), rtol=1e-5)
    np.testing.assert_allclose(of_v, np.sum(np.sin(w * wide)), rtol=1e-5)
    plain = jax.grad(lambda w: jnp.sum(v * jnp.sin(w * X)))(w)
    np.testing.assert_allclose(jax.grad(loss)(w, v, -1.0), plain, rtol=1e-6)


def test_the_strength_is_traced_and_gets_no_gradient():
    gradient = jax.jit(jax.grad(lambda x, s: jnp.sum(reverse_gradient(x, s) ** 2), argnums=(0, 1)))
    for strength in (np.float32(0.0), np.float32(0.5), np.float32(2.0)):
        of_x, of_strength = gradient(X, strength)
        np.testing.assert_allclose(of_x, -2.0 * strength * X, rtol=1e-6)
        assert of_strength == 0
    assert gradient._cache_size() == 1
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(reverse_gradient(x, 1)))(X), -np.ones_like(X))


def test_a_strength_for_each_replica():
    strengths = np.array([0.0, 1.0, 3.0], np.float32)
    gradient = jax.vmap(jax.grad(lambda x, s: jnp.sum(reverse_gradient(x, s) * 2.0)))(X, strengths)
    np.testing.assert_allclose(gradient, np.repeat(-2.0 * strengths[:, None], 5, 1))


def test_ramp():
    progress = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(ramp(np.float32(progress)), np.tanh(5.0 * progress), rtol=1e-5, atol=1e-7)
    assert ramp(0.0) == 0
    np.testing.assert_allclose(ramp(1.0), 0.9999092, rtol=1e-6)
    np.testing.assert_array_equal(ramp(np.float32([-1.0, 2.0])), [ramp(0.0), ramp(1.0)])
