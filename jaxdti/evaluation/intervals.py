"""Bootstrap intervals of metrics: pairs, whole drugs, whole proteins, or drugs and proteins both are resampled."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxdti.data.pairs.table import InteractionTable
from jaxdti.evaluation.metrics import check_binary, finite_columns, weighted_concordance

_BLOCK_ELEMENTS = 1 << 22  # float64 weights at a time, 32 MiB


def bootstrap_interval(
    metric: str,
    label: np.ndarray,
    score: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric.

    Args:
      metric: a key of ``INTERVAL_METRICS``.
      label: [N]; 0 or 1 for auroc and auprc.
      score: [N].
      groups: what is resampled. None: single pairs. Integer [N]: whole groups of rows with the same id (such as the
        drugs). Integer [N, K]: each column is resampled independently and a row weighs the product of its K draws,
        the pigeonhole bootstrap (Owen 2007, doi 10.1214/07-AOAS122), for splits cold in drugs and proteins.
      resamples: number of bootstrap samples.
      seed: same seed, same interval.
      level: coverage.

    Returns:
      (low, high). Resamples where the metric is undefined (one class only) are left out; NaN when all are.

    Raises:
      ValueError: unknown metric, empty or non-finite input, shapes differ, label not binary where it must be.
    """
    label, score = finite_columns(label=label, score=score)
    function = _metric(metric, label)
    values = [function(label, score, w) for w in _weights(len(label), groups, resamples, seed)]
    return percentiles(np.concatenate(values), level)


def paired_difference_interval(
    metric: str,
    label: np.ndarray,
    score_a: np.ndarray,
    score_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of metric(score_a) - metric(score_b), both on the same resamples; see ``bootstrap_interval``."""
    label, score_a, score_b = finite_columns(label=label, score_a=score_a, score_b=score_b)
    function = _metric(metric, label)
    values = [
        function(label, score_a, w) - function(label, score_b, w) for w in _weights(len(label), groups, resamples, seed)
    ]
    return percentiles(np.concatenate(values), level)


def unseen_groups(table: InteractionTable, train: np.ndarray, evaluate: np.ndarray) -> np.ndarray | None:
    """The ``groups`` that suit a split: the entities of ``evaluate`` that no training row has.

    Args:
      table: the pairs.
      train, evaluate: integer row indices [N], [M].

    Returns:
      None (resample pairs) when drugs and proteins are shared with train; otherwise integer [M, 1] or [M, 2] with
      the drugs, the proteins or both, whichever kind train shares none of.
    """
    columns = [
        ids[evaluate] for ids in (table.drug, table.protein) if not np.intersect1d(ids[train], ids[evaluate]).size
    ]
    return np.stack(columns, axis=1) if columns else None


def weighted_auprc(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision under R sets of row weights: label, score [N], weights [R, N] -> float64 [R]."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.concatenate([np.diff(score[order]) != 0, [True]]))  # tied scores are called together
    weights = weights[:, order]
    called = np.cumsum(weights, axis=1)[:, ends]
    hits = np.cumsum(weights * label[order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    positive = hits[:, -1]
    both = (positive > 0) & (positive < called[:, -1])
    return np.divide((gained * precision).sum(axis=1), positive, out=np.full(len(weights), np.nan), where=both)


def weighted_mse(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared error under R sets of row weights: label, score [N], weights [R, N] -> float64 [R]."""
    total = weights.sum(axis=1)
    return np.divide(weights @ (label - score) ** 2, total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted_rmse(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of ``weighted_mse``."""
    return np.sqrt(weighted_mse(label, score, weights))


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

INTERVAL_METRICS: dict[str, Metric] = {
    "auroc": weighted_concordance,  # the same thing for binary labels
    "auprc": weighted_auprc,
    "concordance_index": weighted_concordance,
    "mse": weighted_mse,
    "rmse": weighted_rmse,
}


def _metric(name: str, label: np.ndarray) -> Metric:
    if name not in INTERVAL_METRICS:
        raise ValueError(f"metric {name!r} has no bootstrap; choose from {', '.join(INTERVAL_METRICS)}")
    if name in ("auroc", "auprc"):
        check_binary(label)
    return INTERVAL_METRICS[name]


def _weights(rows: int, groups: np.ndarray | None, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row weights of all resamples, float64 [some, rows] at a time; how they are blocked does not alter them."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least 1 is needed")
    columns = [np.arange(rows)] if groups is None else list(np.asarray(groups).reshape(len(groups), -1).T)
    if any(len(column) != rows for column in columns):
        raise ValueError(f"groups has {len(columns[0])} rows where label has {rows}")
    members = [np.unique(column, return_inverse=True)[1] for column in columns]
    generators = np.random.default_rng(seed).spawn(len(members))
    block = max(1, _BLOCK_ELEMENTS // rows)
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        weights = np.ones((count, rows))
        for member, generator in zip(members, generators, strict=True):
            size = int(member.max()) + 1
            drawn = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
            weights *= times[:, member]
        yield weights


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """The central interval that holds a share ``level`` of the values [N], NaN left out; NaN where there are none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
