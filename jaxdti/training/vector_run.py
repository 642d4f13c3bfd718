"""A run on feature vectors: methods of adaptation compared on the target domains of a dataset."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxdti.config import AdaptationConfig, Config, save_config
from jaxdti.console import say
from jaxdti.data.digits import load_digit_domains
from jaxdti.data.family_domains import load_family_domains
from jaxdti.data.interactions import DataError
from jaxdti.data.named import write_json
from jaxdti.data.planted_vectors import load_planted_domains
from jaxdti.data.tables import write_table
from jaxdti.data.vectors import VectorDomains, read_domains
from jaxdti.evaluation.domain_results import (
    COMPARED,
    Row,
    database_lines,
    domain_lines,
    domain_points,
    draw_tasks,
    mean_and_sd_text,
    measure_domains,
    paired_differences,
    summarise_domains,
    write_domain_results,
)
from jaxdti.evaluation.vector_baselines import VECTOR_BASELINES, vector_baseline
from jaxdti.models.fnn import FNN
from jaxdti.training.adapted_vectors import fit_adapted, score_domains
from jaxdti.training.loop import Interrupted
from jaxdti.training.run import (
    check_directory,
    check_unchanged,
    describe_environment,
    new_directory,
    resumable_config,
)
from jaxdti.training.signals import stop_signals
from jaxdti.training.vectors import Progress, VectorFit, VectorReplica

__all__ = ["Interrupted", "resume_vectors", "train_vectors"]

_SELECT = {"last": None, "source": "accuracy", "information": "information", "importance": "importance"}


def train_vectors(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains ``training.replicas`` networks for every method and task, and writes what they reach on the target.

    All networks of a method train in one program. ``output`` gets config.yaml, environment.json, data.json, methods/
    (what each finished method reached, to resume from), results.csv (a row a network), summary.json, accuracy.png and
    domains/TASK.png (features of source validation and target test rows in the first seed's networks).

    Returns:
      ``results``, one entry for each task and method (see ``summarise_domains``), ``differences`` (see
      ``paired_differences``), and ``lines``, ``database_lines`` and ``verdicts``, what is printed.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      Interrupted: a signal arrived; ``resume_vectors`` goes on.
    """
    check_directory(output, overwrite)
    domains = load_domains(config, _seeds(config))
    with new_directory(output):
        save_config(config, output / "config.yaml")
        write_json(output / "data.json", {"sha256": _fingerprint(domains)})
    return _run(config, output, domains)


def resume_vectors(run: Path) -> dict[str, Any]:
    """Continues an interrupted run behind the last method that was finished; what is finished is not trained again.

    Raises:
      DataError: not such a run, or the data are no longer those it began with.
      Interrupted: as ``train_vectors``.
    """
    config = resumable_config(run)
    domains = load_domains(config, _seeds(config))
    check_unchanged(run, _fingerprint(domains))
    return _run(config, run, domains)


def _seeds(config: Config) -> range:
    return range(config.training.seed, config.training.seed + config.training.replicas)


def _fingerprint(domains: VectorDomains) -> str:
    """SHA-256 of the features, the labels and the parts of every task."""
    total = hashlib.sha256(domains.features.tobytes() + domains.label.tobytes())
    for task, draws in domains.tasks.items():
        for own in draws:
            for part, rows in own.items():
                total.update(f"{task} {part} ".encode() + rows.tobytes())
    return total.hexdigest()


def _run(config: Config, output: Path, domains: VectorDomains) -> dict[str, Any]:
    """Everything after the data. A method's rows are kept as soon as all its networks are measured."""
    started, seeds = time.perf_counter(), _seeds(config)
    write_json(output / "environment.json", describe_environment())
    for line in domains.lines:
        say(line)
    rows: list[Row] = []
    pictures: list[pa.Table] = []
    with stop_signals() as stopped:

        def look(*_: Any) -> None:
            if stopped:
                raise Interrupted(stopped[0])

        for method in (*config.vectors.methods, *(VECTOR_BASELINES if config.output.baselines else ())):
            begun, file = time.perf_counter(), output / "methods" / f"{method}.json"
            picture = file.with_suffix(".parquet")
            if not (file.is_file() and (method in VECTOR_BASELINES or picture.is_file())):
                if method in VECTOR_BASELINES:
                    found = baseline_rows(method, domains, seeds)
                else:
                    adaptation = replace(config.adaptation, method=method)
                    found, points = train_method(config, domains, adaptation, seeds, look)
                    picture.parent.mkdir(exist_ok=True)
                    write_table(points, picture)  # before the rows, which say that the method is finished
                write_json(file, found)
                say(f"{method}: {len(found)} models, {time.perf_counter() - begun:.0f} s")
                look()
            rows += json.loads(file.read_text(encoding="utf-8"))  # Python's JSON keeps floats to the bit, and NaN
            if method not in VECTOR_BASELINES:
                pictures.append(pq.read_table(picture))
    summary, differences = summarise_domains(rows), paired_differences(rows)
    facts = {"seconds": round(time.perf_counter() - started, 1), "seeds": list(seeds), "tasks": list(domains.tasks)}
    write_domain_results(output, rows, summary, facts | {"differences": differences})
    draw_tasks(pa.concat_tables(pictures), [row for row in rows if row["seed"] == seeds[0]], output / "domains")
    told = {
        "lines": domain_lines(summary),
        "database_lines": database_lines(summary),
        "verdicts": verdicts(summary, differences),
    }
    return facts | {"results": summary, "differences": differences} | told


def load_domains(config: Config, seeds: Sequence[int]) -> VectorDomains:
    """The feature vectors that the section ``vectors`` names.

    Raises:
      DataError: they are unfit.
    """
    vectors = config.vectors
    if vectors.dataset == "digits":
        return load_digit_domains(vectors.tasks, validation=vectors.validation, seeds=seeds)
    if vectors.dataset == "families":
        return load_family_domains(config.data, vectors.tasks, validation=vectors.validation, seeds=seeds)
    if vectors.dataset == "planted":
        return load_planted_domains(vectors.tasks, validation=vectors.validation, seeds=seeds)
    if vectors.tasks:
        raise DataError("vectors.tasks chooses among the targets of vectors.dataset; given tables are one target")
    assert vectors.source and vectors.target and vectors.test
    paths = (Path(vectors.source), Path(vectors.target), Path(vectors.test))
    return read_domains(*paths, label_column=vectors.label_column, validation=vectors.validation, seeds=seeds)


def train_method(
    config: Config,
    domains: VectorDomains,
    adaptation: AdaptationConfig,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> tuple[list[Row], pa.Table]:
    """A row of results for each task and seed, and ``domain_points`` of the first seed.

    Labels of target rows are hidden from the training. ``progress`` is that of ``fit_vectors``.
    """
    vectors, training = config.vectors, config.training
    model = FNN(vectors.features, outputs=len(domains.classes))
    members = [(task, i) for task in domains.tasks for i in range(len(seeds))]
    parts = [domains.tasks[task][i] for task, i in members]
    hidden = np.full(len(domains.label), np.nan)
    for own in parts:
        for part in ("train", "validation"):
            hidden[own[part]] = domains.label[own[part]]
    replicas = [
        VectorReplica(
            train=own["train"],
            validation=own["validation"],
            target=own["target_train"],
            label=hidden,
            seed=seeds[i],
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            dropout=vectors.dropout,
            class_weight=training.class_weight,
        )
        for (_, i), own in zip(members, parts, strict=True)
    ]
    select = _SELECT[vectors.select]
    fit = fit_adapted(model, domains.features, replicas, adaptation, training, select=select, progress=progress)
    scores = {}
    for part in ("validation", "test"):
        rows = _stacked([own[part] for own in parts])
        scores[part] = score_domains(model, adaptation, fit.variables, domains.features, rows, part)
    found, points = [], []
    for r, ((task, i), own) in enumerate(zip(members, parts, strict=True)):
        sizes = {part: len(own[part]) for part in scores}
        features, logits = ({part: scores[part][which][r, : sizes[part]] for part in sizes} for which in (0, 1))
        label = {part: domains.label[own[part]] for part in sizes}
        measured = measure_domains(
            logits["validation"],
            label["validation"],
            logits["test"],
            label["test"],
            features["validation"],
            features["test"],
            databases={name: rows[own["test"]] for name, rows in domains.databases.items()},
        )
        found.append({"task": task, "method": adaptation.method, "seed": seeds[i]} | measured | _course(fit, r))
        if i == 0:
            points.append(domain_points(task, adaptation.method, features["validation"], features["test"]))
    return found, pa.concat_tables(points)


def baseline_rows(name: str, domains: VectorDomains, seeds: Sequence[int]) -> list[Row]:
    """Rows as ``train_method``'s, of a baseline that is fitted to the training rows of the source alone."""
    found, fitted = [], {}
    for task, draws in domains.tasks.items():
        for seed, own in zip(seeds, draws, strict=True):
            features, label = ({part: x[own[part]] for part in own} for x in (domains.features, domains.label))
            train = (seed, features["train"].tobytes(), label["train"].tobytes())  # tasks may share the source
            if train not in fitted:
                fitted[train] = vector_baseline(name, features["train"], label["train"], len(domains.classes), seed)
            score = fitted[train]
            measured = measure_domains(
                score(features["validation"]),
                label["validation"],
                score(features["test"]),
                label["test"],
                databases={name: rows[own["test"]] for name, rows in domains.databases.items()},
            )
            found.append({"task": task, "method": name, "seed": seed} | measured | {"best_epoch": "", "failed": ""})
    return found


def verdicts(summary: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """How each method stands to the source alone and to DANN, in a sentence each."""
    told, count = [], sum(row["task"] != "mean" and row["method"] == summary[0]["method"] for row in summary)
    for row in summary:
        if row["task"] == "mean":
            than = [f"{other} on {row[f'above_{other}']} of {count}" for other in COMPARED if f"above_{other}" in row]
            less = [
                f"{mean_and_sd_text(gain, 'target_accuracy')} from {gain['less']}"
                for gain in differences
                if gain["method"] == row["method"]
            ]
            if than:
                place = f"above {' and '.join(than)} targets"
                told.append(f"{row['method']}: {place}; its mean differs by {' and '.join(less)}")
    return told


def _course(fit: VectorFit, r: int) -> Row:
    bad = int(fit.first_bad[r])
    return {"best_epoch": int(fit.best_epoch[r]), "failed": f"not finite at step {bad}" if bad >= 0 else ""}


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [R, M] of rows of different counts, filled up with row 0."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, own in enumerate(rows):
        filled[i, : len(own)] = own
    return filled
