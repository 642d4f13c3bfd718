"""Training on labelled rows of a source domain and unlabelled rows of a target domain, side by side.

Every step takes as many target rows as source rows; pairs come from the same length bucket. Both go through the network
at once, by default each domain with batch statistics of its own, and the method of ``jaxdti.adaptation`` compares them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.methods import CLASS_WEIGHTED, adaptation_loss, adaptation_strength, init_adaptation
from jaxdti.adaptation.pada import source_weights
from jaxdti.adaptation.san import class_weights, target_entropy
from jaxdti.config import AdaptationConfig, Config
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, pair_batch
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.layers.means import masked_mean
from jaxdti.models.drugban import DrugBAN, init_variables
from jaxdti.models.fnn import FNN, hidden_and_logits, init_fnn
from jaxdti.training.mesh import of_lead
from jaxdti.training.objective import Objective
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.plans import BesidePlan, EvenPlan, RowBatch, steps_of
from jaxdti.training.selection import TracedSelector
from jaxdti.training.supervised import PairSelector, describe_pairs, label_losses
from jaxdti.training.task import Refresh, Scorer, Task, Trial, Variables, traced_hyper

_MOMENTUM = 0.9  # of the running statistics

# (variables of the network, inputs of a batch [B, ...], mask bool [B], dropout, key)
# -> ((features [B, F], logits [B, K]), running statistics)
Forward = Callable[[Variables, Any, Array, Array, Array], tuple[tuple[Array, Array], Any]]


class BothDomains(NamedTuple):
    """A batch of both domains; axis 0 is (source, target)."""

    inputs: Any  # pytree of arrays [2, B, ...]
    label: Array  # float32 [B] of the source; anything where masked
    mask: Array  # bool [2, B]


def adapted_objective(
    adaptation: AdaptationConfig,
    kind: str,
    forward: Forward,
    both: Callable[[Any], BothDomains],
    epochs: int,
    steps_per_epoch: int,
    *,
    reference: bool = False,
) -> Objective:
    """``loss(source) + loss between domains + target_entropy * mean entropy(target)``, the last two from
    ``adaptation.start`` on.

    Args:
      kind: "classification" or "regression".
      both: batch -> its two domains.
      epochs, steps_per_epoch: of the training; the strength's schedule counts in updates.
      reference: with the faults of the published code.
    """
    total = epochs * steps_per_epoch
    start = round(adaptation.start * (total if adaptation.start < 1 else steps_per_epoch))

    def objective(variables: Variables, batch: Any, rng: Array, hyper: dict[str, Array]):
        inputs, label, mask = both(batch)
        network = {name: variables[name]["network"] for name in ("params", "batch_stats")}
        through = partial(_through, forward, network["params"], hyper["dropout"])
        (features, logits), statistics = _both_domains(
            adaptation, through, network["batch_stats"], inputs, mask, rng, reference
        )
        domains = Domains(features, logits, mask)

        losses = label_losses(kind, logits[SOURCE], label, mask[SOURCE], hyper)
        labels = jnp.where(mask[SOURCE], label, 0.0).astype(jnp.int32)
        classes = hyper["target_classes"]
        if adaptation.class_weights == "batch":
            classes = class_weights(domains.probabilities[TARGET], mask[TARGET])
        strength, active = adaptation_strength(adaptation, hyper["strength"], hyper["step"], start, total)
        if adaptation.method == "pada":
            losses *= jnp.where(active, source_weights(labels, classes), 1.0)
        task = masked_mean(losses, mask[SOURCE])

        beside = {name: variables[name]["adaptation"] for name in ("params", "batch_stats")}
        between = adaptation_loss(adaptation, beside, domains, labels, strength, classes, reference=reference)
        if adaptation.target_entropy:
            between += adaptation.target_entropy * target_entropy(domains)
        between = jnp.where(active, between, 0.0)
        new = {"network": statistics, "adaptation": beside["batch_stats"]}
        shown = {"loss": task, "domain_loss": between, "rows": jnp.sum(mask[SOURCE]).astype(jnp.int32)}
        return task + between, (new, jax.lax.stop_gradient(shown))

    return objective


def _through(forward: Forward, params: Any, dropout: Array, statistics: Any, inputs: Any, mask: Array, rng: Array):
    return forward({"params": params, "batch_stats": statistics}, inputs, mask, dropout, rng)


def _both_domains(
    adaptation: AdaptationConfig,
    through: Callable[..., tuple[tuple[Array, Array], Any]],
    statistics: Any,
    inputs: Any,
    mask: Array,
    rng: Array,
    reference: bool,
) -> tuple[tuple[Array, Array], Any]:
    """Features [2, B, F] and logits [2, B, K] of both domains in one pass, and the new running statistics."""
    if adaptation.batchnorm == "joint" and not reference:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (inputs, mask))
        outputs, statistics = through(statistics, *flat, rng)
        return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), outputs), statistics
    keys = jax.random.split(rng)
    if not reference:
        return jax.vmap(through)(statistics, inputs, mask, keys)
    # The published code sends the target through after the source, so both move the running statistics in turn.
    outputs, moved = jax.vmap(through, in_axes=(None, 0, 0, 0))(statistics, inputs, mask, keys)
    in_turn = jax.tree.map(lambda old, new: new[TARGET] + _MOMENTUM * (new[SOURCE] - old), statistics, moved)
    return outputs, in_turn


def init_both(
    adaptation: AdaptationConfig,
    init: Callable[[Any], Variables],
    features: int,
    classes: int,
    separate: bool,
    seed: int | Array,
) -> Variables:
    """The network that plain training would begin with, and what the method needs beside it.

    Args:
      features, classes: widths of what the method compares.
      separate: whether each domain has running statistics of its own.
    """
    network = init(seed)
    key = jax.random.fold_in(jax.random.PRNGKey(seed), 2)
    method = init_adaptation(adaptation, key, features, classes)
    statistics = network["batch_stats"]
    if separate:
        statistics = jax.tree.map(lambda x: jnp.stack([x, x]), statistics)
    return {
        "params": {"network": network["params"], "adaptation": method["params"]},
        "batch_stats": {"network": statistics, "adaptation": method["batch_stats"]},
    }


def network_of(variables: Variables, domain: int | None) -> Variables:
    """The variables of the network alone, with the running statistics of a domain; None where both share them."""
    statistics = variables["batch_stats"]["network"]
    if domain is not None:
        statistics = jax.tree.map(lambda x: x[domain], statistics)
    return {"params": variables["params"]["network"], "batch_stats": statistics}


def _network_for(separate: bool, variables: Variables, part: str) -> Variables:
    """The network with the running statistics of the part's domain."""
    domain = SOURCE if part in ("train", "validation") else TARGET
    return network_of(variables, domain if separate else None)


def _discriminator_rate(path: tuple[str, ...]) -> str:
    return "discriminator_learning_rate" if path[0] == "adaptation" else "learning_rate"


def _by_whole_target(adaptation: AdaptationConfig) -> bool:
    """Whether the method weights classes by the predictions on the whole target."""
    return adaptation.method in CLASS_WEIGHTED and adaptation.class_weights == "target"


# On pairs --------------------------------------------------------------------------------------------------------


def adapted_pair_task(
    config: Config,
    trials: Sequence[Trial],
    table: InteractionTable,
    inputs: Any,
    buckets: Buckets,
    scorer: Scorer,
    steps: int,
) -> Task:
    """``adaptation.method`` on pairs; batches are [trials, steps, 2 B], source and target in turn. As ``pair_task``.

    Raises:
      DataError: there are no target pairs to adapt to.
    """
    for trial in trials:
        check_target(config, trial.rows)
    plan = BesidePlan(trials, buckets, config.training.batch_size, steps, partial(domain_batch, table))
    updates = sum(map(steps_of, plan.epoch(0)))
    adaptation, separate = config.adaptation, _separate(config)
    classes = max(config.model.logits, 2)
    scored = partial(_network_for, separate)
    refresh = Refresh(partial(_predicted_classes, scorer, scored), adaptation.refresh_steps)
    return Task(
        init=partial(
            init_both,
            adaptation,
            partial(init_variables, config.model),
            config.model.joint_features,
            classes,
            separate,
        ),
        inputs=inputs,
        objective=lambda features, shape, distinct: adapted_pair_objective(config, features, shape, updates),
        plan=plan,
        hyper=partial(traced_hyper, kind=config.task, outputs=config.model.logits),
        selector=PairSelector(table, config.task, scorer, oracle=adaptation.oracle),
        scored=scored,
        optimizer=partial(make_optimizer, rate_of=_discriminator_rate),
        refresh=refresh if _by_whole_target(adaptation) else None,
        describe=partial(describe_pairs, table),
    )


def adapted_pair_objective(config: Config, features: DeviceFeatures, shape: Shape, steps_per_epoch: int) -> Objective:
    """``adapted_objective`` of DrugBAN on batches of ``domain_batch``."""
    model = DrugBAN(config.model)

    def forward(variables: Variables, pair: tuple[Array, Array], mask: Array, dropout: Array, rng: Array):
        drug, protein = pair
        outputs, updates = model.apply(
            variables,
            features.drugs(drug, shape),
            features.proteins(protein, shape),
            mask,
            dropout,
            train=True,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
            method=DrugBAN.features_and_logits,
        )
        return outputs, updates["batch_stats"]

    def both(batch: PairBatch) -> BothDomains:
        apart = lambda x: jnp.asarray(x).reshape(-1, 2).T
        drug, protein, label, mask = map(apart, (batch.drug, batch.protein, batch.label, batch.row_mask))
        return BothDomains((drug, protein), label[SOURCE], mask)

    epochs, reference = config.training.epochs, config.model.reference
    return adapted_objective(
        config.adaptation, config.task, forward, both, epochs, steps_per_epoch, reference=reference
    )


def check_target(config: Config, parts: Any) -> None:
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


def _separate(config: Config) -> bool:
    """Whether each domain has running statistics of its own; the published code shares them."""
    return config.adaptation.batchnorm == "separate" and not config.model.reference


def _predicted_classes(
    scorer: Scorer, scored: Callable[[Variables, str], Variables], variables: Variables, inputs: Any, rows: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Mean prediction over the target pairs ``rows``."""
    positive = scipy.special.expit(of_lead(scorer(scored(variables, "target_train"), rows))).mean()
    return {"target_classes": (1.0 - positive, positive)}


# On rows of features ---------------------------------------------------------------------------------------------


def adapted_row_task(
    model: FNN,
    features: Array | np.ndarray,
    trials: Sequence[Trial],
    adaptation: AdaptationConfig,
    batch_size: int,
    epochs: int,
    *,
    selector: TracedSelector | None = None,
) -> Task:
    """``adaptation.method`` on feature vectors: the network's last hidden layer is compared. As ``row_task``.

    Args:
      model: with hidden layers and K >= 2 outputs.
      selector: which epoch is kept, see ``target_selection.row_selector``; None: the last one.
    """
    plan = EvenPlan(trials, batch_size)
    separate, inputs, classes = adaptation.batchnorm == "separate", features.shape[-1], model.outputs or 0
    forward = partial(hidden_and_logits, model)
    steps = plan.steps_per_epoch

    def objective(features: Array) -> Objective:
        both = partial(_both_rows, features)
        return adapted_objective(adaptation, "classification", forward, both, epochs, steps)

    return Task(
        init=partial(init_both, adaptation, partial(init_fnn, model, inputs), model.features[-1], classes, separate),
        inputs=features,
        objective=objective,
        plan=plan,
        hyper=partial(_row_hyper, adaptation, classes),
        selector=selector,
        scored=partial(_network_for, separate),
        optimizer=partial(make_optimizer, rate_of=_discriminator_rate),
        refresh=Refresh(partial(_target_classes, model, separate), adaptation.refresh_steps)
        if _by_whole_target(adaptation)
        else None,
        key=("adapted rows", model, adaptation, epochs, steps, inputs, selector),
    )


def _both_rows(features: Array, batch: RowBatch) -> BothDomains:
    assert batch.target is not None
    mask = jnp.stack([batch.row_mask, batch.target >= 0])
    return BothDomains(features[jnp.stack([batch.row, jnp.maximum(batch.target, 0)])], batch.label, mask)


def _row_hyper(adaptation: AdaptationConfig, classes: int, trial: Trial) -> dict[str, np.ndarray]:
    plain = traced_hyper(trial, "classification", classes)
    rate = adaptation.discriminator_learning_rate
    more = {
        "strength": adaptation.strength,
        "discriminator_learning_rate": plain["learning_rate"] if rate is None else rate,
        "target_classes": np.full(classes, 1.0 / classes),
    }
    return plain | {name: np.asarray(value, np.float32) for name, value in more.items()}


def _target_classes(model: FNN, separate: bool, variables: Variables, features: Array, rows: Array) -> dict[str, Array]:
    """Mean prediction over the whole target, scored as at test time."""
    network: Any = network_of(variables, TARGET if separate else None)
    mask = rows >= 0
    logits: Any = model.apply(network, features[jnp.maximum(rows, 0)], mask, train=False)
    return {"target_classes": class_weights(jax.nn.softmax(logits), mask)}
