"""A run on feature vectors: methods of adaptation compared on the target domains of a dataset."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxdti.config import AdaptationConfig, Config
from jaxdti.console import say
from jaxdti.data.tables import write_table
from jaxdti.data.vectors.digits import load_digit_domains
from jaxdti.data.vectors.domains import Parts, VectorDomains, read_domains
from jaxdti.data.vectors.family_domains import load_family_domains
from jaxdti.data.vectors.planted import load_planted_domains
from jaxdti.errors import DataError, Interrupted
from jaxdti.evaluation.vector_baselines import VECTOR_BASELINES, vector_baseline
from jaxdti.files import write_json
from jaxdti.inference.networks import NETWORKS, VectorNetworks, load_networks, save_networks
from jaxdti.models.fnn import FNN
from jaxdti.studies.adapted_rows import fit_adapted, score_domains, target_networks
from jaxdti.studies.pairs import check_no_transfer
from jaxdti.studies.report.domains import (
    COMPARED,
    Row,
    database_lines,
    domain_lines,
    domain_points,
    draw_tasks,
    measure_domains,
    paired_differences,
    summarise_domains,
    write_domain_results,
)
from jaxdti.studies.run_directory import (
    SOURCE_FOLDER,
    Study,
    interruptible,
    resumable_config,
    resume_study,
    run_study,
)
from jaxdti.studies.transfer.shallow import shallow_scores
from jaxdti.studies.transfer.vectors import (
    SCRATCH,
    SHALLOW,
    SOURCE,
    check_transfer,
    fit_transfer,
    for_each,
    in_classes_of,
    transfer_methods,
)
from jaxdti.training.progress import Progress
from jaxdti.training.run_folder import RunFolder, open_run
from jaxdti.training.task import FitResult, Trial

__all__ = ["Interrupted", "resume_vectors", "train_vectors", "transfer_vectors"]

METHODS = "methods"  # folder of what each method reached, and of its training
_SCORED = ("validation", "test")
_UNTRAINED = {"best_epoch": "", "failed": ""}  # in place of the course of a training
_SELECT = {"last": None, "source": "accuracy", "information": "information", "importance": "importance"}


def train_vectors(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains ``training.replicas`` networks for every method and task, and writes what they reach on the target.

    All networks of a method train in one program. ``output`` gets config.yaml, environment.json, data.json, methods/
    (what each finished method reached, to resume from; in METHOD/ metrics.jsonl, a record a network
    and epoch, and the checkpoints of a training under way), networks/METHOD/TASK/ (the weights), results.csv (a row a
    network), summary.json, accuracy.png and domains/TASK.png (features of source validation and target test rows in the
    first seed's networks).

    Returns:
      ``results``, one entry for each task and method (see ``summarise_domains``), ``differences`` (see
      ``paired_differences``), and ``lines``, ``database_lines`` and ``verdicts``, what is printed.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      Interrupted: a signal arrived; ``resume_vectors`` goes on.
    """
    check_no_transfer(config)
    return run_study(VectorsStudy(), config, output, overwrite=overwrite)


def transfer_vectors(source: Path, config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Carries the networks of the run ``source`` to other data, as ``config.transfer`` says.

    Writes and returns what ``train_vectors`` does, with the source's networks in source/; see
    ``jaxdti.studies.transfer.vectors``.

    Raises:
      DataError: as ``train_vectors``; or the source is not trained or of another architecture, or the names of what is
        frozen or fresh do not suit it.
      Interrupted: as ``train_vectors``.
    """
    if config.transfer.mode == "none":
        raise DataError("transfer.mode=none: choose from full, feature, shallow")
    networks = load_networks(source)
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise DataError(f"{output}: holds the source run; give another --output")
    return run_study(VectorsStudy(networks), config, output, overwrite=overwrite)


def resume_vectors(run: Path) -> dict[str, Any]:
    """Continues an interrupted run: the method under way from its last checkpoint; what is finished stays as it is.

    Raises:
      DataError: not such a run, or the data are no longer those it began with.
      Interrupted: as ``train_vectors``.
    """
    config = resumable_config(run)
    networks = None if config.transfer.mode == "none" else load_networks(run / SOURCE_FOLDER)
    return resume_study(VectorsStudy(networks), config, run)


@dataclass(frozen=True)
class VectorsStudy(Study[VectorDomains, dict[str, Any]]):
    """Training on feature vectors, or a transfer to them; see ``train_vectors``."""

    source: VectorNetworks | None = None  # the networks that a transfer begins with

    def load(self, config: Config) -> VectorDomains:
        domains = load_domains(config, seeds_of(config), self.source)
        if self.source is not None:
            check_transfer(config, self.source, domains)
        return domains

    def begin(self, config: Config, folder: Path) -> None:
        if self.source is not None:
            save_networks(folder / SOURCE_FOLDER, self.source)
        super().begin(config, folder)

    def sha256(self, data: VectorDomains) -> list[str]:
        """Of the features, the labels and the parts of every task."""
        total = hashlib.sha256(data.features.tobytes() + data.label.tobytes())
        for task, draws in data.tasks.items():
            for parts in draws:
                for part, rows in parts.items():
                    total.update(f"{task} {part} ".encode() + rows.tobytes())
        return [total.hexdigest()]

    def lines(self, data: VectorDomains) -> Sequence[str]:
        if self.source is None or self.source.classes == data.classes:
            return data.lines
        theirs, ours = ", ".join(self.source.classes), ", ".join(data.classes)
        return [
            *data.lines,
            f"the source's classes are {theirs}, here {ours}: the output layer begins with random weights",
        ]

    def run(self, config: Config, data: VectorDomains, folder: Path) -> dict[str, Any]:
        started, seeds = time.perf_counter(), seeds_of(config)
        methods = config.vectors.methods
        if self.source is not None:
            methods = transfer_methods(config, self.source, data.classes)
        rows: list[Row] = []
        pictures: list[pa.Table] = []
        with interruptible() as check:
            for method in (*methods, *(VECTOR_BASELINES if config.output.baselines else ())):
                file = folder / METHODS / f"{method}.json"
                if not file.is_file():
                    self._run_method(config, data, method, folder, check)
                    check()
                rows += json.loads(file.read_text(encoding="utf-8"))  # Python's JSON keeps floats to the bit, and NaN
                if (picture := file.with_suffix(".parquet")).is_file():
                    pictures.append(pq.read_table(picture))
        if pictures:
            first = [row for row in rows if row["seed"] == seeds[0]]
            draw_tasks(pa.concat_tables(pictures), first, folder / "domains")
        facts = {"seconds": round(time.perf_counter() - started, 1), "seeds": list(seeds), "tasks": list(data.tasks)}
        return report_domains(folder, rows, facts, classes=len(data.classes))

    def _run_method(
        self, config: Config, domains: VectorDomains, method: str, folder: Path, check: Callable[..., None]
    ) -> None:
        """Trains or fits one method. Its rows are kept as soon as all its networks are measured."""
        begun, seeds, file = time.perf_counter(), seeds_of(config), folder / METHODS / f"{method}.json"
        if method in VECTOR_BASELINES:
            rows = baseline_rows(method, domains, seeds)
        elif self.source is not None:
            rows = transfer_rows(config, self.source, domains, method, seeds, folder, check)
        else:
            adaptation = replace(config.adaptation, method=method)
            rows, points = train_method(config, domains, adaptation, seeds, folder, check)
            file.parent.mkdir(exist_ok=True)
            write_table(points, file.with_suffix(".parquet"))  # before the rows: they say that the method is finished
        write_json(file, rows)
        for checkpoints in sorted((folder / METHODS / method).glob("**/checkpoints")):
            shutil.rmtree(checkpoints)
        say(f"{method}: {len(rows)} models, {time.perf_counter() - begun:.0f} s")


def seeds_of(config: Config) -> range:
    """Of the replicas: they count up from the run's."""
    return range(config.training.seed, config.training.seed + config.training.replicas)


def report_domains(folder: Path, rows: Sequence[Row], facts: dict[str, Any], classes: int) -> dict[str, Any]:
    """Writes results.csv, summary.json and accuracy.png; returns what ``train_vectors`` does."""
    summary, differences = summarise_domains(rows), paired_differences(rows)
    write_domain_results(folder, rows, summary, facts | {"differences": differences})
    printed = {
        "lines": domain_lines(summary),
        "auroc_lines": domain_lines(summary, "target_auroc") if classes == 2 else [],
        "database_lines": database_lines(summary),
        "verdicts": verdicts(summary, differences),
    }
    return facts | {"results": summary, "differences": differences} | printed


def load_domains(config: Config, seeds: Sequence[int], networks: VectorNetworks | None = None) -> VectorDomains:
    """The feature vectors that the section ``vectors`` names, as trained ``networks`` take them if there are some.

    Raises:
      DataError: they are unfit.
    """
    vectors = config.vectors
    how = {"validation": vectors.validation, "seeds": seeds}
    if vectors.dataset == "digits":
        found = load_digit_domains(vectors.tasks, **how)
    elif vectors.dataset == "families":
        found = load_family_domains(config.data, vectors.tasks, **how)
    elif vectors.dataset == "planted":
        found = load_planted_domains(vectors.tasks, **how)
    else:
        found = _read_tables(config, networks, how)
    return found if networks is None else in_classes_of(found, networks)


def _read_tables(config: Config, networks: VectorNetworks | None, how: dict[str, Any]) -> VectorDomains:
    vectors = config.vectors
    if vectors.tasks:
        raise DataError("vectors.tasks chooses among the targets of vectors.dataset; given tables are one target")
    if networks is not None and networks.space is None:
        raise DataError("the source was trained on vectors that are those of no table; name vectors.dataset")
    assert vectors.source and vectors.test
    return read_domains(
        Path(vectors.source),
        Path(vectors.target) if vectors.target else None,
        Path(vectors.test),
        **how,
        label_column=vectors.label_column,
        fingerprint_bits=vectors.fingerprint_bits,
        drug_column=config.data.drug_column,
        space=networks.space if networks is not None else None,
    )


def train_method(
    config: Config,
    domains: VectorDomains,
    adaptation: AdaptationConfig,
    seeds: Sequence[int],
    output: Path,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[list[Row], pa.Table]:
    """A row of results for each task and seed, and ``domain_points`` of the first seed.

    Labels of target rows are hidden from the training. ``output`` gets the networks as they score the target, and the
    training is kept in it; ``progress`` is that of ``fit``.
    """
    model = FNN(config.vectors.features, outputs=len(domains.classes))
    members, parts, trials = trials_of(config, domains, seeds)
    select = _SELECT[config.vectors.select]
    with _open_run(output, adaptation.method) as run:
        fit = fit_adapted(
            model,
            domains.features,
            trials,
            adaptation,
            config.training,
            select=select,
            run=run,
            progress=progress,
        )
    _keep(output, adaptation.method, domains, seeds, model, target_networks(adaptation, fit.variables))
    found, points = [], []
    outputs = _outputs(model, adaptation, fit.variables, domains, parts)
    for r, ((task, i), (own, scores)) in enumerate(zip(members, outputs, strict=True)):
        named = {"task": task, "method": adaptation.method, "seed": seeds[i]}
        found.append(named | _measured(domains, parts[r], scores, own) | _course(fit, r))
        if i == 0:
            points.append(domain_points(task, adaptation.method, own["validation"], own["test"]))
    return found, pa.concat_tables(points)


def transfer_rows(
    config: Config,
    source: VectorNetworks,
    domains: VectorDomains,
    method: str,
    seeds: Sequence[int],
    output: Path,
    progress: Callable[[Progress], None] | None = None,
) -> list[Row]:
    """As ``train_method``, of one of the ``transfer_methods``; networks that start from the source are kept."""
    members, parts, trials = trials_of(config, domains, seeds)
    if method in SHALLOW:
        scores = shallow_scores(method.removeprefix("shallow_"), source, domains, trials, parts)
        course = [_UNTRAINED] * len(members)
    else:
        if method == SOURCE:
            model, variables = source.model, for_each(source.variables, len(trials))
            course = [_UNTRAINED] * len(members)
        else:
            select = _SELECT[config.vectors.select]
            kept = partial(_open_run, output, method)
            model, fit = fit_transfer(config, source, domains, trials, method, select, progress, kept)
            variables, course = fit.variables, [_course(fit, r) for r in range(len(members))]
            if method != SCRATCH:
                _keep(output, method, domains, seeds, model, variables)
        scores = [logits for _, logits in _outputs(model, AdaptationConfig(), variables, domains, parts)]
    return [
        {"task": task, "method": method, "seed": seeds[i]} | _measured(domains, parts[r], scores[r]) | course[r]
        for r, (task, i) in enumerate(members)
    ]


def trials_of(
    config: Config, domains: VectorDomains, seeds: Sequence[int]
) -> tuple[list[tuple[str, int]], list[Parts], list[Trial]]:
    """For each task and seed: its name and the number of the seed, the rows of the parts, and what to train."""
    training = config.training
    members = [(task, i) for task in domains.tasks for i in range(len(seeds))]
    parts = [domains.tasks[task][i] for task, i in members]
    hidden = np.full(len(domains.label), np.nan)
    for own in parts:
        for part in ("train", "validation"):
            hidden[own[part]] = domains.label[own[part]]
    hyper = {
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "dropout": config.vectors.dropout,
    }
    trained = ("train", "validation", "target_train")
    trials = [
        Trial(
            rows={part: own[part] for part in trained},
            label=hidden,
            seed=seeds[i],
            class_weight=training.class_weight,
            hyper=hyper,
        )
        for (_, i), own in zip(members, parts, strict=True)
    ]
    return members, parts, trials


@contextmanager
def _open_run(output: Path, method: str, stage: str = "") -> Iterator[RunFolder]:
    """Where the training of a method, or one of its stages, is kept until the method is finished."""
    with open_run(output / METHODS / method / stage, quiet=True) as run:
        yield run


def _outputs(
    model: FNN, adaptation: AdaptationConfig, variables: dict[str, Any], domains: VectorDomains, parts: Sequence[Parts]
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Of each network the features [rows, H] and logits [rows, K] by part."""
    found = [({}, {}) for _ in parts]
    for part in _SCORED:
        rows = _stacked([own[part] for own in parts])
        scored = score_domains(model, adaptation, variables, domains.features, rows, part)
        for r, own in enumerate(parts):
            for into, values in zip(found[r], scored, strict=True):
                into[part] = values[r, : len(own[part])]
    return found


def _measured(
    domains: VectorDomains,
    own: Parts,
    scores: Mapping[str, np.ndarray],
    features: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """What one network, or one baseline, reaches: scores [rows, K] and features [rows, F] by part."""
    return measure_domains(
        scores["validation"],
        domains.label[own["validation"]],
        scores["test"],
        domains.label[own["test"]],
        *((features["validation"], features["test"]) if features else ()),
        databases={name: rows[own["test"]] for name, rows in domains.databases.items()},
    )


def _keep(
    output: Path, method: str, domains: VectorDomains, seeds: Sequence[int], model: FNN, variables: dict[str, Any]
) -> None:
    """Writes the networks of each task, whose seeds follow one another on axis 0."""
    for t, task in enumerate(domains.tasks):
        own = slice(t * len(seeds), (t + 1) * len(seeds))
        networks = VectorNetworks(
            model=model,
            variables=jax.tree.map(lambda x, own=own: x[own], variables),
            classes=domains.classes,
            inputs=domains.features.shape[1],
            space=domains.space,
        )
        save_networks(output / NETWORKS / method / task, networks)


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
            measured = _measured(domains, own, {part: score(features[part]) for part in _SCORED})
            found.append({"task": task, "method": name, "seed": seed} | measured | _UNTRAINED)
    return found


def verdicts(summary: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """How each method stands to the source alone and to DANN, in a sentence each."""
    told, count = [], sum(row["task"] != "mean" and row["method"] == summary[0]["method"] for row in summary)
    for row in summary:
        if row["task"] == "mean":
            than = [f"{other} on {row[f'above_{other}']} of {count}" for other in COMPARED if f"above_{other}" in row]
            less = [_difference_text(gain) for gain in differences if gain["method"] == row["method"]]
            if than:
                place = f"above {' and '.join(than)} targets"
                told.append(f"{row['method']}: {place}; its mean differs by {' and '.join(less)}")
    return told


def _difference_text(gain: Row) -> str:
    interval = f" (95 % interval {gain['low']:.3f} to {gain['high']:.3f})" if np.isfinite(gain["low"]) else ""
    return f"{gain['target_accuracy']:.3f}{interval} from {gain['less']}"


def _course(fit: FitResult, r: int) -> Row:
    bad = int(fit.first_bad[r])
    return {"best_epoch": int(fit.best_epoch[r]), "failed": f"not finite at step {bad}" if bad >= 0 else ""}


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [R, M] of rows of different counts, filled up with row 0."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, own in enumerate(rows):
        filled[i, : len(own)] = own
    return filled
