"""Metrics, intervals and probabilities of one scored part, in the form that every result is stored."""

from typing import Any

import numpy as np

from jaxdti.data.pairs.leaks import seen_in_train
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.evaluation.calibration import Calibration
from jaxdti.evaluation.intervals import bootstrap_interval, unseen_groups
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics

INTERVALS = {"classification": ("auroc", "auprc"), "regression": ("concordance_index", "mse")}


def evaluate_part(
    table: InteractionTable,
    train: np.ndarray,
    rows: np.ndarray,
    score: np.ndarray,
    *,
    task: str,
    calibration: Calibration,
    bootstrap: int,
) -> dict[str, Any]:
    """Metrics of the labelled rows of a part, JSON-ready (None where undefined).

    Args:
      train: rows trained on; they decide what is resampled (whole drugs or proteins where train has none of them)
        and, for regression, which pairs were seen. May be empty: then pairs are resampled.
      rows: int64 [R] of the part.
      score: [R]; logits, or affinities in the label's unit.
      bootstrap: resamples of the 95 % intervals; 0 for none.
    """
    known = np.isfinite(table.label[rows])
    rows, score = rows[known], np.asarray(score, np.float64)[known]
    label = table.label[rows]
    if task == "classification":
        probability = calibration.probability(score)
        metrics: dict[str, Any] = dict(classification_metrics(label, score, probability, calibration.threshold))
    else:
        metrics = dict(regression_metrics(label, score))
        seen = seen_in_train(table, train, rows)
        if seen.any() and not seen.all():
            metrics["pairs_seen_in_train"] = int(seen.sum())
            unseen = regression_metrics(label[~seen], score[~seen])
            metrics |= {f"unseen_pairs_{name}": value for name, value in unseen.items()}
    groups = unseen_groups(table, train, rows) if len(train) else None
    for name in INTERVALS[task] if bootstrap else ():
        metrics[f"{name}_ci"] = list(bootstrap_interval(name, label, score, groups=groups, resamples=bootstrap))
    return json_ready(metrics | {"pairs": len(rows)})


def json_ready(value: Any) -> Any:
    """NaN and infinity become None, NumPy numbers plain ones, all the way down."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
