"""CDAN: the discriminator sees features together with predictions (Long et al., NeurIPS 2018)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.dann import Discriminate
from jaxdti.adaptation.discriminator import domain_cross_entropy
from jaxdti.adaptation.domains import Domains, entropy
from jaxdti.layers.means import weighted_mean
from jaxdti.layers.reversal import reverse_gradient

RandomMatrices = tuple[Array, Array]  # float32 [F, D] and [K, D]


def random_matrices(key: Array, features: int, classes: int, size: int) -> RandomMatrices:
    """Standard normal R_f [features, size] and R_g [classes, size], drawn once and kept with the run."""
    first, second = jax.random.split(key)
    return jax.random.normal(first, (features, size)), jax.random.normal(second, (classes, size))


def multilinear_map(features: Array, probabilities: Array, random: RandomMatrices | None) -> Array:
    """How features and predictions meet.

    ``vec(g f^T)`` [..., K * F], or randomised ``(f R_f) (g R_g) / sqrt(D)`` [..., D], whose inner products have the
    same mean: for when K * F is too wide.
    """
    if random is None:
        joint = probabilities[..., :, None] * features[..., None, :]
        return joint.reshape(*joint.shape[:-2], -1)
    of_features, of_classes = random
    return (features @ of_features) * (probabilities @ of_classes) / of_features.shape[-1] ** 0.5


def cdan_loss(
    domains: Domains,
    discriminate: Discriminate,
    strength: float | Array,
    random: RandomMatrices | None,
    *,
    conditioned: bool = False,
    reference: bool = False,
) -> Array:
    """``E_s[w CE(D(T(R(f), g)), source)] + E_t[w CE(D(T(R(f), g)), target)]`` with g the detached predictions.

    R reverses the gradient with ``strength``, T is ``multilinear_map``, and each expectation is divided by its sum of
    weights. A float32 scalar; 0 while a domain has no rows.

    Args:
      conditioned: CDAN+E, ``w = 1 + exp(-H(g))``, detached: rows predicted with confidence count more. Otherwise w = 1.
      reference: w as the published DrugBAN code has it: not detached but reversed, with 1e-5 inside the logarithm.
    """
    domains = domains.visible
    probabilities = jax.lax.stop_gradient(domains.probabilities)
    joint = multilinear_map(reverse_gradient(domains.features, strength), probabilities, random)
    loss = domain_cross_entropy(discriminate(joint, domains.mask))
    weights = domains.mask.astype(jnp.float32)
    if conditioned and reference:
        weights *= 1.0 + jnp.exp(-reverse_gradient(entropy(domains.probabilities, 1e-5), strength))
    elif conditioned:
        weights *= 1.0 + jnp.exp(-entropy(probabilities))
    return jnp.where(domains.complete, jnp.sum(weighted_mean(loss, weights)), 0.0)
