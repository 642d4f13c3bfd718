"""The training state: a pytree of arrays only, so that it stacks over replicas, donates and checkpoints."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdti.training.compilation import kept_program, signature
from jaxdti.training.partition import merge


class TrainState(flax.struct.PyTreeNode):
    step: Array  # int32 []; updates done
    params: chex.ArrayTree  # those that are trained
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    rng: Array  # uint32 [2]; constant, folded with ``step``, so that resuming repeats the unbroken run
    hyper: dict[str, Array]  # what ``hyper_parameters`` lists, traced
    first_bad: Array  # int32 []; the step whose loss or gradient was not finite, -1 while there is none
    frozen: chex.ArrayTree = flax.struct.field(default_factory=dict)  # the other parameters, which stay as they are

    @property
    def variables(self) -> dict[str, Any]:
        """``{"params", "batch_stats"}`` with all parameters."""
        return {"params": merge(self.params, self.frozen), "batch_stats": self.batch_stats}


# A seed -> {"params": ..., "batch_stats": ...}, and "frozen": ... where there are such parameters.
Init = Callable[[int | Array], dict[str, Any]]


def fresh_state(
    variables: dict[str, Any], tx: optax.GradientTransformation, seed: int | Array, hyper: dict[str, Any]
) -> TrainState:
    """The state before the first step from ``variables``, which may hold "batch_stats" and "frozen"; vmappable."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        rng=jax.random.fold_in(jax.random.PRNGKey(seed), 1),
        hyper=jax.tree.map(jnp.asarray, hyper),
        first_bad=jnp.full((), -1, jnp.int32),
        frozen=variables.get("frozen", {}),
    )


def init_state(init: Init, tx: optax.GradientTransformation, seed: int | Array, hyper: dict[str, Any]) -> TrainState:
    """A fresh state around ``init(seed)``; vmappable over ``seed`` and ``hyper``."""
    return fresh_state(init(seed), tx, seed, hyper)


def init_replicas(
    init: Init,
    tx: optax.GradientTransformation,
    seeds: Sequence[int],
    hyper: Sequence[dict[str, np.ndarray]],
    key: Hashable = None,
) -> TrainState:
    """Fresh states stacked on axis 0, one of each seed and its hyper-parameters.

    Args:
      key: all that ``init`` and ``tx.init`` depend on, to keep the program; None keeps none.
    """
    arguments = np.asarray(seeds, np.int32), jax.tree.map(lambda *leaves: np.stack(leaves), *hyper)
    program = jax.jit(jax.vmap(lambda seed, hyper: init_state(init, tx, seed, hyper)))
    if key is None:
        return program(*arguments)
    return kept_program(("init", key, signature(*arguments)), lambda: program.lower(*arguments).compile())(*arguments)
