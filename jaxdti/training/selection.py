"""How good a network on feature vectors is on the target, told without a target label, inside a compiled program.

The numbers are those of ``jaxdti.evaluation.selection``, here in JAX, for K classes and with masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import entropy
from jaxdti.adaptation.san import class_weights
from jaxdti.layers.means import masked_mean, weighted_mean
from jaxdti.training.objective import affinity_loss, binding_loss
from jaxdti.training.plans import RowBatch, padded
from jaxdti.training.task import Trial

_INVERSE_PENALTY = 0.01  # C of scikit-learn
_NEWTON_STEPS = 15  # from zero; a class of one row in thousands needs the most
_LARGEST_LOG_ODDS = 20.0
_ROUNDING = 1e-5  # a standard deviation below this share of the mean is none


def masked_information(probabilities: Array, mask: Array) -> Array:
    """``H(mean p) - mean H(p)`` in nats, float32 []: the mutual information of row and predicted class.

    Between 0 and log K, larger is better (Bridle et al., NeurIPS 1991); 0 without rows.

    Args:
      probabilities: of the classes for each target row, float32 [N, K].
      mask: bool [N].
    """
    whole = entropy(class_weights(probabilities, mask))
    return whole - weighted_mean(entropy(probabilities), mask.astype(jnp.float32))


def masked_importance_weights(
    source: Array, source_mask: Array, target: Array, target_mask: Array, points: Array
) -> Array:
    """Density of the target over that of the source at ``points``, float32 [V], as a linear classifier has it.

    ``w(x) = n_source / n_target * d / (1 - d)`` (You et al., ICML 2019, section 4.1), where d = P(target | x) of a
    logistic regression on standardised features with the L2 penalty ``||w||² / (2 * 0.01)``, solved by Newton's method.

    Args:
      source, target: features that the classifier learns on, float32 [N, F] and [M, F], with masks bool [N] and [M].
      points: float32 [V, F].
    """
    mask = jnp.concatenate([source_mask, target_mask])
    x = jnp.where(mask[:, None], jnp.concatenate([source, target]), 0.0)
    domain = jnp.arange(len(x)) >= len(source)
    mean_over_rows = jax.vmap(masked_mean, (1, None))
    mean = mean_over_rows(x, mask)[None]
    deviation = jnp.sqrt(mean_over_rows((x - mean) ** 2, mask))[None]
    scale = jnp.where(deviation > _ROUNDING * jnp.abs(mean), deviation, 1.0)
    standardised = lambda rows: _with_constant((rows - mean) / scale)
    w = _logistic_regression(standardised(x), domain.astype(jnp.float32), mask.astype(jnp.float32))
    log_odds = jnp.clip(standardised(points) @ w, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS)
    return jnp.sum(source_mask) / jnp.sum(target_mask) * jnp.exp(log_odds)


def masked_deep_embedded_validation(loss: Array, weight: Array, mask: Array) -> Array:
    """Risk on the target from losses on the source, float32 []: smaller is better (You et al., ICML 2019, equation 8).

    ``mean(w l) + eta mean(w) - eta`` with ``eta = -cov(w l, w) / var(w)``. Subtracting a constant c from the losses
    lowers that by c; c = mean(w l) / mean(w), for which the first mean is 0, spares float32 the difference of two large
    numbers.

    Args:
      loss, weight: of each source validation row, float32 [V]; anything where ``mask``, bool [V], is False.
    """
    loss, weight = jnp.where(mask, loss, 0.0), jnp.where(mask, weight, 0.0)
    mean_loss, mean_weight = weighted_mean(loss, weight), masked_mean(weight, mask)
    variance = masked_mean((weight - mean_weight) ** 2, mask)
    varied = variance > (_ROUNDING * mean_weight) ** 2
    slope = masked_mean(weight * (loss - mean_loss) * (weight - mean_weight), mask) / jnp.where(varied, variance, 1.0)
    return jnp.where(varied, mean_loss - slope * (mean_weight - 1.0), mean_weight * mean_loss)


def _logistic_regression(x: Array, label: Array, mask: Array) -> Array:
    """float32 [F + 1] for x [N, F + 1], whose last column is 1 and has no penalty; label and mask float32 [N]."""
    penalty = jnp.full(x.shape[1], 1.0 / _INVERSE_PENALTY).at[-1].set(0.0)

    def newton_step(_: int, w: Array) -> Array:
        p = jax.nn.sigmoid(x @ w)
        gradient = x.T @ (mask * (p - label)) + penalty * w
        hessian = (x * (mask * p * (1.0 - p))[:, None]).T @ x + jnp.diag(penalty)
        return w - jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton_step, jnp.zeros(x.shape[1]))


def _with_constant(x: Array) -> Array:
    """float [N, F] -> [N, F + 1], the last column 1."""
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0)


_GRANULE = 64  # validation rows are padded to a multiple of this


class SelectionRows(flax.struct.PyTreeNode):
    """What chooses the epoch of a trial, or of all, stacked on axis 0.

    Source and target are in random order, so that the first ones are a sample.
    """

    validation: RowBatch  # [V], labelled
    source: Array | None = None  # int32 [S], the training rows, -1 behind them; only for a selector that ``needs`` them
    target: Array | None = None  # int32 [T], likewise


class TracedSelector(Protocol):
    """Which epoch of a trial is kept, decided inside a program."""

    needs: frozenset[str]  # of the parts "validation" and "target_train"

    @property
    def name(self) -> str:
        """Of the value, in records."""
        ...

    def __call__(self, variables: dict[str, Any], inputs: Any, rows: SelectionRows, hyper: dict[str, Array]) -> Array:
        """float32 [], larger is better, of all variables of a trial and its rows."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric of the validation rows, a key of ``METRICS``; equal ones share programs."""

    model: nn.Module
    kind: str  # "classification" or "regression"
    metric: str
    network: Callable[[dict[str, Any]], dict[str, Any]]  # of all variables those that the model is applied to

    needs = frozenset({"validation"})

    @property
    def name(self) -> str:
        return f"validation_{self.metric}"

    def __call__(self, variables: dict[str, Any], inputs: Any, rows: SelectionRows, hyper: dict[str, Array]) -> Array:
        network: Any = self.network(variables)
        held = rows.validation
        output = self.model.apply(network, inputs[held.row], held.row_mask, train=False)
        mean, sd = hyper["label_scale"]
        label = (jnp.where(held.row_mask, held.label, 0.0) - mean) / sd
        return METRICS[self.kind][self.metric](output, label, held.row_mask)  # pyright: ignore[reportArgumentType]


def masked_auroc(score: Array, label: Array, mask: Array) -> Array:
    """Share of the (positive, negative) pairs in the right order, ties half; NaN with one class only.

    From the ranks, ``(Σ rank of positives - P (P + 1) / 2) / (P N)``; score [M], label [M] in {0, 1}, mask bool [M].
    """
    ordered = jnp.sort(jnp.where(mask, score, jnp.inf))
    below, up_to = (jnp.searchsorted(ordered, score, side=side) for side in ("left", "right"))
    rank = 0.5 * (below + jnp.minimum(up_to, jnp.sum(mask)) + 1).astype(jnp.float32)
    positive = mask & (label > 0.5)
    positives, count = jnp.sum(positive).astype(jnp.float32), jnp.sum(mask).astype(jnp.float32)
    wins = jnp.sum(jnp.where(positive, rank, 0.0)) - 0.5 * positives * (positives + 1.0)
    pairs = positives * (count - positives)
    return jnp.where(pairs > 0, wins / jnp.maximum(pairs, 1.0), jnp.nan)


def _accuracy(output: Array, label: Array, mask: Array) -> Array:
    """Share of the rows with the right class; output [M, K]."""
    called = jnp.argmax(output, -1) if output.shape[-1] > 1 else (output[:, 0] > 0).astype(jnp.int32)
    return masked_mean((called == label.astype(jnp.int32)).astype(jnp.float32), mask)


def _negative_loss(output: Array, label: Array, mask: Array) -> Array:
    return -masked_mean(binding_loss(output, label, mask), mask)


def _negative_error(output: Array, label: Array, mask: Array) -> Array:
    return -masked_mean(affinity_loss(output, label, mask), mask)


# Larger is better; for regression the label is already scaled.
METRICS: dict[str, dict[str, Callable[[Array, Array, Array], Array]]] = {
    "classification": {
        "auroc": lambda output, label, mask: masked_auroc(output[:, 0], label, mask),
        "accuracy": _accuracy,
        "loss": _negative_loss,
    },
    "regression": {"loss": _negative_error},
}


def selection_rows(trials: Sequence[Trial], selector: TracedSelector) -> SelectionRows:
    """What ``selector`` needs of the trials, stacked on axis 0."""
    if "target_train" not in selector.needs:
        return SelectionRows(validation=_validation(trials))
    shuffled = lambda rows: np.random.default_rng(0).permutation(rows)
    return SelectionRows(
        validation=_validation(trials),
        source=padded([shuffled(trial.rows["train"]) for trial in trials]),
        target=padded([shuffled(trial.rows["target_train"]) for trial in trials]),
    )


def _validation(trials: Sequence[Trial]) -> RowBatch:
    """Validation rows, [R, V]; V is rounded up, so that programs repeat."""
    most = max(len(trial.part("validation")) for trial in trials)
    shape = (len(trials), -(-most // _GRANULE) * _GRANULE)
    row, label, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, trial in enumerate(trials):
        rows = trial.part("validation")
        row[i, : len(rows)], label[i, : len(rows)], mask[i, : len(rows)] = rows, trial.label[rows], True
    return RowBatch(row=jnp.asarray(row), label=jnp.asarray(label), row_mask=jnp.asarray(mask))
