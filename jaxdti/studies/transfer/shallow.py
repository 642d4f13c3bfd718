"""The third transfer mode: shallow classifiers on the joint features of DrugBAN, or the last hidden layer of FNN."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdti.config import Config, ModelConfig
from jaxdti.console import say
from jaxdti.data.pairs.buckets import Shape, one_bucket
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.load import Dataset
from jaxdti.data.vectors.domains import VectorDomains
from jaxdti.errors import DataError
from jaxdti.evaluation.calibration import Calibration
from jaxdti.inference.joint_features import make_joint_features
from jaxdti.inference.networks import VectorNetworks
from jaxdti.inference.scoring import buckets_for
from jaxdti.inference.trained import TrainedRun
from jaxdti.layers.norm import MaskedBatchNorm
from jaxdti.studies.report.pairs import SCORED_PARTS, Fitted, calibrate, evaluate_parts
from jaxdti.studies.transfer.classifiers import (
    logistic_regressions,
    one_against_others,
    random_forest,
    support_vectors,
)
from jaxdti.studies.transfer.frozen import FrozenOutputs, outputs_scorer, row_batch
from jaxdti.studies.transfer.source import evaluate_source
from jaxdti.studies.transfer.vectors import hidden_outputs, networks_of
from jaxdti.training.progress import Progress, TrialProgress
from jaxdti.training.supervised import pair_trial, validate
from jaxdti.training.task import Trial, Variables, class_weights

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse penalties of the logistic regression


def linear_head(model: ModelConfig) -> ModelConfig:
    """The smallest DrugBAN whose score can be any linear function of its joint features."""
    return replace(model, decoder_features=(2,), logits=1)


def linear_network(source: Variables, weight: np.ndarray, bias: float) -> Variables:
    """The network of ``linear_head`` that scores pairs z = x w + b; z = relu(z) - relu(-z) makes a decoder of it.

    Args:
      source: the network that gives the joint features x.
      weight: float32 [joint_features].
    """
    hidden = {"kernel": jnp.stack([weight, -weight], -1), "bias": jnp.stack([bias, -bias])}
    output = {"kernel": jnp.array([[1.0], [-1.0]]), "bias": jnp.zeros(1)}
    decoder = {
        "hidden_0": {"dense": hidden},
        "norm_0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "output": {"dense": output},
    }
    # The normalisation divides by sqrt(var + epsilon), here 1.
    statistics = {"norm_0": {"mean": jnp.zeros(2), "var": jnp.full(2, 1.0 - MaskedBatchNorm.epsilon)}}
    return {
        "params": {**source["params"], "decoder": decoder},
        "batch_stats": {**source["batch_stats"], "decoder": statistics},
    }


def fit_shallow(config: Config, source: TrainedRun, dataset: Dataset) -> tuple[Fitted, dict[str, Any]]:
    """A logistic regression on the source's joint features, as a network; and the metrics of others beside it.

    Its penalty is the best of ``_STRENGTHS`` on validation. The others are the source itself, a support vector machine
    and a random forest on the same features, with their defaults.

    Raises:
      DataError: train holds one class only.
    """
    table, parts = dataset.table, dataset.parts
    label = table.label[parts["train"]]
    if np.ptp(label) == 0:
        raise DataError("transfer.mode=shallow: all labels of train are equal; a classifier needs both classes")
    model, size = source.config.model, config.training.batch_size
    buckets = buckets_for(model, table, dataset.store, config.training.buckets, size)
    rows = np.unique(np.concatenate([parts[part] for part in ("train", *SCORED_PARTS)]))
    joint = np.zeros((len(table), model.joint_features), np.float32)
    (member,) = source.members
    say(f"computing the joint features of {len(rows):,} pairs")
    features = device_features(dataset.store)
    joint[rows] = make_joint_features(model, features, table, buckets, size)(member.variables, rows)

    trial = pair_trial(config, table, parts)
    low, high = class_weights(trial)
    network, strength = _best_logistic(trial, dataset, joint, member.variables, np.where(label > 0.5, high, low))
    say(f"logistic regression: inverse penalty {strength:g}, the best on validation of {_STRENGTHS}")
    one = one_bucket(table, Shape(0, 0, 0))
    inputs = FrozenOutputs(features, joint=jnp.asarray(joint))
    scorer_of = lambda model: outputs_scorer(model, inputs, partial(row_batch, table), one, size)
    compared = {"the source itself": evaluate_source(config, dataset, scorer_of(model), source)}
    query = np.concatenate([parts[part] for part in SCORED_PARTS])
    others = {
        "SVM on its features": support_vectors(joint[parts["train"]], label, joint[query]),
        "random forest on its features": random_forest(
            joint[parts["train"]], label, joint[query], config.training.seed
        ),
    }
    compared |= {name: _evaluate_other(config, dataset, scores) for name, scores in others.items()}
    progress = Progress([TrialProgress()])
    take, whole = lambda network, rows: joint[rows], lambda variables, part: variables
    return Fitted([config], [trial], whole, scorer_of(config.model), take, [network], progress), compared


def _best_logistic(
    trial: Trial, dataset: Dataset, joint: np.ndarray, source: Variables, weight: np.ndarray
) -> tuple[Variables, float]:
    """The network with the best validation AUROC, and its inverse penalty; 1 where that is undefined."""
    train, validation = trial.rows["train"], trial.rows["validation"]
    count, label = len(_STRENGTHS), dataset.table.label[train]
    w, b = logistic_regressions(
        joint[train], np.tile(label, (count, 1)), np.tile(weight, (count, 1)), np.array(_STRENGTHS)
    )
    scores = w @ joint[validation].T + b[:, None]
    auroc = [validate(dataset.table, "classification", (0.0, 1.0), validation, row)["auroc"] for row in scores]
    best = int(np.nanargmax(auroc)) if np.isfinite(auroc).any() else _STRENGTHS.index(1.0)
    return linear_network(source, w[best], b[best]), _STRENGTHS[best]


def _evaluate_other(config: Config, dataset: Dataset, scores: np.ndarray) -> Mapping[str, Any]:
    """Metrics by part of scores of the validation and then the test rows, calibrated on the former."""
    cut = len(dataset.parts["validation"])
    by_part = {"validation": scores[:cut].astype(np.float64), "test": scores[cut:].astype(np.float64)}
    calibration: Calibration = calibrate(config, dataset, dataset.parts, by_part, 0.0)
    return evaluate_parts(config, dataset, dataset.parts, by_part, calibration)


def shallow_scores(
    name: str,
    source: VectorNetworks,
    domains: VectorDomains,
    trials: Sequence[Trial],
    parts: Sequence[Mapping[str, np.ndarray]],
) -> list[dict[str, np.ndarray]]:
    """Scores float32 [rows, K] of the validation and test rows of each trial, one class against the others.

    Args:
      name: of a classifier, on the last hidden layer of the source's network.
      parts: rows of each trial.
    """
    hidden = hidden_outputs(source.model, source.variables, len(source.model.features), domains.features)
    scores = []
    for i, trial, rows in zip(networks_of(source.variables, len(trials)), trials, parts, strict=True):
        x, train = hidden[i], trial.rows["train"]
        query = x[np.concatenate([rows["validation"], rows["test"]])]
        both = one_against_others(name, x[train], trial.label[train], query, len(domains.classes), trial.seed)
        cut = len(rows["validation"])
        scores.append({"validation": both[:cut], "test": both[cut:]})
    return scores
