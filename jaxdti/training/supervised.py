"""Plain supervised training, on pairs and on rows.

Losses are pure functions ``(variables, batch, rng, hyper) -> (loss, (batch_stats, metrics))``. ``hyper`` is what a
trial traces, and ``step``, the number of updates done. Metrics: "loss" to report, and "rows" where it averages fewer
rows than ``row_mask`` selects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from jax.typing import ArrayLike

from jaxdti.config import Config, DataConfig, ModelConfig, OutputConfig
from jaxdti.data.pairs.buckets import Buckets, Chunk, PairBatch, Shape, most_distinct, pair_batch, shared_proteins
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError, NonFiniteLoss
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics
from jaxdti.layers.means import masked_mean
from jaxdti.models.drugban import PARTS, DrugBAN, init_variables, share_proteins
from jaxdti.training.mesh import of_lead
from jaxdti.training.objective import Objective, affinity_loss, binding_loss
from jaxdti.training.partition import partition, select
from jaxdti.training.plans import BucketPlan, EvenPlan, RowBatch
from jaxdti.training.replicas import predicting
from jaxdti.training.selection import METRICS, Metric, TracedSelector
from jaxdti.training.task import Scorer, Selected, Task, Trial, Variables, label_scale, traced_hyper

# (trial, part -> the network that scores it) -> how good the trial is, larger is better
Judge = Callable[[Trial, Callable[[str], Variables]], float]
SELECTION = {"classification": "auroc", "regression": "concordance_index"}


def label_losses(kind: str, logits: Array, labels: ArrayLike, mask: ArrayLike, hyper: dict[str, Array]) -> Array:
    """The loss of each row [B], exactly 0 where masked, with the class weights and label scale of ``hyper``.

    Args:
      kind: "classification" or "regression".
      logits: float [B, K].
      labels: float32 [B]; anything where ``mask``, bool [B], is False.
    """
    labels = jnp.where(mask, labels, 0.0)
    if kind == "classification":
        return binding_loss(logits, labels, mask) * jnp.asarray(hyper["class_weights"])[labels.astype(jnp.int32)]
    mean, sd = hyper["label_scale"]
    return affinity_loss(logits, (labels - mean) / sd, mask)


# On pairs --------------------------------------------------------------------------------------------------------


def pair_objective(
    config: ModelConfig,
    task: str,
    features: DeviceFeatures,
    shape: Shape,
    proteins: int | None = None,
) -> Objective:
    """Plain supervised training on pairs, with what ``hyper_parameters`` traces.

    Args:
      proteins: at least as many as a batch has distinct ones, to encode each once; None to encode one a pair.
    """
    model = DrugBAN(config)

    def objective(variables: dict[str, Any], batch: PairBatch, rng: Array, hyper: dict[str, Array]):
        protein, shared = batch.protein, None
        if proteins is not None:
            protein, shared = share_proteins(batch.protein, batch.row_mask, proteins)
        logits, updates = model.apply(
            variables,
            features.drugs(batch.drug, shape),
            features.proteins(protein, shape),
            batch.row_mask,
            hyper["dropout"],
            train=True,
            shared=shared,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        total = masked_mean(label_losses(task, logits, batch.label, batch.row_mask, hyper), batch.row_mask)
        return total, (updates["batch_stats"], {"loss": jax.lax.stop_gradient(total)})

    return objective


def pair_trial(config: Config, table: InteractionTable, parts: Mapping[str, np.ndarray]) -> Trial:
    """The trial that ``config`` describes on the ``parts`` of a table, int64 rows by name."""
    training = config.training
    weighted = training.class_weight and config.task == "classification"
    return Trial(rows=parts, label=table.label, seed=training.seed, class_weight=weighted, hyper=_hyper(config))


def pair_task(
    config: Config,
    trials: Sequence[Trial],
    table: InteractionTable,
    inputs: Any,
    buckets: Buckets,
    scorer: Scorer,
    steps: int,
) -> Task:
    """Plain training on the pairs of train.

    Args:
      inputs: features, replicated over the mesh; those of a store stay on the host, and chunks take theirs along.
      steps: batches of a chunk.
    """
    plan = BucketPlan(trials, buckets, config.training.batch_size, steps, partial(pair_batch, table))
    shared = {} if config.model.reference else shared_proteins(table, plan.epoch(0))

    def distinct(chunk: Chunk) -> int | None:
        size = shared.get(chunk.bucket)
        return size if size and most_distinct(table.protein, chunk.rows) <= size else None

    plan.distinct = distinct
    return Task(
        init=partial(init_variables, config.model),
        inputs=inputs,
        objective=partial(pair_objective, config.model, config.task),
        plan=plan,
        hyper=partial(traced_hyper, kind=config.task, outputs=config.model.logits),
        selector=PairSelector(table, config.task, scorer, oracle=config.adaptation.oracle),
        scored=lambda variables, part: variables,
        describe=partial(describe_pairs, table),
    )


def describe_pairs(table: InteractionTable, rows: np.ndarray) -> str:
    """Where table rows come from, for messages."""
    return ", ".join(f"{table.part[row]} row {table.row[row] + 1}" for row in rows)


@dataclass(frozen=True)
class PairSelector:
    """The validation score, or what ``judge`` finds instead; metrics of the epoch beside."""

    table: InteractionTable
    kind: str
    scorer: Scorer
    oracle: bool = False  # score the test part too, to be shown alone
    judged: str | None = None  # the name of what ``judge`` gives
    judge: Judge | None = None

    @property
    def name(self) -> str:
        return f"selection_{self.judged}" if self.judge else f"validation_{SELECTION[self.kind]}"

    def __call__(self, network: Callable[[str], Variables], trial: Trial) -> Selected:
        scale, rows = label_scale(trial, self.kind), trial.rows["validation"]
        scores = of_lead(self.scorer(network("validation"), rows))
        if bad := int(np.sum(~np.isfinite(scores))):
            raise NonFiniteLoss(f"{bad} of {len(scores)} validation scores are not finite")
        metrics = validate(self.table, self.kind, scale, rows, scores)
        record = {f"validation_{name}": number for name, number in metrics.items()}
        if self.judge is not None:
            record[self.name] = float(of_lead(np.asarray(self.judge(trial, network))))
        value = record[self.name]
        if self.oracle:
            scores = of_lead(self.scorer(network("test"), trial.rows["test"]))
            metrics = validate(self.table, self.kind, scale, trial.rows["test"], scores)
            record |= {f"oracle_{name}": number for name, number in metrics.items()}
        return Selected(value, record)


def validate(
    table: InteractionTable, task: str, scale: tuple[float, float], rows: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Metrics of table rows that need no calibration, from raw scores in their order and the label scale."""
    label = table.label[rows]
    if task == "classification":
        probability = scipy.special.expit(scores.astype(np.float64))
        metrics = classification_metrics(label, scores, probability, 0.5)
        return {name: metrics[name] for name in ("auroc", "auprc")}
    mean, sd = scale
    metrics = regression_metrics(label, scores * sd + mean)
    return {name: metrics[name] for name in ("concordance_index", "mse")}


def with_frozen(task: Task, patterns: Sequence[str], root: tuple[str, ...] = ()) -> Task:
    """The same training, but the parts of the network that ``patterns`` name keep their initial parameters.

    They are in the state's ``frozen``: no gradient, no moments, no share in clipping. Their BatchNorm works as in the
    others, on the statistics of each batch, because at the beginning it has no stored ones.

    Args:
      root: where the network is in the task's parameters.

    Raises:
      DataError: a pattern names nothing, or nothing is left to train.
    """
    if not patterns:
        return task
    network = jax.eval_shape(task.init, 0)["params"]
    for name in root:
        network = network[name]
    chosen = select(network, patterns, PARTS, "training.frozen")
    if not partition(network, chosen)[0]:
        raise DataError(f"training.frozen={','.join(patterns)}: nothing is left to train")
    frozen = frozenset((*root, *path) for path in chosen)

    def init(seed: int | jax.Array) -> Variables:
        variables = task.init(seed)
        params, kept = partition(variables["params"], frozen)
        return variables | {"params": params, "frozen": kept}

    return replace(task, init=init)


def hyper_parameters(
    config: Config, class_weights: tuple[float, float] = (1.0, 1.0), label_scale: tuple[float, float] = (0.0, 1.0)
) -> dict[str, np.ndarray]:
    """What a trial of ``config`` traces, float32.

    Args:
      class_weights: loss factors of labels 0 and 1.
      label_scale: (mean, sd) of the training affinities; the network predicts (label - mean) / sd.
    """
    values = {"class_weights": class_weights, "label_scale": label_scale} | _hyper(config)
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def _hyper(config: Config) -> dict[str, Any]:
    training, rate = config.training, config.adaptation.discriminator_learning_rate
    classes = max(config.model.logits, 2)
    return {
        "dropout": config.model.dropout,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "strength": config.adaptation.strength,
        "discriminator_learning_rate": training.learning_rate if rate is None else rate,
        "target_classes": np.full(classes, 1.0 / classes),
    }


def static_config(config: Config) -> Config:
    """The configuration without what a trial traces, seeds, data and output: no program depends on them.

    Models that train together have the same one.
    """
    model = replace(config.model, dropout=0.0)
    training = replace(config.training, learning_rate=0.0, weight_decay=0.0, class_weight=False, seed=0)
    adaptation = replace(config.adaptation, strength=0.0, discriminator_learning_rate=None)
    return replace(
        config, data=DataConfig(), output=OutputConfig(), model=model, training=training, adaptation=adaptation
    )


# On rows of features ---------------------------------------------------------------------------------------------


def row_objective(model: nn.Module, kind: str, features: Array) -> Objective:
    """Supervised training on ``features[batch.row]``; ``hyper``: dropout, class_weights, label_scale."""

    def objective(variables: dict[str, Any], batch: RowBatch, rng: Array, hyper: dict[str, Array]):
        x, mask = features[batch.row], batch.row_mask
        rngs = {"dropout": rng}
        output, updates = model.apply(
            variables, x, mask, hyper["dropout"], train=True, rngs=rngs, mutable=["batch_stats"]
        )
        batch_stats: Any = updates.get("batch_stats", {})
        total = masked_mean(label_losses(kind, output, batch.label, mask, hyper), mask)
        return total, (batch_stats, {"loss": jax.lax.stop_gradient(total)})

    return objective


def row_task(
    model: nn.Module,
    init: Callable[[Any], Variables],
    features: Array | np.ndarray,
    trials: Sequence[Trial],
    batch_size: int,
    *,
    kind: str = "classification",
    select: str | TracedSelector | None = None,
) -> Task:
    """Plain training on labelled rows of ``features``, which sit on the device.

    Args:
      model: ``model.apply(variables, x [B, F], row_mask [B], dropout_rate, train=)`` -> [B, outputs], with collections
        "params" and "batch_stats" and the rng "dropout", as ``jaxdti.models.fnn.FNN``; hashable, so that equal models
        share compiled programs. With one output classification is binary (sigmoid), with K it has K classes (softmax).
      init: seed -> fresh variables; a function of the model and the width of the features alone.
      features: any number dtype [N, F], shared by the trials, or [R, N, F], of each its own.
      select: what keeps the best epoch of a trial and counts for the patience, a key of ``METRICS`` or a selector;
        None: there is no validation, the last epoch is kept.

    Raises:
      ValueError: no such ``kind`` or ``select``.
    """
    selector = metric(model, kind, select) if isinstance(select, str) or kind not in METRICS else select
    width = features.shape[-1]
    return Task(
        init=init,
        inputs=features,
        objective=partial(row_objective, model, kind),
        plan=EvenPlan(trials, batch_size, target=False),
        hyper=partial(traced_hyper, kind=kind, outputs=outputs_of(model, init, width)),
        selector=selector,
        scored=lambda variables, part: variables,
        own_inputs=features.ndim == 3,
        key=("rows", model, kind, selector, width),
    )


def metric(
    model: nn.Module,
    kind: str,
    name: Any,
    network: Callable[[Variables], Variables] | None = None,
) -> Metric:
    """The validation metric ``name``, of the ``network`` in a trial's variables.

    Raises:
      ValueError: there is no such metric for this ``kind``.
    """
    if kind not in METRICS or name not in METRICS[kind]:
        known = {each: sorted(choices) for each, choices in METRICS.items()}
        raise ValueError(f"kind={kind!r}, select={name!r}: choose from {known}")
    return Metric(model, kind, name, network or _whole)


def _whole(variables: Variables) -> Variables:
    return variables


@lru_cache(maxsize=32)
def outputs_of(model: nn.Module, init: Callable[[Any], Variables], width: int) -> int:
    """Outputs of a network on ``width`` features."""
    row = jax.ShapeDtypeStruct((1, width), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(predicting(model), jax.eval_shape(init, 0), *row).shape[-1]
