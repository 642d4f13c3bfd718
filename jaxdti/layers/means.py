"""Means over rows of which some do not count."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def masked_mean(values: Array, mask: ArrayLike) -> Array:
    """Mean of ``values`` [B] where ``mask``, bool [B]; 0, not NaN, where nothing is selected."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def weighted_mean(values: Array, weights: Array) -> Array:
    """``sum w x / sum w`` over the last axis, both [..., B]; 0 where all weights are 0. Weight 0 hides even a NaN."""
    total = jnp.sum(weights, -1)
    counted = jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, -1)
    return counted / jnp.where(total > 0, total, 1.0)
