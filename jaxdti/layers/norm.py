"""Batch normalisation that padding and filler rows cannot reach."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over all leading axes, with statistics from the valid positions only (arXiv:1502.03167).

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``; x float [..., F], mask [...] -> dtype of x [..., F].
    The mask is bool, or float32: how often a position counts, 0 where it is not valid.
    Statistics are float32 and two-pass: the joint features of the attention layer have means near 3e5, where
    E[x^2] - E[x]^2 has no correct digit left. With nothing valid the running statistics stay as they are.

    Attributes:
      momentum: share of the old running statistics kept at a training step.
      epsilon: added to the variance.
      unbiased: put the n/(n-1) variance into the running statistics, as torch does.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> Array:
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)

        values = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            weight = mask.astype(jnp.float32)[..., None]
            count = jnp.sum(weight)
            safe_count = jnp.maximum(count, 1.0)
            mean = jnp.sum(values * weight, axes) / safe_count
            var = jnp.sum(weight * (values - _align(mean, x)) ** 2, axes) / safe_count
            if not self.is_initializing():
                kept = jnp.where(count > 0, self.momentum, 1.0)
                batch_var = var * (safe_count / jnp.maximum(safe_count - 1.0, 1.0)) if self.unbiased else var
                running_mean.value = kept * running_mean.value + (1.0 - kept) * jax.lax.stop_gradient(mean)
                running_var.value = kept * running_var.value + (1.0 - kept) * jax.lax.stop_gradient(batch_var)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((values - _align(mean, x)) * _align(factor, x) + _align(bias, x)).astype(x.dtype)


def _align(vector: Array, like: Array) -> Array:
    """[F] -> [1, ..., 1, F] of the rank of ``like``, so that rank promotion stays an error elsewhere."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
