"""How good an adapted network is on the target, told without a label of the target; larger is better."""

import numpy as np
from scipy.special import xlogy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def prediction_information(probability: np.ndarray) -> float:
    """``H(mean p) - mean H(p)`` in nats: predictions that are sure each, and of both classes together.

    It is the mutual information of pair and predicted class (Bridle et al., NeurIPS 1991), between 0 and log 2.

    Args:
      probability: of class 1 for each target pair, float [N].
    """
    p = np.asarray(probability, np.float64)
    return float(_entropy(p.mean()) - _entropy(p).mean())


def _entropy(p: np.ndarray) -> np.ndarray:
    return -xlogy(p, p) - xlogy(1.0 - p, 1.0 - p)


def importance_weights(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Density of the target over that of the source at ``points``: float64 [V], as a linear classifier has it.

    With d = P(target | x) of a logistic regression, ``w(x) = n_source / n_target * d / (1 - d)``.

    Args:
      source, target: features that the classifier learns on, float [N, F] and [M, F].
      points: float [V, F].
    """
    x = np.concatenate([source, target])
    domain = np.repeat([0, 1], [len(source), len(target)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(x, domain)
    odds = np.exp(np.clip(classifier.decision_function(points), -20.0, 20.0))
    return len(source) / len(target) * odds


def deep_embedded_validation(loss: np.ndarray, weight: np.ndarray) -> float:
    """Risk on the target from losses on the source (You et al., ICML 2019, equation 8): smaller is better.

    ``mean(w l) + eta mean(w) - eta`` with ``eta = -cov(w l, w) / var(w)``, which has the expectation of importance
    weighted validation, ``mean(w l)``, and a smaller variance.

    Args:
      loss, weight: of each source validation pair, float [V].
    """
    loss, weight = np.asarray(loss, np.float64), np.asarray(weight, np.float64)
    weighted, variance = weight * loss, weight.var()
    if variance == 0.0:
        return float(weighted.mean())
    eta = -np.mean((weighted - weighted.mean()) * (weight - weight.mean())) / variance
    return float(weighted.mean() + eta * (weight.mean() - 1.0))
