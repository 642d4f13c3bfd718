"""SAN: one discriminator a class, for a target that lacks some classes of the source (Cao et al., CVPR 2018)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.discriminator import domain_cross_entropy
from jaxdti.adaptation.domains import TARGET, Domains, entropy
from jaxdti.layers.means import weighted_mean
from jaxdti.layers.reversal import reverse_gradient

ClasswiseDiscriminate = Callable[[Array, Array], Array]  # x [K, 2, B, F], mask [2, B] -> logits [K, 2, B, 2]


def class_weights(probabilities: Array, mask: Array) -> Array:
    """``w_k``: the mean prediction over target rows, float32 [N, K] and bool [N] -> [K]; 0 when there are none."""
    return jax.lax.stop_gradient(
        weighted_mean(probabilities.T, jnp.broadcast_to(mask.astype(jnp.float32), probabilities.T.shape))
    )


def san_loss(domains: Domains, discriminate: ClasswiseDiscriminate, strength: float | Array, weights: Array) -> Array:
    """``1 / (n_s + n_t) sum_k w_k sum_i y_ik CE(D_k(R(f_i)), d_i)``, a float32 scalar.

    y are the detached predictions of source and target rows alike, R reverses the gradient with ``strength``. 0 while
    a domain has no rows.

    Args:
      weights: float32 [K], ``class_weights`` of the batch's or of all target rows.
    """
    domains = domains.visible
    probabilities = jax.lax.stop_gradient(domains.probabilities)
    features = reverse_gradient(domains.features, strength)
    features = jnp.broadcast_to(features, (len(weights), *features.shape))
    logits = discriminate(features, domains.mask)
    loss = jnp.where(domains.mask, domain_cross_entropy(logits), 0.0)  # [K, 2, B]
    per_class = jnp.einsum("dbk,kdb->k", probabilities * domains.mask[..., None], loss)
    total = jnp.sum(jax.lax.stop_gradient(weights) * per_class)
    return jnp.where(domains.complete, total / jnp.maximum(jnp.sum(domains.mask), 1), 0.0)


def san_released_loss(
    domains: Domains,
    discriminate: ClasswiseDiscriminate,
    strength: float | Array,
    weights: Array,
) -> Array:
    """What the authors' released code computes instead: ``sum_k mean_i CE(D_k(R_k(y_ik f_i)), d_i)``.

    The features are multiplied by the class's prediction, and ``w_k / max w`` only scales the strength of the class's
    reversal R_k. ``weights`` are those of ``san_loss``.
    """
    domains = domains.visible
    probabilities = jax.lax.stop_gradient(domains.probabilities)
    weights = jax.lax.stop_gradient(weights)
    relative = weights / jnp.maximum(jnp.max(weights), 1e-12)
    per_class = jnp.moveaxis(probabilities, -1, 0)[..., None] * domains.features[None]
    reversed_ = jax.vmap(lambda x, share: reverse_gradient(x, strength * share))(per_class, relative)
    loss = jnp.where(domains.mask, domain_cross_entropy(discriminate(reversed_, domains.mask)), 0.0)
    total = jnp.sum(loss) / jnp.maximum(jnp.sum(domains.mask), 1)
    return jnp.where(domains.complete, total, 0.0)


def target_entropy(domains: Domains) -> Array:
    """Mean prediction entropy of the target rows, a float32 scalar: small when every row has one class."""
    return weighted_mean(entropy(domains.visible.probabilities[TARGET]), domains.mask[TARGET].astype(jnp.float32))
