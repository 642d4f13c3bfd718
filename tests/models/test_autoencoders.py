"""Autoencoders: their interface, safe normalisation, and every loss against float64 PyTorch, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.means import masked_mean
from jaxdti.models.autoencoders import (
    RECONSTRUCTION,
    Autoencoder,
    Perceptron,
    corrupt,
    draw_code,
    gaussian_divergence,
    normalise,
)

KEY = np.array([0, 3], np.uint32)
ROWS, GENES, CODE = 7, 5, 3


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_value_and_gradient(loss, *arrays):
    """Value and gradients of a scalar, computed by PyTorch in float64."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(np.asarray(array, np.float64), requires_grad=True) for array in arrays]
    value = loss(torch, *tensors)
    value.backward()
    return value.item(), [tensor.grad.numpy() for tensor in tensors]


def check(loss, reference, *arrays, rtol=1e-5):
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)
    expected, expected_gradients = torch_value_and_gradient(reference, *arrays)
    np.testing.assert_allclose(value, expected, rtol=rtol)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=10 * rtol, atol=1e-7)


REFERENCES = {
    "squared": lambda torch, x, y: ((x - y) ** 2).mean(-1),
    "absolute": lambda torch, x, y: (x - y).abs().mean(-1),
    "euclidean": lambda torch, x, y: torch.linalg.norm(x - y, dim=-1),
    "elastic": lambda torch, x, y: (((x - y) ** 2).mean(-1) + (x - y).abs().mean(-1)) / 2,
}


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_reconstruction_losses_match_torch_and_skip_masked_rows(name):
    x, y = draw(ROWS, GENES), draw(ROWS, GENES, seed=1)
    mask = np.array([1, 1, 0, 1, 0, 1, 1], bool)
    poisoned = np.where(mask[:, None], y, np.nan).astype(np.float32)

    def loss(x, y):
        return masked_mean(RECONSTRUCTION[name](x, jnp.where(mask[:, None], y, 0.0)), mask)

    check(loss, lambda torch, x, y: REFERENCES[name](torch, x[mask], y[mask]).mean(), x, y)
    value, slope = jax.value_and_grad(loss)(x, poisoned)
    np.testing.assert_allclose(value, loss(x, y), rtol=1e-6)
    assert np.all(np.asarray(slope)[~mask] == 0) and np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_a_perfect_reconstruction_costs_nothing_and_has_a_finite_gradient(name):
    x = draw(4, GENES)
    value, slope = jax.value_and_grad(lambda y: RECONSTRUCTION[name](x, y).sum())(x)
    assert value == 0 and np.all(np.isfinite(slope))


def test_mean_of_no_rows_is_0():
    assert masked_mean(jnp.full(3, np.nan), jnp.zeros(3, bool)) == 0


def test_divergence_matches_torch():
    mean, log_variance = draw(ROWS, CODE), draw(ROWS, CODE, seed=1)

    def reference(torch, mean, log_variance):
        posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()

    check(lambda m, v: jnp.mean(gaussian_divergence(m, v)), reference, mean, log_variance)
    np.testing.assert_allclose(gaussian_divergence(jnp.zeros((1, 4)), jnp.zeros((1, 4))), [0.0])


def test_normalise_matches_torch():
    x, weight = draw(ROWS, CODE), draw(ROWS, CODE, seed=1)
    normed = lambda torch, x, w: (torch.nn.functional.normalize(x, dim=-1) * w).sum()
    check(lambda x, w: jnp.sum(normalise(x) * w), normed, x, weight)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-30])
def test_normalise_is_safe_where_there_is_no_direction(scale):
    x = np.full((2, CODE), scale, np.float32)
    value, slope = jax.value_and_grad(lambda x: jnp.sum(normalise(x)))(x)
    assert value == 0 and np.all(np.asarray(slope) == 0)
    second = jax.grad(lambda x: jnp.sum(jax.grad(lambda z: jnp.sum(normalise(z) ** 2))(x)))(x)
    assert np.all(np.isfinite(second))


def test_drawn_codes_have_the_mean_and_the_variance_and_pass_gradients():
    mean, log_variance = np.full((20_000, 2), 1.5, np.float32), np.full((20_000, 2), -1.0, np.float32)
    code = np.asarray(draw_code(mean, log_variance, KEY))
    assert abs(code.mean() - 1.5) < 5 * np.exp(-0.5) / 200 and abs(code.var() / np.exp(-1.0) - 1) < 0.05
    slopes = jax.grad(lambda m, v: jnp.sum(draw_code(m, v, KEY)), argnums=(0, 1))(mean, log_variance)
    np.testing.assert_allclose(slopes[0], 1.0)
    np.testing.assert_allclose(slopes[1], 0.5 * (code - mean), rtol=1e-5, atol=1e-7)


def test_corruption_zeroes_its_share():
    x = np.ones((100, 333), np.float32)
    corrupted = np.asarray(corrupt(x, 0.2, KEY))
    assert set(np.unique(corrupted)) == {0.0, 1.0}
    assert abs((corrupted == 0).mean() - 0.2) < 5 * np.sqrt(0.16 / x.size)


@pytest.mark.slow
@pytest.mark.parametrize("variational", [False, True])
def test_the_interface(variational):
    model = Autoencoder(GENES, (8, 6), CODE, variational)
    x = draw(ROWS, GENES)
    variables = model.init(jax.random.PRNGKey(0), x)
    code = model.apply(variables, x, method="encode")
    assert code.shape == (ROWS, CODE)
    if not variational:
        np.testing.assert_allclose(np.linalg.norm(code, axis=-1), 1.0, rtol=1e-5)
    decoded = model.apply(variables, code, method="decode")
    np.testing.assert_array_equal(decoded, model.apply(variables, x, method="reconstruct"))
    rngs = {"sample": jax.random.PRNGKey(1)}
    drawn = model.apply(variables, 4, rngs=rngs, method="sample")
    assert drawn.shape == (4, CODE)
    np.testing.assert_array_equal(
        model.apply(variables, 4, rngs=rngs, method="generate"), model.apply(variables, drawn, method="decode")
    )


def test_the_perceptron_matches_torch_from_its_stated_start():
    torch = pytest.importorskip("torch")
    model, x = Perceptron((6, 4), 2), draw(ROWS, GENES)
    variables = model.init(jax.random.PRNGKey(0), x)
    y = torch.tensor(x, dtype=torch.float64)
    for name, fan_in in (("hidden_0", GENES), ("hidden_1", 6), ("output", 4)):
        layer = variables["params"][name]["dense"]
        assert np.abs(layer["kernel"]).max() <= fan_in**-0.5 and np.abs(layer["bias"]).max() <= fan_in**-0.5
        y = y @ torch.tensor(np.asarray(layer["kernel"], np.float64)) + torch.tensor(np.asarray(layer["bias"]))
        y = y if name == "output" else torch.relu(y)
    np.testing.assert_allclose(model.apply(variables, x), y.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_dropout_acts_behind_every_hidden_layer_only_when_asked():
    model, x = Perceptron((64, 32), 3), draw(ROWS, GENES)
    variables = model.init(jax.random.PRNGKey(0), x)
    rngs = {"dropout": jax.random.PRNGKey(2)}
    plain = model.apply(variables, x)
    np.testing.assert_allclose(model.apply(variables, x, 0.0, rngs=rngs), plain, rtol=1e-6)
    assert np.any(model.apply(variables, x, 0.5, rngs=rngs) != plain)


@pytest.mark.slow
def test_vmapped_autoencoders_equal_one_by_one():
    model, x = Autoencoder(GENES, (8,), CODE), draw(3, ROWS, GENES)
    init = lambda seed: model.init(jax.random.PRNGKey(seed), x[0])

    def loss(variables, x, rate, key):
        return jnp.mean((model.apply(variables, x, rate, rngs={"dropout": key}, method="reconstruct") - x) ** 2)

    rates, keys = np.float32([0.0, 0.2, 0.5]), np.arange(6, dtype=np.uint32).reshape(3, 2)
    stacked = jax.vmap(init)(np.arange(3))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked, x, rates, keys)
    for i in range(3):
        value, slope = jax.value_and_grad(loss)(init(i), x[i], rates[i], keys[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), slopes, slope)
