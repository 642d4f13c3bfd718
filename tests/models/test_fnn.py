"""The feed-forward network: values and gradients against PyTorch and float64 NumPy, masks, parts, many at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.models.fnn import FNN, init_fnn, split, take_layers

INPUTS = 7
MODEL = FNN((5, 4), 3)
DROPOUT = jax.random.PRNGKey(3)


def random_variables(model=MODEL, seed=0):
    """Every parameter and statistic away from its initial 0 or 1, so that each of them matters."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: np.float32(
        rng.random(leaf.shape) + 0.5 if path[-1].key in ("var", "scale") else rng.normal(size=leaf.shape)
    )
    return jax.tree_util.tree_map_with_path(draw, init_fnn(model, INPUTS, 0))


def numpy_fnn(variables, x, layers=2):
    """Test time, in float64."""
    x = x.astype(np.float64)
    for i in range(layers):
        dense, norm = variables["params"][f"hidden_{i}"]["dense"], variables["params"][f"norm_{i}"]
        stats = variables["batch_stats"][f"norm_{i}"]
        x = (x @ dense["kernel"] + dense["bias"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    return x @ variables["params"]["output"]["dense"]["kernel"] + variables["params"]["output"]["dense"]["bias"]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_values_match_numpy_and_dropout_is_off(dtype):
    variables = random_variables()
    x = np.random.default_rng(1).integers(0, 3, (6, INPUTS)).astype(dtype)
    logits = MODEL.apply(variables, x, np.ones(6, bool), 0.5, train=False)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, numpy_fnn(variables, x), rtol=2e-5, atol=2e-6)


def test_training_step_matches_torch_and_leaves_masked_rows_out():
    torch = pytest.importorskip("torch")
    model = MODEL.clone(unbiased=True)
    variables = random_variables()
    rng = np.random.default_rng(2)
    x, mask = rng.normal(size=(9, INPUTS)).astype(np.float32), np.arange(9) % 3 != 1
    x[~mask] = 1e6  # would be seen in every number below
    weights = rng.normal(size=(9, 3)).astype(np.float32)

    def loss(params, x):
        logits, updates = model.apply(
            {**variables, "params": params}, x, mask, train=True, rngs={"dropout": DROPOUT}, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.where(mask[:, None], logits * weights, 0.0)), (logits, updates["batch_stats"])

    (_, (logits, stats)), (grads, grad_x) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        variables["params"], x
    )

    layers = []
    for before, width in ((INPUTS, 5), (5, 4)):
        layers += [torch.nn.Linear(before, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU()]
    peer = torch.nn.Sequential(*layers, torch.nn.Linear(4, 3)).double()
    places = [("hidden_0", 0), ("norm_0", 1), ("hidden_1", 3), ("norm_1", 4), ("output", 6)]
    put = lambda place, value: place.data.copy_(torch.tensor(np.asarray(value, np.float64)))
    for name, i in places:
        tree = variables["params"][name]
        put(peer[i].weight, tree["scale"] if "scale" in tree else tree["dense"]["kernel"].T)
        put(peer[i].bias, tree["bias"] if "bias" in tree else tree["dense"]["bias"])
        if "scale" in tree:
            put(peer[i].running_mean, variables["batch_stats"][name]["mean"])
            put(peer[i].running_var, variables["batch_stats"][name]["var"])
    inputs = torch.tensor(x[mask].astype(np.float64), requires_grad=True)
    out = peer(inputs)
    (out * torch.tensor(weights[mask])).sum().backward()

    np.testing.assert_allclose(logits[mask], out.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_x[mask], inputs.grad.numpy(), rtol=1e-3, atol=1e-5)
    assert not np.any(grad_x[~mask])
    for name, i in places:
        tree = grads[name]
        tree = {"weight": tree["scale"], "bias": tree["bias"]} if "scale" in tree else dict(tree["dense"])
        weight, bias = tree.get("weight", tree.get("kernel")), tree["bias"]
        kernel = peer[i].weight.grad.numpy()
        np.testing.assert_allclose(weight, kernel if kernel.ndim == 1 else kernel.T, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(bias, peer[i].bias.grad.numpy(), rtol=1e-3, atol=1e-5)
        if name in stats:
            np.testing.assert_allclose(stats[name]["mean"], peer[i].running_mean.numpy(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(stats[name]["var"], peer[i].running_var.numpy(), rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_training_with_a_traced_rate_of_its_own_in_each_replica():
    variables, mask = random_variables(), np.ones(400, bool)
    x = np.random.default_rng(4).normal(size=(400, INPUTS)).astype(np.float32)
    lower, _ = split(MODEL, 1)

    @jax.jit
    @jax.vmap
    def hidden(rate, key):
        return lower.apply(
            take_layers(variables, lower), x, mask, rate, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0]

    rates = jnp.asarray([0.0, 0.5, 0.5])
    plain, half, other = hidden(rates, jax.random.split(DROPOUT, 3))
    kept = (np.asarray(half) > 0)[np.asarray(plain) > 0]
    assert 0.45 < kept.mean() < 0.55
    assert np.any(np.asarray(half) != np.asarray(other))
    both = np.asarray(half) > 0
    np.testing.assert_allclose(np.asarray(half)[both], 2 * np.asarray(plain)[both], rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_two_parts_of_a_network_are_the_network(layers):
    variables = random_variables()
    x = np.random.default_rng(5).normal(size=(3, INPUTS)).astype(np.float32)
    lower, upper = split(MODEL, layers)
    mask = np.ones(3, bool)
    hidden = lower.apply(take_layers(variables, lower), x, mask, train=False)
    assert hidden.shape == (3, MODEL.features[layers - 1])
    logits = upper.apply(take_layers(variables, upper), hidden, mask, train=False)
    np.testing.assert_allclose(logits, MODEL.apply(variables, x, mask, train=False), rtol=1e-6)
    counts = [len(jax.tree.leaves(take_layers(variables, part))) for part in (lower, upper)]
    assert sum(counts) == len(jax.tree.leaves(variables)) and min(counts) > 0


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_a_network_is_split_between_its_layers_only(layers):
    with pytest.raises(ValueError, match=f"layers={layers}: between 1 and 2"):
        split(MODEL, layers)


@pytest.mark.slow
def test_many_networks_at_once_equal_each_alone():
    x = np.random.default_rng(6).normal(size=(4, INPUTS)).astype(np.float32)
    mask = np.asarray([True, True, True, False])
    run = lambda variables: MODEL.apply(
        variables, x, mask, 0.3, train=True, rngs={"dropout": DROPOUT}, mutable=["batch_stats"]
    )
    init = lambda seed: init_fnn(MODEL, INPUTS, seed)
    together = jax.jit(jax.vmap(lambda seed: run(init(seed))))(np.arange(3))
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        chex.assert_trees_all_close(one, run(init(i)), rtol=1e-4, atol=1e-5)
