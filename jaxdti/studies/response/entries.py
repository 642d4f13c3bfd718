"""What each method and baseline of a drug response run predicts: classifiers on its encoders, or models of genes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdti.config import ResponseConfig
from jaxdti.console import say
from jaxdti.data.expression.study import ResponseData
from jaxdti.evaluation.expression_baselines import elastic_net_scores, forest_scores
from jaxdti.evaluation.response import validation_auroc
from jaxdti.files import save_arrays
from jaxdti.models.response_head import Encoder
from jaxdti.studies.report.response import Entry
from jaxdti.studies.response.heads import HeadFit, fit_heads, study_folds
from jaxdti.studies.response.pretraining import Setting, Snapshot

NO_PRETRAINING = "none"  # the protocol of baselines


def method_entries(
    config: ResponseConfig,
    study: ResponseData,
    method: str,
    snapshots: Sequence[Snapshot],
    folder: Path,
    check: Callable[[], None],
) -> list[Entry]:
    """One entry for each protocol: for each seed and drug the setting with the best source validation."""
    encoders, owners = [], []
    for snapshot in snapshots:
        for i, setting in enumerate(snapshot.settings):
            if snapshot.failed[i] < 0:
                params = jax.tree.map(lambda x, i=i: x[i], snapshot.params["encoder"])
                encoders.append(Encoder(method, setting.seed, params))
                owners.append((setting, snapshot.epochs))
    fit = _heads(study, encoders, config, method, folder, check)
    entries = []
    for protocol in config.protocols:
        chosen = [select_models(config, study, fit, owners, protocol, seed) for seed in _seeds(config)]
        if all(one is not None for one in chosen):
            entries.append(_entry(method, protocol, [one for one in chosen if one is not None]))
        else:
            say(f"{method}, {protocol}: left out, for a drug every setting of a seed has failed")
    return entries


def _heads(
    study: ResponseData,
    encoders: Sequence[Encoder],
    config: ResponseConfig,
    name: str,
    folder: Path,
    check: Callable[[], None],
) -> HeadFit:
    """The classifiers on these encoders, read from ``folder`` where they are finished."""
    path = folder / f"{name}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return HeadFit(**{field: stored[field] for field in HeadFit.__dataclass_fields__})
    began = time.perf_counter()
    fit = fit_heads(study, encoders, config.folds, config.heads, config.pretraining, check)
    save_arrays(path, vars(fit))
    failed = f", {int(fit.failed.sum())} failed" if fit.failed.any() else ""
    say(
        f"{name}: {fit.epochs.size} classifiers, {fit.epochs.mean():.0f} epochs to the best{failed}, "
        f"{time.perf_counter() - began:.1f} s"
    )
    return fit


def _seeds(config: ResponseConfig) -> range:
    return range(config.seed, config.seed + config.seeds)


@dataclass(frozen=True)
class _Choice:
    """Of one seed: the chosen models of each drug."""

    target: np.ndarray  # float32 [D, F, M]
    validation: np.ndarray  # float64 [D], mean AUROC on the held-out folds of the source
    settings: list[dict[str, Any]]  # of each drug


def select_models(
    config: ResponseConfig,
    study: ResponseData,
    fit: HeadFit,
    owners: Sequence[tuple[Setting, int]],
    protocol: str,
    seed: int,
) -> _Choice | None:
    candidates = [i for i, (s, _) in enumerate(owners) if s.protocol == protocol and s.seed == seed]
    usable = _usable(fit)
    if not candidates or not usable[candidates].any(0).all():
        return None
    fold, label = study_folds(study, config.folds, seed)
    drugs = range(len(study.drugs))
    score = np.full((len(candidates), len(drugs)), -np.inf)
    for row, i in enumerate(candidates):
        for d in np.flatnonzero(usable[i]):
            score[row, d] = validation_auroc(label[d], fold[d], fit.source[i, d])
    best = np.where(np.isnan(score), -1.0, score).argmax(0)
    picked = [candidates[b] for b in best]
    settings = [
        {
            "epochs": owners[i][1],
            "dropout": owners[i][0].dropout,
            "learning_rate": owners[i][0].learning_rate,
            "orthogonality": owners[i][0].orthogonality,
            "alignment": owners[i][0].alignment,
            "reconstruction_epochs": owners[i][0].reconstruction_epochs,
            "unfrozen": float(fit.unfrozen[i, d].mean()),
        }
        for d, i in enumerate(picked)
    ]
    return _Choice(np.stack([fit.target[i, d] for d, i in enumerate(picked)]), score[best, drugs], settings)


def _usable(fit: HeadFit) -> np.ndarray:
    """Bool [E, D]: no fold's classifier has diverged before it had a first epoch to keep."""
    rows = (np.isfinite(fit.validation_loss), np.isfinite(fit.source).all(-1), np.isfinite(fit.target).all(-1))
    return np.logical_and.reduce(rows).all(-1)


def _entry(method: str, protocol: str, choices: Sequence[_Choice]) -> Entry:
    return Entry(
        method=method,
        protocol=protocol,
        target=np.stack([choice.target for choice in choices]),
        validation=np.stack([choice.validation for choice in choices]),
        settings=[choice.settings for choice in choices],
    )


def baseline_entries(
    config: ResponseConfig, study: ResponseData, folder: Path, check: Callable[[], None]
) -> list[Entry]:
    """Models of the raw genes on the same folds."""
    entries = []
    for name in config.baselines:
        if name == "mlp":
            encoders = [Encoder(name, seed, None) for seed in _seeds(config)]
            fit = _heads(study, encoders, config, f"raw_{name}", folder, check)
            if not _usable(fit).all():
                say(f"{name}: left out, a classifier has diverged")
                continue
            scores = list(zip(fit.source, fit.target, strict=True))
        else:
            scores = [_raw_scores(config, study, name, seed, folder, check) for seed in _seeds(config)]
        choices = []
        for seed, (source, target) in zip(_seeds(config), scores, strict=True):
            fold, label = study_folds(study, config.folds, seed)
            validation = [validation_auroc(label[d], fold[d], source[d]) for d in range(len(study.drugs))]
            choices.append(_Choice(target, np.array(validation), [{} for _ in study.drugs]))
        entries.append(_entry(name, NO_PRETRAINING, choices))
        check()
    return entries


def _raw_scores(
    config: ResponseConfig, study: ResponseData, name: str, seed: int, folder: Path, check: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [D, F, N] and [D, F, M] of an elastic net or a forest, read from ``folder`` where they are finished."""
    path = folder / f"raw_{name}_{seed}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return stored["source"], stored["target"]
    began, folds, drugs = time.perf_counter(), config.folds, len(study.drugs)
    fold, label = study_folds(study, folds, seed)
    arguments = (
        study.source,
        label.reshape(drugs * folds, -1),
        np.repeat(fold, folds, 0),
        np.tile(np.arange(folds), drugs),
        study.target,
    )
    if name == "elastic_net":
        scores = elastic_net_scores(*arguments, check)
    else:
        scores = forest_scores(*arguments, seed, check)
    source, target = (values.reshape(drugs, folds, -1) for values in scores)
    save_arrays(path, {"source": source, "target": target})
    say(f"{name}, seed {seed}: {drugs * folds} models, {time.perf_counter() - began:.1f} s")
    return source, target
