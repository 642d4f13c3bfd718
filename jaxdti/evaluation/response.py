"""What stands beside the pre-trained encoders, and how all of them are measured on patients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from jaxdti.evaluation.intervals import bootstrap_interval
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics

L1_SHARE = 0.5
_PENALTIES = np.geomspace(0.5, 0.005, 9)  # shares of the smallest penalty that leaves no gene
_ITERATIONS = 300
_TREES, _LEAF = 100, 2
_FEWEST_IN_GROUP = 5  # of responders, and of others, for a result within a group


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


def domain_accuracy(source: np.ndarray, target: np.ndarray, seed: int = 0) -> float:
    """How well a logistic regression tells the domains apart by codes [N, D] and [M, D]: balanced accuracy.

    0.5 is chance. Two halves of each domain, both scored by the model of the others. NaN where a domain has one sample.
    """
    if min(len(source), len(target)) < 2:
        return float("nan")
    x = np.concatenate([source, target])
    scale = x.std(0)
    x = (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)
    domain = np.repeat([0, 1], [len(source), len(target)])
    rng = np.random.default_rng(seed)
    half = np.concatenate([rng.permutation(len(part)) % 2 for part in (source, target)])
    called = np.empty_like(domain)
    for side in (0, 1):
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        called[half == side] = model.fit(x[half != side], domain[half != side]).predict(x[half == side])
    return float(balanced_accuracy_score(domain, called))


def principal_plane(*parts: np.ndarray) -> Sequence[np.ndarray]:
    """Each part [N_i, D] on the first two principal axes of all of them, [N_i, 2]."""
    x = np.concatenate(parts).astype(np.float64)
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2][:2]
    return np.split(x @ axes.T, np.cumsum([len(part) for part in parts])[:-1])
