"""DANN: features that a discriminator cannot tell apart (Ganin et al., JMLR 2016)."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.discriminator import domain_cross_entropy
from jaxdti.adaptation.domains import Domains
from jaxdti.layers.means import weighted_mean
from jaxdti.layers.reversal import reverse_gradient

Discriminate = Callable[[Array, Array], Array]  # x [2, B, F], mask [2, B] -> logits [2, B, 2] of (source, target)


def dann_loss(domains: Domains, discriminate: Discriminate, strength: float | Array) -> Array:
    """``mean_s CE(D(R(f)), source) + mean_t CE(D(R(f)), target)``, R reversing the gradient with ``strength``.

    A float32 scalar; 0 while a domain has no rows.
    """
    domains = domains.visible
    logits = discriminate(reverse_gradient(domains.features, strength), domains.mask)
    each = weighted_mean(domain_cross_entropy(logits), domains.mask.astype(jnp.float32))
    return jnp.where(domains.complete, jnp.sum(each), 0.0)
