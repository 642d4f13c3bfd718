"""MCC: target predictions that do not confuse classes (Jin et al., ECCV 2020)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.domains import class_probabilities, entropy


def mcc(logits: Array, mask: Array, temperature: float = 2.5) -> Array:
    """Minimum class confusion of B target rows, a float32 scalar; 0 without rows.

    With p = softmax(logits / temperature) and w_i = n (1 + exp(-H(p_i))) / sum_j (1 + exp(-H(p_j))), detached:
    ``C = p^T diag(w) p``, each row divided by its sum, and the loss is the off-diagonal sum over the K classes / K.

    Args:
      logits: float [B, K]; K = 1 stands for the classes 0 and 1 of a sigmoid.
      mask: bool [B].
    """
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
    probabilities = class_probabilities(logits / temperature)
    weights = jnp.where(mask, 1.0 + jnp.exp(-entropy(jax.lax.stop_gradient(probabilities))), 0.0)
    weights = weights * jnp.sum(mask) / jnp.maximum(jnp.sum(weights), 1e-12)
    confusion = (probabilities * weights[:, None]).T @ probabilities
    confusion = confusion / jnp.maximum(jnp.sum(confusion, 1, keepdims=True), 1e-12)
    off_diagonal = jnp.sum(confusion) - jnp.trace(confusion)
    return jnp.where(jnp.any(mask), off_diagonal / probabilities.shape[-1], 0.0)
