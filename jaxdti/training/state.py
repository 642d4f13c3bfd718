"""The training state: a pytree of arrays only, so that it stacks over replicas, donates and checkpoints."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdti.compilation import kept_program, signature
from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, Config, DataConfig, ModelConfig, OutputConfig
from jaxdti.layers.graph import DrugBatch
from jaxdti.layers.sequence import ProteinBatch
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.label_tree import merge


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


def init_variables(config: ModelConfig, seed: int | Array) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of a fresh DrugBAN; no shape depends on the data."""
    atoms = REFERENCE_ATOMS if config.reference else 2
    residues = REFERENCE_RESIDUES if config.reference else 4
    drug = DrugBatch(
        atoms=jnp.zeros((1, atoms, 8), jnp.int8),
        bonds=jnp.zeros((1, 1, 2), jnp.int32),
        atom_count=jnp.ones((1,), jnp.int32),
        bond_count=jnp.zeros((1,), jnp.int32),
    )
    protein = ProteinBatch(
        residues=jnp.ones((1, residues), jnp.uint8), residue_count=jnp.full((1,), residues, jnp.int32)
    )
    # One program: operation by operation, dozens of small ones would be compiled.
    init = jax.jit(partial(DrugBAN(config).init, train=False))
    variables = init({"params": jax.random.PRNGKey(seed)}, drug, protein, jnp.ones((1,), bool))
    return {"params": variables["params"], "batch_stats": variables["batch_stats"]}


def hyper_parameters(
    config: Config, class_weights: tuple[float, float] = (1.0, 1.0), label_scale: tuple[float, float] = (0.0, 1.0)
) -> dict[str, np.ndarray]:
    """What may differ between replicas of one program, as float32 arrays.

    Args:
      class_weights: loss factors of labels 0 and 1.
      label_scale: (mean, sd) of the training affinities; the network predicts (label - mean) / sd.
    """
    training, rate = config.training, config.adaptation.discriminator_learning_rate
    classes = max(config.model.logits, 2)
    values = {
        "dropout": config.model.dropout,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "class_weights": class_weights,
        "label_scale": label_scale,
        "strength": config.adaptation.strength,
        "discriminator_learning_rate": training.learning_rate if rate is None else rate,
        "target_classes": np.full(classes, 1.0 / classes),
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def static_config(config: Config) -> Config:
    """The configuration without what ``hyper_parameters`` traces, seeds, data and output: no program depends on them.

    Models that train together have the same one.
    """
    model = replace(config.model, dropout=0.0)
    training = replace(config.training, learning_rate=0.0, weight_decay=0.0, class_weight=False, seed=0)
    adaptation = replace(config.adaptation, strength=0.0, discriminator_learning_rate=None)
    return replace(
        config, data=DataConfig(), output=OutputConfig(), model=model, training=training, adaptation=adaptation
    )


# A seed -> {"params": ..., "batch_stats": ...}, and "frozen": ... where there are such parameters.
Init = Callable[[int | Array], dict[str, Any]]


def init_state(init: Init, tx: optax.GradientTransformation, seed: int | Array, hyper: dict[str, Any]) -> TrainState:
    """A fresh state around ``init(seed)``; vmappable over ``seed`` and ``hyper``."""
    variables = init(seed)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        rng=jax.random.fold_in(jax.random.PRNGKey(seed), 1),
        hyper=jax.tree.map(jnp.asarray, hyper),
        first_bad=jnp.full((), -1, jnp.int32),
        frozen=variables.get("frozen", {}),
    )


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
    given = np.asarray(seeds, np.int32), jax.tree.map(lambda *leaves: np.stack(leaves), *hyper)
    program = jax.jit(jax.vmap(lambda seed, hyper: init_state(init, tx, seed, hyper)))
    if key is None:
        return program(*given)
    return kept_program(("init", key, signature(*given)), lambda: program.lower(*given).compile())(*given)
