"""Training whose batches stream to the device: the host plans chunks, each one program call, and meets the device at
chunk ends only."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxdti.config import TrainingConfig
from jaxdti.data.pairs.buckets import Chunk, PairBatch, Shape
from jaxdti.data.pairs.device import DeviceFeatures, chunk_features
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.errors import NonFiniteLoss
from jaxdti.memory import release_freed_memory
from jaxdti.training.compilation import kept_program, signature
from jaxdti.training.mesh import (
    BATCHES,
    REPLICATED,
    STATES,
    make_mesh,
    over_replicas,
    put,
    take_replica,
    to_host,
)
from jaxdti.training.plans import refreshes
from jaxdti.training.progress import Progress, Reporter, TrialProgress, progress_line, restored_progress
from jaxdti.training.state import TrainState, init_replicas
from jaxdti.training.step import make_chunk, make_train_step
from jaxdti.training.task import FitResult, Task, Trial, Variables

_ADVICE = "The last checkpoint, if any, is from before; try a lower training.learning_rate or training.clip_norm=1"
_CONTACT_SECONDS = 2.0  # between two looks at the device inside an epoch
_CONTACT_CHUNKS = 16  # likewise of several processes, whose clocks differ and which have to look at the same time
_IN_FLIGHT = 2  # chunks whose own features are on the device: one runs, one waits


class Streamed:
    """The executor of a ``BucketPlan``. A trial that has stopped or failed gets filler rows, which change nothing."""

    save_seconds = 0.0  # every epoch is saved

    def __init__(self, task: Task, trials: Sequence[Trial], config: TrainingConfig, start: Variables | None):
        if start is not None:
            raise ValueError("fit: streamed training starts from task.init")
        self.task, self.trials, self.config = task, trials, config
        self.mesh = make_mesh(len(trials), config.batch_size)
        self.tx = task.optimizer(config, task.plan.steps_per_epoch)
        hyper = [task.hyper(trial) for trial in trials]
        self.label_scale = np.stack([each["label_scale"] for each in hyper])
        key = task.key if task.keeps_init else None
        self.state = init_replicas(task.init, self.tx, [trial.seed for trial in trials], hyper, key)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # one program, not one for each shape
        self.best = copy(self.state.variables)
        self.progress = Progress([TrialProgress() for _ in trials])

    def arrays(self) -> tuple[Any, Any]:
        """State and best variables of all trials, stacked on axis 0, for a checkpoint."""
        return self.state, self.best

    def position(self) -> dict[str, Any]:
        """What a checkpoint holds beside arrays."""
        return asdict(self.progress)

    def restore(self, state: Any, best: Any, position: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.state, self.best, self.progress = state, best, restored_progress(position)

    def begin(self, report: Reporter) -> None:
        """Puts everything where it trains; called once, after ``restore`` if there is a checkpoint."""
        self.report = report
        self.run_chunk = chunk_programs(self.task, self.tx, self.mesh, report)
        self.state, self.best = put((self.state, self.best), self.mesh, STATES)
        self.rows = sum(len(trial.rows["train"]) for trial in self.trials)

    def updates(self) -> int:
        """Updates of all trials so far, the number of a checkpoint; it never decreases."""
        return int(np.sum(to_host(self.state.step)))

    def active(self) -> list[bool]:
        """Which trials train on in the epoch to come."""
        epoch, patience = self.progress.epoch, self.config.patience
        waited = lambda member: patience is not None and epoch - member.best_epoch >= patience
        return [
            epoch < trial.last_epoch(self.config.epochs) and member.failed is None and not waited(member)
            for trial, member in zip(self.trials, self.progress.members, strict=True)
        ]

    def advance(self, stopped: Sequence[int]) -> Iterator[bool]:
        """One epoch, or what is left of it; yields False at each look at the device inside of it, True at its end.

        ``stopped`` receives signals, so that the device is looked at.
        """
        task, progress, active = self.task, self.progress, self.active()
        chunks = task.plan.epoch(progress.epoch)
        due = refreshes(chunks, task.refresh.steps) if task.refresh else [False] * len(chunks)
        pending: list[dict[str, jax.Array]] = []
        started = contact = time.perf_counter()
        pace = 0.0  # seconds of a chunk, at the last look
        for chunk in chunks[progress.chunk :]:
            if due[progress.chunk]:
                self.refresh()
            chosen = np.where(np.asarray(active)[:, None, None], chunk.rows, -1)
            batches, distinct = task.plan.batch(chosen), task.plan.distinct(chunk)
            self.state, metrics = self.run_chunk(self.state, chunk.bucket, batches, distinct)
            pending.append(metrics)
            progress.chunk += 1
            # Chunks are only queued, so the host's own time says little of the device's.
            waited = max(time.perf_counter() - contact, len(pending) * pace)
            last = progress.chunk == len(chunks)
            if not (last or _look_is_due(progress.chunk, waited, stopped)):
                continue
            _collect(progress, pending)
            self._check_finite(chunks)
            looked = time.perf_counter()
            pace = (looked - contact) / len(pending)
            pending, contact = [], looked
            progress.seconds += contact - started
            started = contact
            self.report.update(progress_line(progress, self.config.epochs, self.rows))
            if not last:
                yield False
        self._finish_epoch(active)
        yield True

    def refresh(self) -> None:
        """Sets ``hyper["target_classes"]`` of every trial, float32 [R, 2]."""
        assert self.task.refresh is not None
        classes = []
        for i, trial in enumerate(self.trials):
            variables = take_replica(self.state.variables, i, self.mesh)
            classes.append(self.task.refresh.classes(variables, self.task.inputs, trial.rows["target_train"]))
        stacked = {name: np.array([each[name] for each in classes], np.float32) for name in classes[0]}
        self.state = self.state.replace(hyper=self.state.hyper | put(stacked, self.mesh, STATES))

    def _check_finite(self, chunks: list[Chunk]) -> None:
        """Gives up the trials that have recorded a bad step; ``chunks`` are those of the whole epoch."""
        progress = self.progress
        for i, first_bad in enumerate(to_host(self.state.first_bad)):
            if first_bad < 0 or progress.members[i].failed:
                continue
            # Steps without rows are not counted, and every epoch has the same number of others: the sizes of the
            # buckets decide it, not the shuffle.
            counted = [batch for chunk in chunks for batch in chunk.rows[i] if np.any(batch >= 0)]
            batch = counted[first_bad - progress.epoch * len(counted)]
            rows = batch[batch >= 0]
            self._give_up(
                i,
                f"step {first_bad} (epoch {progress.epoch + 1}): the loss or its gradient is not finite; its batch of "
                f"{len(rows)} pairs begins with {self.task.describe(rows[:4])}",
            )

    def _give_up(self, trial: int, reason: str) -> None:
        """Marks a trial as failed; the others go on, if there are any.

        Raises:
          NonFiniteLoss: there are none.
        """
        self.progress.members[trial].failed = reason
        if all(member.failed for member in self.progress.members):
            raise NonFiniteLoss(f"{reason}. {_ADVICE}")
        self.report.failed(trial, reason)

    def _finish_epoch(self, active: list[bool]) -> None:
        """Scores the active trials, keeps the best weights of each, records the epoch.

        Raises:
          NonFiniteLoss: of all trials left, a score is not finite; the epoch's last updates can do that with finite
            losses.
        """
        start, progress = time.perf_counter(), self.progress
        release_freed_memory()  # what training needed; scoring needs arrays of other sizes
        better, records = np.zeros(len(self.trials), bool), []
        steps = to_host(self.state.step)
        for i, (trial, member) in enumerate(zip(self.trials, progress.members, strict=True)):
            if not active[i] or member.failed:
                continue
            network = partial(self.task.scored, take_replica(self.state.variables, i, self.mesh))
            try:
                value, record = self.task.selector(network, trial)
            except NonFiniteLoss as error:
                self._give_up(i, f"step {steps[i] - 1} (epoch {progress.epoch + 1}, its last): {error} after it")
                continue
            # Where the score is undefined (validation labels all equal), the last epoch counts as the best; ties stay
            # with the earlier epoch.
            better[i] = member.best_value is None or (np.isfinite(value) and not value <= member.best_value)
            if better[i]:
                member.best_value = float(value) if np.isfinite(value) else None
                member.best_epoch = progress.epoch + 1
            records.append((i, record))
        self.best = _keep(self.best, self.state, put(better, self.mesh, STATES))
        release_freed_memory()
        progress.seconds += time.perf_counter() - start
        self._record(records, steps)

    def _record(self, records: Sequence[tuple[int, dict[str, float]]], steps: np.ndarray) -> None:
        """Ends the epoch in the progress, with the metrics of each trial that took part."""
        progress = self.progress
        for i, scored in records:
            member = progress.members[i]
            record = {
                "epoch": progress.epoch + 1,
                "step": int(steps[i]),
                "loss": member.loss_sum / max(member.rows, 1),
                "seconds": progress.seconds,
                "samples_per_second": progress.trained_rows / max(progress.seconds, 1e-9),
                **scored,
            }
            member.history.append(record)
            member.last_epoch = progress.epoch + 1
            self.report.epoch(i, record)
        for member in progress.members:
            member.loss_sum, member.rows = 0.0, 0
        progress.epoch += 1
        progress.chunk = 0

    def result(self) -> FitResult:
        members, epochs = self.progress.members, self.progress.epoch
        loss, value = (np.full((len(members), epochs), np.nan, np.float32) for _ in range(2))
        for i, member in enumerate(members):
            for record in member.history:
                loss[i, record["epoch"] - 1] = record["loss"]
                value[i, record["epoch"] - 1] = record[self.task.selector.name]
        best_value = [np.nan if member.best_value is None else member.best_value for member in members]
        return FitResult(
            variables=self.best,
            progress=self.progress,
            best_epoch=np.array([member.best_epoch for member in members]),
            best_value=np.array(best_value, np.float32),
            first_bad=to_host(self.state.first_bad),
            loss=loss,
            value=value,
            label_scale=self.label_scale,
        )


def _look_is_due(chunk: int, seconds: float, stopped: Sequence[int]) -> bool:
    """Whether the host looks at the device after ``chunk`` chunks, which take ``seconds`` since it last did."""
    if jax.process_count() > 1:
        return chunk % _CONTACT_CHUNKS == 0
    return bool(stopped) or seconds > _CONTACT_SECONDS


def _collect(progress: Progress, pending: list[dict[str, jax.Array]]) -> None:
    """Adds the losses of finished chunks; this is where the host waits for the device."""
    for metrics in jax.device_get([{name: m[name] for name in ("loss", "rows")} for m in pending]):
        loss, count = metrics["loss"].astype(np.float64), metrics["rows"]  # [trials, steps]
        for member, total, rows in zip(progress.members, (loss * count).sum(1), count.sum(1), strict=True):
            member.loss_sum += float(total)
            member.rows += int(rows)
        progress.trained_rows += int(count.sum())


@partial(jax.jit, donate_argnums=0)
def _keep(best: Variables, state: TrainState, better: jax.Array) -> Variables:
    """The variables of the state for the trials that are ``better``, bool [R]; a copy, as states are donated."""
    pick = lambda old, new: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(pick, best, state.variables)


def chunk_programs(
    task: Task, tx: optax.GradientTransformation, mesh: Mesh, report: Reporter
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """``run(state, bucket, batches, distinct=None)``: the bucket's program, compiled and reported at first use.

    ``distinct`` is how many proteins to encode a batch, None for one a pair; it makes a program of its own.
    """
    compiled, inputs = {}, task.inputs
    running: deque[jax.Array] = deque()

    def place(batches: PairBatch, shape: Shape) -> tuple[DeviceFeatures, PairBatch]:
        if not isinstance(inputs, FeatureStore):
            return inputs, put(batches, mesh, BATCHES)
        chosen, batches = chunk_features(inputs, batches, shape)
        # Programs are only queued, so the lines above ran beside the device. Without a limit a fast host would queue a
        # whole epoch of features there.
        if len(running) == _IN_FLIGHT:
            jax.block_until_ready(running.popleft())
        return put(chosen, mesh, REPLICATED), put(batches, mesh, BATCHES)

    def run(
        state: TrainState, bucket: int, batches: PairBatch, distinct: int | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        shape = task.plan.shapes[bucket]
        chosen, batches = place(batches, shape)
        if (bucket, distinct) not in compiled:

            def program(state, features, batches):
                step = make_train_step(task.objective(features, shape, distinct), tx)
                return jax.vmap(make_chunk(step))(state, batches)

            def compile():
                start = time.perf_counter()
                made = over_replicas(program, mesh).lower(state, chosen, batches).compile()
                release_freed_memory()
                report.compiled(_program_name(batches, shape, distinct), time.perf_counter() - start)
                return made

            key = ("train", task.key, shape, distinct, mesh, signature(state, chosen, batches))
            compiled[bucket, distinct] = compile() if task.key is None else kept_program(key, compile)
        state, metrics = compiled[bucket, distinct](state, chosen, batches)
        if isinstance(inputs, FeatureStore):
            running.append(metrics["loss"])
        return state, metrics

    return run


def _program_name(batches: PairBatch, shape: Shape, distinct: int | None) -> str:
    trials, steps, size = batches.drug.shape
    together = f"{trials} replicas x " if trials > 1 else ""
    proteins = f", {distinct} proteins" if distinct else ""
    return f"{together}{steps} x {size} pairs of {shape.atoms} atoms, {shape.residues} residues{proteins}"
