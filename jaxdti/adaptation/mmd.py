"""MMD: the distance of two means in the feature spaces of several Gaussian kernels (Long et al., ICML 2015)."""

import jax
import jax.numpy as jnp
from jax import Array

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the mean squared distance of the batch


def mmd(source: Array, target: Array, source_mask: Array, target_mask: Array) -> Array:
    """``mean k(s, s') + mean k(t, t') - 2 mean k(s, t)``, ``k(x, y) = mean_b exp(-|x - y|^2 / (b h))``.

    h is the detached mean squared distance over pairs of distinct rows of both batches. Pairs of a row with itself
    count (the biased estimate), so the value is at least 0.

    Args:
      source, target: float [N, F] and [M, F].
      source_mask, target_mask: bool [N] and [M].

    Returns:
      A float32 scalar; 0 while a domain has no rows.
    """
    x = jnp.concatenate([source, target]).astype(jnp.float32)
    mask = jnp.concatenate([source_mask, target_mask])
    # Seen from one of the rows: far from the origin the distances would be lost to rounding.
    x = jnp.where(mask[:, None], x - jax.lax.stop_gradient(x[jnp.argmax(mask)])[None], 0.0)
    norms = jnp.sum(x * x, -1)
    distance = jnp.maximum(norms[:, None] + norms[None, :] - 2.0 * x @ x.T, 0.0)
    both = mask[:, None] & mask[None, :] & ~jnp.eye(len(x), dtype=bool)
    distance = jnp.where(both, distance, 0.0)  # a row is at no distance from itself, whatever the rounding
    width = jax.lax.stop_gradient(jnp.sum(distance) / jnp.maximum(jnp.sum(both), 1))
    scaled = distance / jnp.maximum(width, 1e-12)
    kernel = sum(jnp.exp(-scaled / b) for b in BANDWIDTHS) / len(BANDWIDTHS)
    count = lambda m: jnp.maximum(jnp.sum(m), 1)
    signs = jnp.concatenate([source_mask / count(source_mask), -(target_mask / count(target_mask))])
    complete = jnp.any(source_mask) & jnp.any(target_mask)
    return jnp.where(complete, signs @ kernel @ signs, 0.0)
