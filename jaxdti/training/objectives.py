"""Losses as pure functions ``(variables, batch, rng, hyper) -> (loss, (batch_stats, metrics))``.

``hyper`` is what ``state.hyper_parameters`` lists, and ``step``, the number of updates done. The metrics hold the loss
to show, and the number of rows that it is the mean of where these are not all valid ones of the batch.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxdti.config import ModelConfig
from jaxdti.data.batches import PairBatch, Shape
from jaxdti.models.drugban import DrugBAN, share_proteins
from jaxdti.training.features import DeviceFeatures

Objective = Callable[
    [dict[str, Any], Any, Array, dict[str, Array]], tuple[Array, tuple[chex.ArrayTree, dict[str, Array]]]
]


def binding_loss(logits: Array, labels: ArrayLike, mask: ArrayLike) -> Array:
    """Cross-entropy per pair, from the logits, exactly 0 where masked.

    Args:
      logits: float [B, 1] (sigmoid) or [B, 2] (softmax).
      labels: float32 [B], 0 or 1; anything, NaN included, where ``mask`` is False.
      mask: bool [B].
    """
    labels = jnp.where(mask, labels, 0.0)  # masking only the result leaves 0 * NaN in the gradient
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        loss = optax.sigmoid_binary_cross_entropy(logits[:, 0], labels)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    return jnp.where(mask, loss, 0.0)


def affinity_loss(prediction: Array, labels: ArrayLike, mask: ArrayLike) -> Array:
    """Squared error per pair, exactly 0 where masked; prediction [B, 1], labels [B], mask bool [B] -> [B]."""
    return jnp.where(mask, (prediction[:, 0].astype(jnp.float32) - jnp.where(mask, labels, 0.0)) ** 2, 0.0)


def masked_mean(x: Array, mask: ArrayLike) -> Array:
    """Mean of x where mask; 0, not NaN, when nothing is selected."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def pair_losses(task: str, logits: Array, labels: ArrayLike, mask: ArrayLike, hyper: dict[str, Array]) -> Array:
    """The loss of each pair [B], exactly 0 where masked, with the class weights and label scale of ``hyper``."""
    if task == "classification":
        weights = jnp.where(jnp.asarray(labels) > 0.5, hyper["class_weights"][1], hyper["class_weights"][0])
        return binding_loss(logits, labels, mask) * weights
    mean, sd = hyper["label_scale"]
    return affinity_loss(logits, (jnp.asarray(labels) - mean) / sd, mask)


def pair_objective(
    config: ModelConfig,
    task: str,
    features: DeviceFeatures,
    shape: Shape,
    proteins: int | None = None,
) -> Objective:
    """Plain supervised training on pairs, with what ``state.hyper_parameters`` traces.

    Args:
      proteins: at least as many as a batch has distinct ones, to encode each once; None to encode one a pair.
    """
    model = DrugBAN(config)

    def objective(variables: dict[str, Any], batch: PairBatch, rng: Array, hyper: dict[str, Array]):
        protein, shared = batch.protein, None
        if proteins is not None:
            protein, shared = share_proteins(batch.protein, batch.row_mask, proteins)
        logits, updates = model.apply(
            variables,
            features.drugs(batch.drug, shape),
            features.proteins(protein, shape),
            batch.row_mask,
            hyper["dropout"],
            train=True,
            shared=shared,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        total = masked_mean(pair_losses(task, logits, batch.label, batch.row_mask, hyper), batch.row_mask)
        return total, (updates["batch_stats"], {"loss": jax.lax.stop_gradient(total)})

    return objective
