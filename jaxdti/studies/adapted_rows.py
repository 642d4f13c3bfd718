"""Training of networks on feature vectors, with or without adaptation, as ``adaptation`` of a configuration says."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET
from jaxdti.config import AdaptationConfig, TrainingConfig
from jaxdti.models.fnn import FNN, hidden_and_logits, init_fnn
from jaxdti.training.adapted import adapted_row_task, network_of
from jaxdti.training.fit import Run, fit
from jaxdti.training.progress import Progress
from jaxdti.training.replicas import map_replicas
from jaxdti.training.supervised import row_task
from jaxdti.training.target_selection import TARGET_SELECTIONS, row_selector
from jaxdti.training.task import FitResult, Trial, Variables


def fit_adapted(
    model: FNN,
    features: Array | np.ndarray,
    trials: Sequence[Trial],
    adaptation: AdaptationConfig,
    training: TrainingConfig,
    *,
    select: str | None = None,
    run: Run | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Trains a network of K classes for each trial, adapted to its target rows; see ``jaxdti.training.fit.fit``.

    Whatever ``label`` holds for target rows is not read. With ``method: none`` the target is not trained on; only
    ``select`` may look at it.

    Args:
      model: with hidden layers and K >= 2 outputs.
      features: float [N, F], shared by the trials.
      select: keeps the best epoch on the source's validation rows, "accuracy" or "loss", or the one that
        ``TargetSelector`` finds best, "information" or "importance"; None keeps the last one.

    Raises:
      ValueError: as ``fit``; fewer than two outputs; a trial without target rows.
    """
    if model.outputs is None or model.outputs < 2:
        raise ValueError(
            f"adaptation of feature vectors needs a logit for each of two or more classes: {model.outputs}"
        )
    selector = row_selector(model, adaptation, select) if select else None
    if adaptation.method == "none":
        # Trials that the target selects are trained anew for each one: the same weights, but another epoch is kept.
        by_target = select in TARGET_SELECTIONS
        distinct, of_trial = distinct_trials(trials if by_target else [_untargeted(trial) for trial in trials])
        init = partial(init_fnn, model, features.shape[-1])
        plain = row_task(model, init, features, distinct, training.batch_size, select=selector)
        return _repeated(fit(plain, distinct, training, run=run, progress=progress), of_trial)
    if lacking := [i for i, trial in enumerate(trials) if not len(trial.part("target_train"))]:
        raise ValueError(f"trial {lacking[0]}: adaptation.method={adaptation.method} needs target rows")
    task = adapted_row_task(
        model, features, trials, adaptation, training.batch_size, training.epochs, selector=selector
    )
    return fit(task, trials, training, run=run, progress=progress)


def target_networks(adaptation: AdaptationConfig, variables: Variables) -> Variables:
    """Of what ``fit_adapted`` trained, stacked on axis 0, the networks as they score the target."""
    if adaptation.method == "none":
        return variables
    domain = TARGET if adaptation.batchnorm == "separate" else None
    return jax.vmap(partial(network_of, domain=domain))(variables)


def score_domains(
    model: FNN,
    adaptation: AdaptationConfig,
    variables: Variables,
    features: Array | np.ndarray,
    rows: np.ndarray,
    part: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [R, M, H] and logits float32 [R, M, K] of the rows int [R, M] at test time.

    Args:
      variables: of ``fit_adapted``, stacked on axis 0.
      part: train and validation are scored with the running statistics of the source, others with the target's.
    """
    separate = adaptation.method != "none" and adaptation.batchnorm == "separate"
    domain = (SOURCE if part in ("train", "validation") else TARGET) if separate else None
    run = _scorer(model, adaptation.method != "none", domain)  # pyright: ignore[reportArgumentType]
    hidden, logits = run(variables, jnp.asarray(features), jnp.asarray(rows, jnp.int32))
    return np.asarray(hidden), np.asarray(logits)


@lru_cache(maxsize=32)
def _scorer(model: FNN, adapted: bool, domain: int | None):
    def one(variables: Variables, features: Array, rows: Array):
        network = network_of(variables, domain) if adapted else variables
        return hidden_and_logits(model, network, features[rows], jnp.ones(rows.shape, bool))[0]

    return jax.jit(map_replicas(one, (0, None, 0)))


def _repeated(result: FitResult, of_trial: np.ndarray) -> FitResult:
    """The result of each trial, from those of the distinct ones."""
    progress = replace(result.progress, members=[result.progress.members[i] for i in of_trial.tolist()])
    arrays: dict[str, Any] = {name: value for name, value in vars(result).items() if name != "progress"}
    return FitResult(progress=progress, **jax.tree.map(lambda x: x[of_trial], arrays))


def _untargeted(trial: Trial) -> Trial:
    """The trial without its target rows."""
    return replace(trial, rows={name: rows for name, rows in trial.rows.items() if name != "target_train"})


def distinct_trials(trials: Sequence[Trial]) -> tuple[list[Trial], np.ndarray]:
    """Those that differ, and for each trial the number of its equal: int64 [R]."""
    numbers: dict[tuple, int] = {}
    kept: list[Trial] = []
    places = []
    for trial in trials:
        rows = tuple((name, rows.tobytes()) for name, rows in sorted(trial.rows.items()))
        hyper = repr(sorted(trial.hyper.items()))
        others = (trial.label.tobytes(), trial.seed, trial.epochs, trial.class_weight, hyper)
        if numbers.setdefault((rows, *others), len(kept)) == len(kept):
            kept.append(trial)
        places.append(numbers[rows, *others])
    return kept, np.asarray(places)
