"""Networks on feature vectors that sit on the device: replicas train together, whole epochs in one program call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import TrainingConfig
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.plans import VectorBatch, _epochs, _padded, _plan, _steps
from jaxdti.training.replicas import _predicting, runs_one_by_one
from jaxdti.training.selection import (
    Selection,
    SelectionRows,
    _accuracy,
    _negative_error,
    _negative_loss,
    _selection_rows,
    masked_auroc,
)
from jaxdti.training.state import TrainState, fresh_state
from jaxdti.training.step import make_train_step
from jaxdti.training.supervised import supervision
from jaxdti.training.task import VectorMethod, VectorReplica

_STEPS_A_CALL = 32  # about: whole epochs, so that the host looks at the device every second or so


@dataclass(frozen=True, kw_only=True)
class VectorFit:
    """Trained networks, stacked on axis 0."""

    variables: dict[str, Any]  # of the best validation epoch of each, or of its last one without validation
    best_epoch: np.ndarray  # int [R], counted from 1; 0 where no epoch was finished
    best_value: np.ndarray  # float32 [R]; NaN without validation
    first_bad: np.ndarray  # int [R]; step whose loss or gradient was not finite, -1 where there is none
    loss: np.ndarray  # float32 [R, epochs], mean over the training rows; NaN where a replica did not train
    value: np.ndarray  # float32 [R, epochs], of the validation; likewise
    label_scale: np.ndarray  # float32 [R, 2]; a regression network predicts (label - mean) / sd


class _Fit(flax.struct.PyTreeNode):
    """One replica under way."""

    state: TrainState
    best: chex.ArrayTree  # variables; empty without validation
    best_value: Array  # float32 []
    best_epoch: Array  # int32 []
    epoch: Array  # int32 []; finished


Progress = Callable[[int, np.ndarray, np.ndarray], None]


def fit_vectors(
    model: nn.Module,
    init: Callable[[Array], dict[str, Any]],
    features: Array | np.ndarray,
    replicas: Sequence[VectorReplica],
    config: TrainingConfig,
    *,
    task: str = "classification",
    select: str | Selection | None = None,
    variables: dict[str, Any] | None = None,
    method: VectorMethod | None = None,
    progress: Progress | None = None,
) -> VectorFit:
    """Trains one network for each replica; together or one by one, the numbers are the same up to rounding.

    Side by side, a replica that has stopped is masked; once half of them have, they leave the program.

    Args:
      model: ``model.apply(variables, x [B, F], row_mask [B], dropout_rate, train=)`` -> [B, outputs], with collections
        "params" and "batch_stats" and the rng "dropout", as ``jaxdti.models.fnn.FNN``; hashable, so that equal models
        share compiled programs. With one output classification is binary (sigmoid), with K it has K classes (softmax).
      init: seed -> fresh variables; vmapped over the replicas.
      features: any number dtype [N, F], shared by the replicas, or [R, N, F], of each its own.
      replicas: R of them; sizes may differ.
      config: epochs, batch_size, schedule, warmup_epochs, clip_norm and patience. Epochs of the schedule are those of
        the largest training set.
      task: "classification" or "regression".
      select: what keeps the best epoch of a replica and counts for the patience, a key of ``SELECTION`` or a function,
        which may look at ``target`` too; None: there is no validation, the last epoch is kept. Programs are compiled
        for each function.
      variables: to start from instead of ``init``, stacked on axis 0; the optimiser starts anew.
      method: plain supervision by default. Every step of another one takes as many rows of ``target`` as of ``train``.
      progress: called after every program call with the number of epochs done, and loss and validation value so far
        (see ``VectorFit``); what it raises ends the training.

    Raises:
      ValueError: no replica, no training row, a row without a label, or ``select`` does not suit validation, target and
        task.
    """
    _check(replicas, task, select)
    method = supervision(model, task) if method is None else method
    features, count = jnp.asarray(features), len(replicas)
    batch_size = min(config.batch_size, max(len(replica.train) for replica in replicas))
    steps = max(_steps(replica, batch_size) for replica in replicas)
    seeds = np.asarray([replica.seed for replica in replicas], np.int32)
    shapes = jax.eval_shape(init, seeds[0]) if variables is None else jax.eval_shape(partial(_take, which=0), variables)
    apart = runs_one_by_one(sum(x.size for x in jax.tree.leaves(shapes["params"])))
    members = range(count) if apart else [slice(None)]  # whom one program call trains
    held = jax.eval_shape(method.network, shapes)
    own_features = features.ndim == 3
    one_features = features[0] if own_features else features
    predicted = jax.eval_shape(_predicting(model), held, one_features, np.zeros(1, np.int32))
    hyper = [_hyper(replica, task, predicted.shape[-1]) for replica in replicas]
    stacked_hyper = jax.tree.map(lambda *leaves: np.stack(leaves), *hyper)
    begin, run = _programs(model, method, task, config, steps, select, own_features, apart)
    draw = _initialiser(init, apart)
    fits = []
    for member in members:
        start = draw(seeds[member]) if variables is None else _take(variables, member)
        fits.append(begin(start, seeds[member], _take(stacked_hyper, member)))
    total = max(_epochs(replica, config) for replica in replicas)
    together = min(max(1, _STEPS_A_CALL // steps), total)
    chosen_by = _selection_rows(replicas, select) if select else None
    targets = _padded([replica.target for replica in replicas]) if method.refresh else None
    loss, value = (np.full((count, total), np.nan, np.float32) for _ in range(2))
    active = np.arange(count)  # the replicas in ``fits``
    stopped: list[tuple[np.ndarray, _Fit]] = []
    for first in range(0, total, together):
        epochs = range(first, first + together)
        batches, counts = _plan([replicas[i] for i in active.tolist()], config, epochs, batch_size, steps)
        fits, (trained, loss_now, value_now) = run(fits, batches, counts, features, chosen_by, targets)
        done = min(first + together, total)
        for into, now in ((loss, loss_now), (value, value_now)):
            into[active, first:done] = np.where(trained, now, np.nan)[:, : done - first]
        if progress is not None:
            progress(done, loss[:, :done], value[:, :done])
        going = trained[:, -1]
        if not going.any():
            break
        if not apart and (smaller := _smaller_size(len(active), int(going.sum()))) < len(active):
            order = np.argsort(~going, kind="stable")
            stay, leave = np.sort(order[:smaller]), order[smaller:]
            stopped.append((active[leave], _take(fits[0], leave)))
            active, fits = active[stay], [_take(fits[0], stay)]
            features = features[stay] if own_features else features
            chosen_by, targets = _take(chosen_by, stay), _take(targets, stay)
    found = [
        (
            fit.best if select else {"params": fit.state.params, "batch_stats": fit.state.batch_stats},
            (fit.best_epoch, fit.best_value, fit.state.first_bad),
        )
        for fit in (*(fit for _, fit in stopped), *fits)
    ]
    kept: Any
    if apart:
        kept, numbers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    else:
        place = np.argsort(np.concatenate([*(rows for rows, _ in stopped), active]))
        kept, numbers = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[place], *found) if stopped else found[0]
    best_epoch, best_value, first_bad = jax.device_get(numbers)
    return VectorFit(
        variables=kept,
        best_epoch=best_epoch,
        best_value=best_value,
        first_bad=first_bad,
        loss=loss,
        value=value,
        label_scale=np.stack([one["label_scale"] for one in hyper]),
    )


# Larger is better; for regression the label is already scaled.
SELECTION: dict[str, dict[str, Callable[[Array, Array, Array], Array]]] = {
    "classification": {
        "auroc": lambda output, label, mask: masked_auroc(output[:, 0], label, mask),
        "accuracy": _accuracy,
        "loss": _negative_loss,
    },
    "regression": {"loss": _negative_error},
}


def _check(replicas: Sequence[VectorReplica], task: str, select: str | Selection | None) -> None:
    if not replicas:
        raise ValueError("fit_vectors: no replica given")
    if task not in SELECTION or not (select is None or callable(select) or select in SELECTION[task]):
        known = {name: sorted(choices) for name, choices in SELECTION.items()}
        raise ValueError(f"task={task!r}, select={select!r}: choose from {known}")
    for i, replica in enumerate(replicas):
        if not len(replica.train):
            raise ValueError(f"replica {i}: no training row")
        if select is not None and not len(replica.validation):
            raise ValueError(f"replica {i}: select={select!r} needs validation rows")
        if callable(select) and not len(replica.target):
            raise ValueError(f"replica {i}: selection by a function needs target rows")
        for name, rows in (("train", replica.train), ("validation", replica.validation)):
            if bad := int(np.sum(~np.isfinite(replica.label[rows]))):
                raise ValueError(f"replica {i}: {bad} of {len(rows)} {name} rows have no label")


def _hyper(replica: VectorReplica, task: str, outputs: int) -> dict[str, np.ndarray]:
    """What the program traces, float32; the class weights have mean 1 over the training rows."""
    label = np.asarray(replica.label[replica.train], np.float64)
    weights, scale = np.ones(max(outputs, 2)), (0.0, 1.0)
    if task == "regression":
        scale = (label.mean(), label.std() or 1.0)
    elif replica.class_weight:
        counts = np.bincount(label.astype(np.int64), minlength=len(weights))
        weights = len(label) / (np.sum(counts > 0) * np.maximum(counts, 1))
    values = {
        "learning_rate": replica.learning_rate,
        "weight_decay": replica.weight_decay,
        "dropout": replica.dropout,
        "class_weights": weights,
        "label_scale": scale,
    }
    return {name: np.asarray(value, np.float32) for name, value in (values | replica.hyper).items()}


@lru_cache(maxsize=8)
def _initialiser(init: Callable[[Array], dict[str, Any]], one_by_one: bool):
    return jax.jit(init if one_by_one else jax.vmap(init))


@lru_cache(maxsize=32)
def _programs(
    model: nn.Module,
    method: VectorMethod,
    task: str,
    config: TrainingConfig,
    steps: int,
    select: str | Selection | None,
    own_features: bool,
    one_by_one: bool,
):
    """``begin(variables, seed, hyper)``, a fresh ``_Fit`` of one replica or of all, stacked on axis 0, and
    ``run(fits, batches, counts, features, held, targets) -> (fits, (trained, loss, value))``, each [R, E].

    One by one, ``fits`` holds every replica for itself: a loop of the program over stacked ones would copy each state
    in and out, a fifth of the time of 16 steps of a network on fingerprints.
    """
    tx, patience = make_optimizer(config, steps, method.rate_of, method.share_of), config.patience

    def begin(variables: dict[str, Any], seed: Array, hyper: dict[str, Array]) -> _Fit:
        variables = jax.tree.map(jnp.copy, variables)  # a program gives its state up, not what the caller holds
        state = fresh_state(variables, tx, seed, hyper)
        nothing = jnp.zeros((), jnp.int32)
        best = jax.tree.map(jnp.copy, variables) if select else {}
        return _Fit(state=state, best=best, best_value=jnp.full((), jnp.nan), best_epoch=nothing, epoch=nothing)

    def validate(state: TrainState, features: Array, held: SelectionRows) -> Array:
        everything = {"params": state.params, "batch_stats": state.batch_stats}
        if callable(select):
            return select(everything, features, held)
        variables: Any = method.network(everything)
        rows = held.validation
        output = model.apply(variables, features[rows.row], rows.row_mask, train=False)
        mean, sd = state.hyper["label_scale"]
        label = (jnp.where(rows.row_mask, rows.label, 0.0) - mean) / sd
        return SELECTION[task][select](output, label, rows.row_mask)  # pyright: ignore[reportArgumentType]

    def one(
        fit: _Fit,
        batches: VectorBatch,
        counts: Array,
        features: Array,
        held: SelectionRows | None,
        targets: Array | None,
    ):
        step = make_train_step(method.objective(features), tx)

        def epoch(fit: _Fit, inputs: tuple[VectorBatch, Array]):
            batches, count = inputs
            active = (fit.state.first_bad < 0) & jnp.any(batches.row_mask)
            if select and patience is not None:
                active &= fit.epoch - fit.best_epoch < patience
            batches = batches.replace(row_mask=batches.row_mask & active)

            def refreshed(state: TrainState) -> TrainState:
                assert method.refresh is not None and targets is not None
                variables = {"params": state.params, "batch_stats": state.batch_stats}
                return state.replace(hyper=state.hyper | method.refresh(variables, features, targets))

            def body(i: Array, carry: tuple[TrainState, Array, Array]) -> tuple[TrainState, Array, Array]:
                state, loss, rows = carry
                if method.refresh is not None and targets is not None:
                    due = i % (method.refresh_steps or steps) == 0  # of all replicas, so that vmap keeps the branch
                    state = jax.lax.cond(due, refreshed, lambda state: state, state)
                batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
                state, metrics = step(state, batch)
                return state, loss + metrics["loss"] * metrics["rows"], rows + metrics["rows"]

            # One by one, a replica takes no more steps than it has; side by side, all take those of the longest.
            limit = jnp.where(active, count, 0) if one_by_one else count
            state, loss, rows = jax.lax.fori_loop(0, limit, body, (fit.state, jnp.zeros(()), jnp.zeros((), jnp.int32)))
            finished = active & (state.first_bad < 0)
            now = fit.epoch + finished
            value = jnp.full((), jnp.nan)
            best, best_value, best_epoch = fit.best, fit.best_value, now
            if held is not None:
                value = jax.lax.cond(finished, validate, lambda *_: value, state, features, held)
                # Where the value is undefined, the last epoch counts as the best; ties stay with the earlier epoch.
                better = finished & ((fit.best_epoch == 0) | (jnp.isfinite(value) & ~(value <= fit.best_value)))
                better |= finished & ~jnp.isfinite(value) & ~jnp.isfinite(fit.best_value)
                variables = {"params": state.params, "batch_stats": state.batch_stats}
                best = jax.tree.map(lambda new, old: jnp.where(better, new, old), variables, fit.best)
                best_value = jnp.where(better, value, fit.best_value)
                best_epoch = jnp.where(better, now, fit.best_epoch)
            new = _Fit(state=state, best=best, best_value=best_value, best_epoch=best_epoch, epoch=now)
            return new, (finished, loss / jnp.maximum(rows, 1), value)

        return jax.lax.scan(epoch, fit, (batches, counts))

    axes = (0, 0, None, 0 if own_features else None, 0, 0)
    program = jax.jit(one if one_by_one else jax.vmap(one, in_axes=axes), donate_argnums=0)

    def run(
        fits: list[_Fit],
        batches: VectorBatch,
        counts: np.ndarray,
        features: Array,
        held: SelectionRows | None,
        targets: Array | None,
    ):
        if not one_by_one:
            fit, records = program(fits[0], batches, jnp.asarray(counts.max(0)), features, held, targets)
            return [fit], jax.device_get(records)
        done = []
        for i, fit in enumerate(fits):
            own = _take(features, i) if own_features else features
            done.append(program(fit, _take(batches, i), jnp.asarray(counts[i]), own, _take(held, i), _take(targets, i)))
        records = jax.device_get([records for _, records in done])
        return [fit for fit, _ in done], [np.stack(values) for values in zip(*records, strict=True)]

    return jax.jit(begin if one_by_one else jax.vmap(begin)), run


def _smaller_size(size: int, going: int) -> int:
    """How many of ``size`` replicas side by side to keep while ``going`` train: half of them, a quarter, ...

    Each size costs a compilation, so there are few of them.
    """
    while going <= size // 2:
        size //= 2
    return size


def _take(tree: Any, which: int | slice | np.ndarray) -> Any:
    """A replica of what is stacked on axis 0, some, or all of them."""
    return jax.tree.map(lambda leaf: leaf[which], tree)
