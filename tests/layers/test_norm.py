"""Masked batch normalisation against NumPy in float64: values, gradients, running statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.norm import MaskedBatchNorm


def numpy_norm(x, mask, scale, bias, epsilon=1e-5):
    """The valid positions [n, F] normalised, with their mean and biased variance; also for complex x."""
    valid = x[mask]
    mean = valid.mean(0)
    var = ((valid - mean) ** 2).mean(0)
    return scale * (valid - mean) / np.sqrt(var + epsilon) + bias, mean, var


def problem(shape=(4, 5), features=3, share=0.6, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    x = rng.normal(size=(*shape, features)) * 2.0 + 1.0
    params = {"scale": rng.normal(size=features) + 1.0, "bias": rng.normal(size=features)}
    stats = {"mean": rng.normal(size=features), "var": rng.random(features) + 0.5}
    return x, mask, params, stats


def as_float32(tree):
    return jax.tree.map(np.float32, tree)


@functools.partial(jax.jit, static_argnames="norm")
def apply_train(norm, params, stats, x, mask):
    y, updates = norm.apply({"params": params, "batch_stats": stats}, x, mask, train=True, mutable="batch_stats")
    return y, updates["batch_stats"]


def train(norm, x, mask, params, stats):
    y, after = apply_train(norm, *as_float32((params, stats, x)), mask)
    return np.asarray(y), after


@functools.partial(jax.jit, static_argnames="norm")
def gradients(norm, params, stats, x, mask, upstream):
    """Of the sum of outputs times ``upstream``, with respect to x and the parameters."""
    return jax.grad(lambda x, p: jnp.sum(apply_train(norm, p, stats, x, mask)[0] * upstream), argnums=(0, 1))(x, params)


@pytest.mark.parametrize("shape", [(9,), (4, 5)])
def test_training_normalises_by_the_valid_positions(shape):
    x, mask, params, stats = problem(shape)
    y, _ = train(MaskedBatchNorm(), x, mask, params, stats)
    expected, _, _ = numpy_norm(x, mask, params["scale"], params["bias"])
    np.testing.assert_allclose(y[mask], expected, rtol=1e-5, atol=1e-5)


def test_gradients_match_the_complex_step(complex_step):
    x, mask, params, stats = problem()
    weight = np.random.default_rng(1).normal(size=x.shape)

    upstream = np.where(mask[..., None], weight, 0.0)
    got_x, got = gradients(MaskedBatchNorm(), *as_float32((params, stats, x)), mask, np.float32(upstream))

    def expected(x=x, scale=params["scale"], bias=params["bias"]):
        return (numpy_norm(x, mask, scale, bias)[0] * weight[mask]).sum()

    slope = complex_step(lambda x: expected(x=x), x)
    assert np.all(slope[~mask] == 0.0) and np.all(np.asarray(got_x)[~mask] == 0.0)
    np.testing.assert_allclose(got_x, slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["scale"], complex_step(lambda s: expected(scale=s), params["scale"]), rtol=1e-5)
    np.testing.assert_allclose(got["bias"], complex_step(lambda b: expected(bias=b), params["bias"]), rtol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics(unbiased):
    x, mask, params, stats = problem(shape=(8,))
    _, after = train(MaskedBatchNorm(unbiased=unbiased), x, mask, params, stats)
    n = mask.sum()
    mean, var = x[mask].mean(0), x[mask].var(0, ddof=1 if unbiased else 0)
    assert 1 < n < 8
    np.testing.assert_allclose(after["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * stats["var"] + 0.1 * var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_ignores_the_mask():
    x, mask, params, stats = problem()
    evaluate = jax.jit(lambda mask: MaskedBatchNorm().apply(variables, np.float32(x), mask, train=False))
    variables = as_float32({"params": params, "batch_stats": stats})
    y = evaluate(mask)
    np.testing.assert_array_equal(y, evaluate(np.ones_like(mask)))
    expected = params["scale"] * (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_nothing_valid_updates_nothing_and_stays_finite(unbiased):
    x, mask, params, stats = problem()
    nothing = np.zeros_like(mask)
    y, after = train(MaskedBatchNorm(unbiased=unbiased), x, nothing, params, stats)
    assert np.isfinite(y).all()
    for name in stats:
        np.testing.assert_array_equal(after[name], stats[name].astype(np.float32))

    slopes = gradients(MaskedBatchNorm(), *as_float32((params, stats, x)), nothing, np.ones_like(x, np.float32))
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("unbiased", [False, True])
def test_one_valid_position_gives_the_bias(unbiased):
    x, _, params, stats = problem(shape=(4,))
    one = np.array([False, True, False, False])
    y, after = train(MaskedBatchNorm(unbiased=unbiased), x, one, params, stats)
    np.testing.assert_allclose(y[1], params["bias"], rtol=1e-6)
    np.testing.assert_allclose(after["var"], 0.9 * stats["var"], rtol=1e-5)


def test_what_is_masked_cannot_reach_the_result():
    x, mask, params, stats = problem()
    other = np.where(mask[..., None], x, 1e6)
    y, after = train(MaskedBatchNorm(), x, mask, params, stats)
    z, after_other = train(MaskedBatchNorm(), other, mask, params, stats)
    np.testing.assert_array_equal(y[mask], z[mask])
    np.testing.assert_array_equal(after["var"], after_other["var"])


def test_large_means_keep_the_variance():
    rng = np.random.default_rng(0)
    # The mean of the joint features of the published weights is near 3e5; E[x^2] - E[x]^2 gives 0 or 4096 here.
    x = (3e5 + 10.0 * rng.normal(size=(64, 4))).astype(np.float32)
    mask = rng.random(64) < 0.8
    stats = {"mean": np.zeros(4), "var": np.zeros(4)}
    params = {"scale": np.ones(4), "bias": np.zeros(4)}
    y, after = train(MaskedBatchNorm(), x, mask, params, stats)
    expected, _, var = numpy_norm(x.astype(np.float64), mask, 1.0, 0.0)
    np.testing.assert_allclose(np.asarray(after["var"]) / 0.1, var, rtol=1e-3)
    np.testing.assert_allclose(y[mask], expected, atol=1e-2)


def test_bfloat16_keeps_float32_statistics():
    x, mask, params, stats = problem()
    narrow = x.astype(jnp.bfloat16)
    y, after = apply_train(MaskedBatchNorm(), *as_float32((params, stats)), narrow, mask)
    assert y.dtype == jnp.bfloat16
    assert after["mean"].dtype == after["var"].dtype == jnp.float32
    mean = narrow.astype(np.float64)[mask].mean(0)
    np.testing.assert_allclose(after["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-5, atol=1e-6)


def test_initialising_leaves_the_running_statistics_alone():
    x = jnp.full((4, 3), 7.0)
    variables = MaskedBatchNorm().init(jax.random.PRNGKey(0), x, jnp.ones(4, bool), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


def test_weights_count_positions_as_often_as_they_say():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    weight = np.array([2.0, 0.0, 1.0, 3.0], np.float32)
    repeated = np.repeat(x, weight.astype(int), axis=0)
    layer = MaskedBatchNorm(unbiased=True)
    variables = layer.init(jax.random.PRNGKey(0), x, weight > 0, train=False)
    y, one = layer.apply(variables, x, weight, train=True, mutable=["batch_stats"])
    expected, other = layer.apply(variables, repeated, np.ones(6, bool), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.repeat(y, weight.astype(int), axis=0), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one, other, rtol=1e-5)
