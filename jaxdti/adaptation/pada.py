"""PADA: one discriminator, and source rows weighted by how much the target uses their class (Cao et al., ECCV 2018)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.dann import Discriminate
from jaxdti.adaptation.discriminator import domain_cross_entropy
from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.layers.means import weighted_mean
from jaxdti.layers.reversal import reverse_gradient


def source_weights(labels: Array, weights: Array) -> Array:
    """``w_y / max w`` of each source row: int [B], float32 [K] -> float32 [B]; also the weights of its class loss."""
    weights = jax.lax.stop_gradient(weights)
    return (weights / jnp.maximum(jnp.max(weights), 1e-12))[labels]


def pada_loss(
    domains: Domains, discriminate: Discriminate, strength: float | Array, labels: Array, weights: Array
) -> Array:
    """``mean_s w_y CE(D(R(f)), source) + mean_t CE(D(R(f)), target)``, a float32 scalar; 0 while a domain has no rows.

    Args:
      labels: int [B], classes of the source rows; any of 0 .. K - 1 where masked.
      weights: float32 [K], ``san.class_weights``.
    """
    domains = domains.visible
    loss = domain_cross_entropy(discriminate(reverse_gradient(domains.features, strength), domains.mask))
    mask = domains.mask.astype(jnp.float32)
    source = weighted_mean(loss[SOURCE] * source_weights(labels, weights), mask[SOURCE])
    return jnp.where(domains.complete, source + weighted_mean(loss[TARGET], mask[TARGET]), 0.0)
