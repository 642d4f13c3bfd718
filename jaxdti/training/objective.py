"""What an objective is, and the losses that objectives are made of."""

from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

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
