"""From raw scores to probabilities and decisions: class weights undone, one temperature, one threshold.

Everything here is fitted on validation pairs only and stored with the run.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from jaxdti.evaluation.metrics import check_binary, finite_columns

TEMPERATURES = (0.01, 100.0)  # bounds of the fit


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How scores become probabilities; the defaults are the plain sigmoid and 0.5, as for imported weights."""

    threshold: float = 0.5  # probability from which a pair is called positive
    temperature: float = 1.0  # divides the logit
    logit_offset: float = 0.0  # log(w1 / w0) of the class weights in training, subtracted from the score first

    def probability(self, score: np.ndarray) -> np.ndarray:
        """Probability of label 1 for raw scores (logits) of any shape, float64."""
        return expit((np.asarray(score, np.float64) - self.logit_offset) / self.temperature)


def fit_calibration(label: np.ndarray, score: np.ndarray, *, logit_offset: float = 0.0) -> Calibration:
    """Fits the temperature, then the threshold.

    Args:
      label: [N], 0 or 1, of validation pairs.
      score: [N], raw logits.
      logit_offset: log(w1 / w0) when class 1 weighed w1 and class 0 weighed w0 in the training loss.

    Raises:
      ValueError: as ``fit_temperature``.
    """
    temperature = fit_temperature(label, score, prior_shift=logit_offset)
    scale = Calibration(temperature=temperature, logit_offset=logit_offset)
    threshold = fit_threshold(label, scale.probability(score))
    return Calibration(threshold=threshold, temperature=temperature, logit_offset=logit_offset)


def fit_temperature(label: np.ndarray, score: np.ndarray, prior_shift: float = 0.0) -> float:
    """Temperature T that minimises the cross-entropy of sigmoid((score - prior_shift) / T) (arXiv:1706.04599).

    The labels are replaced by Platt's targets, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2): perfectly separated scores then
    have a finite optimum instead of T = 0, and large samples are hardly touched. The loss is convex in 1 / T.

    Args:
      label: [N], 0 or 1.
      score: [N], raw logits.
      prior_shift: known offset of the logits.

    Returns:
      T within ``TEMPERATURES``; 1 when a class is missing or the shifted scores are all 0, as nothing can be fitted.

    Raises:
      ValueError: empty or non-finite input, shapes differ, label not 0 or 1.
    """
    label, score = finite_columns(label=label, score=score)
    check_binary(label)
    logit = score - prior_shift
    ones = int(label.sum())
    zeros = len(label) - ones
    if not ones or not zeros or not logit.any():
        return 1.0
    goal = np.where(label == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(log_inverse: float) -> float:
        scaled = np.exp(log_inverse) * logit
        return float(np.mean(np.logaddexp(0.0, scaled) - goal * scaled))

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(-np.log(high), -np.log(low)), method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(-found.x), low, high))


def fit_threshold(label: np.ndarray, probability: np.ndarray) -> float:
    """Threshold with the largest Youden's J = sensitivity + specificity - 1.

    Youden's J and not F1, because J does not depend on the share of positives, which differs between validation and
    the data that a shifted model meets; with many positives the best F1 may call every pair positive.

    Args:
      label: [N], 0 or 1, of validation pairs.
      probability: [N] in [0, 1].

    Returns:
      the middle between two neighbouring probabilities, of equally good ones the nearest to 0.5; 0.5 when a class is
      missing or no threshold is better than chance.

    Raises:
      ValueError: empty or non-finite input, shapes differ, label not 0 or 1, probability outside [0, 1].
    """
    label, probability = finite_columns(label=label, probability=probability)
    check_binary(label, probability)
    ones = label.sum()
    zeros = len(label) - ones
    values, place = np.unique(probability, return_inverse=True)
    if not ones or not zeros or len(values) == 1:
        return 0.5
    # Between values k and k + 1: the larger ones are called positive.
    positives = np.bincount(place, weights=label)[::-1].cumsum()[::-1][1:]
    negatives = np.bincount(place, weights=1 - label)[::-1].cumsum()[::-1][1:]
    gain = positives * zeros - negatives * ones  # J times ones times zeros: whole numbers, so ties are exact
    if gain.max() <= 0:
        return 0.5
    below, above = values[:-1], values[1:]
    middle = (below + above) / 2
    middle = np.where(middle > below, middle, above)  # neighbouring floats have no middle
    best = np.flatnonzero(gain == gain.max())
    return float(middle[best[np.argmin(np.abs(middle[best] - 0.5))]])
