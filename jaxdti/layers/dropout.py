"""Dropout whose rate is an argument, so that replicas with different rates share one program."""

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
    """Sets a share ``rate`` of the entries of x to 0 and scales the others, keeping the mean (arXiv:1207.0580).

    Draws 8 bits a value, a quarter of the random numbers: the rate is rounded to a multiple of 1/256, and the scale
    belongs to the rounded rate.

    Args:
      x: float [..., F].
      rate: scalar in [0, 1), may be traced.
      key: a JAX key.
    """
    words = -(-x.size // 4)
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, (words,), jnp.uint32), jnp.uint8)
    bits = bits.reshape(-1)[: x.size].reshape(x.shape)
    # At most 255 of 256: all of them would make the scale infinite and the gradient 0 * infinity.
    dropped = jnp.minimum(jnp.round(jnp.asarray(rate, jnp.float32) * 256.0), 255.0)
    keep = bits.astype(jnp.float32) >= dropped
    return jnp.where(keep, x * (256.0 / (256.0 - dropped)).astype(x.dtype), jnp.zeros((), x.dtype))
