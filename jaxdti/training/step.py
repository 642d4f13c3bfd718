"""One training step, and the program that runs several of them in one call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdti.data.pairs.buckets import PairBatch
from jaxdti.training.objective import Objective
from jaxdti.training.state import TrainState

Step = Callable[[TrainState, PairBatch], tuple[TrainState, dict[str, Array]]]


def make_train_step(objective: Objective, tx: optax.GradientTransformation) -> Step:
    """Builds the pure ``step(state, batch) -> (state, metrics)``; compile it for one or for many replicas:

    jax.jit(step, donate_argnums=0)
    jax.jit(jax.vmap(step), donate_argnums=0)  # replicas stacked on axis 0 of the state and of the batch

    A step of filler rows changes nothing: not the moments, not the schedule, not the statistics. Neither does any step
    from the first one on whose loss or gradient is not finite; its number is kept in ``state.first_bad``.
    Only ``state.params`` are differentiated and updated; the objective gets them with ``state.frozen``.
    """

    tx = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: PairBatch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(state.rng, state.step)

        hyper = state.hyper | {"step": state.step}

        def loss_fn(params):
            return objective(state.replace(params=params).variables, batch, rng, hyper)

        (loss, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, hyper=hyper)
        present = jnp.any(batch.row_mask)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        bad = present & ~finite & (state.first_bad < 0)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        moves = present & finite & (state.first_bad < 0)
        new = jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, state)
        new = new.replace(first_bad=jnp.where(bad, state.step, state.first_bad), frozen=state.frozen)
        rows = jnp.sum(batch.row_mask).astype(jnp.int32)
        return new, {"rows": rows} | metrics | {"grad_norm": grad_norm}

    return step


def chunk_steps() -> int:
    """Steps of a program call where the configuration names none: 1 on CPU (see ``make_chunk``), 16 elsewhere."""
    return 1 if jax.default_backend() == "cpu" else 16


def make_chunk(step: Step) -> Step:
    """``chunk(state, batches)`` over batches stacked on axis 0: a loop on the device, metrics stacked likewise.

    A single step is not put into a loop: on CPU, XLA runs a convolution's kernel gradient inside a loop about 35 times
    slower than outside.
    """

    def chunk(state: TrainState, batches: PairBatch) -> tuple[TrainState, dict[str, Array]]:
        if batches.drug.shape[0] == 1:
            state, metrics = step(state, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(step, state, batches)

    return chunk
