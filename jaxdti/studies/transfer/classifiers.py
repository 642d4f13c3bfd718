"""Shallow classifiers on fixed feature vectors, the third transfer mode: logistic regression, SVM, random forest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from jaxdti.training.replicas import map_replicas

CLASSIFIERS = ("logistic", "svm", "forest")
FOREST_TREES = 100
_TOLERANCE = 1e-4  # of the gradient's norm, per row
_MOST_ITERATIONS = 200
_ABSENT = -1e9  # score of a class that no training row has


def logistic_regressions(
    features: np.ndarray | Array, label: np.ndarray, weight: np.ndarray, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """R binary logistic regressions with an L2 penalty, in one program: differing rows, labels, strengths.

    Each minimises ``Σ_i weight_i · CE(x_i w + b, label_i) + ||w||² / (2 strength)`` by L-BFGS; b is not penalised.

    Args:
      features: float32 [N, F], shared.
      label: float32 [R, N], 0 or 1; anything where the weight is 0.
      weight: float32 [R, N], how often a row counts; 0 leaves it out.
      strength: float32 [R], the inverse penalty (C of scikit-learn).

    Returns:
      w float32 [R, F] and b float32 [R].
    """
    label = np.where(weight > 0, label, 0.0).astype(np.float32)
    w, b = _solve(jnp.asarray(features, jnp.float32), label, np.float32(weight), np.float32(strength))
    return np.asarray(w), np.asarray(b)


@jax.jit
def _solve(features: Array, label: Array, weight: Array, strength: Array) -> tuple[Array, Array]:
    return map_replicas(partial(_fit_one, features), (0, 0, 0))(label, weight, strength)


def _fit_one(features: Array, label: Array, weight: Array, strength: Array) -> tuple[Array, Array]:
    rows = jnp.maximum(jnp.sum(weight), 1.0)

    def loss(params: tuple[Array, Array]) -> Array:
        w, b = params
        errors = optax.sigmoid_binary_cross_entropy(features @ w + b, label)
        return (jnp.sum(weight * errors) + 0.5 * jnp.sum(w**2) / strength) / rows

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, i, _ = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        moved: Any = optax.apply_updates(params, updates)
        return moved, state, i + 1, optax.tree.norm(gradient)

    unsolved = lambda carry: (carry[2] < _MOST_ITERATIONS) & (carry[3] > _TOLERANCE)
    start = (jnp.zeros(features.shape[1]), jnp.zeros(()))
    (w, b), *_ = jax.lax.while_loop(unsolved, step, (start, solver.init(start), 0, jnp.inf))
    return w, b


def support_vectors(features: np.ndarray, label: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Margins float32 [M], above 0 for class 1, of an SVM with a Gaussian kernel fitted to [N, F]; both classes in."""
    return SVC().fit(features, label).decision_function(query).astype(np.float32)


def random_forest(features: np.ndarray, label: np.ndarray, query: np.ndarray, seed: int) -> np.ndarray:
    """Share of trees for class 1, less a half, float32 [M]: above 0 for class 1; both classes in ``label``."""
    forest = RandomForestClassifier(FOREST_TREES, random_state=seed).fit(features, label)
    return (forest.predict_proba(query)[:, 1] - 0.5).astype(np.float32)


def classifier_scores(name: str, features: np.ndarray, label: np.ndarray, query: np.ndarray, seed: int) -> np.ndarray:
    """Scores float [M], above 0 for class 1, of one of ``CLASSIFIERS``, fitted to [N, F] with labels 0 and 1 [N]."""
    if name == "svm":
        return support_vectors(features, label, query)
    if name == "forest":
        return random_forest(features, label, query, seed)
    w, b = logistic_regressions(features, label[None], np.ones((1, len(label))), np.ones(1))
    return query @ w[0] + b[0]


def one_against_others(
    name: str, features: np.ndarray, label: np.ndarray, query: np.ndarray, classes: int, seed: int
) -> np.ndarray:
    """Scores float32 [M, K] of a classifier for each class; far below all others for classes that ``label`` lacks.

    Args:
      label: [N], numbers of classes.
    """
    scores = np.full((len(query), classes), _ABSENT, np.float32)
    present = np.unique(label).astype(int)
    for k in present:
        one = (label == k).astype(np.float32)
        scores[:, k] = classifier_scores(name, features, one, query, seed) if len(present) > 1 else 1.0
    return scores
