"""Networks on feature vectors that sit on the device: replicas train together, whole epochs in one program call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from jaxdti.training.objectives import Objective, affinity_loss, binding_loss, masked_mean
from jaxdti.training.optimizer import RateOf, ShareOf, make_optimizer, one_rate, whole_rate
from jaxdti.training.state import TrainState
from jaxdti.training.step import make_train_step

_STEPS_A_CALL = 32  # about: whole epochs, so that the host looks at the device every second or so
_ROWS_A_CALL = 1024  # of predictions
_GRANULE = 64  # of the number of validation rows
_SIDE_BY_SIDE = 200_000  # parameters of a network up to which replicas train by ``vmap`` on CPU too


class VectorBatch(flax.struct.PyTreeNode):
    """Rows of the features with their labels; leading axes are batches, epochs or replicas."""

    row: Array  # int32 [..., B]
    label: Array  # float32 [..., B]; 0 or 1, the number of a class, or a value; anything where masked
    row_mask: Array  # bool [..., B]
    target: Array | None = None  # int32 [..., B], unlabelled rows of another domain beside; -1 where there is none


class SelectionRows(flax.struct.PyTreeNode):
    """What chooses the epoch of a replica, or of all, stacked on axis 0.

    Source and target are in random order, so that the first ones are a sample.
    """

    validation: VectorBatch  # [V], labelled
    source: Array | None = None  # int32 [S], the training rows, -1 behind them; only for a ``Selection``
    target: Array | None = None  # int32 [T], likewise


# (all variables, features [N, F], rows of one replica) -> float32 [], larger is better
Selection = Callable[[dict[str, Any], Array, SelectionRows], Array]


@dataclass(frozen=True, kw_only=True)
class VectorReplica:
    """One of the networks that train together: rows, labels, and what may differ inside one program."""

    train: np.ndarray  # int [n], rows of the features
    label: np.ndarray  # float [N], of every row of the features; NaN where there is none
    validation: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int [v]
    epochs: int | None = None  # fewer than the others
    seed: int = 0  # of the initial weights, the order of the rows and the dropout
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # decoupled or not, as ``optimizer`` of the configuration says
    dropout: float = 0.0
    class_weight: bool = False  # weight classes inversely to their frequency in ``train``
    target: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int [t], unlabelled, for a method
    hyper: dict[str, Any] = field(default_factory=dict)  # float or float [...], what else a method traces


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorMethod:
    """How the network learns. Programs are compiled for each object, so equal methods should be the same object."""

    objective: Callable[[Array], Objective]  # of the features
    network: Callable[[dict[str, Any]], dict[str, Any]]  # of all variables those that validation applies the model to
    rate_of: RateOf = one_rate
    share_of: ShareOf = whole_rate
    # (variables, features, rows int32 [T] of the whole target, -1 where there is none) -> what changes in ``hyper``
    # at the start of each epoch, and within it after so many steps
    refresh: Callable[[dict[str, Any], Array, Array], dict[str, Array]] | None = None
    refresh_steps: int | None = None


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
    """Trains one network for each replica; together or one by one, a state has the same gradient up to rounding.

    Where a gradient is rounding alone, as of a bias before a BatchNorm, Adam makes whole steps of it, of either sign.
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


def predict_vectors(
    model: nn.Module, variables: dict[str, Any], features: Array | np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """float32 [R, M, outputs] of the networks ``variables`` (stacked on axis 0) at test time.

    Args:
      features: [N, F], or [R, N, F], as in ``fit_vectors``.
      rows: int [M], the rows to score; all of them by default.
    """
    features = jnp.asarray(features)
    rows = np.arange(features.shape[-2]) if rows is None else np.asarray(rows)
    run = _predictor(model, features.ndim == 3)
    size = min(_ROWS_A_CALL, len(rows))
    parts = []
    for first in range(0, len(rows), max(size, 1)):
        part = rows[first : first + size]
        padded = np.pad(part, (0, size - len(part))).astype(np.int32)  # one shape, one program
        parts.append(np.asarray(run(variables, features, padded))[:, : len(part)])
    return np.concatenate(parts, 1)


def map_replicas(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """``function`` over replicas stacked on axis 0 where ``in_axes`` is 0; arguments of ``None`` are shared.

    By ``vmap`` on accelerators; on CPU one by one in a loop of the program, since XLA runs batched matrix products
    there slower than the same ones in turn.
    """
    if not runs_one_by_one():
        return jax.vmap(function, in_axes=in_axes)

    def looped(*arguments: Any) -> Any:
        own = tuple(x for x, axis in zip(arguments, in_axes, strict=True) if axis == 0)

        def one(mine: tuple[Any, ...]) -> Any:
            left = iter(mine)
            return function(*(next(left) if axis == 0 else x for x, axis in zip(arguments, in_axes, strict=True)))

        return jax.lax.map(one, own)

    return looped


def runs_one_by_one(parameters: int | None = None) -> bool:
    """Whether replicas run in a loop instead of by ``vmap``; ``parameters``, if given, of one that trains.

    On CPU only, and not where a network is so small that the program spends its time on starting operations.
    """
    return jax.default_backend() == "cpu" and (parameters is None or parameters > _SIDE_BY_SIDE)


@lru_cache(maxsize=32)
def supervision(model: nn.Module, task: str) -> VectorMethod:
    """Plain training on labelled rows."""
    return VectorMethod(objective=partial(vector_objective, model, task), network=lambda variables: variables)


def vector_objective(model: nn.Module, task: str, features: Array) -> Objective:
    """Supervised training on ``features[batch.row]``; ``hyper``: dropout, class_weights, label_scale."""

    def objective(variables: dict[str, Any], batch: VectorBatch, rng: Array, hyper: dict[str, Array]):
        x, mask = features[batch.row], batch.row_mask
        rngs = {"dropout": rng}
        output, updates = model.apply(
            variables, x, mask, hyper["dropout"], train=True, rngs=rngs, mutable=["batch_stats"]
        )
        batch_stats: Any = updates.get("batch_stats", {})
        label = jnp.where(mask, batch.label, 0.0)
        if task == "classification":
            weights = hyper["class_weights"][label.astype(jnp.int32)]
            loss = binding_loss(output, label, mask) * weights
        else:
            mean, sd = hyper["label_scale"]
            loss = affinity_loss(output, (label - mean) / sd, mask)
        total = masked_mean(loss, mask)
        return total, (batch_stats, {"loss": jax.lax.stop_gradient(total)})

    return objective


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


def _steps(replica: VectorReplica, batch_size: int) -> int:
    return -(-len(replica.train) // batch_size)


def _epochs(replica: VectorReplica, config: TrainingConfig) -> int:
    return config.epochs if replica.epochs is None else min(replica.epochs, config.epochs)


def _plan(
    replicas: Sequence[VectorReplica], config: TrainingConfig, epochs: range, batch_size: int, steps: int
) -> tuple[VectorBatch, np.ndarray]:
    """Batches [R, E, S, B] and the number of them that have rows, int32 [R, E].

    The rows of an epoch are shuffled and dealt evenly: a last batch of one row would have no variance.
    """
    shape = (len(replicas), len(epochs), steps, batch_size)
    row, label, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    counts = np.zeros(shape[:2], np.int32)
    target = np.full(shape, -1, np.int32) if any(len(replica.target) for replica in replicas) else None
    for i, replica in enumerate(replicas):
        own = [j for j, epoch in enumerate(epochs) if epoch < _epochs(replica, config)]
        counts[i, own] = count = _steps(replica, batch_size)
        places = _places(len(replica.train), count, batch_size)
        for j in own:
            order = np.random.default_rng((replica.seed, epochs[j])).permutation(replica.train)
            for into, values in ((row, order), (label, replica.label[order]), (mask, True)):
                into[i, j].reshape(-1)[places] = values
            if target is not None and len(replica.target):
                beside = _target_batches(replica.target, batch_size, count, (replica.seed, epochs[j], 1))
                target[i, j, : len(beside), : beside.shape[1]] = beside
    batches = VectorBatch(row=row, label=label, row_mask=mask, target=target)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(jnp.asarray, batches), counts


def _places(rows: int, steps: int, batch_size: int) -> np.ndarray:
    """Where ``rows`` rows dealt evenly to ``steps`` batches go in the flat [steps * batch_size]."""
    step = np.repeat(np.arange(steps), rows // steps + (np.arange(steps) < rows % steps))
    first = np.searchsorted(step, np.arange(steps))
    return step * batch_size + np.arange(rows) - first[step]


def _target_batches(rows: np.ndarray, size: int, steps: int, seed: tuple[int, ...]) -> np.ndarray:
    """int64 [steps, size or all rows if fewer]: shuffled anew whenever they are used up, no row twice in a batch."""
    rng, size = np.random.default_rng(seed), min(size, len(rows))
    full = len(rows) // size
    rounds = [rng.permutation(rows)[: full * size].reshape(full, size) for _ in range(-(-steps // full))]
    return np.concatenate(rounds)[:steps]


def _padded(rows: Sequence[np.ndarray]) -> Array:
    """Rows of each replica, int32 [R, T], -1 behind them."""
    filled = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for i, own in enumerate(rows):
        filled[i, : len(own)] = own
    return jnp.asarray(filled)


def _selection_rows(replicas: Sequence[VectorReplica], select: str | Selection) -> SelectionRows:
    if not callable(select):
        return SelectionRows(validation=_validation(replicas))
    shuffled = lambda rows: np.random.default_rng(0).permutation(rows)
    return SelectionRows(
        validation=_validation(replicas),
        source=_padded([shuffled(replica.train) for replica in replicas]),
        target=_padded([shuffled(replica.target) for replica in replicas]),
    )


def _validation(replicas: Sequence[VectorReplica]) -> VectorBatch:
    """Validation rows, [R, V]; V is rounded up, so that programs repeat."""
    most = max(len(replica.validation) for replica in replicas)
    shape = (len(replicas), -(-most // _GRANULE) * _GRANULE)
    row, label, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, replica in enumerate(replicas):
        size = len(replica.validation)
        row[i, :size], label[i, :size], mask[i, :size] = replica.validation, replica.label[replica.validation], True
    return VectorBatch(row=jnp.asarray(row), label=jnp.asarray(label), row_mask=jnp.asarray(mask))


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
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
            rng=jax.random.fold_in(jax.random.PRNGKey(seed), 1),
            hyper=hyper,
            first_bad=jnp.full((), -1, jnp.int32),
        )
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


@lru_cache(maxsize=32)
def _predictor(model: nn.Module, own_features: bool):
    """``run(variables, features, rows) -> [R, rows, outputs]``."""
    return jax.jit(map_replicas(_predicting(model), (0, 0 if own_features else None, None)))


@lru_cache(maxsize=32)  # one function for equal models, so that it is traced once
def _predicting(model: nn.Module) -> Callable[..., Any]:
    return partial(_predict, model)


def _predict(model: nn.Module, variables: dict[str, Any], features: Array, rows: Array | np.ndarray) -> Any:
    """[rows, outputs] of one network."""
    return model.apply(variables, features[rows], jnp.ones(rows.shape, bool), train=False)
