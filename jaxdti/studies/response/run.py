"""A drug response run: its directory, from the tables to predictions for every patient."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jaxdti.config import Config, ResponseConfig, load_config, save_config
from jaxdti.console import say
from jaxdti.data.expression.study import Study, load_study
from jaxdti.data.tables import write_table
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.evaluation.domain_gap import domain_accuracy
from jaxdti.evaluation.expression_baselines import elastic_net_scores, forest_scores
from jaxdti.evaluation.response import validation_auroc
from jaxdti.files import save_arrays, write_json
from jaxdti.models.autoencoders import normalise
from jaxdti.models.response_head import Encoder, encoder_output
from jaxdti.studies.report.response import Entry, write_response_results
from jaxdti.studies.response.heads import HeadFit, fit_heads, study_folds
from jaxdti.studies.response.pretraining import ADVERSARIAL, BASE, Setting, Snapshot, pretrain, settings_of
from jaxdti.studies.run_directory import check_directory, check_unchanged, describe_environment, new_directory
from jaxdti.training.codeae import SEPARATING, Profiles
from jaxdti.training.compilation import keep_programs
from jaxdti.training.signals import stop_signals

__all__ = ["Interrupted", "NonFiniteLoss", "respond", "resume_response"]

NO_PRETRAINING = "none"  # the protocol of baselines


def respond(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Pre-trains, trains classifiers and baselines, evaluates, and writes a run directory; returns its summary.

    The directory holds config.yaml, environment.json, data.json, left_out.csv, pretraining/ and stages/ (to resume
    from), summary.json, results.csv, predictions.parquet, embeddings/ and embeddings.png.

    Raises:
      DataError: the data are unfit, ``output`` exists and is not to be overwritten, or a key would be ignored.
      NonFiniteLoss: all settings of a method have failed, or no method is left.
      Interrupted: a signal arrived; ``resume_response`` goes on.
    """
    if not config.output.baselines:
        raise DataError("output.baselines=false: name the baselines in response.baselines, [] for none")
    check_directory(output, overwrite)
    study = load_study(config.response)  # before anything is deleted
    if "adae" in config.response.methods and not study.confounder_names:
        raise DataError("response.methods: adae needs a known confounder; name a table with response.confounders")
    _begin(config, output, study)
    return _run(config, output, study)


def _begin(config: Config, output: Path, study: Study) -> None:
    """A new directory with all that resuming needs."""
    with new_directory(output):
        save_config(config, output / "config.yaml")
        _record(output, study)


def _record(output: Path, study: Study) -> None:
    """What takes part and what does not; data.json comes last, and says that the rest is there."""
    data = {"sha256": study.identity(), "drugs": list(study.drugs), "summary": study.lines}
    columns = {name: [getattr(item, name) for item in study.left_out] for name in ("what", "name", "reason")}
    write_table(pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), output / "left_out.csv")
    write_json(output / "data.json", data)


def resume_response(run: Path) -> dict[str, Any]:
    """Continues an interrupted run; what is finished is not trained again.

    Raises:
      DataError: not such a run, or the data are no longer those it began with.
      NonFiniteLoss, Interrupted: as ``respond``.
    """
    recorded = (run / "data.json").is_file()
    if not (run / "config.yaml").is_file() or (recorded and not (run / "left_out.csv").is_file()):
        raise DataError(f"{run}: not a drug response run; expected a directory with config.yaml and left_out.csv")
    config = load_config(run / "config.yaml")
    study = load_study(config.response)
    check_unchanged(run, study.identity(), lambda: _record(run, study))
    return _run(config, run, study)


def _run(config: Config, output: Path, study: Study) -> dict[str, Any]:
    started = time.perf_counter()
    for line in study.lines:
        say(line)
    if study.left_out:
        say(f"what takes no part is listed in {output / 'left_out.csv'}")
    keep_programs()
    write_json(output / "environment.json", describe_environment())
    for folder in ("pretraining", "stages", "embeddings"):
        (output / folder).mkdir(exist_ok=True)
    with stop_signals() as stopped:
        entries = _baselines(config.response, study, output / "stages", stopped)
        snapshots = _pretrain_all(config.response, study, output / "pretraining", stopped)
        for method in config.response.methods:
            entries += _method_entries(config.response, study, method, snapshots[method], output / "stages", stopped)
        if not entries:
            raise NonFiniteLoss("no method is left: of each, every setting of a seed has failed")
        found = {m: _codes(study, snapshots[m][-1], m) for m in config.response.methods}
    codes = {method: domains for method, domains in found.items() if len(domains[0]["shared"])}
    accuracy = {m: _accuracies(*domains) for m, domains in codes.items()}
    seconds = time.perf_counter() - started
    return write_response_results(config, output, study, entries, codes, accuracy, seconds)


def _look(stopped: list[int]) -> Callable[[], None]:
    def look() -> None:
        if stopped:
            raise Interrupted(stopped[0])

    return look


def _pretrain_all(config: ResponseConfig, study: Study, folder: Path, stopped: list[int]) -> dict[str, list[Snapshot]]:
    """Method -> its snapshots; codeae_adv goes on from codeae_base, which is pre-trained even if nobody asks for it."""
    count = lambda x, rows: np.full(rows, -1, np.int32) if x is None else x
    profiles = Profiles(
        jnp.asarray(study.source),
        jnp.asarray(study.target),
        jnp.asarray(count(study.source_confounder, len(study.source))),
        jnp.asarray(count(study.target_confounder, len(study.target))),
    )
    methods = [m for m in config.methods if m != ADVERSARIAL]
    if ADVERSARIAL in config.methods:
        methods += [ADVERSARIAL] if BASE in methods else [BASE, ADVERSARIAL]
    snapshots: dict[str, list[Snapshot]] = {}
    rows = _target_rows(study)
    for method in methods:
        start = snapshots[BASE] if method == ADVERSARIAL else ()
        snapshots[method] = pretrain(
            settings_of(method, config),
            profiles,
            rows,
            len(study.confounder_names),
            config.pretraining,
            folder,
            stopped,
            say,
            start,
        )
    return snapshots


def _target_rows(study: Study) -> dict[str, np.ndarray]:
    """Protocol -> rows of the target profiles that pre-training sees."""
    return {"transductive": np.arange(len(study.target)), "inductive": np.flatnonzero(~study.labelled)}


def _method_entries(
    config: ResponseConfig,
    study: Study,
    method: str,
    snapshots: Sequence[Snapshot],
    folder: Path,
    stopped: list[int],
) -> list[Entry]:
    """One entry for each protocol: for each seed and drug the setting with the best source validation."""
    encoders, owners = [], []
    for snapshot in snapshots:
        for i, setting in enumerate(snapshot.settings):
            if snapshot.failed[i] < 0:
                params = jax.tree.map(lambda x, i=i: x[i], snapshot.params["encoder"])
                encoders.append(Encoder(method, setting.seed, params))
                owners.append((setting, snapshot.epochs))
    fit = _heads(study, encoders, config, method, folder, stopped)
    entries = []
    for protocol in config.protocols:
        chosen = [_select(config, study, fit, owners, protocol, seed) for seed in _seeds(config)]
        if all(one is not None for one in chosen):
            entries.append(_entry(method, protocol, [one for one in chosen if one is not None]))
        else:
            say(f"{method}, {protocol}: left out, for a drug every setting of a seed has failed")
    return entries


def _heads(
    study: Study, encoders: Sequence[Encoder], config: ResponseConfig, name: str, folder: Path, stopped: list[int]
) -> HeadFit:
    """The classifiers on these encoders, read from ``folder`` where they are finished."""
    path = folder / f"{name}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return HeadFit(**{field: stored[field] for field in HeadFit.__dataclass_fields__})
    began = time.perf_counter()
    fit = fit_heads(study, encoders, config.folds, config.heads, config.pretraining, _look(stopped))
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


def _select(
    config: ResponseConfig,
    study: Study,
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


def _baselines(config: ResponseConfig, study: Study, folder: Path, stopped: list[int]) -> list[Entry]:
    """Models of the raw genes on the same folds."""
    entries, look = [], _look(stopped)
    for name in config.baselines:
        if name == "mlp":
            encoders = [Encoder(name, seed, None) for seed in _seeds(config)]
            fit = _heads(study, encoders, config, f"raw_{name}", folder, stopped)
            if not _usable(fit).all():
                say(f"{name}: left out, a classifier has diverged")
                continue
            scores = list(zip(fit.source, fit.target, strict=True))
        else:
            scores = [_raw_scores(config, study, name, seed, folder, look) for seed in _seeds(config)]
        choices = []
        for seed, (source, target) in zip(_seeds(config), scores, strict=True):
            fold, label = study_folds(study, config.folds, seed)
            validation = [validation_auroc(label[d], fold[d], source[d]) for d in range(len(study.drugs))]
            choices.append(_Choice(target, np.array(validation), [{} for _ in study.drugs]))
        entries.append(_entry(name, NO_PRETRAINING, choices))
        look()
    return entries


def _raw_scores(
    config: ResponseConfig, study: Study, name: str, seed: int, folder: Path, look: Callable[[], None]
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
        scores = elastic_net_scores(*arguments, look)
    else:
        scores = forest_scores(*arguments, seed, look)
    source, target = (values.reshape(drugs, folds, -1) for values in scores)
    save_arrays(path, {"source": source, "target": target})
    say(f"{name}, seed {seed}: {drugs * folds} models, {time.perf_counter() - began:.1f} s")
    return source, target


Domain = dict[str, np.ndarray]  # kind of code -> float32 [models, samples, D]


def _codes(study: Study, snapshot: Snapshot, method: str) -> tuple[Domain, Domain]:
    """Codes of source and target by the last snapshot: shared; private and joined if there are any.

    Settings that have failed, or whose encoders give no finite output, have no row.
    """
    x, y = jnp.asarray(study.source), jnp.asarray(study.target)
    names = {"shared": ("encoder", "encoder")}
    if method in SEPARATING:
        names["private"] = ("private_source", "private_target")
    domains: tuple[Domain, Domain] = ({}, {})
    left = snapshot.failed < 0
    for kind, encoders in names.items():
        for domain, inputs, encoder in zip(domains, (x, y), encoders, strict=True):
            outputs = jax.lax.map(lambda p, inputs=inputs: encoder_output(p, inputs), snapshot.params[encoder])
            domain[kind] = np.asarray(jnp.split(outputs, 2, -1)[0] if method == "vae" else normalise(outputs))
            left = left & np.isfinite(outputs).all((1, 2))
    for domain in domains:
        for kind, values in domain.items():
            domain[kind] = values[left]
        if "private" in domain:
            domain["joined"] = np.concatenate([domain["private"], domain["shared"]], -1)
    return domains


def _accuracies(source: Domain, target: Domain) -> dict[str, list[float]]:
    """Kind of code -> accuracy of a domain classifier for each setting that is left."""
    return {kind: [domain_accuracy(a, b) for a, b in zip(source[kind], target[kind], strict=True)] for kind in source}
