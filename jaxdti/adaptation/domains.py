"""What the methods work on: features and predictions of a source and a target batch, side by side."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

SOURCE, TARGET = 0, 1  # places on the domain axis, and the classes of a discriminator


class Domains(flax.struct.PyTreeNode):
    """One batch of each domain; axis 0 is (source, target). Rows where ``mask`` is False never count."""

    features: Array  # float [2, B, F]
    logits: Array  # float [2, B, K]; with K = 1 of a sigmoid
    mask: Array  # bool [2, B]

    @property
    def probabilities(self) -> Array:
        """float32 [2, B, K] that sum to 1; [2, B, 2] of a single logit."""
        return class_probabilities(self.logits)

    @property
    def visible(self) -> "Domains":
        """The same in float32, zeros in masked rows: not even a NaN there may reach a value or a gradient."""
        zeroed = lambda x: jnp.where(self.mask[..., None], x.astype(jnp.float32), 0.0)
        return self.replace(features=zeroed(self.features), logits=zeroed(self.logits))

    @property
    def complete(self) -> Array:
        """bool []: both domains have rows, so that there is something to compare."""
        return jnp.all(jnp.any(self.mask, 1))


def class_probabilities(logits: Array) -> Array:
    """float [..., K] -> float32 [..., K] by softmax; a single logit -> [1 - p, p] by sigmoid."""
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        return jax.nn.softmax(jnp.concatenate([jnp.zeros_like(logits), logits], -1))
    return jax.nn.softmax(logits)


def entropy(probabilities: Array, offset: float = 0.0) -> Array:
    """``-sum_k p_k log(p_k + offset)``, float32 [..., K] -> [...]; without offset safe at p = 0, its gradient too."""
    if offset:
        return -jnp.sum(probabilities * jnp.log(probabilities + offset), -1)
    positive = probabilities > 0
    return -jnp.sum(jnp.where(positive, probabilities * jnp.log(jnp.where(positive, probabilities, 1.0)), 0.0), -1)
