"""Accuracies of several methods on several target domains: tables, a summary and a figure."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score

from jaxdti.evaluation.domain_gap import domain_table, plot_domains, proxy_a_distance
from jaxdti.evaluation.part import json_ready
from jaxdti.evaluation.vector_baselines import VECTOR_BASELINES
from jaxdti.files import write_csv, write_json

COMPARED = ("none", "dann", "scratch", "source")  # the methods, and starts of a transfer, that others are held against
_GAP_ROWS = 20  # of each domain, at least
_MOST_POINTS = 300  # of each domain in a picture
_LEVEL = 0.95
ON_DATABASE = "target_accuracy_on_"  # followed by its name: of the test rows of one database
_NOT_MEASURED = ("task", "method", "seed", "failed", "best_epoch")

Row = dict[str, Any]


def measure_domains(
    source_logits: np.ndarray,
    source_label: np.ndarray,
    target_logits: np.ndarray,
    target_label: np.ndarray,
    source_features: np.ndarray | None = None,
    target_features: np.ndarray | None = None,
    databases: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Of one network: accuracies, its share of predictions outside the target's classes, and the domains' distance.

    Args:
      source_logits: float [N, K] of validation rows; source_label: int [N]; source_features: float [N, F].
      target_logits: float [M, K] of test rows; target_label: int [M]; target_features: float [M, F].
      databases: name -> bool [M], test rows whose accuracy is told apart; they may overlap.

    Returns:
      ``target_accuracy``, ``target_balanced_accuracy`` (mean over the classes that the target has), ``outlier_share``,
      ``source_accuracy`` and ``proxy_a_distance``; the last NaN where a domain has too few rows, or without features.
      For each database ``target_accuracy_on_NAME``, NaN without rows. Of two classes also ``target_auroc``, of the
      second logit less the first; NaN where the test rows are of one class.
    """
    called = np.argmax(target_logits, -1)
    right, present = called == target_label, np.unique(target_label)
    distance = float("nan")
    if source_features is not None and target_features is not None:
        if min(len(source_label), len(target_label)) >= _GAP_ROWS:
            distance = proxy_a_distance(source_features, target_features)
    return (
        {
            "target_accuracy": float(np.mean(right)),
            "target_balanced_accuracy": float(np.mean([np.mean(right[target_label == k]) for k in present])),
            "outlier_share": float(np.mean(~np.isin(called, present))),
            "source_accuracy": float(np.mean(np.argmax(source_logits, -1) == source_label)),
            "proxy_a_distance": distance,
        }
        | _auroc(target_logits, target_label)
        | {
            f"{ON_DATABASE}{name}": float(np.mean(right[own])) if own.any() else float("nan")
            for name, own in (databases or {}).items()
        }
    )


def _auroc(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    if logits.shape[-1] != 2:
        return {}
    if np.ptp(label) == 0:
        return {"target_auroc": float("nan")}
    return {"target_auroc": float(roc_auc_score(label, logits[:, 1] - logits[:, 0]))}


def domain_points(task: str, method: str, source: np.ndarray, target: np.ndarray) -> pa.Table:
    """``domain_table`` of one network with a column "task", for ``draw_tasks``; at most 300 rows a domain, at random.

    Args:
      source, target: features of validation and test rows, float [N, F] and [M, F].
    """
    sample = lambda x: x[np.sort(np.random.default_rng(0).permutation(len(x))[:_MOST_POINTS])]
    points = domain_table({method: (sample(source), sample(target))})
    return points.add_column(0, "task", pa.array([task] * len(points)))


def summarise_domains(rows: Sequence[Row]) -> list[Row]:
    """For each task and method, and for the mean over the tasks (task "mean"): mean and sd over the seeds.

    Rows of failed networks (``failed`` not empty) are counted and left out, and of "mean" the seeds that lack a task by
    it: ``networks`` then counts the seeds that are left, ``failed`` the rows of all tasks. The sd is NaN where there is
    one. ``above_none`` and ``above_dann`` compare the mean target accuracy with those methods on the same task; of
    "mean" they count the tasks.
    """
    tasks, methods = _names(rows, "task"), _names(rows, "method")
    measures = [name for name in rows[0] if name not in _NOT_MEASURED]
    found: dict[tuple[str, str], Row] = {}
    for method in methods:
        for task in tasks:
            own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            kept = [row for row in own if not row["failed"]]
            cell: Row = {"task": task, "method": method, "networks": len(kept), "failed": len(own) - len(kept)}
            for name in measures:
                cell |= _mean_and_sd(name, [row[name] for row in kept])
            found[task, method] = cell
        # Seed by seed, so that the sd is that of the mean over tasks.
        failed = sum(found[task, method]["failed"] for task in tasks)
        whole = {"task": "mean", "method": method, "networks": 0, "failed": failed}
        for name in measures:
            by_seed = _means_over_tasks(rows, method, name)
            whole |= {"networks": len(by_seed)} | _mean_and_sd(name, list(by_seed.values()))
        found["mean", method] = whole
    for (task, method), cell in found.items():
        for other in COMPARED:
            if other in methods and method != other:
                compared = tasks if task == "mean" else [task]
                better = lambda each, m=method, b=other: (
                    found[each, m]["target_accuracy"] > found[each, b]["target_accuracy"]
                )
                cell[f"above_{other}"] = sum(map(better, compared))
    return list(found.values())


def paired_differences(rows: Sequence[Row]) -> list[Row]:
    """Each method's target accuracy, mean over the tasks, less that of ``COMPARED`` methods, seed by seed.

    Returns:
      for each pair ``method`` and ``less``, the number of ``seeds`` that both have on all tasks, ``target_accuracy``
      (the mean difference) with its sd over the seeds, and ``low`` and ``high``, the 95 % interval of the mean by
      Student's t; sd and interval NaN with one seed.
    """
    methods, found = _names(rows, "method"), []
    means = {method: _means_over_tasks(rows, method, "target_accuracy") for method in methods}
    for method in methods:
        for other in COMPARED:
            if other not in methods or method == other:
                continue
            gains = [means[method][seed] - means[other][seed] for seed in means[method] if seed in means[other]]
            row = {"method": method, "less": other, "seeds": len(gains)} | _mean_and_sd("target_accuracy", gains)
            half = float("nan")
            if len(gains) > 1:
                half = student_t.ppf((1 + _LEVEL) / 2, len(gains) - 1) * row["target_accuracy_sd"] / len(gains) ** 0.5
            centre = row["target_accuracy"]
            found.append(row | {"low": float(centre - half), "high": float(centre + half)})
    return found


def verdicts(summary: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """How each method stands to the source alone and to DANN, in a sentence each."""
    sentences, count = [], sum(row["task"] != "mean" and row["method"] == summary[0]["method"] for row in summary)
    for row in summary:
        if row["task"] == "mean":
            than = [f"{other} on {row[f'above_{other}']} of {count}" for other in COMPARED if f"above_{other}" in row]
            less = [_difference_text(gain) for gain in differences if gain["method"] == row["method"]]
            if than:
                place = f"above {' and '.join(than)} targets"
                sentences.append(f"{row['method']}: {place}; its mean differs by {' and '.join(less)}")
    return sentences


def _difference_text(gain: Row) -> str:
    interval = f" (95 % interval {gain['low']:.3f} to {gain['high']:.3f})" if np.isfinite(gain["low"]) else ""
    return f"{gain['target_accuracy']:.3f}{interval} from {gain['less']}"


def domain_lines(summary: Sequence[Row], measure: str = "target_accuracy") -> list[tuple[str, ...]]:
    """A measure by task and method, header first; the last line is the mean over the tasks."""
    tasks, methods = _names(summary, "task"), _names(summary, "method")
    tasks = [task for task in tasks if task != "mean"] + ["mean"]
    cells = {(row["task"], row["method"]): row for row in summary}
    text = lambda row: mean_and_sd_text(row, measure) + "*" * bool(row["failed"])
    return [("target", *methods)] + [(task, *(text(cells[task, method]) for method in methods)) for task in tasks]


def database_lines(summary: Sequence[Row]) -> list[tuple[str, ...]]:
    """Target accuracy by database and method, mean over the tasks, header first; empty without databases."""
    whole = [row for row in summary if row["task"] == "mean"]
    names = [name for name in whole[0] if name.startswith(ON_DATABASE) and not name.endswith("_sd")]
    lines = [
        (name.removeprefix(ON_DATABASE), *(mean_and_sd_text(row, name) + "*" * bool(row["failed"]) for row in whole))
        for name in names
    ]
    return [("database", *(row["method"] for row in whole)), *lines] if lines else []


def mean_and_sd_text(row: Row, name: str) -> str:
    """``0.500 ± 0.038``, or the mean alone where there is no sd."""
    sd = row[f"{name}_sd"]
    return f"{row[name]:.3f}" + (f" ± {sd:.3f}" if np.isfinite(sd) else "")


def write_domain_results(output: Path, rows: Sequence[Row], summary: Sequence[Row], facts: Row) -> None:
    """results.csv (a row a network), summary.json and accuracy.png."""
    write_csv(output / "results.csv", rows)
    write_json(output / "summary.json", json_ready(facts | {"results": list(summary)}))
    draw_accuracies(summary, output / "accuracy.png")


def draw_accuracies(summary: Sequence[Row], path: Path) -> None:
    """Draws mean target accuracies with their sds as PNG: tasks side by side, a colour a method, baselines square."""
    from matplotlib.figure import Figure

    tasks = [task for task in _names(summary, "task") if task != "mean"] + ["mean"]
    methods = _names(summary, "method")
    cells = {(row["task"], row["method"]): row for row in summary}
    figure = Figure(figsize=(max(5.0, 1.4 * len(tasks)), 4.0), layout="constrained")
    panel = figure.subplots()
    for i, method in enumerate(methods):
        place = np.arange(len(tasks)) + 0.7 * ((i + 0.5) / len(methods) - 0.5)
        mean, sd = ([cells[task, method][name] for task in tasks] for name in ("target_accuracy", "target_accuracy_sd"))
        mark = "s" if method in VECTOR_BASELINES else "o"
        panel.errorbar(place, mean, yerr=sd, fmt=mark, markersize=4, linewidth=1, color=f"C{i}", label=method)
    panel.set_xticks(np.arange(len(tasks)), tasks)
    panel.set_xlabel("target")
    panel.set_ylabel("accuracy on target test rows")
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, ncols=3, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0))
    figure.savefig(path, dpi=150)


def draw_tasks(points: pa.Table, rows: Sequence[Row], folder: Path) -> None:
    """Draws FOLDER/TASK.png for each task: how far source and target lie apart in the networks of one seed.

    Args:
      points: ``domain_points`` of all tasks and methods, concatenated.
      rows: results of that seed, whose proxy A-distances stand in the titles.
    """
    folder.mkdir(exist_ok=True)
    task_of_point = np.array(points["task"].to_pylist())
    methods = set(points["network"].to_pylist())
    for task in _names(rows, "task"):
        titles = {}
        for row in rows:
            if row["task"] == task and row["method"] in methods:
                distance = row["proxy_a_distance"]
                told = f"proxy A-distance {distance:.2f}" if np.isfinite(distance) else "too few rows for a distance"
                titles[row["method"]] = f"{row['method']}: {told}"
        plot_domains(points.filter(pa.array(task_of_point == task)), titles, folder / f"{task}.png")


def _names(rows: Iterable[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _means_over_tasks(rows: Sequence[Row], method: str, name: str) -> dict[Any, float]:
    """Seed -> mean over all tasks; without the seeds that lack one, whose mean would be of other tasks."""
    values: dict[Any, list[float]] = {}
    for row in rows:
        if row["method"] == method and not row["failed"]:
            values.setdefault(row["seed"], []).append(row[name])
    tasks = len(_names(rows, "task"))
    return {seed: float(np.mean(own)) for seed, own in values.items() if len(own) == tasks}


def _mean_and_sd(name: str, values: Sequence[float]) -> dict[str, float]:
    mean = float(np.mean(values)) if len(values) else float("nan")
    return {name: mean, f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")}
