"""The promises of a training step: filler and failed steps change nothing, replicas and chunks equal single steps."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti.config import TrainingConfig
from jaxdti.data.pairs.buckets import PairBatch, Shape, pair_batch
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.load import load_data
from jaxdti.models.drugban import init_variables
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.state import init_state
from jaxdti.training.step import make_chunk, make_train_step
from jaxdti.training.supervised import hyper_parameters, pair_objective


def toy_batch(seed: int, rows: int = 6, valid: int = 6) -> PairBatch:
    rng = np.random.default_rng(seed)
    drug, protein = (rng.integers(0, 12, rows).astype(np.int32) for _ in range(2))
    mask = np.arange(rows) < valid
    return PairBatch(drug=drug, protein=protein, label=rng.integers(0, 2, rows).astype(np.float32), row_mask=mask)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture(scope="module")
def tx():
    """Everything that could move without a gradient: moments, decay of the weights, a schedule."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 20), weight_decay=0.1)
    )


@pytest.fixture(scope="module")
def step(toy, tx):
    return jax.jit(make_train_step(toy.objective, tx))


def test_a_step_of_filler_rows_leaves_the_whole_state_untouched(toy, tx, step):
    state, _ = step(toy.init(tx, seed=0), toy_batch(0))
    after, metrics = step(state, toy_batch(1, valid=0))
    chex.assert_trees_all_equal(after, state)
    assert int(metrics["rows"]) == 0 and float(metrics["loss"]) == 0.0
    moved, metrics = step(state, toy_batch(1, valid=4))
    assert int(metrics["rows"]) == 4 and int(moved.step) == 2 and int(moved.batch_stats["calls"]) == 2
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), (moved.params, moved.opt_state), (state.params, state.opt_state)
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_step_that_is_not_finite_freezes_the_state_and_is_recorded(toy, tx, step, fault):
    state, _ = step(toy.init(tx, seed=0), toy_batch(0))
    if fault == "loss":
        failed, _ = step(state, toy_batch(1).replace(label=np.full(6, np.nan, np.float32)))
    else:  # sqrt has an infinite slope at 0, where its value is finite

        def objective(variables, batch, rng, hyper):
            loss, aux = toy.objective(variables, batch, rng, hyper)
            return loss + jnp.sqrt(jnp.sum(jnp.abs(0.0 * variables["params"]["drug"]))), aux

        failed, metrics = make_train_step(objective, tx)(state, toy_batch(1))
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert int(failed.first_bad) == 1
    chex.assert_trees_all_equal(failed.replace(first_bad=state.first_bad), state)
    later, _ = step(failed, toy_batch(2))
    chex.assert_trees_all_equal(later, failed)


def test_nan_labels_of_filler_rows_are_no_failure(toy, tx, step):
    batch = toy_batch(0, valid=4)
    poisoned = batch.replace(label=np.where(batch.row_mask, batch.label, np.nan).astype(np.float32))
    state = toy.init(tx, seed=0)
    chex.assert_trees_all_equal(step(state, poisoned)[0], step(state, batch)[0])


def test_replicas_under_vmap_equal_replicas_one_by_one(toy, tx, step):
    states = [toy.init(tx, seed, rate) for seed, rate in ((0, 0.0), (1, 0.3), (2, 0.6))]
    together = jax.jit(jax.vmap(step, in_axes=(0, None)))
    stacked = stack(states)
    for i in range(4):
        batch = toy_batch(i, valid=6 - i)
        stacked, metrics = together(stacked, batch)
        alone = [step(state, batch) for state in states]
        states = [state for state, _ in alone]
        chex.assert_trees_all_close((stacked, metrics), stack(alone), rtol=1e-5, atol=1e-6)
    assert len({float(jnp.sum(state.params["drug"])) for state in states}) == 3


def test_a_failed_replica_stops_alone(toy, tx, step):
    states = [toy.init(tx, seed) for seed in range(2)]
    states[0] = states[0].replace(params=jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), states[0].params))
    batch = toy_batch(0).replace(drug=np.zeros(6, np.int32), protein=np.zeros(6, np.int32))
    stacked, _ = jax.vmap(step, in_axes=(0, None))(stack(states), batch)
    assert stacked.first_bad.tolist() == [0, -1] and stacked.step.tolist() == [0, 1]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_chunk_equals_its_steps_and_its_filler_steps_change_nothing(toy, tx, step, steps):
    batches = [toy_batch(i, valid=6 - i) for i in range(steps)]
    if steps > 1:
        batches[-1] = toy_batch(9, valid=0)
    state, metrics = jax.jit(make_chunk(step))(toy.init(tx, seed=0), stack(batches))
    expected, losses = toy.init(tx, seed=0), []
    for batch in batches[: max(steps - 1, 1)]:
        expected, single = step(expected, batch)
        losses.append(float(single["loss"]))
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-7)
    assert metrics["rows"].tolist() == [int(batch.row_mask.sum()) for batch in batches]
    np.testing.assert_allclose(metrics["loss"], losses + [0.0] * (steps - len(losses)), rtol=1e-5)


def test_one_trace_a_shape(toy, tx):
    chunk = jax.jit(chex.assert_max_traces(make_chunk(make_train_step(toy.objective, tx)), n=2))
    chex.clear_trace_counter()
    state = toy.init(tx, seed=0)
    for i in range(3):
        for rows in (6, 5):
            state, _ = chunk(state, stack([toy_batch(i, rows, valid=3)] * 2))
    with pytest.raises(AssertionError, match="traced"):
        chunk(state, stack([toy_batch(0, 4)] * 2))


@pytest.fixture(scope="module")
def parts(tiny_config):
    """DrugBAN at its smallest: (objective, init with an optimiser, batch of these positions in the training part)."""
    config = tiny_config()
    dataset = load_data(config.data, config.task)
    objective = pair_objective(config.model, config.task, device_features(dataset.store), Shape(16, 16, 64))
    train = dataset.parts["train"]

    def batch(*positions: int) -> PairBatch:
        chosen = [train[i] if i >= 0 else -1 for i in positions]
        return pair_batch(dataset.table, np.array(chosen, np.int64))

    init = lambda tx, seed: init_state(partial(init_variables, config.model), tx, seed, hyper_parameters(config))
    return objective, init, batch


@pytest.fixture(scope="module")
def network(parts):
    """(step, init, batch). Not with Adam: a bias before a BatchNorm has no gradient, and Adam makes a whole step of the
    rounding noise.
    """
    objective, init, batch = parts
    tx = optax.sgd(1e-4, momentum=0.9)
    return make_train_step(objective, tx), partial(init, tx), batch


@pytest.mark.slow
def test_replicas_of_the_network_in_chunks_equal_single_steps(network):
    step, init, batch = network
    rates = (0.0, 0.3)
    states = [init(seed) for seed in range(2)]
    states = [
        state.replace(hyper=state.hyper | {"dropout": jnp.float32(r)}) for state, r in zip(states, rates, strict=True)
    ]
    batches = [batch(*range(8)), batch(*range(8, 15), -1), batch(*[-1] * 8)]
    program = jax.jit(jax.vmap(make_chunk(step), in_axes=(0, None)))
    together, metrics = program(stack(states), stack(batches))
    single = jax.jit(step)
    alone = []
    for state in states:
        for one in batches[:2]:
            state, last = single(state, one)
        alone.append(state)
        filled, _ = single(state, batches[2])
        chex.assert_trees_all_equal(filled, state)
    np.testing.assert_allclose(metrics["loss"][-1, 1], last["loss"], rtol=1e-5)
    chex.assert_trees_all_close(together.batch_stats, stack(alone).batch_stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(together.params, stack(alone).params, rtol=1e-5, atol=1e-6)
    assert together.step.tolist() == [2, 2]
    # Bit for bit: two filler steps, not one.
    chex.assert_trees_all_equal(program(together, stack([batches[2]] * 3))[0], together)


@pytest.mark.slow
def test_gradients_together_are_those_alone_at_every_step_of_adam(parts):
    """What "together" promises: from one state the same gradient to rounding. Adam may part the states themselves."""
    objective, init, batch = parts
    adam = make_optimizer(TrainingConfig(learning_rate=3e-3), 1)

    def update(gradients, state, params, *, hyper):
        updates, moments = adam.update(gradients, state[0], params, hyper=hyper)
        return updates, (moments, gradients)

    tx = optax.GradientTransformationExtraArgs(lambda p: (adam.init(p), jax.tree.map(jnp.zeros_like, p)), update)
    step = make_train_step(objective, tx)
    single, program = jax.jit(step), jax.jit(jax.vmap(step))
    states = [init(tx, seed) for seed in range(2)]
    for first in range(0, 40, 8):
        batches = [batch(*range(first, first + 8)), batch(*range(first, first + 7), -1)]
        together, metrics = program(stack(states), stack(batches))
        alone = [single(state, one) for state, one in zip(states, batches, strict=True)]
        states = [state for state, _ in alone]
        expected = stack(states).opt_state[1]
        # The rounding of an entry is that of the sums behind it, of a 0 too: the bar is a share of the whole gradient.
        for i, norm in enumerate(metrics["grad_norm"]):
            ours, theirs = jax.tree.map(lambda x, i=i: x[i], (together.opt_state[1], expected))
            chex.assert_trees_all_close(ours, theirs, rtol=0, atol=2e-5 * float(norm))
        np.testing.assert_allclose(metrics["loss"], [found["loss"] for _, found in alone], rtol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), states[0].params, init(tx, 0).params)
    assert max(jax.tree.leaves(moved)) > 1e-2
