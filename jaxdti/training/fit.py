"""The training loop: the host plans, the device runs chunks, and they meet at chunk ends only."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax.sharding import Mesh

from jaxdti.data.pairs.buckets import Buckets, Chunk
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.errors import Interrupted, NonFiniteLoss
from jaxdti.memory import release_freed_memory
from jaxdti.training.checkpoints import Checkpoints
from jaxdti.training.mesh import (
    STATES,
    is_lead,
    largest,
    make_mesh,
    of_lead,
    put,
    take_replica,
    to_host,
)
from jaxdti.training.progress import Progress, Reporter, _progress_line
from jaxdti.training.signals import stop_signals
from jaxdti.training.state import TrainState
from jaxdti.training.streamed import chunk_programs
from jaxdti.training.supervised import SELECTION, label_scale, validate
from jaxdti.training.task import Method, Replica, Scorer

_ADVICE = "The last checkpoint, if any, is from before; try a lower training.learning_rate or training.clip_norm=1"
_CONTACT_SECONDS = 2.0  # between two looks at the device inside an epoch
_CONTACT_CHUNKS = 16  # likewise of several processes, whose clocks differ and which have to look at the same time


def fit(
    replicas: Sequence[Replica],
    method: Method,
    table: InteractionTable,
    features: DeviceFeatures | FeatureStore,
    buckets: Buckets,
    scorer: Scorer,
    tx: optax.GradientTransformation,
    state: TrainState,
    best: dict[str, Any],
    progress: Progress,
    checkpoints: Checkpoints,
    report: Reporter,
) -> tuple[TrainState, dict[str, Any], Progress]:
    """Trains all replicas from where ``progress`` stands to the last epoch, or until the patience of each is over.

    Every epoch is planned from (seed, epoch) alone and saved at its end, so that a resumed run repeats an unbroken one.
    A replica that has stopped or failed gets filler rows from then on, which leave it as it is.

    Args:
      features: replicated over the mesh; a store is left on the host, and every chunk takes its own part along.
      state, best: of all replicas, stacked on axis 0.

    Returns:
      The last state and the variables of the best validation epochs, spread over the mesh, and the completed progress.

    Raises:
      NonFiniteLoss: all replicas have failed; of a single one, the step and the rows of its batch are named. Nothing
        was saved since.
      Interrupted: SIGTERM or SIGINT arrived; saved at the chunk's end.
    """
    training = replicas[0].config.training
    mesh = make_mesh(len(replicas), training.batch_size)
    run_chunk = chunk_programs(method, features, buckets, tx, mesh, report)
    state, best = put((state, best), mesh, STATES)
    pairs = sum(len(replica.parts["train"]) for replica in replicas)

    def save() -> None:
        # Of several processes the first one writes, and it holds a part of the arrays only. Alone, too: Orbax takes
        # half of the time for arrays of NumPy.
        arrays, kept = to_host((state, best))
        updates = _updates(state)
        if is_lead():
            checkpoints.save(updates, arrays, kept, asdict(progress))

    with stop_signals() as stopped:
        while progress.epoch < training.epochs and any(active := _active(progress, training.patience)):
            chunks = method.plan(progress.epoch)
            due = method.target_classes_due(chunks) if method.target_classes_due else [False] * len(chunks)
            pending: list[dict[str, jax.Array]] = []
            started = contact = time.perf_counter()
            pace = 0.0  # seconds of a chunk, at the last look
            for chunk in chunks[progress.chunk :]:
                if due[progress.chunk]:
                    state = _predict_target_classes(replicas, method, scorer, state, mesh)
                chosen = np.where(np.asarray(active)[:, None, None], chunk.rows, -1)
                state, metrics = run_chunk(state, chunk.bucket, method.batch(chosen), method.proteins(chunk))
                pending.append(metrics)
                progress.chunk += 1
                # Chunks are only queued, so the host's own time says little of the device's.
                waited = max(time.perf_counter() - contact, len(pending) * pace)
                last = progress.chunk == len(chunks)
                if not (last or _look_is_due(progress.chunk, waited, stopped)):
                    continue
                _collect(progress, pending)
                _check_finite(state, progress, table, chunks, report)
                looked = time.perf_counter()
                pace = (looked - contact) / len(pending)
                pending, contact = [], looked
                progress.seconds += contact - started
                started = contact
                report.update(_progress_line(progress, training.epochs, pairs))
                if not last and (number := _stop_signal(stopped)):
                    save()
                    raise Interrupted(number)
            best = _finish_epoch(replicas, method, table, scorer, state, best, progress, active, mesh, report)
            save()
            if number := _stop_signal(stopped):
                raise Interrupted(number)
    return state, best, progress


def _active(progress: Progress, patience: int | None) -> list[bool]:
    """Which replicas train on in the epoch to come."""
    waited = lambda member: patience is not None and progress.epoch - member.best_epoch >= patience
    return [member.failed is None and not waited(member) for member in progress.members]


def _look_is_due(chunk: int, seconds: float, stopped: list[int]) -> bool:
    """Whether the host looks at the device after ``chunk`` chunks, which take ``seconds`` since it last did."""
    if jax.process_count() > 1:
        return chunk % _CONTACT_CHUNKS == 0
    return bool(stopped) or seconds > _CONTACT_SECONDS


def _stop_signal(stopped: list[int]) -> int:
    """The signal that has reached any of the processes, 0 for none."""
    return largest(stopped[0] if stopped else 0)


def _predict_target_classes(
    replicas: Sequence[Replica], method: Method, scorer: Scorer, state: TrainState, mesh: Mesh
) -> TrainState:
    """The state with the mean prediction of each replica over all its target pairs, float32 [R, 2], in ``hyper``."""
    means = []
    for i, replica in enumerate(replicas):
        network = method.network(take_replica(state.variables, i, mesh), "target_train")
        positive = scipy.special.expit(of_lead(scorer(network, replica.parts["target_train"]))).mean()
        means.append((1.0 - positive, positive))
    return state.replace(hyper=state.hyper | {"target_classes": put(np.array(means, np.float32), mesh, STATES)})


def _updates(state: TrainState) -> int:
    """The number of a checkpoint: chunks of work never lower it, whichever replicas have stopped."""
    return int(np.sum(to_host(state.step)))


def _collect(progress: Progress, pending: list[dict[str, jax.Array]]) -> None:
    """Adds the losses of finished chunks; this is where the host waits for the device."""
    for metrics in jax.device_get([{name: m[name] for name in ("loss", "rows")} for m in pending]):
        loss, count = metrics["loss"].astype(np.float64), metrics["rows"]  # [replicas, steps]
        for member, total, rows in zip(progress.members, (loss * count).sum(1), count.sum(1), strict=True):
            member.loss_sum += float(total)
            member.rows += int(rows)
        progress.trained_rows += int(count.sum())


def _check_finite(
    state: TrainState, progress: Progress, table: InteractionTable, chunks: list[Chunk], report: Reporter
) -> None:
    """Gives up the replicas that have recorded a bad step; ``chunks`` are those of the whole epoch."""
    for i, first_bad in enumerate(to_host(state.first_bad)):
        member = progress.members[i]
        if first_bad < 0 or member.failed:
            continue
        # Steps without rows are not counted, and every epoch has the same number of others: the sizes of the buckets
        # decide it, not the shuffle.
        counted = [batch for chunk in chunks for batch in chunk.rows[i] if np.any(batch >= 0)]
        batch = counted[first_bad - progress.epoch * len(counted)]
        rows = batch[batch >= 0]
        where = ", ".join(f"{table.part[row]} row {table.row[row] + 1}" for row in rows[:4])
        _give_up(
            progress,
            i,
            f"step {first_bad} (epoch {progress.epoch + 1}): the loss or its gradient is not finite; its batch of "
            f"{len(rows)} pairs begins with {where}",
            report,
        )


def _give_up(progress: Progress, replica: int, reason: str, report: Reporter) -> None:
    """Marks a replica as failed; the others go on, if there are any.

    Raises:
      NonFiniteLoss: there are none.
    """
    progress.members[replica].failed = reason
    if all(member.failed for member in progress.members):
        raise NonFiniteLoss(f"{reason}. {_ADVICE}")
    report.failed(replica, reason)


@partial(jax.jit, donate_argnums=0)
def _keep(best: dict[str, Any], state: TrainState, better: jax.Array) -> dict[str, Any]:
    """The variables of the state for the replicas that are ``better``, bool [R]; a copy, as states are donated."""
    pick = lambda old, new: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(pick, best, state.variables)


def _finish_epoch(
    replicas: Sequence[Replica],
    method: Method,
    table: InteractionTable,
    scorer: Scorer,
    state: TrainState,
    best: dict[str, Any],
    progress: Progress,
    active: list[bool],
    mesh: Mesh,
    report: Reporter,
) -> dict[str, Any]:
    """Validates the active replicas, keeps the best weights of each, records the epoch.

    Raises:
      NonFiniteLoss: of all replicas left, a validation score is not finite; the epoch's last updates can do that with
        finite losses.
    """
    start = time.perf_counter()
    release_freed_memory()  # what training needed; scoring needs arrays of other sizes
    better, records = np.zeros(len(replicas), bool), []
    steps = to_host(state.step)
    for i, (replica, member) in enumerate(zip(replicas, progress.members, strict=True)):
        if not active[i] or member.failed:
            continue
        network = partial(method.network, take_replica(state.variables, i, mesh))
        scores = of_lead(scorer(network("validation"), replica.parts["validation"]))
        if bad := int(np.sum(~np.isfinite(scores))):
            reason = (
                f"step {steps[i] - 1} (epoch {progress.epoch + 1}, its last): {bad} of {len(scores)} validation "
                "scores are not finite after it"
            )
            _give_up(progress, i, reason, report)
            continue
        metrics = validate(table, replica.config.task, label_scale(table, replica), replica.parts["validation"], scores)
        record = {f"validation_{name}": number for name, number in metrics.items()}
        value = metrics[SELECTION[replica.config.task]]
        if method.judge is not None:
            value = float(of_lead(np.asarray(method.judge(replica, network))))
            record["selection_" + replica.config.adaptation.selection] = value
        # Where the score is undefined (validation labels all equal), the last epoch counts as the best; ties stay with
        # the earlier epoch.
        better[i] = member.best_value is None or (np.isfinite(value) and not value <= member.best_value)
        if better[i]:
            member.best_value = float(value) if np.isfinite(value) else None
            member.best_epoch = progress.epoch + 1
        if replica.config.adaptation.oracle:
            scores = of_lead(scorer(network("test"), replica.parts["test"]))
            metrics = validate(table, replica.config.task, label_scale(table, replica), replica.parts["test"], scores)
            record |= {f"oracle_{name}": number for name, number in metrics.items()}
        records.append((i, record))
    best = _keep(best, state, put(better, mesh, STATES))
    release_freed_memory()
    progress.seconds += time.perf_counter() - start
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
        report.epoch(i, record)
    for member in progress.members:
        member.loss_sum, member.rows = 0.0, 0
    progress.epoch += 1
    progress.chunk = 0
    return best
