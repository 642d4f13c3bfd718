"""What stands beside the pre-trained encoders, and how all of them are measured on patients."""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from jaxdti.evaluation.intervals import bootstrap_interval
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics

_FEWEST_IN_GROUP = 5  # of responders, and of others, for a result within a group


def validation_auroc(label: np.ndarray, fold: np.ndarray, score: np.ndarray) -> float:
    """Mean over folds of the AUROC on the held-out samples.

    Args:
      label: [F, N], of each held-out fold, NaN where there is none.
      fold: int [N].
      score: [F, N], of the model that did not see fold f.
    """
    values = []
    for held in range(len(label)):
        rows = fold == held
        if 0 < label[held, rows].sum() < rows.sum():
            values.append(roc_auc_score(label[held, rows], score[held, rows]))
    return float(np.mean(values)) if values else float("nan")


def target_metrics(response: np.ndarray, score: np.ndarray, kind: str, bootstrap: int, seed: int = 0) -> dict:
    """How scores [M] (high = responds) rank the target samples with a response [M] (NaN = none).

    Returns:
      ``samples`` and, for binary responses, ``responders``, ``auroc`` and ``auprc`` (None with one class only), for
      continuous ones (low = responds) ``spearman`` of score and minus response and ``concordance_index``; each with a
      95 % bootstrap interval ``..._ci`` over samples if ``bootstrap`` is not 0.
    """
    known = np.isfinite(response)
    count = int(known.sum())
    names = ("auroc", "auprc") if kind == "binary" else ("spearman", "concordance_index")
    metrics: dict = {"samples": count} | ({"responders": int(response[known].sum())} if kind == "binary" else {})
    metrics |= dict.fromkeys(names)
    varied = count > 1 and np.ptp(response[known]) > 0
    if not varied:
        return metrics
    label, given = response[known] if kind == "binary" else -response[known], score[known].astype(np.float64)
    if kind == "binary":
        found = classification_metrics(label, given, np.clip(given, 0, 1), 0.5)
    else:
        found = regression_metrics(label, given)
    for name in names:
        metrics[name] = found[name] if np.isfinite(found[name]) else None
        if bootstrap and metrics[name] is not None:
            metrics[f"{name}_ci"] = list(_interval(name, label, given, bootstrap, seed))
    return metrics


def _interval(name: str, label: np.ndarray, score: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    if name != "spearman":
        return bootstrap_interval(name, label, score, resamples=resamples, seed=seed)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(label), size=(resamples, len(label)))
    values = [regression_metrics(label[rows], score[rows])["spearman"] for rows in drawn]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def within_groups(
    response: np.ndarray, score: np.ndarray, groups: np.ndarray, bootstrap: int = 0
) -> dict[str, dict[str, Any]]:
    """``target_metrics`` of labels within each group (such as a cancer type) with five responders and five others.

    A sample with an empty group is in none.
    """
    results = {}
    for name in sorted(set(groups) - {""}):
        rows = (groups == name) & np.isfinite(response)
        responders = int(response[rows].sum())
        if min(responders, rows.sum() - responders) >= _FEWEST_IN_GROUP:
            results[str(name)] = target_metrics(response[rows], score[rows], "binary", bootstrap)
    return results
