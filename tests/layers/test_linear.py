"""Plain and weight-normalised linear layers and the decoder against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdti.layers.linear import Linear, NormalisedWeights, product
from jaxdti.layers.mlp import Decoder


def randomised(variables, seed=0):
    """The same tree with standard normal leaves, in float64."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)


def as_float32(tree):
    return jax.tree.map(np.float32, tree)


def initial(layer, *inputs, **options):
    return jax.jit(lambda key: layer.init(key, *inputs, **options))(np.zeros(2, np.uint32))


def test_linear_values_and_initial_range():
    x = np.random.default_rng(0).normal(size=(2, 3, 16))
    layer = Linear(200)
    start = initial(layer, as_float32(x))["params"]["dense"]
    for name in ("kernel", "bias"):
        # U(-1/4, 1/4) for 16 inputs, the bias too.
        assert 0.24 < np.abs(start[name]).max() <= 0.25
    params = randomised({"dense": start})
    got = jax.jit(layer.apply)({"params": as_float32(params)}, as_float32(x))
    np.testing.assert_allclose(got, x @ params["dense"]["kernel"] + params["dense"]["bias"], rtol=1e-4, atol=1e-4)
    bare = jax.eval_shape(Linear(4, use_bias=False).init, np.zeros(2, np.uint32), x)
    assert set(bare["params"]["dense"]) == {"kernel"}


def weight_norm(x, kernel, gain, bias):
    return x @ (kernel * gain / np.sqrt((kernel**2).sum())) + bias


def normalised(params, x):
    weight, bias = NormalisedWeights(len(params["bias"])).apply({"params": params}, x.shape[-1])
    return product(x, weight) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def test_weight_normalisation_starts_as_a_plain_layer():
    x = np.random.default_rng(0).normal(size=(5, 8))
    params = NormalisedWeights(12).init(jax.random.PRNGKey(0), 8)["params"]
    np.testing.assert_allclose(params["gain"], np.linalg.norm(params["kernel"]), rtol=1e-6)
    got = jax.jit(normalised)(params, as_float32(x))
    np.testing.assert_allclose(got, x @ np.asarray(params["kernel"]) + np.asarray(params["bias"]), rtol=1e-5, atol=1e-6)


def test_weight_normalisation_values_and_gradients(complex_step):
    rng = np.random.default_rng(1)
    x, upstream = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5))
    params = {"kernel": rng.normal(size=(4, 5)), "gain": np.array(1.7), "bias": rng.normal(size=5)}

    def loss(params, x):
        y = normalised(params, x)
        return jnp.sum(y * as_float32(upstream)), y

    (_, y), (got, got_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*as_float32((params, x)))
    np.testing.assert_allclose(y, weight_norm(x, **params), rtol=1e-5, atol=1e-5)
    for name in params:
        slope = complex_step(lambda v, n=name: (weight_norm(x, **(params | {n: v})) * upstream).sum(), params[name])
        np.testing.assert_allclose(got[name], slope, rtol=1e-4, atol=1e-5, err_msg=name)
    slope = complex_step(lambda v: (weight_norm(v, **params) * upstream).sum(), x)
    np.testing.assert_allclose(got_x, slope, rtol=1e-4, atol=1e-5)


def numpy_decoder(x, params, mask, layers):
    for i in range(layers):
        dense, norm = params[f"hidden_{i}"]["dense"], params[f"norm_{i}"]
        x = np.maximum(x @ dense["kernel"] + dense["bias"], 0.0)
        mean, var = x[mask].mean(0), x[mask].var(0)
        x = norm["scale"] * (x - mean) / np.sqrt(var + 1e-5) + norm["bias"]
    return x @ params["output"]["dense"]["kernel"] + params["output"]["dense"]["bias"]


def test_decoder_in_training_sees_the_valid_rows_only():
    rng = np.random.default_rng(2)
    mask = np.array([True, True, False, True, True, True, False])
    x = rng.normal(size=(7, 6))
    decoder = Decoder((8, 5), 2)
    shapes = jax.eval_shape(lambda: decoder.init(np.zeros(2, np.uint32), as_float32(x), mask, train=False))
    params = randomised(shapes["params"])

    @jax.jit
    def train(params):
        variables = {"params": params, "batch_stats": jax.tree.map(lambda s: jnp.ones(s.shape), shapes["batch_stats"])}
        return decoder.apply(variables, as_float32(x), mask, train=True, mutable="batch_stats")[0]

    got = train(as_float32(params))
    expected = numpy_decoder(x, params, mask, layers=2)
    assert got.shape == (7, 2)
    np.testing.assert_allclose(np.asarray(got)[mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_decoder_in_bfloat16_returns_float32():
    x, decoder = np.ones((3, 4), jnp.bfloat16), Decoder((8,), 1, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(
        lambda: decoder.init_with_output(np.zeros(2, np.uint32), x, np.ones(3, bool), train=False)
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
