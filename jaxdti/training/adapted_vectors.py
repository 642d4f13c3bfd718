"""Adaptation of a network on feature vectors: labelled source rows and unlabelled target rows, side by side.

The feed-forward network's last hidden layer are the features that the methods of ``jaxdti.adaptation`` compare. Both
domains go through it in one pass, by default each with batch statistics of its own; a target row is scored with the
target's.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET, Domains, class_probabilities
from jaxdti.adaptation.methods import CLASS_WEIGHTED, adaptation_loss, adaptation_strength, init_adaptation
from jaxdti.adaptation.pada import source_weights
from jaxdti.adaptation.san import class_weights, target_entropy
from jaxdti.config import AdaptationConfig, TrainingConfig
from jaxdti.layers.means import masked_mean
from jaxdti.models.fnn import FNN, init_fnn, split, take_layers
from jaxdti.training.objective import Objective, binding_loss
from jaxdti.training.plans import VectorBatch
from jaxdti.training.resident import Progress, VectorFit, fit_vectors
from jaxdti.training.selection import (
    Selection,
    SelectionRows,
    masked_deep_embedded_validation,
    masked_importance_weights,
    masked_information,
)
from jaxdti.training.task import VectorMethod, VectorReplica

Variables = dict[str, Any]

_BY_TARGET = ("information", "importance")
_MOST_COMPARED = 2000  # rows of each domain, to tell source from target by their features


def fit_adapted(
    model: FNN,
    features: Array | np.ndarray,
    replicas: Sequence[VectorReplica],
    adaptation: AdaptationConfig,
    training: TrainingConfig,
    *,
    select: str | None = None,
    progress: Progress | None = None,
) -> VectorFit:
    """Trains a network of K classes for each replica, adapted to its ``target`` rows; see ``fit_vectors``.

    Whatever ``label`` holds for target rows is not read. With ``method: none`` the target is not trained on; only
    ``select`` may look at it.

    Args:
      model: with hidden layers and K >= 2 outputs.
      features: float [N, F], shared by the replicas.
      select: keeps the best epoch on the source's validation rows, "accuracy" or "loss", or the one that
        ``target_selection`` finds best, "information" or "importance"; None keeps the last one.
      progress: as in ``fit_vectors``.

    Raises:
      ValueError: as ``fit_vectors``; fewer than two outputs; a replica without target rows.
    """
    if model.outputs is None or model.outputs < 2:
        raise ValueError(
            f"adaptation of feature vectors needs a logit for each of two or more classes: {model.outputs}"
        )
    inputs, by_target = features.shape[-1], select in _BY_TARGET
    chosen = target_selection(model, adaptation, select) if by_target else select  # pyright: ignore[reportArgumentType]
    if adaptation.method == "none":
        # Whom the target selects is trained anew for each one: the same weights, but another epoch is kept.
        distinct, of_replica = _distinct(replicas if by_target else [_untargeted(replica) for replica in replicas])
        fresh = partial(init_fnn, model, inputs)
        fit = fit_vectors(model, fresh, features, distinct, training, select=chosen, progress=progress)
        return VectorFit(**{name: jax.tree.map(lambda x: x[of_replica], value) for name, value in vars(fit).items()})
    if lacking := [i for i, replica in enumerate(replicas) if not len(replica.target)]:
        raise ValueError(f"replica {lacking[0]}: adaptation.method={adaptation.method} needs target rows")
    batch_size = min(training.batch_size, max(len(replica.train) for replica in replicas))
    steps = max(-(-len(replica.train) // batch_size) for replica in replicas)
    method = adapted_method(model, adaptation, training.epochs, steps)  # pyright: ignore[reportArgumentType]
    traced = [_with_hyper(replica, adaptation, model.outputs) for replica in replicas]
    init = partial(_init, model, adaptation, inputs)
    return fit_vectors(model, init, features, traced, training, select=chosen, method=method, progress=progress)


@lru_cache(maxsize=32)
def adapted_method(model: FNN, adaptation: AdaptationConfig, epochs: int, steps_per_epoch: int) -> VectorMethod:
    """``loss(source) + loss between domains + target_entropy * mean entropy(target)``, the last two from
    ``adaptation.start`` on; ``steps_per_epoch`` and ``epochs`` set the schedule of the strength."""
    domain = SOURCE if adaptation.batchnorm == "separate" else None
    weighted = adaptation.method in CLASS_WEIGHTED and adaptation.class_weights == "target"
    return VectorMethod(
        objective=partial(adapted_objective, model, adaptation, epochs * steps_per_epoch, steps_per_epoch),
        network=lambda variables: network_of(variables, domain),
        rate_of=lambda path: "discriminator_learning_rate" if path[0] == "adaptation" else "learning_rate",
        refresh=partial(_target_classes, model, adaptation) if weighted else None,
        refresh_steps=adaptation.refresh_steps,
    )


def adapted_objective(
    model: FNN, adaptation: AdaptationConfig, total: int, steps_per_epoch: int, features: Array
) -> Objective:
    """Objective of batches with ``target`` rows; ``total`` updates are the whole training."""
    start = round(adaptation.start * (total if adaptation.start < 1 else steps_per_epoch))

    def objective(variables: Variables, batch: VectorBatch, rng: Array, hyper: dict[str, Array]):
        assert batch.target is not None
        mask = jnp.stack([batch.row_mask, batch.target >= 0])
        x = features[jnp.stack([batch.row, jnp.maximum(batch.target, 0)])]
        network = {name: variables[name]["network"] for name in ("params", "batch_stats")}
        (hidden, logits), statistics = _both_domains(model, adaptation, network, x, mask, rng, hyper["dropout"])
        domains = Domains(hidden, logits, mask)

        labels = jnp.where(mask[SOURCE], batch.label, 0.0).astype(jnp.int32)
        classes = hyper["target_classes"]
        if adaptation.class_weights == "batch":
            classes = class_weights(domains.probabilities[TARGET], mask[TARGET])
        strength, active = adaptation_strength(adaptation, hyper["strength"], hyper["step"], start, total)
        losses = binding_loss(logits[SOURCE], labels, mask[SOURCE]) * hyper["class_weights"][labels]
        if adaptation.method == "pada":
            losses *= jnp.where(active, source_weights(labels, classes), 1.0)
        task = masked_mean(losses, mask[SOURCE])

        beside = {name: variables[name]["adaptation"] for name in ("params", "batch_stats")}
        between = adaptation_loss(adaptation, beside, domains, labels, strength, classes)
        if adaptation.target_entropy:
            between += adaptation.target_entropy * target_entropy(domains)
        between = jnp.where(active, between, 0.0)
        new = {"network": statistics, "adaptation": beside["batch_stats"]}
        shown = {"loss": task, "domain_loss": between, "rows": jnp.sum(mask[SOURCE]).astype(jnp.int32)}
        return task + between, (new, jax.lax.stop_gradient(shown))

    return objective


@lru_cache(maxsize=32)  # one function for equal settings, so that programs are compiled once
def target_selection(model: FNN, adaptation: AdaptationConfig, select: str) -> Selection:
    """What tells without a target label how good a network under training is on the target, larger is better.

    "information" is that of the predictions on all target rows (``masked_information``), "importance" minus the
    cross-entropy of the source's validation rows, weighted towards the target by a classifier of the domain on at most
    2,000 training rows and 2,000 target rows (``masked_deep_embedded_validation``). Rows of each domain go through the
    network as at test time.
    """

    def outputs(variables: Variables, features: Array, rows: Array, domain: int) -> tuple[Array, Array, Array]:
        """Hidden features, logits and mask of rows, -1 where there is none."""
        if adaptation.method != "none":
            variables = network_of(variables, domain if adaptation.batchnorm == "separate" else None)
        mask = rows >= 0
        return *_hidden_and_logits(model, variables, features[jnp.maximum(rows, 0)], mask)[0], mask

    def information(variables: Variables, features: Array, rows: SelectionRows) -> Array:
        assert rows.target is not None
        _, logits, mask = outputs(variables, features, rows.target, TARGET)
        return masked_information(class_probabilities(logits), mask)

    def importance(variables: Variables, features: Array, rows: SelectionRows) -> Array:
        assert rows.source is not None and rows.target is not None
        source, _, source_mask = outputs(variables, features, rows.source[:_MOST_COMPARED], SOURCE)
        target, _, target_mask = outputs(variables, features, rows.target[:_MOST_COMPARED], TARGET)
        held = jnp.where(rows.validation.row_mask, rows.validation.row, -1)
        points, logits, mask = outputs(variables, features, held, SOURCE)
        weight = masked_importance_weights(source, source_mask, target, target_mask, points)
        return -masked_deep_embedded_validation(binding_loss(logits, rows.validation.label, mask), weight, mask)

    return {"information": information, "importance": importance}[select]


def network_of(variables: Variables, domain: int | None) -> Variables:
    """The variables of the network alone, with the running statistics of a domain; None where both share them."""
    statistics = variables["batch_stats"]["network"]
    if domain is not None:
        statistics = jax.tree.map(lambda x: x[domain], statistics)
    return {"params": variables["params"]["network"], "batch_stats": statistics}


def target_networks(adaptation: AdaptationConfig, variables: Variables) -> Variables:
    """Of what ``fit_adapted`` trained, stacked on axis 0, the networks as they score the target."""
    if adaptation.method == "none":
        return variables
    domain = TARGET if adaptation.batchnorm == "separate" else None
    return jax.vmap(partial(network_of, domain=domain))(variables)


def _both_domains(
    model: FNN,
    adaptation: AdaptationConfig,
    variables: Variables,
    x: Array,
    mask: Array,
    rng: Array,
    dropout: Array,
) -> tuple[tuple[Array, Array], Any]:
    """x [2, B, F], mask bool [2, B] -> features [2, B, H] and logits [2, B, K], and the new running statistics."""

    def apply(statistics: Any, x: Array, mask: Array, rng: Array):
        held = {"params": variables["params"], "batch_stats": statistics}
        return _hidden_and_logits(model, held, x, mask, dropout, rng)

    statistics = variables["batch_stats"]
    if adaptation.batchnorm == "separate":
        return jax.vmap(apply)(statistics, x, mask, jax.random.split(rng))
    outputs, statistics = apply(statistics, x.reshape(-1, x.shape[-1]), mask.reshape(-1), rng)
    return jax.tree.map(lambda y: y.reshape(2, -1, *y.shape[1:]), outputs), statistics


def _hidden_and_logits(
    model: FNN, variables: Variables, x: Array, mask: Array, dropout: Array | float = 0.0, rng: Array | None = None
) -> tuple[tuple[Array, Array], Any]:
    """The last hidden layer and the logits, and the running statistics; training where there is an ``rng``."""
    lower, upper = split(model, len(model.features))
    rngs = None if rng is None else {"dropout": rng}
    hidden, updates = lower.apply(
        take_layers(variables, lower), x, mask, dropout, train=rng is not None, rngs=rngs, mutable=["batch_stats"]
    )
    logits: Any = upper.apply(take_layers(variables, upper), hidden, mask, train=False)
    return (hidden, logits), updates["batch_stats"]


def _init(model: FNN, adaptation: AdaptationConfig, inputs: int, seed: Array) -> Variables:
    """The network that training without adaptation would begin with, and what the method needs beside it."""
    network = init_fnn(model, inputs, seed)
    key = jax.random.fold_in(jax.random.PRNGKey(seed), 2)
    method = init_adaptation(adaptation, key, model.features[-1], model.outputs or 0)
    statistics = network["batch_stats"]
    if adaptation.batchnorm == "separate":
        statistics = jax.tree.map(lambda x: jnp.stack([x, x]), statistics)
    return {
        "params": {"network": network["params"], "adaptation": method["params"]},
        "batch_stats": {"network": statistics, "adaptation": method["batch_stats"]},
    }


def _target_classes(
    model: FNN, adaptation: AdaptationConfig, variables: Variables, features: Array, rows: Array
) -> dict[str, Array]:
    """Mean prediction over the whole target, scored as at test time."""
    network = network_of(variables, TARGET if adaptation.batchnorm == "separate" else None)
    mask = rows >= 0
    logits: Any = model.apply(network, features[jnp.maximum(rows, 0)], mask, train=False)
    return {"target_classes": class_weights(jax.nn.softmax(logits), mask)}


def _with_hyper(replica: VectorReplica, adaptation: AdaptationConfig, classes: int) -> VectorReplica:
    rate = adaptation.discriminator_learning_rate
    hyper = {
        "strength": adaptation.strength,
        "discriminator_learning_rate": replica.learning_rate if rate is None else rate,
        "target_classes": np.full(classes, 1.0 / classes),
    }
    return replace(replica, hyper=replica.hyper | hyper)


def _untargeted(replica: VectorReplica) -> VectorReplica:
    return replace(replica, target=replica.target[:0])


def _distinct(replicas: Sequence[VectorReplica]) -> tuple[list[VectorReplica], np.ndarray]:
    """Those that differ in more than their target, and for each replica the number of its own: int64 [R]."""
    found: dict[tuple, int] = {}
    kept: list[VectorReplica] = []
    numbers = []
    for replica in replicas:
        key = tuple(x.tobytes() if isinstance(x, np.ndarray) else repr(x) for x in vars(replica).values())
        if found.setdefault(key, len(kept)) == len(kept):
            kept.append(replica)
        numbers.append(found[key])
    return kept, np.asarray(numbers)
