"""Training on inputs that sit on the device: trials train together, whole epochs in one program call."""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import TrainingConfig
from jaxdti.training.plans import RowBatch, padded
from jaxdti.training.progress import Progress, Reporter, TrialProgress
from jaxdti.training.replicas import runs_one_by_one
from jaxdti.training.selection import SelectionRows, selection_rows
from jaxdti.training.state import TrainState, fresh_state
from jaxdti.training.step import make_train_step
from jaxdti.training.task import FitResult, Task, Trial, Variables, take

_STEPS_A_CALL = 32  # about: whole epochs, so that the host looks at the device every second or so
_SAVE_SECONDS = 60.0  # what a kill costs at most


class TrialState(flax.struct.PyTreeNode):
    """One trial under way."""

    state: TrainState
    best: chex.ArrayTree  # variables; empty without a selector
    best_value: Array  # float32 []
    best_epoch: Array  # int32 []
    epoch: Array  # int32 []; finished


class Resident:
    """The executor of an ``EvenPlan``; validation, selection and patience are inside of its programs.

    Side by side, a trial that has stopped is masked; once half of them have, they leave the program.
    """

    save_seconds = _SAVE_SECONDS

    def __init__(self, task: Task, trials: Sequence[Trial], config: TrainingConfig, start: Variables | None):
        self.task, self.trials, self.config, self.plan = task, trials, config, task.plan
        seeds = np.asarray([trial.seed for trial in trials], np.int32)
        one = jax.eval_shape(task.init, seeds[0]) if start is None else jax.eval_shape(lambda: take(start, 0))
        self.apart = runs_one_by_one(sum(x.size for x in jax.tree.leaves(one["params"])))
        hyper = jax.tree.map(lambda *leaves: np.stack(leaves), *(task.hyper(trial) for trial in trials))
        self.label_scale = hyper["label_scale"]
        self.programs = _programs(_Static.of(task, config, self.apart))
        members = range(len(trials)) if self.apart else [slice(None)]  # trials of each program call
        self.fits: list[TrialState] = []
        for member in members:
            begun = self.programs.init(seeds[member]) if start is None else take(start, member)
            self.fits.append(self.programs.begin(begun, seeds[member], take(hyper, member)))
        self.inputs = jax.tree.map(jnp.asarray, task.inputs)
        self.held = selection_rows(trials, task.selector) if task.selector else None
        self.targets = padded([trial.part("target_train") for trial in trials]) if task.refresh else None
        lasts = [trial.last_epoch(config.epochs) for trial in trials]
        self.total = max(lasts)
        self.together = min(max(1, _STEPS_A_CALL // self.plan.steps_per_epoch), self.total)
        self.sizes = np.array([len(trial.rows["train"]) for trial in trials])
        self.all_rows = int(np.dot(self.sizes, lasts))
        self.loss, self.value = (np.full((len(trials), self.total), np.nan, np.float32) for _ in range(2))
        self.running = np.arange(len(trials))  # the trials in ``fits``
        self.going = True
        self.stopped: list[tuple[np.ndarray, TrialState]] = []
        self.progress = Progress([TrialProgress() for _ in trials])

    def arrays(self) -> tuple[Any, Any]:
        """All trials stacked on axis 0, and their courses, for a checkpoint."""
        return self._joined(self.fits, [fit for _, fit in self.stopped]), {"loss": self.loss, "value": self.value}

    def position(self) -> dict[str, Any]:
        """What a checkpoint holds beside arrays."""
        done = self.progress
        numbers = {"epoch": done.epoch, "chunk": 0, "seconds": done.seconds, "trained_rows": done.trained_rows}
        return numbers | {"running": self.running.tolist(), "going": self.going}

    def restore(self, state: Any, best: Any, position: dict[str, Any]) -> None:
        """Goes on from a checkpoint, with the same trials in the program, so that rounding is the same."""
        self.loss, self.value = (np.array(best[name]) for name in ("loss", "value"))
        for name in ("epoch", "seconds", "trained_rows"):
            setattr(self.progress, name, position[name])
        self.going = position["going"]
        if self.apart:
            self.fits = [take(state, i) for i in range(len(self.trials))]
            return
        running = np.asarray(position["running"])
        if len(running) == len(self.trials):
            self.fits = [state]
            return
        others = np.setdiff1d(np.arange(len(self.trials)), running)
        self.stopped, self.fits, self.running = [(others, take(state, others))], [take(state, running)], running
        self._keep_inputs_of(running)

    def begin(self, report: Reporter) -> None:
        self.report = report

    def updates(self) -> int:
        """The number of a checkpoint."""
        return self.progress.epoch

    def active(self) -> Sequence[bool]:
        return [self.going and self.progress.epoch < self.total]

    def advance(self, stopped: Sequence[int]) -> Iterator[bool]:
        """The epochs of one program call; yields True at their end."""
        started, first = time.perf_counter(), self.progress.epoch
        epochs = range(first, first + self.together)
        batches, counts = self.plan.epochs(self.running.tolist(), epochs, self.config.epochs)
        self.fits, (trained, loss, value) = self.programs.run(
            self.fits, batches, counts, self.inputs, self.held, self.targets
        )
        last = min(first + self.together, self.total)
        for into, now in ((self.loss, loss), (self.value, value)):
            into[self.running, first:last] = np.where(trained, now, np.nan)[:, : last - first]
        going = trained[:, -1]
        self.going = bool(going.any())
        self.progress.trained_rows += int(np.dot(trained[:, : last - first].sum(1), self.sizes[self.running]))
        self.progress.epoch = last
        if self.going and not self.apart:
            self._shrink(going)
        self.progress.seconds += time.perf_counter() - started
        self.report.epochs(self._records(first, last))
        self.report.update(self._status())
        yield True

    def _shrink(self, going: np.ndarray) -> None:
        """Takes trials that have stopped out of the program, if that halves it."""
        smaller = _smaller_size(len(going), int(going.sum()))
        if smaller == len(going):
            return
        order = np.argsort(~going, kind="stable")
        stay, leave = np.sort(order[:smaller]), order[smaller:]
        self.stopped.append((self.running[leave], take(self.fits[0], leave)))
        self.running, self.fits = self.running[stay], [take(self.fits[0], stay)]
        self._keep_inputs_of(stay)

    def _keep_inputs_of(self, stay: np.ndarray) -> None:
        self.inputs = take(self.inputs, stay) if self.task.own_inputs else self.inputs
        self.held, self.targets = take(self.held, stay), take(self.targets, stay)

    def _records(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The metrics of the epochs ``first``, ... of each trial that took part, as in ``metrics.jsonl``."""
        seconds, rows = self.progress.seconds, self.progress.trained_rows
        for epoch in range(first, last):
            for i in np.flatnonzero(np.isfinite(self.loss[:, epoch])).tolist():
                record = {
                    "epoch": epoch + 1,
                    "step": (epoch + 1) * self.plan.steps_of(i),
                    "loss": float(self.loss[i, epoch]),
                    "seconds": seconds,
                    "samples_per_second": rows / max(seconds, 1e-9),
                }
                chosen = {self.task.selector.name: float(self.value[i, epoch])} if self.task.selector else {}
                yield i, record | chosen

    def _status(self) -> dict[str, Any]:
        done, speed = self.progress.trained_rows, self.progress.trained_rows / max(self.progress.seconds, 1e-9)
        column = self.loss[:, self.progress.epoch - 1]
        trained = np.isfinite(column)
        return {
            "epoch": self.progress.epoch,
            "share": done / max(self.all_rows, 1),
            "loss": float(column[trained].mean()) if trained.any() else float("nan"),
            "samples_per_second": speed,
            "eta_seconds": (self.all_rows - done) / max(speed, 1e-9),  # at most: patience may end it earlier
        }

    def _joined(self, fits: Sequence[Any], left: Sequence[Any]) -> Any:
        """What belongs to the trials of ``fits`` and to those that have left, in the order of the trials."""
        if self.apart:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)
        if not left:
            return fits[0]
        place = np.argsort(np.concatenate([*(rows for rows, _ in self.stopped), self.running]))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[place], *left, fits[0])

    def result(self) -> FitResult:
        """What the trials have come to."""

        def kept(fit: TrialState) -> Any:
            numbers = (fit.best_epoch, fit.best_value, fit.epoch, fit.state.first_bad)
            return fit.best if self.task.selector else fit.state.variables, numbers

        variables, numbers = self._joined([kept(fit) for fit in self.fits], [kept(fit) for _, fit in self.stopped])
        best_epoch, best_value, last_epoch, first_bad = jax.device_get(numbers)
        for i, member in enumerate(self.progress.members):
            member.best_epoch, member.last_epoch = int(best_epoch[i]), int(last_epoch[i])
            member.best_value = float(best_value[i]) if np.isfinite(best_value[i]) else None
            member.failed = f"not finite at step {first_bad[i]}" if first_bad[i] >= 0 else None
        return FitResult(
            variables=variables,
            progress=self.progress,
            best_epoch=best_epoch,
            best_value=best_value,
            first_bad=first_bad,
            loss=self.loss,
            value=self.value,
            label_scale=self.label_scale,
        )


def check_rows(task: Task, trials: Sequence[Trial]) -> None:
    """Raises ValueError unless every trial has training rows, labels, and the rows that the selector needs."""
    if not trials:
        raise ValueError("fit: no trial")
    needs = task.selector.needs if task.selector else frozenset()
    for i, trial in enumerate(trials):
        if not len(trial.part("train")):
            raise ValueError(f"trial {i}: no training row")
        for part in ("validation", "target_train"):
            if part in needs and not len(trial.part(part)):
                raise ValueError(f"trial {i}: selection by {task.selector.name} needs {part} rows")
        for part in ("train", "validation"):
            rows = trial.part(part)
            if bad := int(np.sum(~np.isfinite(trial.label[rows]))):
                raise ValueError(f"trial {i}: {bad} of {len(rows)} {part} rows have no label")


@dataclass(frozen=True)
class _Static:
    """What the programs depend on; equal ones share them, whatever the rows and the inputs are."""

    key: Hashable
    config: TrainingConfig
    steps: int  # of an epoch
    own_inputs: bool
    one_by_one: bool
    task: Task = field(compare=False)  # without its inputs, which a kept program would hold on the device

    @classmethod
    def of(cls, task: Task, config: TrainingConfig, one_by_one: bool) -> "_Static":
        key = object() if task.key is None else task.key
        bare = replace(task, inputs=None, plan=None)
        return cls(key, config, task.plan.steps_per_epoch, task.own_inputs, one_by_one, bare)


@dataclass(frozen=True)
class _Programs:
    init: Callable[[Any], Variables]  # seed, or seeds -> fresh variables
    begin: Callable[..., TrialState]  # (variables, seed, hyper) of one trial, or of all, stacked on axis 0
    run: Callable[..., Any]  # (fits, batches, counts, inputs, held, targets) -> (fits, (trained, loss, value) [R, E])


@lru_cache(maxsize=32)
def _programs(static: _Static) -> _Programs:
    """The compiled programs of a task.

    One by one, ``fits`` holds every trial for itself: a loop of the program over stacked ones would copy each state in
    and out, a fifth of the time of 16 steps of a network on fingerprints.
    """
    task, one_by_one = static.task, static.one_by_one
    tx = task.optimizer(static.config, static.steps)

    def begin(variables: Variables, seed: Array, hyper: dict[str, Array]) -> TrialState:
        variables = jax.tree.map(jnp.copy, variables)  # a program gives its state up, not what the caller holds
        state, nothing = fresh_state(variables, tx, seed, hyper), jnp.zeros((), jnp.int32)
        best = jax.tree.map(jnp.copy, state.variables) if task.selector else {}
        return TrialState(state=state, best=best, best_value=jnp.full((), jnp.nan), best_epoch=nothing, epoch=nothing)

    one = _epochs_program(static, tx)
    axes = (0, 0, None, 0 if static.own_inputs else None, 0, 0)
    program = jax.jit(one if one_by_one else jax.vmap(one, in_axes=axes), donate_argnums=0)

    def run(
        fits: list[TrialState],
        batches: RowBatch,
        counts: np.ndarray,
        inputs: Any,
        held: SelectionRows | None,
        targets: Array | None,
    ):
        if not one_by_one:
            fit, records = program(fits[0], batches, jnp.asarray(counts.max(0)), inputs, held, targets)
            return [fit], jax.device_get(records)
        done = []
        for i, fit in enumerate(fits):
            of_trial = take(inputs, i) if static.own_inputs else inputs
            rows = take(held, i), take(targets, i)
            done.append(program(fit, take(batches, i), jnp.asarray(counts[i]), of_trial, *rows))
        records = jax.device_get([records for _, records in done])
        return [fit for fit, _ in done], [np.stack(values) for values in zip(*records, strict=True)]

    over = (lambda function: function) if one_by_one else jax.vmap
    return _Programs(init=jax.jit(over(task.init)), begin=jax.jit(over(begin)), run=run)


def _epochs_program(static: _Static, tx: Any) -> Callable[..., Any]:
    """The program of one trial: ``(fit, batches, counts, inputs, held, targets) -> (fit, (trained, loss, value))``."""
    task, one_by_one = static.task, static.one_by_one
    refresh, selector, patience = task.refresh, task.selector, static.config.patience

    def one(
        fit: TrialState,
        batches: RowBatch,
        counts: Array,
        inputs: Any,
        held: SelectionRows | None,
        targets: Array | None,
    ):
        step = make_train_step(task.objective(inputs), tx)

        def epoch(fit: TrialState, of_epoch: tuple[RowBatch, Array]):
            batches, count = of_epoch
            active = (fit.state.first_bad < 0) & jnp.any(batches.row_mask)
            if selector and patience is not None:
                active &= fit.epoch - fit.best_epoch < patience
            batches = batches.replace(row_mask=batches.row_mask & active)

            def refreshed(state: TrainState) -> TrainState:
                assert refresh is not None
                return state.replace(hyper=state.hyper | refresh.classes(state.variables, inputs, targets))

            def body(i: Array, carry: tuple[TrainState, Array, Array]) -> tuple[TrainState, Array, Array]:
                state, loss, rows = carry
                if refresh is not None:
                    due = i % (refresh.steps or static.steps) == 0  # of all trials, so that vmap keeps the branch
                    state = jax.lax.cond(due, refreshed, lambda state: state, state)
                batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
                state, metrics = step(state, batch)
                return state, loss + metrics["loss"] * metrics["rows"], rows + metrics["rows"]

            # One by one, a trial takes no more steps than it has; side by side, all take those of the longest.
            limit = jnp.where(active, count, 0) if one_by_one else count
            state, loss, rows = jax.lax.fori_loop(0, limit, body, (fit.state, jnp.zeros(()), jnp.zeros((), jnp.int32)))
            finished = active & (state.first_bad < 0)
            new, value = _selected(fit, state, finished, selector, inputs, held)
            return new, (finished, loss / jnp.maximum(rows, 1), value)

        return jax.lax.scan(epoch, fit, (batches, counts))

    return one


def _selected(
    fit: TrialState,
    state: TrainState,
    finished: Array,
    selector: Any,
    inputs: Any,
    held: SelectionRows | None,
) -> tuple[TrialState, Array]:
    """The trial after an epoch that it has ``finished`` or not, and the value of the epoch."""
    now, value = fit.epoch + finished, jnp.full((), jnp.nan)
    best, best_value, best_epoch = fit.best, fit.best_value, now
    if held is not None:

        def score(state: TrainState, inputs: Any, held: SelectionRows) -> Array:
            return selector(state.variables, inputs, held, state.hyper)

        value = jax.lax.cond(finished, score, lambda *_: value, state, inputs, held)
        # Where the value is undefined, the last epoch counts as the best; ties stay with the earlier epoch.
        better = finished & ((fit.best_epoch == 0) | (jnp.isfinite(value) & ~(value <= fit.best_value)))
        better |= finished & ~jnp.isfinite(value) & ~jnp.isfinite(fit.best_value)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.variables, fit.best)
        best_value = jnp.where(better, value, fit.best_value)
        best_epoch = jnp.where(better, now, fit.best_epoch)
    return TrialState(state=state, best=best, best_value=best_value, best_epoch=best_epoch, epoch=now), value


def _smaller_size(size: int, going: int) -> int:
    """How many of ``size`` trials side by side to keep while ``going`` train: half of them, a quarter, ...

    Each size costs a compilation, so there are few of them.
    """
    while going <= size // 2:
        size //= 2
    return size
