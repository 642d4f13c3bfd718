"""Classifiers of responses on pre-trained codes: all drugs, folds, repetitions and encoders train together.

A classifier first learns on the codes of the frozen encoder, which are computed once. Then the encoder's layers are
unfrozen one after another, from the code down, each time the validation loss has stopped falling, with a lower
learning rate; what stays frozen is again computed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import HeadConfig, PretrainingConfig, TrainingConfig
from jaxdti.data.expression.responses import fold_labels, fold_of_samples
from jaxdti.data.expression.study import ResponseData
from jaxdti.models.response_head import Encoder, ResponseHead, as_input, encoder_output, frozen_activations
from jaxdti.training.fit import fit
from jaxdti.training.replicas import predict_vectors
from jaxdti.training.supervised import row_task
from jaxdti.training.task import Trial

_FEATURE_ROWS = 1 << 16  # of the encoders that train together, to bound the memory
_CPU_CLASSIFIERS = 64  # that train together on CPU: the moments of more do not stay in its caches


@dataclass(frozen=True, kw_only=True)
class HeadFit:
    """Scores of E encoders, D drugs and F folds on N source and M target samples; a score is a probability of 1."""

    source: np.ndarray  # float32 [E, D, F, N]
    target: np.ndarray  # float32 [E, D, F, M]
    validation_loss: np.ndarray  # float32 [E, D, F]
    epochs: np.ndarray  # int [E, D, F], of the best epoch, over all phases
    unfrozen: np.ndarray  # int [E, D, F], encoder layers that the best epoch trains
    failed: np.ndarray  # bool [E, D, F], the loss became non-finite


def study_folds(study: ResponseData, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fold int [D, N] (-1 = no response) and labels float64 [D, F, N] (NaN = none) of every drug and held-out fold."""
    fold, label = [], []
    for i in range(len(study.drugs)):
        response = study.source_response[:, i]
        fold.append(fold_of_samples(response, folds, seed))
        threshold = None if study.thresholds is None else float(study.thresholds[i])
        label.append([fold_labels(response, study.source_kind, fold[-1], held, threshold) for held in range(folds)])
    return np.stack(fold), np.array(label)


def fit_heads(
    study: ResponseData,
    encoders: Sequence[Encoder],
    folds: int,
    config: HeadConfig,
    pretraining: PretrainingConfig,
    look: Callable[[], None],
) -> HeadFit:
    """Trains a classifier for each encoder, drug and fold. Encoders are either all of one method, or have equal shapes.

    Args:
      look: called after every program call; what it raises ends the training.
    """
    size = encoders_together(study, folds)
    parts = [
        _fit_group(study, encoders[first : first + size], folds, config, pretraining, look)
        for first in range(0, len(encoders), size)
    ]
    names = HeadFit.__dataclass_fields__
    return HeadFit(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def encoders_together(study: ResponseData, folds: int) -> int:
    """Encoders whose classifiers train in one program: they are bounded by memory, and on CPU by its caches."""
    size = _FEATURE_ROWS // len(study.source)
    if jax.default_backend() == "cpu":
        size = min(size, _CPU_CLASSIFIERS // (len(study.drugs) * folds))
    return max(1, size)


def _fit_group(
    study: ResponseData,
    encoders: Sequence[Encoder],
    folds: int,
    config: HeadConfig,
    pretraining: PretrainingConfig,
    look: Callable[[], None],
) -> HeadFit:
    shape = (len(encoders), len(study.drugs), folds)
    variational = encoders[0].variational
    trials = _trials(study, encoders, folds, config)
    best: dict[str, np.ndarray] = {}
    variables: Any = None
    raw = encoders[0].params is None
    for level in range(1 if raw else min(config.unfreeze, len(pretraining.widths) + 1) + 1):
        hidden = len(pretraining.widths) + 1 - level  # hidden layers that stay frozen, where any layer trains
        model = ResponseHead(
            config.widths, pretraining.widths[hidden:] if level else None, pretraining.latent, variational
        )
        inputs = _inputs(study, encoders, level, hidden)
        phase = [_slower(trial, config.decay**level) for trial in trials]
        width = inputs[0].shape[-1]
        init = _init(model, width)  # pyright: ignore[reportArgumentType] (a module is hashable)
        task = row_task(model, init, inputs[0].reshape(-1, width), phase, config.batch_size, select="loss")
        start = None if level == 0 else _unfreeze(variables, encoders, hidden, shape)
        result = fit(task, phase, _training(config), start=start, progress=lambda _: look())
        variables = result.variables
        scores = [_scores(model, variables, x, shape) for x in inputs]
        now = {
            "source": scores[0],
            "target": scores[1],
            "validation_loss": -result.best_value.reshape(shape),
            "epochs": result.best_epoch.reshape(shape),
            "unfrozen": np.full(shape, level),
            "failed": (result.first_bad >= 0).reshape(shape),
        }
        best = now if level == 0 else _better(best, now)
    return HeadFit(**best)


@lru_cache(maxsize=8)  # one function for equal models, so that ``fit`` compiles it once
def _init(model: ResponseHead, width: int) -> Callable[[Array], Any]:
    x, mask = jnp.zeros((1, width)), jnp.ones(1, bool)
    return lambda seed: {**model.init(jax.random.PRNGKey(seed), x, mask, train=False), "batch_stats": {}}


def _trials(study: ResponseData, encoders: Sequence[Encoder], folds: int, config: HeadConfig) -> list[Trial]:
    """One for each encoder, drug and fold; the features of the encoders follow one another."""
    count = len(study.source)
    divided = {seed: study_folds(study, folds, seed) for seed in {encoder.seed for encoder in encoders}}
    tiled = {
        (seed, drug, held): np.tile(labels[drug, held], len(encoders))
        for seed, (_, labels) in divided.items()
        for drug in range(len(study.drugs))
        for held in range(folds)
    }
    hyper = {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "dropout": config.dropout,
    }
    trials = []
    for i, encoder in enumerate(encoders):
        fold, _ = divided[encoder.seed]
        for drug in range(len(study.drugs)):
            for held in range(folds):
                rows = {
                    "train": i * count + np.flatnonzero((fold[drug] >= 0) & (fold[drug] != held)),
                    "validation": i * count + np.flatnonzero(fold[drug] == held),
                }
                label = tiled[encoder.seed, drug, held]
                trials.append(Trial(rows=rows, label=label, seed=encoder.seed, hyper=hyper))
    return trials


def _slower(trial: Trial, factor: float) -> Trial:
    return replace(trial, hyper={**trial.hyper, "learning_rate": trial.hyper["learning_rate"] * factor})


def _training(config: HeadConfig) -> TrainingConfig:
    return TrainingConfig(
        optimizer="adamw", epochs=config.epochs, batch_size=config.batch_size, patience=config.patience
    )


def _inputs(study: ResponseData, encoders: Sequence[Encoder], level: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """What the classifiers, or the unfrozen layers, see of the source and the target: float32 [E, N, F], [E, M, F]."""

    def of(encoder: Encoder, x: Array) -> Array:
        if encoder.params is None:
            return x
        if level == 0:
            return as_input(encoder_output(encoder.params, x), encoder.variational)
        return frozen_activations(encoder.params, x, hidden)

    domains = (jnp.asarray(study.source), jnp.asarray(study.target))
    source, target = (np.stack([np.asarray(of(encoder, x)) for encoder in encoders]) for x in domains)
    return source, target


def _unfreeze(variables: Any, encoders: Sequence[Encoder], hidden: int, shape: tuple[int, ...]) -> Any:
    """The classifiers as they are, before them the encoder's layers: those that trained, and one more pre-trained."""
    repeats = shape[1] * shape[2]
    trained = variables["params"].get("encoder")
    fresh = []
    for encoder in encoders:
        assert encoder.params is not None
        names = [*(f"hidden_{i}" for i in range(hidden, len(encoder.params) - 1)), "output"]
        renamed = [*(f"hidden_{i}" for i in range(len(names) - 1)), "output"]
        fresh.append({new: encoder.params[old] for new, old in zip(renamed, names, strict=True)})
    stacked = jax.tree.map(lambda *leaves: np.repeat(np.stack(leaves), repeats, 0), *fresh)
    if trained is not None:
        layers = len(stacked) - 1
        stacked |= {f"hidden_{i + 1}": trained[f"hidden_{i}"] for i in range(layers - 1)} | {
            "output": trained["output"]
        }
    return {"params": {"classifier": variables["params"]["classifier"], "encoder": stacked}, "batch_stats": {}}


def _scores(model: ResponseHead, variables: Any, inputs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities float32 [E, D, F, rows]; each classifier on the inputs of its own encoder."""
    each = shape[1] * shape[2]
    logits = [
        predict_vectors(model, jax.tree.map(lambda v, i=i: v[i * each : (i + 1) * each], variables), x)[..., 0]
        for i, x in enumerate(inputs)
    ]
    return (1.0 / (1.0 + np.exp(-np.clip(np.stack(logits), -60, 60)))).reshape(*shape, -1).astype(np.float32)


def _better(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each classifier the phase with the lower validation loss; epochs add up, a failure stays on record."""
    wins = (new["validation_loss"] < old["validation_loss"]) & ~new["failed"]
    chosen = {
        name: np.where(wins.reshape(*wins.shape, *[1] * (old[name].ndim - wins.ndim)), new[name], old[name])
        for name in old
    }
    return chosen | {"epochs": old["epochs"] + np.where(wins, new["epochs"], 0), "failed": old["failed"]}
