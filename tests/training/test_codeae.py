"""Pre-training objectives: what they add up to, masks, the adversarial step, and replicas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti.config import PretrainingConfig
from jaxdti.models.autoencoders import Autoencoder
from jaxdti.models.codeae import DomainSeparation, gradient_penalty
from jaxdti.training.codeae import (
    AdversarialState,
    ProfileBatch,
    Profiles,
    init_params,
    make_adversarial_step,
    make_adversary,
    make_model,
    pretraining_objective,
    run_model,
)
from jaxdti.training.optimizer import make_rmsprop
from jaxdti.training.state import fresh_state

CONFIG = PretrainingConfig(widths=(6,), latent=3, critic_steps=2)
GENES, ROWS = 5, 4
HYPER = {name: jnp.float32(x) for name, x in {"dropout": 0.0, "orthogonality": 2.0, "alignment": 3.0}.items()}
METHODS = ("ae", "dae", "vae", "adae", "codeae_base", "codeae_mmd", "coral", "dsn_dann")


@pytest.fixture(scope="module")
def profiles():
    rng = np.random.default_rng(0)
    draw = lambda rows: jnp.asarray(rng.normal(size=(rows, GENES)), jnp.float32)
    confounder = lambda rows: jnp.asarray(np.arange(rows) % 3 - 1, jnp.int32)
    return Profiles(draw(12), draw(15), confounder(12), confounder(15))


def batch(seed=0, masked=0):
    rng = np.random.default_rng(seed)
    mask = jnp.arange(ROWS) < ROWS - masked
    rows = lambda count: jnp.asarray(rng.integers(0, count, ROWS), jnp.int32)
    return ProfileBatch(rows(12), rows(15), mask, mask)


def params_of(method, seed=0):
    return init_params(method, GENES, 2, CONFIG, jax.random.PRNGKey(seed))


def value(method, profiles, batch, params=None, hyper=HYPER):
    objective = pretraining_objective(method, profiles, 2, CONFIG)
    variables = {"params": params or params_of(method), "batch_stats": {}}
    return objective(variables, batch, jax.random.PRNGKey(5), hyper)


def by_hand(params, profiles, batch):
    """Reconstruction and orthogonality of domain separation in float64 NumPy."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def perceptron(layers, x):
        for i in range(len(layers) - 1):
            x = np.maximum(x @ layers[f"hidden_{i}"]["dense"]["kernel"] + layers[f"hidden_{i}"]["dense"]["bias"], 0)
        return x @ layers["output"]["dense"]["kernel"] + layers["output"]["dense"]["bias"]

    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    errors, apart = [], 0.0
    for domain, x in (("source", profiles.source[batch.source]), ("target", profiles.target[batch.target])):
        x = np.asarray(x, np.float64)[np.asarray(batch.source_mask)]
        shared, private = unit(perceptron(params["encoder"], x)), unit(perceptron(params[f"private_{domain}"], x))
        rebuilt = perceptron(params["decoder"], np.concatenate([private, shared], -1))
        errors.append(((rebuilt - x) ** 2).mean(-1))
        apart += ((shared.T @ private) ** 2).mean()
    return np.concatenate(errors).mean(), apart


@pytest.mark.slow
@pytest.mark.parametrize("masked", [0, 2])
def test_base_is_reconstruction_and_orthogonality(profiles, masked):
    params = params_of("codeae_base")
    loss, (_, metrics) = value("codeae_base", profiles, batch(masked=masked), params)
    reconstruction, apart = by_hand(params["model"], profiles, batch(masked=masked))
    np.testing.assert_allclose(metrics["loss"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(loss, reconstruction + 2.0 * apart, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_masked_rows_have_no_part_in_value_or_gradient(profiles, method):
    """Other samples in the masked rows change nothing; dropout and noise are drawn by place, so they stay too."""
    full, masked = batch(masked=0), batch(masked=2)
    other = masked.replace(
        source=masked.source.at[ROWS - 2 :].set(masked.source[0]), target=masked.target.at[ROWS - 2 :].set(7)
    )
    loss = lambda params, rows: value(method, profiles, rows, params)[0]
    slopes = [jax.jit(jax.value_and_grad(loss))(params_of(method), rows) for rows in (full, masked, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slopes[1], slopes[2])
    assert not np.isclose(slopes[0][0], slopes[1][0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["codeae_mmd", "coral", "dsn_dann"])
def test_alignment_adds_to_base_with_its_weight(profiles, method):
    params = params_of(method)
    base = value("codeae_base", profiles, batch(), {"model": params["model"]})[0]
    none, once, twice = (
        value(method, profiles, batch(), params, HYPER | {"alignment": jnp.float32(w)})[0] for w in (0.0, 1.0, 2.0)
    )
    if method == "dsn_dann":  # the classifier learns at full rate, the encoder against it with the weight
        assert none > base and none == once == twice
    else:
        np.testing.assert_allclose(none, base, rtol=1e-6)
        np.testing.assert_allclose(twice - none, 2 * (once - none), rtol=1e-3)
        assert once > none


@pytest.mark.slow
@pytest.mark.parametrize("method, encoder", [("dsn_dann", "encoder"), ("adae", "encoder")])
def test_the_adversary_learns_and_the_encoder_works_against_it(profiles, method, encoder):
    """The encoder's gradient of the classification is that of plain descent times minus the weight."""

    def slope(weight):
        loss = lambda params: value(method, profiles, batch(), params, HYPER | {"alignment": jnp.float32(weight)})[0]
        return jax.grad(loss)(params_of(method))

    none, once, minus = slope(0.0), slope(1.0), slope(-1.0)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(b - a, a - c, rtol=1e-3, atol=1e-6),
        *(part["model"][encoder] for part in (none, once, minus)),
    )
    assert any(
        np.any(np.abs(x) > 1e-5) for x in jax.tree.leaves(jax.tree.map(jnp.subtract, none["model"], once["model"]))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), none["adversary"], once["adversary"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vae", "adae", "codeae_mmd", "dsn_dann"])
def test_replicas_under_vmap_equal_one_by_one(profiles, method):
    """Values and gradients, with masked rows and dropout; the other methods consist of the same parts."""

    def loss(params, hyper):
        return value(method, profiles, batch(masked=1), params, hyper)[0]

    chosen = [(params_of(method, seed), HYPER | {"dropout": jnp.float32(rate)}) for seed, rate in ((0, 0.1), (1, 0.4))]
    both = jax.tree.map(lambda *x: jnp.stack(x), *chosen)
    together, single = jax.jit(jax.vmap(jax.value_and_grad(loss))), jax.jit(jax.value_and_grad(loss))
    found = together(*both)
    for i, one in enumerate(chosen):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), found, single(*one))
    assert abs(found[0][0] - found[0][1]) > 1e-3


def test_unknown_confounders_do_not_count(profiles):
    unknown = profiles.replace(source_confounder=jnp.full(12, -1), target_confounder=jnp.full(15, -1))
    loss, (_, metrics) = value("adae", unknown, batch())
    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_network_and_its_adversary(method):
    model = make_model(method, GENES, CONFIG)
    separating = method in ("codeae_base", "codeae_mmd", "coral", "dsn_dann")
    assert isinstance(model, DomainSeparation if separating else Autoencoder)
    assert (make_adversary(method, 2) is not None) == (method in ("dsn_dann", "adae"))
    assert ("adversary" in params_of(method)) == (method in ("dsn_dann", "adae"))


def test_rmsprop_matches_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=4).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    tx, hyper = make_rmsprop(), {"learning_rate": jnp.float32(0.1)}
    ours, state = jnp.asarray(x), make_rmsprop().init(jnp.asarray(x))
    theirs = torch.tensor(x, requires_grad=True)
    optimiser = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.99, eps=1e-8)
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, ours, hyper=hyper)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


# The adversarial step.


# RMSprop makes a whole step of a gradient that is rounding noise; plain descent does not.
DESCENT = optax.with_extra_args_support(optax.sgd(0.01))


def adversarial_state(seed=0, dropout=0.0):
    hyper = {"dropout": dropout, "learning_rate": 0.01, "orthogonality": 2.0, "alignment": 3.0, "weight_decay": 0.0}
    hyper = {name: np.asarray(x, np.float32) for name, x in hyper.items()}
    params, tx = params_of("codeae_adv", seed), DESCENT
    return AdversarialState(
        fresh_state({"params": params["model"]}, tx, seed, hyper),
        fresh_state({"params": params["adversary"]}, tx, seed + 100, hyper),
    )


def six(masked=0):
    batches = [batch(seed, masked) for seed in range(CONFIG.critic_steps + 1)]
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)


@pytest.mark.slow
def test_the_adversarial_step_is_critic_updates_on_batches_of_their_own_and_one_of_the_model(profiles):
    """Against a plain loop over the definition; the shares of the penalty are the only random numbers."""
    state, batches = adversarial_state(), six(masked=1)
    after, metrics = jax.jit(make_adversarial_step(profiles, DESCENT, CONFIG))(state, batches)
    model, critic, tx = make_model("codeae_adv", GENES, CONFIG), make_adversary("codeae_adv", 0), DESCENT

    def codes(params, rows):
        x, y = profiles.source[rows.source], profiles.target[rows.target]
        return [code.joined for code in run_model(model, params, x, y, method="encode_both")]

    params, moments = state.critic.params, state.critic.opt_state
    mask = batches.source_mask[0]
    mean = lambda x: jnp.sum(x * mask) / jnp.sum(mask)
    for i in range(CONFIG.critic_steps):
        source, target = codes(state.model.params, jax.tree.map(lambda x, i=i: x[i], batches))
        key = jax.random.split(jax.random.fold_in(state.critic.rng, i), 3)[1]

        def loss(params, source=source, target=target, key=key):
            score = lambda x: run_model(critic, params, x)[..., 0]
            penalty = gradient_penalty(score, source, target, mask, jax.random.uniform(key, (ROWS,)))
            return mean(score(target)) - mean(score(source)) + CONFIG.gradient_penalty * penalty

        updates, moments = tx.update(jax.grad(loss)(params), moments, params, hyper=state.critic.hyper)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.critic.params, params)

    last = jax.tree.map(lambda x: x[-1], batches)

    def model_loss(own):
        base = value("codeae_base", profiles, last, {"model": own})[0]
        return base - 3.0 * mean(run_model(critic, params, codes(own, last)[1])[..., 0])

    updates, _ = tx.update(jax.grad(model_loss)(state.model.params), state.model.opt_state, hyper=state.model.hyper)
    expected = optax.apply_updates(state.model.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.model.params, expected)
    assert int(after.model.step) == 1 and int(after.critic.step) == CONFIG.critic_steps
    assert np.isfinite(metrics["gap"]) and np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_adversarial_replicas_under_vmap_equal_one_by_one(profiles):
    step = make_adversarial_step(profiles, DESCENT, CONFIG)
    states, batches = [adversarial_state(seed, rate) for seed, rate in ((0, 0.1), (1, 0.4))], six()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together, _ = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, batches)
    single = jax.jit(step)
    for i, state in enumerate(states):
        alone, _ = single(state, batches)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5), together, alone)


def test_a_critic_that_breaks_stops_alone_and_is_recorded(profiles):
    state = adversarial_state()
    broken = state.critic.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.critic.params))
    after, _ = jax.jit(make_adversarial_step(profiles, DESCENT, CONFIG))(state.replace(critic=broken), six())
    assert int(after.critic.first_bad) == 0 and int(after.model.first_bad) == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.model.params))
