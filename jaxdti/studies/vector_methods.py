"""One method of a run on feature vectors: its networks trained, kept, and measured on the targets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from jaxdti.config import AdaptationConfig, Config
from jaxdti.data.vectors.domains import Parts, VectorDomains
from jaxdti.evaluation.vector_baselines import vector_baseline
from jaxdti.inference.networks import NETWORKS, VectorNetworks, save_networks
from jaxdti.models.fnn import FNN
from jaxdti.studies.adapted_rows import fit_adapted, score_domains, target_networks
from jaxdti.studies.report.domains import Row, domain_points, measure_domains
from jaxdti.studies.transfer.shallow import shallow_scores
from jaxdti.studies.transfer.vectors import SCRATCH, SHALLOW, SOURCE, fit_transfer, for_each
from jaxdti.training.progress import Progress
from jaxdti.training.run_folder import RunFolder, open_run
from jaxdti.training.task import FitResult, Trial

METHODS = "methods"  # folder of what each method reached, and of its training
_SCORED = ("validation", "test")
_UNTRAINED = {"best_epoch": "", "failed": ""}  # in place of the course of a training
_SELECT = {"last": None, "source": "accuracy", "information": "information", "importance": "importance"}


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
    places, parts, trials = trials_of(config, domains, seeds)
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
    rows, points = [], []
    outputs = _outputs(model, adaptation, fit.variables, domains, parts)
    for r, ((task, i), (hidden, scores)) in enumerate(zip(places, outputs, strict=True)):
        named = {"task": task, "method": adaptation.method, "seed": seeds[i]}
        rows.append(named | _measured(domains, parts[r], scores, hidden) | _course(fit, r))
        if i == 0:
            points.append(domain_points(task, adaptation.method, hidden["validation"], hidden["test"]))
    return rows, pa.concat_tables(points)


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
    places, parts, trials = trials_of(config, domains, seeds)
    if method in SHALLOW:
        scores = shallow_scores(method.removeprefix("shallow_"), source, domains, trials, parts)
        course = [_UNTRAINED] * len(places)
    else:
        if method == SOURCE:
            model, variables = source.model, for_each(source.variables, len(trials))
            course = [_UNTRAINED] * len(places)
        else:
            select = _SELECT[config.vectors.select]
            kept = partial(_open_run, output, method)
            model, fit = fit_transfer(config, source, domains, trials, method, select, progress, kept)
            variables, course = fit.variables, [_course(fit, r) for r in range(len(places))]
            if method != SCRATCH:
                _keep(output, method, domains, seeds, model, variables)
        scores = [logits for _, logits in _outputs(model, AdaptationConfig(), variables, domains, parts)]
    return [
        {"task": task, "method": method, "seed": seeds[i]} | _measured(domains, parts[r], scores[r]) | course[r]
        for r, (task, i) in enumerate(places)
    ]


def trials_of(
    config: Config, domains: VectorDomains, seeds: Sequence[int]
) -> tuple[list[tuple[str, int]], list[Parts], list[Trial]]:
    """For each task and seed: its name and the number of the seed, the rows of the parts, and what to train."""
    training = config.training
    places = [(task, i) for task in domains.tasks for i in range(len(seeds))]
    parts = [domains.tasks[task][i] for task, i in places]
    label = np.full(len(domains.label), np.nan)
    for rows in parts:
        for part in ("train", "validation"):
            label[rows[part]] = domains.label[rows[part]]
    hyper = {
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "dropout": config.vectors.dropout,
    }
    trained = ("train", "validation", "target_train")
    trials = [
        Trial(
            rows={part: rows[part] for part in trained},
            label=label,
            seed=seeds[i],
            class_weight=training.class_weight,
            hyper=hyper,
        )
        for (_, i), rows in zip(places, parts, strict=True)
    ]
    return places, parts, trials


@contextmanager
def _open_run(output: Path, method: str, stage: str = "") -> Iterator[RunFolder]:
    """Where the training of a method, or one of its stages, is kept until the method is finished."""
    with open_run(output / METHODS / method / stage, quiet=True) as run:
        yield run


def _outputs(
    model: FNN, adaptation: AdaptationConfig, variables: dict[str, Any], domains: VectorDomains, parts: Sequence[Parts]
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Of each network the features [rows, H] and logits [rows, K] by part."""
    outputs = [({}, {}) for _ in parts]
    for part in _SCORED:
        rows = _stacked([of_part[part] for of_part in parts])
        scored = score_domains(model, adaptation, variables, domains.features, rows, part)
        for r, of_part in enumerate(parts):
            for into, values in zip(outputs[r], scored, strict=True):
                into[part] = values[r, : len(of_part[part])]
    return outputs


def _measured(
    domains: VectorDomains,
    parts: Parts,
    scores: Mapping[str, np.ndarray],
    features: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """What one network, or one baseline, reaches: scores [rows, K] and features [rows, F] by part."""
    return measure_domains(
        scores["validation"],
        domains.label[parts["validation"]],
        scores["test"],
        domains.label[parts["test"]],
        *((features["validation"], features["test"]) if features else ()),
        databases={name: rows[parts["test"]] for name, rows in domains.databases.items()},
    )


def _keep(
    output: Path, method: str, domains: VectorDomains, seeds: Sequence[int], model: FNN, variables: dict[str, Any]
) -> None:
    """Writes the networks of each task, whose seeds follow one another on axis 0."""
    for t, task in enumerate(domains.tasks):
        chosen = slice(t * len(seeds), (t + 1) * len(seeds))
        networks = VectorNetworks(
            model=model,
            variables=jax.tree.map(lambda x, chosen=chosen: x[chosen], variables),
            classes=domains.classes,
            inputs=domains.features.shape[1],
            space=domains.space,
        )
        save_networks(output / NETWORKS / method / task, networks)


def baseline_rows(name: str, domains: VectorDomains, seeds: Sequence[int]) -> list[Row]:
    """Rows as ``train_method``'s, of a baseline that is fitted to the training rows of the source alone."""
    rows, fitted = [], {}
    for task, draws in domains.tasks.items():
        for seed, parts in zip(seeds, draws, strict=True):
            features, label = ({part: x[parts[part]] for part in parts} for x in (domains.features, domains.label))
            train = (seed, features["train"].tobytes(), label["train"].tobytes())  # tasks may share the source
            if train not in fitted:
                fitted[train] = vector_baseline(name, features["train"], label["train"], len(domains.classes), seed)
            score = fitted[train]
            measured = _measured(domains, parts, {part: score(features[part]) for part in _SCORED})
            rows.append({"task": task, "method": name, "seed": seed} | measured | _UNTRAINED)
    return rows


def _course(fit: FitResult, r: int) -> Row:
    bad = int(fit.first_bad[r])
    return {"best_epoch": int(fit.best_epoch[r]), "failed": f"not finite at step {bad}" if bad >= 0 else ""}


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [R, M] of rows of different counts, filled up with row 0."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, each in enumerate(rows):
        filled[i, : len(each)] = each
    return filled
