"""Training on labelled pairs of a source domain and unlabelled pairs of a target domain, side by side.

Every step takes as many target pairs as source pairs, from the same length bucket. Both go through the network at
once, by default each domain with batch statistics of its own, and the method of ``jaxdti.adaptation`` compares them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.methods import CLASS_WEIGHTED, adaptation_loss, adaptation_strength, init_adaptation
from jaxdti.adaptation.pada import source_weights
from jaxdti.adaptation.san import class_weights, target_entropy
from jaxdti.config import Config
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, pair_batch
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.layers.means import masked_mean
from jaxdti.models.drugban import DrugBAN, init_variables
from jaxdti.training.objective import Objective
from jaxdti.training.plans import plan_domains, refreshes
from jaxdti.training.supervised import pair_losses
from jaxdti.training.task import Method, Replica, Variables

_MOMENTUM = 0.9  # of the running statistics


def adapted(replicas: Sequence[Replica], table: InteractionTable, buckets: Buckets, steps: int) -> Method:
    """Training with ``adaptation.method``; batches are [replicas, steps, 2 B], source and target pairs in turn.

    Raises:
      DataError: there are no target pairs to adapt to.
    """
    config = replicas[0].config
    for replica in replicas:
        check_target(config, replica.parts)
    plan = lambda epoch: plan_domains(replicas, buckets, config.training.batch_size, steps, epoch=epoch)
    updates = sum(int(np.any(chunk.rows >= 0, axis=(0, 2)).sum()) for chunk in plan(0))
    return Method(
        init=partial(_init, config),
        objective=lambda features, shape, proteins: adapted_objective(config, features, shape, updates),
        plan=plan,
        batch=partial(domain_batch, table),
        proteins=lambda chunk: None,
        network=partial(_network, config),
        rate_of=lambda path: "discriminator_learning_rate" if path[0] == "adaptation" else "learning_rate",
        target_classes_due=partial(refreshes, every=config.adaptation.refresh_steps) if _whole_target(config) else None,
    )


def _whole_target(config: Config) -> bool:
    """Whether the method weights classes by the predictions on the whole target."""
    return config.adaptation.method in CLASS_WEIGHTED and config.adaptation.class_weights == "target"


def check_target(config: Config, parts: dict[str, np.ndarray]) -> None:
    """Raises DataError where the configuration asks for adaptation and there are no target pairs to adapt to."""
    if config.adaptation.method != "none" and not len(parts.get("target_train", ())):
        raise DataError(
            f"adaptation.method={config.adaptation.method} needs unlabelled target pairs: a cluster split (data.split: "
            "cluster, or a dataset such as biosnap/cluster), or data.target"
        )


def domain_batch(table: InteractionTable, rows: np.ndarray) -> PairBatch:
    """Rows int64 [..., 2 B], source and target in turn -> their batch; labels of the target stay on the host."""
    batch = pair_batch(table, rows)
    label = batch.label.copy()
    label[..., TARGET::2] = 0.0
    return batch.replace(label=label)


def _init(config: Config, seed: int | Array) -> Variables:
    """The network that plain training would begin with, and what the method needs beside it."""
    network = init_variables(config.model, seed)
    key = jax.random.fold_in(jax.random.PRNGKey(seed), 2)
    method = init_adaptation(config.adaptation, key, config.model.joint_features, max(config.model.logits, 2))
    statistics = network["batch_stats"]
    if _separate(config):
        statistics = jax.tree.map(lambda x: jnp.stack([x, x]), statistics)
    return {
        "params": {"network": network["params"], "adaptation": method["params"]},
        "batch_stats": {"network": statistics, "adaptation": method["batch_stats"]},
    }


def _separate(config: Config) -> bool:
    """Whether each domain has running statistics of its own; the published code shares them."""
    return config.adaptation.batchnorm == "separate" and not config.model.reference


def _network(config: Config, variables: Variables, part: str) -> Variables:
    """The network with the running statistics of the part's domain."""
    statistics = variables["batch_stats"]["network"]
    if _separate(config):
        domain = SOURCE if part in ("train", "validation") else TARGET
        statistics = jax.tree.map(lambda x: x[domain], statistics)
    return {"params": variables["params"]["network"], "batch_stats": statistics}


def adapted_objective(config: Config, features: DeviceFeatures, shape: Shape, steps_per_epoch: int) -> Objective:
    """``loss(source) + loss between domains + target_entropy * mean entropy(target)``, the last two from
    ``adaptation.start`` on.

    Args:
      steps_per_epoch: updates of an epoch; the strength's schedule counts in them.
    """
    adaptation, model = config.adaptation, DrugBAN(config.model)
    total = config.training.epochs * steps_per_epoch
    start = round(adaptation.start * (total if adaptation.start < 1 else steps_per_epoch))

    def objective(variables: Variables, batch: PairBatch, rng: Array, hyper: dict[str, Array]):
        apart = lambda x: jnp.asarray(x).reshape(-1, 2).T
        drug, protein, label, mask = map(apart, (batch.drug, batch.protein, batch.label, batch.row_mask))
        network = {name: variables[name]["network"] for name in ("params", "batch_stats")}
        index = (drug, protein, mask)
        (joint, logits), statistics = _both_domains(config, model, network, features, shape, index, rng, hyper)
        domains = Domains(joint, logits, mask)

        losses = pair_losses(config.task, logits[SOURCE], label[SOURCE], mask[SOURCE], hyper)
        classes = hyper["target_classes"]
        if adaptation.class_weights == "batch":
            classes = class_weights(domains.probabilities[TARGET], mask[TARGET])
        labels = jnp.where(mask[SOURCE], label[SOURCE], 0.0).astype(jnp.int32)
        strength, active = adaptation_strength(adaptation, hyper["strength"], hyper["step"], start, total)
        if adaptation.method == "pada":
            losses *= jnp.where(active, source_weights(labels, classes), 1.0)
        task = masked_mean(losses, mask[SOURCE])

        beside = {name: variables[name]["adaptation"] for name in ("params", "batch_stats")}
        between = adaptation_loss(
            adaptation, beside, domains, labels, strength, classes, reference=config.model.reference
        )
        if adaptation.target_entropy:
            between += adaptation.target_entropy * target_entropy(domains)
        between = jnp.where(active, between, 0.0)
        new = {"network": statistics, "adaptation": beside["batch_stats"]}
        shown = {"loss": task, "domain_loss": between, "rows": jnp.sum(mask[SOURCE]).astype(jnp.int32)}
        return task + between, (new, jax.lax.stop_gradient(shown))

    return objective


def _both_domains(
    config: Config,
    model: DrugBAN,
    variables: Variables,
    features: DeviceFeatures,
    shape: Shape,
    index: tuple[Array, Array, Array],
    rng: Array,
    hyper: dict[str, Array],
) -> tuple[tuple[Array, Array], Any]:
    """Joint features [2, B, F] and logits [2, B, K] of both domains in one pass, and the new running statistics.

    ``index`` holds drug and protein, int32 [2, B], and the mask bool [2, B].
    """

    def apply(statistics: Any, drug: Array, protein: Array, mask: Array, rng: Array):
        outputs, updates = model.apply(
            {"params": variables["params"], "batch_stats": statistics},
            features.drugs(drug, shape),
            features.proteins(protein, shape),
            mask,
            hyper["dropout"],
            train=True,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
            method=DrugBAN.features_and_logits,
        )
        return outputs, updates["batch_stats"]

    statistics = variables["batch_stats"]
    if config.adaptation.batchnorm == "joint" and not config.model.reference:
        drug, protein, mask = (x.reshape(-1) for x in index)
        outputs, statistics = apply(statistics, drug, protein, mask, rng)
        return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), outputs), statistics
    keys = jax.random.split(rng)
    if not config.model.reference:
        return jax.vmap(apply)(statistics, *index, keys)
    # The published code sends the target through after the source, so both move the running statistics in turn.
    outputs, moved = jax.vmap(apply, in_axes=(None, 0, 0, 0, 0))(statistics, *index, keys)
    in_turn = jax.tree.map(lambda old, new: new[TARGET] + _MOMENTUM * (new[SOURCE] - old), statistics, moved)
    return outputs, in_turn
