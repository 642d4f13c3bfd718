"""Deep CORAL: equal covariances of source and target features (Sun and Saenko, ECCV Workshops 2016)."""

import jax.numpy as jnp
from jax import Array


def coral(source: Array, target: Array, source_mask: Array, target_mask: Array) -> Array:
    """``|C_s - C_t|_F^2 / (4 F^2)`` with the unbiased covariances of the rows; a float32 scalar.

    Args:
      source, target: float [N, F] and [M, F].
      source_mask, target_mask: bool [N] and [M]. Fewer than two rows have no covariance: the result is 0 then.
    """
    difference = _covariance(source, source_mask) - _covariance(target, target_mask)
    complete = (jnp.sum(source_mask) > 1) & (jnp.sum(target_mask) > 1)
    return jnp.where(complete, jnp.sum(difference**2) / (4.0 * source.shape[-1] ** 2), 0.0)


def _covariance(x: Array, mask: Array) -> Array:
    x = jnp.where(mask[:, None], x.astype(jnp.float32), 0.0)
    count = jnp.sum(mask)
    mean = jnp.sum(x, 0) / jnp.maximum(count, 1)
    centred = jnp.where(mask[:, None], x - mean[None], 0.0)
    return centred.T @ centred / jnp.maximum(count - 1, 1)
