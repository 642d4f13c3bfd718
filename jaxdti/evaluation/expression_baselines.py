"""Drug-response baselines on raw expression."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.ensemble import RandomForestClassifier

L1_SHARE = 0.5


_PENALTIES = np.geomspace(0.5, 0.005, 9)  # shares of the smallest penalty that leaves no gene


_ITERATIONS = 300
_TREES, _LEAF = 100, 2


def elastic_net_scores(
    x: np.ndarray,
    label: np.ndarray,
    fold: np.ndarray,
    held: np.ndarray,
    others: np.ndarray,
    look: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regressions with an elastic net penalty, one for each column, all fitted together.

        mean cross-entropy + penalty (L1_SHARE |w|_1 + (1 - L1_SHARE) / 2 |w|^2)

    by accelerated proximal gradient steps along a path of penalties; each keeps the one with the lowest loss on its
    held-out fold.

    Args:
      x: float32 [N, G], standardised source profiles.
      label: [R, N], 0 or 1, NaN where there is none.
      fold: int [R, N], -1 where there is no label.
      held: int [R], the fold that chooses the penalty.
      others: float32 [M, G], profiles to score too.
      look: called after every penalty; what it raises ends the fit.

    Returns:
      Probabilities float32 [R, N] and [R, M].
    """
    train = (fold >= 0) & (fold != held[:, None])
    chosen = fold == held[:, None]
    y = np.where(train | chosen, label, 0.0)
    weights, biases = _elastic_net_path(jnp.asarray(x), jnp.asarray(y.T, jnp.float32), jnp.asarray(train.T), look)
    logits = np.einsum("ng,pgr->prn", x, weights) + biases[:, :, None]
    entropy = np.logaddexp(0.0, logits) - y[None] * logits
    loss = np.where(chosen[None], entropy, 0.0).sum(-1) / chosen.sum(-1)
    best = loss.argmin(0)
    rows = np.arange(len(best))
    scores = np.einsum("mg,rg->rm", others, weights[best, :, rows]) + biases[best, rows][:, None]
    sigmoid = lambda z: (1.0 / (1.0 + np.exp(-np.clip(z, -60, 60)))).astype(np.float32)
    return sigmoid(logits[best, rows]), sigmoid(scores)


def _elastic_net_path(x: Array, y: Array, train: Array, look: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
    """Weights [P, G, R] and biases [P, R] for x [N, G], y [N, R], train [N, R]; each penalty starts from the last."""
    count = jnp.sum(train, 0)
    spectral = jnp.linalg.norm(x, 2) ** 2  # of all rows: an upper bound for those of any training part
    step = 4.0 * count / (spectral + len(x))
    mean = jnp.sum(jnp.where(train, y, 0.0), 0) / count
    gradient_at_0 = x.T @ jnp.where(train, mean[None] - y, 0.0) / count[None]
    largest = jnp.max(jnp.abs(gradient_at_0), 0) / L1_SHARE
    solution = (jnp.zeros((x.shape[1], y.shape[1])), jnp.log(mean / (1.0 - mean)))
    path = []
    for share in _PENALTIES:
        solution = _elastic_net(x, y, train, step, share * largest, solution)
        path.append(jax.device_get(solution))
        look()
    weights, biases = zip(*path, strict=True)
    return np.stack(weights), np.stack(biases)


@jax.jit
def _elastic_net(
    x: Array, y: Array, train: Array, step: Array, penalty: Array, start: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Weights [G, R] and biases [R] for penalties [R], with steps [R] of each column's own."""
    count = jnp.sum(train, 0)
    threshold = (step * penalty * L1_SHARE)[None]
    shrinkage = (1.0 + step * penalty * (1.0 - L1_SHARE))[None]

    def descend(state, _):
        (w, b), (previous_w, previous_b), t = state
        following = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * t * t))
        ahead = (t - 1.0) / following
        v, c = w + ahead * (w - previous_w), b + ahead * (b - previous_b)
        error = jnp.where(train, jax.nn.sigmoid(x @ v + c[None]) - y, 0.0) / count[None]
        moved = v - step[None] * (x.T @ error)
        shrunk = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - threshold, 0.0) / shrinkage
        return ((shrunk, c - step * jnp.sum(error, 0)), (w, b), following), None

    (solution, _, _), _ = jax.lax.scan(descend, (start, start, 1.0), length=_ITERATIONS)
    return solution


def forest_scores(
    x: np.ndarray,
    label: np.ndarray,
    fold: np.ndarray,
    held: np.ndarray,
    others: np.ndarray,
    seed: int,
    look: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Random forests, one for each of R columns; arguments and results as ``elastic_net_scores``.

    ``look`` is called after every forest.
    """
    own, foreign = [], []
    for i in range(len(label)):
        train = (fold[i] >= 0) & (fold[i] != held[i])
        model = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, n_jobs=2, random_state=seed)
        model.fit(x[train], label[i, train])
        both = np.asarray(model.predict_proba(np.concatenate([x, others])), np.float32)[:, 1]
        own.append(both[: len(x)])
        foreign.append(both[len(x) :])
        look()
    return np.stack(own), np.stack(foreign)
