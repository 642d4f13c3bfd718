"""What a finished training leaves: weights, predictions and metrics, of one model or of an ensemble of replicas."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from jaxdti.config import Config, save_config
from jaxdti.console import say
from jaxdti.data.pairs.load import Dataset
from jaxdti.data.tables import write_table
from jaxdti.evaluation.baselines import baseline_table, evaluate_baselines
from jaxdti.evaluation.calibration import Calibration, fit_calibration
from jaxdti.evaluation.domain_gap import domain_table, plot_domains, proxy_a_distance
from jaxdti.evaluation.intervals import paired_difference_interval, unseen_groups
from jaxdti.evaluation.part import INTERVALS, evaluate_part, json_ready
from jaxdti.files import write_json
from jaxdti.inference.trained import load_run, write_model_card
from jaxdti.training.checkpoints import save_weights
from jaxdti.training.progress import Progress, _duration
from jaxdti.training.task import Scorer, Trial, Variables, class_weights, label_scale

SCORED_PARTS = ("validation", "test")
SOURCE_ONLY, SCRATCH = "source_only", "scratch"  # folders of the runs to compare with, and names in the summary
_LEAST_POINTS, _MOST_POINTS = 8, 1000  # pairs of each domain, to tell how far the domains lie apart


@dataclass(frozen=True)
class Fitted:
    """Trials after training, with the variables of the best validation epoch of each."""

    configs: Sequence[Config]
    trials: Sequence[Trial]
    scored: Callable[[Variables, str], Variables]  # from what a trial trained: the network that scores a part
    scorer: Scorer
    joint: Callable[[Variables, np.ndarray], np.ndarray]  # network, table rows -> joint features float32 [N, F]
    variables: Sequence[Variables]
    progress: Progress

    def network(self, i: int, part: str) -> Variables:
        """The network of replica ``i`` that scores a part."""
        return self.scored(self.variables[i], part)


def write_results(
    config: Config,
    output: Path,
    dataset: Dataset,
    fitted: Fitted,
    started: float,
    compared: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluates the best weights and writes everything a user reads into ``output``; returns the summary.

    ``compared`` holds the metrics of other models by name and part, to stand beside it.
    """
    if config.training.replicas == 1:
        summary = write_member(output, dataset, fitted, 0)
    else:
        summary = _write_ensemble(config, output, dataset, fitted)
    progress = fitted.progress
    summary |= {
        "seconds": round(progress.seconds, 1),
        "samples_per_second": progress.trained_rows / max(progress.seconds, 1e-9),
        "total_seconds": round(time.perf_counter() - started, 1),
    }
    if config.adaptation.method != "none":
        summary |= compare_domains(output, dataset, fitted)
    if compared:
        summary["compared"] = compared
    beside = [folder for folder in (SOURCE_ONLY, SCRATCH) if (output / folder / "summary.json").is_file()]
    if beside:
        summary["difference_to"] = {name: difference_to_run(config, output, name, dataset, summary) for name in beside}
    summary["baselines"] = _baselines(config, output, dataset)
    if dataset.ceiling is not None:
        summary["ceiling_auroc"] = dataset.ceiling
    summary = json_ready(summary)
    write_json(output / "summary.json", summary)
    show_results(config, summary, output)
    return summary


def compare_domains(output: Path, dataset: Dataset, fitted: Fitted) -> dict[str, Any]:
    """What adaptation changed, for the summary: the run without it, and how far the domains lie apart in both.

    Writes domains.parquet and domains.png: source validation and target test pairs, whose joint features no network
    was fitted to, by their first two principal components.
    """
    changed: dict[str, Any] = {}
    networks = {}
    plain = output / SOURCE_ONLY
    if (plain / "summary.json").is_file():
        summary = json.loads((plain / "summary.json").read_text(encoding="utf-8"))
        changed["source_only"] = {part: summary[part] for part in ("test", "validation")}
        variables = load_run(plain).members[0].variables
        networks[SOURCE_ONLY] = lambda part: variables
    first = next(i for i, member in enumerate(fitted.progress.members) if not member.failed)
    networks["adapted"] = lambda part: fitted.network(first, part)
    parts = {part: _sample(dataset.parts[part]) for part in SCORED_PARTS}
    if min(map(len, parts.values())) < _LEAST_POINTS:
        return changed
    source, target = SCORED_PARTS
    joint = lambda network, part: fitted.joint(network(part), parts[part])
    features = {name: (joint(network, source), joint(network, target)) for name, network in networks.items()}
    gap = {name: proxy_a_distance(*both) for name, both in features.items()}
    titles = {name: f"{name.replace('_', ' ')}: proxy A-distance {gap[name]:.2f}" for name in features}
    table = domain_table(features)
    write_table(table, output / "domains.parquet")
    plot_domains(table, titles, output / "domains.png")
    return changed | {"domain_gap": gap}


def difference_to_run(
    config: Config, output: Path, beside: str, dataset: Dataset, summary: dict[str, Any]
) -> dict[str, Any]:
    """Test metrics of the run less those of the one in the folder ``beside``, both on the same pairs.

    ``<metric>_ci`` has the 95 % interval, drugs or proteins resampled as in those of the metrics; ``<metric>_seeds``
    the mean and the sample sd of the differences seed by seed, where there are replicas.
    """
    other = json.loads((output / beside / "summary.json").read_text(encoding="utf-8"))
    parts, differences = dataset.parts, {}
    label = dataset.table.label[parts["test"]]
    known = np.isfinite(label)
    scores, other_scores = (stored_scores(folder)["test"][known] for folder in (output, output / beside))
    groups = unseen_groups(dataset.table, parts["train"], parts["test"][known])
    pairs = [
        (row["test"], against["test"])
        for row, against in zip(summary.get("replicas", []), other.get("replicas", []), strict=True)
        if "failed" not in row and "failed" not in against
    ]
    for metric in INTERVALS[config.task]:
        if summary["test"][metric] is None:  # undefined, as with labels of one class
            continue
        differences[metric] = summary["test"][metric] - other["test"][metric]
        if config.output.bootstrap:
            resampled = {"groups": groups, "resamples": config.output.bootstrap}
            differences[f"{metric}_ci"] = list(
                paired_difference_interval(metric, label[known], scores, other_scores, **resampled)
            )
        if len(pairs) > 1:
            by_seed = [row[metric] - against[metric] for row, against in pairs]
            differences[f"{metric}_seeds"] = [float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))]
    return differences


def stored_scores(output: Path) -> dict[str, np.ndarray]:
    """The scores of a finished run by part, float64, in the order of the part's rows."""
    table = pq.read_table(output / "predictions.parquet", columns=["score", "split"])
    split, score = np.array(table["split"].to_pylist()), table["score"].to_numpy()
    return {part: score[split == part] for part in SCORED_PARTS}


def _sample(rows: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_POINTS])


def write_member(output: Path, dataset: Dataset, fitted: Fitted, i: int) -> dict[str, Any]:
    """Writes weights, model card and predictions of replica ``i``; returns its metrics."""
    config, trial, member = fitted.configs[i], fitted.trials[i], fitted.progress.members[i]
    mean, sd = label_scale(trial, config.task)
    scores = _scores(fitted, i, dataset)
    low, high = class_weights(trial)
    calibration = calibrate(config, dataset, trial.rows, scores, float(np.log(high / low)))
    save_weights(output / "weights", fitted.network(i, "test"))
    write_model_card(output, config.task, (mean, sd), calibration, calibrated=config.task == "classification")
    write_table(_predictions(config, dataset, trial.rows, scores, calibration), output / "predictions.parquet")
    metrics = evaluate_parts(config, dataset, trial.rows, scores, calibration)
    return metrics | {"epochs": member.last_epoch, "best_epoch": member.best_epoch}


def _write_ensemble(config: Config, output: Path, dataset: Dataset, fitted: Fitted) -> dict[str, Any]:
    """Every replica that did not fail in a directory of its own, and the mean of their scores in ``output``."""
    rows, scores = [], []
    for i, (own, member) in enumerate(zip(fitted.configs, fitted.progress.members, strict=True)):
        row: dict[str, Any] = {"replica": i, "seed": own.training.seed}
        if member.failed:
            rows.append(row | {"failed": member.failed})
            continue
        folder = output / "replicas" / str(i)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(own, folder / "config.yaml")
        row |= write_member(folder, dataset, fitted, i)
        write_json(folder / "summary.json", json_ready(row))
        rows.append(row)
        scores.append(_scores(fitted, i, dataset))
    parts, kept = fitted.trials[0].rows, [row for row in rows if "failed" not in row]
    mean = {part: np.mean([each[part] for each in scores], axis=0) for part in SCORED_PARTS}
    spread = {part: np.std([each[part] for each in scores], axis=0) for part in SCORED_PARTS}
    low, high = class_weights(fitted.trials[0])
    calibration = calibrate(config, dataset, parts, mean, float(np.log(high / low)))
    write_model_card(output, config.task, (0.0, 1.0), calibration, calibrated=config.task == "classification")
    write_table(_predictions(config, dataset, parts, mean, calibration, spread), output / "predictions.parquet")
    return {
        **evaluate_parts(config, dataset, parts, mean, calibration),
        "epochs": max(row["epochs"] for row in kept),
        "best_epoch": [row["best_epoch"] for row in kept],
        "replicas": rows,
        "replicas_mean": {part: _means_and_sds([row[part] for row in kept]) for part in ("test", "validation")},
    }


def _means_and_sds(metrics: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """[mean, sample sd] over the replicas of every metric that is a number in all of them."""
    is_number = lambda value: isinstance(value, float)
    names = [name for name in metrics[0] if all(is_number(each.get(name)) for each in metrics)]
    values = {name: [each[name] for each in metrics] for name in names}
    return {name: [float(np.mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else 0.0] for name, x in values.items()}


def _scores(fitted: Fitted, i: int, dataset: Dataset) -> dict[str, np.ndarray]:
    """Logits, or affinities in the unit of the labels, of replica ``i``: float64 by part."""
    trial = fitted.trials[i]
    mean, sd = label_scale(trial, fitted.configs[i].task)
    score = lambda part: fitted.scorer(fitted.network(i, part), trial.rows[part]).astype(np.float64)
    return {part: score(part) * sd + mean for part in SCORED_PARTS}


def calibrate(config: Config, dataset: Dataset, parts, scores: dict[str, np.ndarray], offset: float) -> Calibration:
    """Temperature and threshold from the validation part; class weights, which shift the logit, are undone first."""
    if config.task == "regression":
        return Calibration()
    return fit_calibration(dataset.table.label[parts["validation"]], scores["validation"], logit_offset=offset)


def evaluate_parts(
    config: Config, dataset: Dataset, parts, scores, calibration: Calibration
) -> dict[str, dict[str, Any]]:
    return {
        part: evaluate_part(
            dataset.table,
            parts["train"],
            parts[part],
            scores[part],
            task=config.task,
            calibration=calibration,
            bootstrap=config.output.bootstrap if part == "test" else 0,
        )
        for part in ("test", "validation")
    }


def _baselines(config: Config, output: Path, dataset: Dataset) -> dict[str, Any]:
    if not config.output.baselines:
        return {}
    baselines = score_baselines(config, dataset, stored_scores(output))
    write_json(output / "baselines.json", baselines)
    return baselines


def score_baselines(config: Config, dataset: Dataset, network: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """The test metrics of the simple models on the same split, and their consensus with ``network``; JSON-ready."""
    say("scoring the baselines on the same split")
    parts = (dataset.parts[part] for part in ("train", "validation", "test"))
    baselines = evaluate_baselines(
        dataset.table,
        *parts,
        task=config.task,
        seed=config.training.seed,
        bootstrap=config.output.bootstrap,
        network=network,
    )
    return json_ready(baselines)


def _predictions(config: Config, dataset: Dataset, parts, scores, calibration: Calibration, spread=None) -> pa.Table:
    rows = np.concatenate([parts[part] for part in SCORED_PARTS])
    score = np.concatenate([scores[part] for part in SCORED_PARTS])
    table = dataset.table
    columns: dict[str, Any] = {
        "drug": pa.array(table.drugs[table.drug[rows]].tolist(), pa.string()),
        "protein": pa.array(table.proteins[table.protein[rows]].tolist(), pa.string()),
        "label": pa.array(table.label[rows].astype(np.float64)),
        "score": pa.array(score),
    }
    if spread is not None:
        columns["score_sd"] = pa.array(np.concatenate([spread[part] for part in SCORED_PARTS]))
    if config.task == "classification":
        columns["probability"] = pa.array(calibration.probability(score))
    columns["split"] = pa.array(np.repeat(SCORED_PARTS, [len(scores[part]) for part in SCORED_PARTS]).tolist())
    return pa.table(columns)


_TRANSFERRED = {  # what a transferred network is called
    "full": "DrugBAN from the source",
    "feature": "DrugBAN, frozen part from the source",
    "shallow": "logistic regression on the source's features",
}


def show_results(config: Config, summary: dict[str, Any], output: Path) -> None:
    """Prints the network beside the baselines on the test part, and the ceiling where it is known."""
    task, method, replicas = config.task, config.adaptation.method, summary.get("replicas", [])
    name = "DrugBAN" if method == "none" else f"DrugBAN + {method.upper()}"
    name = _TRANSFERRED.get(config.transfer.mode, name)
    name += f", mean score of {len(replicas)}" if replicas else " (this run)"
    networks = {name: summary["test"]}
    if "source_only" in summary:
        networks["DrugBAN, source only"] = summary["source_only"]["test"]
    networks |= {other: metrics["test"] for other, metrics in summary.get("compared", {}).items()}
    header, *rows = baseline_table({**networks, **summary["baselines"]}, task)
    console = Console(highlight=False)
    table = Table(title="test", box=box.HEAVY_HEAD if console.is_terminal else None)
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "ceiling_auroc" in summary:
        print(f"Bayes ceiling: test AUROC {summary['ceiling_auroc']:.3f}")
    if replicas:
        kept = sum("failed" not in row for row in replicas)
        for metric, (mean, sd) in summary["replicas_mean"]["test"].items():
            if metric in INTERVALS[task]:
                print(f"single replicas: test {metric.replace('_', ' ')} {mean:.3f} ± {sd:.3f} (mean ± sd of {kept})")
        if kept < len(replicas):
            print(f"{len(replicas) - kept} of {len(replicas)} replicas failed: see summary.json")
    for other, differences in summary.get("difference_to", {}).items():
        metric = INTERVALS[task][0]
        if metric not in differences:
            continue
        text = f"test {metric.replace('_', ' ')} less that of {other.replace('_', ' ')}: {differences[metric]:+.3f}"
        low_high = differences.get(f"{metric}_ci")
        if low_high and None not in low_high:  # undefined where every resample has a single class
            text += " (95 % interval {:+.3f} to {:+.3f})".format(*low_high)
        if by_seed := differences.get(f"{metric}_seeds"):
            text += ", seed by seed {:+.3f} ± {:.3f}".format(*by_seed)
        print(text)
    for network, distance in summary.get("domain_gap", {}).items():
        print(f"proxy A-distance of the domains, {network.replace('_', ' ')}: {distance:.2f} (0 alike, 2 apart)")
    best = summary["best_epoch"]
    epochs = ", ".join(map(str, best)) if isinstance(best, list) else best
    if summary["epochs"]:
        print(f"best epoch {epochs} of {summary['epochs']}, {_duration(summary['seconds'])} of training")
    print(f"written to {output}")
