"""Point metrics of scored pairs, as plain Python floats (NaN where a metric is undefined)."""

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

_ECE_BINS = 15


def classification_metrics(
    label: np.ndarray, score: np.ndarray, probability: np.ndarray, threshold: float
) -> dict[str, float]:
    """Ranking, decision and calibration metrics of N binary pairs.

    A pair is called positive where ``probability >= threshold``. A metric whose definition divides 0 by 0 is NaN
    (AUROC and AUPRC with one class only, precision without positive calls), except MCC, which is then 0 by custom.

    Args:
      label: [N], 0 or 1.
      score: [N], any monotonic score, larger = more likely to interact; used for the ranking metrics.
      probability: [N] in [0, 1].
      threshold: probability from which a pair counts as positive.

    Returns:
      auroc, auprc (average precision), accuracy, f1, sensitivity, specificity, precision, mcc, brier and ece
      (``expected_calibration_error``).

    Raises:
      ValueError: empty input, shapes differ, a value is not finite or out of its range.
    """
    label, score, probability = finite_columns(label=label, score=score, probability=probability)
    check_binary(label, probability)
    positive, called = label == 1, probability >= threshold
    tp, fp = int(np.sum(positive & called)), int(np.sum(~positive & called))
    fn, tn = int(np.sum(positive & ~called)), int(np.sum(~positive & ~called))
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    both = 0 < tp + fn < len(label)
    return {
        "auroc": float(roc_auc_score(label, score)) if both else float("nan"),
        "auprc": float(average_precision_score(label, score)) if both else float("nan"),
        "accuracy": (tp + tn) / len(label),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "mcc": (tp * tn - fp * fn) / margins**0.5 if margins else 0.0,
        "brier": float(np.mean((probability - label) ** 2)),
        "ece": expected_calibration_error(label, probability),
    }


def regression_metrics(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Errors and correlations of N predicted affinities.

    Args:
      label: [N], measured affinity, such as pKd.
      prediction: [N], in the same unit.

    Returns:
      mse, rmse, pearson, spearman and r2m (NaN when either side is constant), concordance_index (NaN when all labels
      are equal).

    Raises:
      ValueError: empty input, shapes differ or a value is not finite.
    """
    label, prediction = finite_columns(label=label, prediction=prediction)
    mse = float(np.mean((label - prediction) ** 2))
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "pearson": _pearson(label, prediction),
        "spearman": _pearson(rankdata(label), rankdata(prediction)),
        "concordance_index": concordance_index(label, prediction),
        "r2m": modified_r2(label, prediction),
    }


def expected_calibration_error(label: np.ndarray, probability: np.ndarray, *, bins: int = _ECE_BINS) -> float:
    """Mean gap between probability and rate of positives, over equal-width bins weighted by size (arXiv:1706.04599).

    Args:
      label: [N], 0 or 1.
      probability: [N] in [0, 1]; bin k holds [k / bins, (k + 1) / bins), the last one 1 as well.
      bins: number of bins.
    """
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    excess = np.bincount(bin_of, weights=probability - label, minlength=bins)
    return float(np.abs(excess).sum() / len(bin_of))


def modified_r2(label: np.ndarray, prediction: np.ndarray) -> float:
    """r²m = r² (1 - sqrt(|r² - r0²|)), the external validation metric of QSAR (Roy & Roy 2008, as used with DeepDTA).

    r is Pearson's correlation; r0² is the coefficient of determination of the line through the origin,
    ``1 - Σ(y - k f)² / Σ(y - mean y)²`` with ``k = Σ y f / Σ f²`` for label y and prediction f. (Some published
    scripts square r² and r0² once more below the root; their figures differ.)

    Args:
      label, prediction: [N], finite.

    Returns:
      at most 1; NaN when either side is constant.
    """
    label, prediction = finite_columns(label=label, prediction=prediction)
    r2 = _pearson(label, prediction) ** 2
    if np.isnan(r2):
        return r2
    slope = (label @ prediction) / (prediction @ prediction)
    r02 = 1 - np.sum((label - slope * prediction) ** 2) / np.sum((label - label.mean()) ** 2)
    return float(r2 * (1 - np.sqrt(np.abs(r2 - r02))))


def concordance_index(label: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the pairs with different labels that the prediction puts in the right order (Gönen & Heller 2005).

    Over all i, j with ``label[i] > label[j]``: 1 when ``prediction[i] > prediction[j]``, 0.5 when equal, else 0;
    pairs with equal labels are left out, as is usual for Davis and KIBA. For binary labels this is the AUROC.

    Args:
      label, prediction: [N], finite.

    Returns:
      0 to 1; NaN when all labels are equal.
    """
    label, prediction = finite_columns(label=label, prediction=prediction)
    return float(weighted_concordance(label, prediction, np.ones((1, len(label))))[0])


def weighted_concordance(label: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Concordance indices under R sets of row weights: pair (i, j) counts ``weights[r, i] * weights[r, j]`` times.

    Which rows meet in which order is worked out once for all R, so that a bootstrap is a few cumulative sums:
    O(N log L) each for L distinct labels, after the O(N log N) sort.

    Args:
      label, prediction: [N], finite.
      weights: float64 [R, N], not negative.

    Returns:
      float64 [R]; NaN where no pair of different labels has weight.
    """
    label = np.unique(label, return_inverse=True)[1]
    prediction = np.unique(prediction, return_inverse=True)[1]
    order = np.lexsort((label, prediction))  # by prediction; ties by rising label are not counted as discordant
    label, prediction, weights = label[order], prediction[order], weights[:, order]

    by_label = np.argsort(label, kind="stable")
    all_pairs = weights.sum(axis=1) ** 2
    comparable = (all_pairs - _same_pairs(weights[:, by_label], label[by_label])) / 2
    both = prediction * (label.max() + 1) + label
    tied = (_same_pairs(weights, prediction) - _same_pairs(weights, both)) / 2

    # Radix counting of inversions: a pair is settled at the highest bit in which its labels differ. Before each bit
    # the rows are sorted by the bits above it, and by prediction among equals.
    discordant = np.zeros(len(weights))
    at = np.arange(len(label))
    for bit in reversed(range(int(label.max()).bit_length())):
        ones = (label[at] >> bit & 1).astype(bool)
        group = label[at] >> (bit + 1)
        zero = np.flatnonzero(~ones)
        ones_before = np.concatenate([[0], np.cumsum(ones)])
        weight_before = np.zeros((len(weights), ones_before[-1] + 1))
        np.cumsum(weights[:, at[ones]], axis=1, out=weight_before[:, 1:])
        first = ones_before[np.searchsorted(group, group[zero])]  # ones before the group begins
        larger = weight_before[:, ones_before[zero]] - weight_before[:, first]
        discordant += np.einsum("rz,rz->r", larger, weights[:, at[zero]])
        at = at[np.argsort(label[at] >> bit, kind="stable")]
    concordant = comparable - discordant - tied / 2
    return np.divide(concordant, comparable, out=np.full(len(weights), np.nan), where=comparable > 0)


def finite_columns(**columns: np.ndarray) -> list[np.ndarray]:
    """The named columns as float64 [N].

    Raises:
      ValueError: a column is empty, not one-dimensional, of another length than the first, or holds NaN or infinity.
    """
    arrays = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    shape = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.ndim != 1 or not array.size or array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; expected one dimension, not empty, as all columns")
        if bad := int(np.sum(~np.isfinite(array))):
            first = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name}: {bad} of {array.size} values not finite; the first is {array[first]} at {first}")
    return list(arrays.values())


def check_binary(label: np.ndarray, probability: np.ndarray | None = None) -> None:
    """Raises ValueError for a label other than 0 or 1, or a probability outside [0, 1]."""
    if len(bad := label[(label != 0) & (label != 1)]):
        raise ValueError(f"label: {len(bad)} values are neither 0 nor 1; the first is {bad[0]:g}")
    if probability is not None and (probability.min() < 0 or probability.max() > 1):
        raise ValueError(f"probability spans {probability.min():g} to {probability.max():g}; expected 0 to 1")


def _same_pairs(weights: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Sum of squared group weights, [R], for rows sorted by ``key``."""
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return np.sum(np.add.reduceat(weights, starts, axis=1) ** 2, axis=1)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))
