"""The discriminators against PyTorch and against each other, and the domain cross-entropy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.discriminator import ClasswiseDiscriminators, Discriminator, domain_cross_entropy
from jaxdti.adaptation.domains import Domains

WIDTHS = (5, 3)


def params_of(features, classes=None, seed=0):
    """Random parameters of ``Discriminator(WIDTHS)``, or of ``classes`` stacked ones; batch normalisation's too."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape if classes is None else (classes, *shape)).astype(np.float32)
    params = {}
    for i, (inputs, outputs) in enumerate(zip((features, WIDTHS[0]), WIDTHS, strict=True)):
        params[f"hidden_{i}"] = {"dense": {"kernel": draw(inputs, outputs), "bias": draw(outputs)}}
        params[f"norm_{i}"] = {"scale": draw(outputs), "bias": draw(outputs)}
    return params | {"output": {"dense": {"kernel": draw(WIDTHS[1], 2), "bias": draw(2)}}}


def apply(module, params, x, mask):
    return module.apply({"params": params}, x, mask, mutable="batch_stats")[0]


one = partial(apply, Discriminator(WIDTHS))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mask = np.array([[True, True, False, True, True, True], [True, False, True, True, False, True]])
    return rng.normal(size=(2, 6, 4)).astype(np.float32) + np.float32([[[0]], [[2]]]), mask


@pytest.mark.parametrize("separate", [True, False])
def test_dann_through_the_network_equals_torch(inputs, separate):
    """Batch normalisation of each domain by itself, or of both together; gradients of everything."""
    torch = pytest.importorskip("torch")
    x, mask = inputs
    params = params_of(4)

    def loss(params, x):
        discriminate = partial(one, params)
        domains = Domains(features=x, logits=np.zeros((2, 6, 1), np.float32), mask=mask)
        return dann_loss(domains, jax.vmap(discriminate) if separate else discriminate, 0.5)

    value, (of_params, of_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    linear, norm, relu = torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.ReLU
    first, second = WIDTHS
    network = torch.nn.Sequential(
        linear(4, first), norm(first), relu(), linear(first, second), norm(second), relu(), linear(second, 2)
    ).double()
    places = {"hidden_0": 0, "norm_0": 1, "hidden_1": 3, "norm_1": 4, "output": 6}
    parts = {name: part.get("dense", part) for name, part in params.items()}
    for name, place in places.items():
        weight, bias = parts[name].get("kernel", parts[name].get("scale")), parts[name]["bias"]
        network[place].weight.data, network[place].bias.data = (
            torch.tensor(weight.T).double(),
            torch.tensor(bias).double(),
        )
    valid = [torch.tensor(x[d][mask[d]]).double().requires_grad_() for d in (0, 1)]
    logits = [network(v) for v in valid] if separate else network(torch.cat(valid)).split([len(v) for v in valid])
    cross_entropy = torch.nn.functional.cross_entropy
    expected = sum(cross_entropy(z, torch.full((len(z),), d)) for d, z in enumerate(logits))
    expected.backward()

    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for d in (0, 1):
        close(of_x[d][mask[d]], -0.5 * valid[d].grad.numpy())
        np.testing.assert_array_equal(of_x[d][~mask[d]], 0.0)
    for name, place in places.items():
        part = of_params[name].get("dense", of_params[name])
        close(part["bias"], network[place].bias.grad.numpy())
        close(part.get("kernel", part.get("scale")).T, network[place].weight.grad.numpy())


def test_initialisation():
    mask = np.ones((2, 6), bool)
    start = lambda module, *shape: module.init(jax.random.key(0), np.zeros(shape, np.float32), mask)["params"]
    shapes = lambda init: jax.tree.map(lambda x: x.shape, jax.eval_shape(init))
    assert shapes(lambda: start(Discriminator(WIDTHS), 2, 6, 4)) == shapes(lambda: params_of(4))
    stacked = lambda: start(ClasswiseDiscriminators(7, WIDTHS), 7, 2, 6, 4)["each"]
    assert shapes(stacked) == shapes(lambda: params_of(4, 7))
    kernels = jax.jit(lambda: stacked()["hidden_0"]["dense"]["kernel"].reshape(7, -1))()
    assert len(np.unique(kernels, axis=0)) == 7  # weights of their own from the start


def test_stacked_equal_one_by_one(inputs):
    classes = 3
    x, mask = inputs
    own = np.stack([x * (k + 1) + k for k in range(classes)])
    params = params_of(4, classes)
    stacked = ClasswiseDiscriminators(classes, WIDTHS)

    def both(logits):
        loss = lambda params, x: (jnp.sum(jnp.sin(y := logits(params, x))), y)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    (_, logits), gradients = both(lambda params, x: apply(stacked, {"each": params}, x, mask))(params, own)
    assert logits.shape == (classes, 2, 6, 2) and logits.dtype == jnp.float32
    alone = both(lambda params, x: one(params, x, mask))
    for k in range(classes):
        of_class = lambda tree, k=k: jax.tree.map(lambda a: a[k], tree)
        (_, expected), expected_gradients = alone(of_class(params), own[k])
        np.testing.assert_allclose(logits[k], expected, rtol=1e-4, atol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), of_class(gradients), expected_gradients)


def test_masked_rows_do_not_reach_the_others(inputs):
    x, mask = inputs
    params = params_of(4)
    logits = jax.jit(one)
    changed = np.where(mask[..., None], x, np.float32(1e3))
    np.testing.assert_allclose(logits(params, changed, mask)[mask], logits(params, x, mask)[mask], rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(one, params, jnp.zeros(x.shape, jnp.bfloat16), mask).dtype == jnp.float32


def test_a_nan_in_a_masked_row_stays_there(inputs):
    x, mask = inputs
    logits = np.zeros((2, 6, 1), np.float32)

    @jax.jit
    def both(params, x, mask):
        def loss(params, x):
            domains = Domains(features=x, logits=logits, mask=mask)
            return dann_loss(domains, jax.vmap(partial(one, params)), 1.0)

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    params = params_of(4)
    expected = both(params, x, mask)
    got = both(params, np.where(mask[..., None], x, np.float32(np.nan)), mask)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    empty = both(params, x, mask & np.array([[True], [False]]))
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0.0), empty)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_domain_cross_entropy(shape):
    logits = np.random.default_rng(0).normal(size=(*shape, 2, 5, 2))
    expected = -scipy.special.log_softmax(logits, -1)[..., [[0], [1]], np.arange(5), [[0], [1]]]
    np.testing.assert_allclose(domain_cross_entropy(np.float32(logits)), expected, rtol=1e-5)
    huge = np.full((2, 1, 2), [1e4, -1e4], np.float32)
    np.testing.assert_array_equal(domain_cross_entropy(huge), [[0.0], [2e4]])
