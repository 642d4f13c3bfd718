"""Losses as pure functions ``(variables, batch, rng, hyper) -> (loss, (batch_stats, metrics))``.

``hyper`` is what ``state.hyper_parameters`` lists, and ``step``, the number of updates done. The metrics hold the loss
to show, and the number of rows that it is the mean of where these are not all valid ones of the batch.
"""

from collections.abc import Sequence
from dataclasses import replace
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
from jaxdti.data.pairs.buckets import (
    Buckets,
    Chunk,
    PairBatch,
    Shape,
    most_distinct,
    pair_batch,
    plan_epoch,
    shared_proteins,
)
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics
from jaxdti.layers.means import masked_mean
from jaxdti.models.drugban import PARTS, DrugBAN, init_variables, share_proteins
from jaxdti.training.objective import Objective, affinity_loss, binding_loss
from jaxdti.training.partition import partition, select
from jaxdti.training.plans import VectorBatch
from jaxdti.training.task import Method, Replica, Variables, VectorMethod


def pair_losses(task: str, logits: Array, labels: ArrayLike, mask: ArrayLike, hyper: dict[str, Array]) -> Array:
    """The loss of each pair [B], exactly 0 where masked, with the class weights and label scale of ``hyper``."""
    if task == "classification":
        weights = jnp.where(jnp.asarray(labels) > 0.5, hyper["class_weights"][1], hyper["class_weights"][0])
        return binding_loss(logits, labels, mask) * weights
    mean, sd = hyper["label_scale"]
    return affinity_loss(logits, (jnp.asarray(labels) - mean) / sd, mask)


def pair_objective(
    config: ModelConfig,
    task: str,
    features: DeviceFeatures,
    shape: Shape,
    proteins: int | None = None,
) -> Objective:
    """Plain supervised training on pairs, with what ``state.hyper_parameters`` traces.

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
        total = masked_mean(pair_losses(task, logits, batch.label, batch.row_mask, hyper), batch.row_mask)
        return total, (updates["batch_stats"], {"loss": jax.lax.stop_gradient(total)})

    return objective


SELECTION = {"classification": "auroc", "regression": "concordance_index"}


def label_scale(table: InteractionTable, replica: Replica) -> tuple[float, float]:
    """(mean, sd) of the training affinities, (0, 1) for classification: the network predicts standardised labels."""
    if replica.config.task == "classification":
        return 0.0, 1.0
    label = table.label[replica.parts["train"]].astype(np.float64)
    return float(label.mean()), float(label.std()) or 1.0


def class_weights(table: InteractionTable, replica: Replica) -> tuple[float, float]:
    """Loss factors of labels 0 and 1, inversely to their frequency in train and of mean 1 over its rows."""
    if not replica.config.training.class_weight:
        return 1.0, 1.0
    positive = float(table.label[replica.parts["train"]].mean())
    if positive in (0.0, 1.0):
        return 1.0, 1.0
    return 0.5 / (1.0 - positive), 0.5 / positive


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


def supervised(replicas: Sequence[Replica], table: InteractionTable, buckets: Buckets, steps: int) -> Method:
    """Plain training on the pairs of train, in chunks of ``steps`` batches."""
    config = replicas[0].config
    rows = [replica.parts["train"] for replica in replicas]
    seeds = [replica.config.training.seed for replica in replicas]
    plan = partial(_plan, rows, buckets, config.training.batch_size, steps, seeds)
    shared = {} if config.model.reference else shared_proteins(table, plan(0))

    def proteins(chunk: Chunk) -> int | None:
        size = shared.get(chunk.bucket)
        return size if size and most_distinct(table.protein, chunk.rows) <= size else None

    return Method(
        init=partial(init_variables, config.model),
        objective=partial(pair_objective, config.model, config.task),
        plan=plan,
        batch=partial(pair_batch, table),
        proteins=proteins,
        network=lambda variables, part: variables,
    )


def with_frozen(method: Method, patterns: Sequence[str], root: tuple[str, ...] = ()) -> Method:
    """The same training, but the parts of the network that ``patterns`` name keep their initial parameters.

    They are in the state's ``frozen``: no gradient, no moments, no share in clipping. Their BatchNorm works as in the
    others, on the statistics of each batch, because at the beginning it has no stored ones.

    Args:
      root: where the network is in the method's parameters.

    Raises:
      DataError: a pattern names nothing, or nothing is left to train.
    """
    if not patterns:
        return method
    network = jax.eval_shape(method.init, 0)["params"]
    for name in root:
        network = network[name]
    chosen = select(network, patterns, PARTS, "training.frozen")
    if not partition(network, chosen)[0]:
        raise DataError(f"training.frozen={','.join(patterns)}: nothing is left to train")
    frozen = frozenset((*root, *path) for path in chosen)

    def init(seed: int | jax.Array) -> Variables:
        variables = method.init(seed)
        params, kept = partition(variables["params"], frozen)
        return variables | {"params": params, "frozen": kept}

    return replace(method, init=init)


def _plan(
    rows: Sequence[np.ndarray], buckets: Buckets, batch_size: int, steps: int, seeds: Sequence[int], epoch: int
) -> list[Chunk]:
    return plan_epoch(rows, buckets, batch_size, steps, seeds=seeds, epoch=epoch)


def hyper_parameters(
    config: Config, class_weights: tuple[float, float] = (1.0, 1.0), label_scale: tuple[float, float] = (0.0, 1.0)
) -> dict[str, np.ndarray]:
    """What may differ between replicas of one program, as float32 arrays.

    Args:
      class_weights: loss factors of labels 0 and 1.
      label_scale: (mean, sd) of the training affinities; the network predicts (label - mean) / sd.
    """
    training, rate = config.training, config.adaptation.discriminator_learning_rate
    classes = max(config.model.logits, 2)
    values = {
        "dropout": config.model.dropout,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "class_weights": class_weights,
        "label_scale": label_scale,
        "strength": config.adaptation.strength,
        "discriminator_learning_rate": training.learning_rate if rate is None else rate,
        "target_classes": np.full(classes, 1.0 / classes),
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def static_config(config: Config) -> Config:
    """The configuration without what ``hyper_parameters`` traces, seeds, data and output: no program depends on them.

    Models that train together have the same one.
    """
    model = replace(config.model, dropout=0.0)
    training = replace(config.training, learning_rate=0.0, weight_decay=0.0, class_weight=False, seed=0)
    adaptation = replace(config.adaptation, strength=0.0, discriminator_learning_rate=None)
    return replace(
        config, data=DataConfig(), output=OutputConfig(), model=model, training=training, adaptation=adaptation
    )


@lru_cache(maxsize=32)
def supervision(model: nn.Module, task: str) -> VectorMethod:
    """Plain training on labelled rows."""
    return VectorMethod(objective=partial(vector_objective, model, task), network=lambda variables: variables)


def vector_objective(model: nn.Module, task: str, features: Array) -> Objective:
    """Supervised training on ``features[batch.row]``; ``hyper``: dropout, class_weights, label_scale."""

    def objective(variables: dict[str, Any], batch: VectorBatch, rng: Array, hyper: dict[str, Array]):
        x, mask = features[batch.row], batch.row_mask
        rngs = {"dropout": rng}
        output, updates = model.apply(
            variables, x, mask, hyper["dropout"], train=True, rngs=rngs, mutable=["batch_stats"]
        )
        batch_stats: Any = updates.get("batch_stats", {})
        label = jnp.where(mask, batch.label, 0.0)
        if task == "classification":
            weights = hyper["class_weights"][label.astype(jnp.int32)]
            loss = binding_loss(output, label, mask) * weights
        else:
            mean, sd = hyper["label_scale"]
            loss = affinity_loss(output, (label - mean) / sd, mask)
        total = masked_mean(loss, mask)
        return total, (batch_stats, {"loss": jax.lax.stop_gradient(total)})

    return objective
