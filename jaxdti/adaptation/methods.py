"""The methods by their names in the configuration: what each adds to the loss of the source."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation import san
from jaxdti.adaptation.cdan import cdan_loss, random_matrices
from jaxdti.adaptation.coral import coral
from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.discriminator import ClasswiseDiscriminators, Discriminator
from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.mcc import mcc
from jaxdti.adaptation.mmd import mmd
from jaxdti.adaptation.pada import pada_loss
from jaxdti.config import AdaptationConfig
from jaxdti.layers.reversal import ramp

ADVERSARIAL = ("dann", "cdan", "san", "san_released", "pada")  # these have a discriminator, or several
CLASS_WEIGHTED = ("san", "san_released", "pada")


def init_adaptation(config: AdaptationConfig, key: Array, features: int, classes: int) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of what the method needs beside the network; vmappable over ``key``.

    The random matrices of CDAN are in ``batch_stats``: saved with the run, and never trained.

    Args:
      features: width F of the features.
      classes: K, 2 for a single logit.
    """
    if config.method not in ADVERSARIAL:
        return {"params": {}, "batch_stats": {}}
    discriminator_key, random_key = jax.random.split(key)
    width, random = features, {}
    if config.method == "cdan":
        width = config.random_features or features * classes
        if config.random_features:
            random = {"random": random_matrices(random_key, features, classes, config.random_features)}
    rows = (classes, 2, 1, width) if config.method in ("san", "san_released") else (2, 1, width)
    module = _discriminator(config, classes)
    variables = module.init(discriminator_key, jnp.zeros(rows), jnp.ones((2, 1), bool))
    return {"params": variables["params"], "batch_stats": {"discriminator": variables["batch_stats"]} | random}


def _discriminator(config: AdaptationConfig, classes: int) -> Discriminator | ClasswiseDiscriminators:
    if config.method in ("san", "san_released"):
        return ClasswiseDiscriminators(classes, config.discriminator_features)
    return Discriminator(config.discriminator_features)


def adaptation_loss(
    config: AdaptationConfig,
    variables: dict[str, Any],
    domains: Domains,
    labels: Array,
    strength: Array,
    target_classes: Array,
    *,
    reference: bool = False,
) -> Array:
    """What the method adds to the loss of the source, a float32 scalar.

    Args:
      variables: of ``init_adaptation``.
      labels: int [B], classes of the source rows.
      strength: of the reversal, or the weight of the other methods' loss.
      target_classes: float32 [K], for the methods that weight classes: the mean prediction over all target rows, or
        over the batch's, as ``config.class_weights`` says.
      reference: as the published DrugBAN code, the discriminator takes the domains in two passes, and the entropy
        weights of CDAN are reversed instead of detached.
    """
    module = _discriminator(config, domains.probabilities.shape[-1])

    def discriminate(x: Array, mask: Array) -> Array:
        held = {"params": variables["params"], "batch_stats": variables["batch_stats"]["discriminator"]}
        apply = lambda x, mask: module.apply(held, x, mask, mutable=["batch_stats"])[0]
        return jax.vmap(apply)(x, mask) if reference else apply(x, mask)  # pyright: ignore[reportReturnType]

    features, mask = domains.features, domains.mask
    match config.method:
        case "dann":
            return dann_loss(domains, discriminate, strength)
        case "cdan":
            return cdan_loss(
                domains,
                discriminate,
                strength,
                variables["batch_stats"].get("random"),
                conditioned=config.entropy_conditioning,
                reference=reference,
            )
        case "san":
            return san.san_loss(domains, discriminate, strength, target_classes)
        case "san_released":
            return san.san_released_loss(domains, discriminate, strength, target_classes)
        case "pada":
            return pada_loss(domains, discriminate, strength, labels, target_classes)
        case "mmd":
            return strength * mmd(features[SOURCE], features[TARGET], mask[SOURCE], mask[TARGET])
        case "coral":
            return strength * coral(features[SOURCE], features[TARGET], mask[SOURCE], mask[TARGET])
        case "mcc":
            return strength * mcc(domains.logits[TARGET], mask[TARGET])
    raise ValueError(f"adaptation.method={config.method!r} has no loss between domains")


def adaptation_strength(
    config: AdaptationConfig, full: Array, step: Array, start: int, total: int
) -> tuple[Array, Array]:
    """(strength, active) at an update: strength 0 and not active before update ``start`` of ``total``.

    From there on strength is ``full``, or with ``schedule: ramp`` grows to it by ``2 / (1 + exp(-10 p)) - 1`` with p
    from 0 to 1.
    """
    active = step >= start
    progress = (step - start) / max(total - start, 1)
    grown = ramp(progress) if config.schedule == "ramp" else jnp.ones(())
    return jnp.where(active, full * grown, 0.0), active
