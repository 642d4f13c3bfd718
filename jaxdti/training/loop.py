"""The training loop: the host plans, the device runs chunks, and they meet at chunk ends only."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

from jaxdti.config import Config
from jaxdti.data.batches import Buckets, Chunk, pair_batch, plan_epoch
from jaxdti.data.load import Dataset
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics
from jaxdti.inference.scoring import Scorer
from jaxdti.training.checkpoints import Checkpoints
from jaxdti.training.features import DeviceFeatures
from jaxdti.training.objectives import pair_objective
from jaxdti.training.state import TrainState
from jaxdti.training.step import make_chunk, make_train_step

SELECTION = {"classification": "auroc", "regression": "concordance_index"}
_ADVICE = "The last checkpoint, if any, is from before; try a lower training.learning_rate or training.clip_norm=1"
_CONTACT_SECONDS = 2.0  # between two looks at the device inside an epoch


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the last checkpoint is from before."""


class Interrupted(RuntimeError):
    """A signal asked to stop; the state is saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal = signal_number


@dataclass
class Progress:
    """Where a run stands, saved with the state; everything that resuming needs beside arrays."""

    epoch: int = 0  # epochs completed
    chunk: int = 0  # chunks completed in the epoch under way
    loss_sum: float = 0.0  # over the rows of the epoch under way
    rows: int = 0
    best_value: float | None = None  # validation score that selects the weights
    best_epoch: int = 0
    seconds: float = 0.0  # spent training, over all resumptions
    trained_rows: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics of every completed epoch


@dataclass(frozen=True)
class Reporter:
    """What the loop tells: ``update`` within an epoch, ``epoch`` once it is over, ``compiled`` for each program."""

    update: Callable[[dict[str, Any]], None]
    epoch: Callable[[dict[str, Any]], None]
    compiled: Callable[[str, float], None]


def label_scale(dataset: Dataset, task: str) -> tuple[float, float]:
    """(mean, sd) of the training affinities, (0, 1) for classification: the network predicts standardised labels."""
    if task == "classification":
        return 0.0, 1.0
    label = dataset.table.label[dataset.parts["train"]].astype(np.float64)
    return float(label.mean()), float(label.std()) or 1.0


def class_weights(dataset: Dataset, config: Config) -> tuple[float, float]:
    """Loss factors of labels 0 and 1, inversely to their frequency in train and of mean 1 over its rows."""
    if config.task != "classification" or not config.training.class_weight:
        return 1.0, 1.0
    positive = float(dataset.table.label[dataset.parts["train"]].mean())
    if positive in (0.0, 1.0):
        return 1.0, 1.0
    return 0.5 / (1.0 - positive), 0.5 / positive


def fit(
    config: Config,
    dataset: Dataset,
    features: DeviceFeatures,
    buckets: Buckets,
    scorer: Scorer,
    tx: optax.GradientTransformation,
    state: TrainState,
    best: dict[str, Any],
    progress: Progress,
    checkpoints: Checkpoints,
    report: Reporter,
) -> tuple[TrainState, dict[str, Any], Progress]:
    """Trains from where ``progress`` stands to the last epoch, or until patience is over.

    Every epoch is planned from (seed, epoch) alone and saved at its end, so that a resumed run repeats an unbroken one.

    Returns:
      The last state, the variables of the best validation epoch, and the completed progress.

    Raises:
      NonFiniteLoss: the step and the rows of its batch are named; nothing was saved since.
      Interrupted: SIGTERM or SIGINT arrived; saved at the chunk's end.
    """
    training = config.training
    steps = training.chunk_steps or chunk_steps()
    run_chunk = _chunk_programs(config, dataset, features, buckets, tx, report)
    rows = dataset.parts["train"]

    def save() -> None:
        checkpoints.save(int(state.step), state, best, vars(progress))

    with _stop_signals() as stopped:
        while progress.epoch < training.epochs and not _out_of_patience(progress, training.patience):
            chunks = plan_epoch(rows, buckets, training.batch_size, steps, seed=training.seed, epoch=progress.epoch)
            pending: list[tuple[Chunk, dict[str, jax.Array]]] = []
            started = contact = time.perf_counter()
            for chunk in chunks[progress.chunk :]:
                state, metrics = run_chunk(state, chunk)
                pending.append((chunk, metrics))
                progress.chunk += 1
                now = time.perf_counter()
                last = progress.chunk == len(chunks)
                if not (last or stopped or now - contact > _CONTACT_SECONDS):
                    continue
                _collect(progress, pending)
                _check_finite(state, progress.epoch, dataset, chunks)
                pending, contact = [], time.perf_counter()
                progress.seconds += contact - started
                started = contact
                report.update(_progress_line(progress, training.epochs, len(rows)))
                if stopped and not last:
                    save()
                    raise Interrupted(stopped[0])
            state, best = _finish_epoch(config, dataset, scorer, state, best, progress, report)
            save()
            if stopped:
                raise Interrupted(stopped[0])
    return state, best, progress


def chunk_steps() -> int:
    """Steps of a program call: 1 on CPU (see ``make_chunk``), 16 elsewhere."""
    return 1 if jax.default_backend() == "cpu" else 16


def _chunk_programs(config, dataset, features, buckets, tx, report: Reporter):
    """``run(state, chunk)``: the compiled program of the chunk's bucket, compiled and reported at first use."""
    compiled = {}

    def run(state: TrainState, chunk: Chunk) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = pair_batch(dataset.table, chunk.rows)
        if chunk.bucket not in compiled:
            shape = buckets.shapes[chunk.bucket]

            def program(state, features, batches):
                objective = pair_objective(
                    config.model,
                    config.task,
                    features,
                    shape,
                    class_weights=class_weights(dataset, config),
                    label_scale=label_scale(dataset, config.task),
                )
                return make_chunk(make_train_step(objective, tx))(state, batches)

            start = time.perf_counter()
            compiled[chunk.bucket] = jax.jit(program, donate_argnums=0).lower(state, features, batches).compile()
            name = (
                f"{chunk.rows.shape[0]} x {chunk.rows.shape[1]} pairs of {shape.atoms} atoms, {shape.residues} residues"
            )
            report.compiled(name, time.perf_counter() - start)
        return compiled[chunk.bucket](state, features, batches)

    return run


def _collect(progress: Progress, pending: list[tuple[Chunk, dict[str, jax.Array]]]) -> None:
    """Adds the losses of finished chunks; this is where the host waits for the device."""
    for _, metrics in pending:
        loss, count = np.asarray(metrics["loss"], np.float64), np.asarray(metrics["rows"])
        progress.loss_sum += float(np.sum(loss * count))
        progress.rows += int(count.sum())
        progress.trained_rows += int(count.sum())


def _check_finite(state: TrainState, epoch: int, dataset: Dataset, chunks: list[Chunk]) -> None:
    """Raises NonFiniteLoss when the state has recorded a bad step; ``chunks`` are those of the whole epoch."""
    first_bad = int(state.first_bad)
    if first_bad < 0:
        return
    # Steps without rows are not counted, and every epoch has the same number of others: the sizes of the buckets
    # decide it, not the shuffle.
    counted = [batch for chunk in chunks for batch in chunk.rows if np.any(batch >= 0)]
    batch = counted[first_bad - epoch * len(counted)]
    table, rows = dataset.table, batch[batch >= 0]
    where = ", ".join(f"{table.part[row]} row {table.row[row] + 1}" for row in rows[:4])
    raise NonFiniteLoss(
        f"step {first_bad} (epoch {epoch + 1}): the loss or its gradient is not finite; its batch of {len(rows)} pairs "
        f"begins with {where}. {_ADVICE}"
    )


def _finish_epoch(config, dataset: Dataset, scorer: Scorer, state, best, progress: Progress, report: Reporter):
    """Validates, keeps the best weights, records the epoch.

    Raises:
      NonFiniteLoss: a validation score is not finite; the epoch's last updates can do that with finite losses.
    """
    start = time.perf_counter()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scores = scorer(variables, dataset.parts["validation"])
    if bad := int(np.sum(~np.isfinite(scores))):
        raise NonFiniteLoss(
            f"step {int(state.step) - 1} (epoch {progress.epoch + 1}, its last): {bad} of {len(scores)} validation "
            f"scores are not finite after it. {_ADVICE}"
        )
    metrics = validate(config, dataset, scores)
    value = metrics[SELECTION[config.task]]
    # Where the score is undefined (validation labels all equal), the last epoch counts as the best; ties stay with the
    # earlier epoch.
    better = progress.best_value is None or (np.isfinite(value) and not value <= progress.best_value)
    if better:
        # A copy: the state's buffers are donated to the next chunk.
        best = jax.tree.map(lambda x: x.copy(), variables)
        progress.best_value = float(value) if np.isfinite(value) else None
        progress.best_epoch = progress.epoch + 1
    progress.seconds += time.perf_counter() - start
    record = {
        "epoch": progress.epoch + 1,
        "step": int(state.step),
        "loss": progress.loss_sum / max(progress.rows, 1),
        "seconds": progress.seconds,
        "samples_per_second": progress.trained_rows / max(progress.seconds, 1e-9),
        **{f"validation_{name}": number for name, number in metrics.items()},
    }
    progress.history.append(record)
    progress.epoch += 1
    progress.chunk, progress.loss_sum, progress.rows = 0, 0.0, 0
    report.epoch(record)
    return state, best


def validate(config: Config, dataset: Dataset, scores: np.ndarray) -> dict[str, float]:
    """Metrics of the validation part that need no calibration, from raw scores in its row order."""
    label = dataset.table.label[dataset.parts["validation"]]
    if config.task == "classification":
        probability = 1.0 / (1.0 + np.exp(-np.clip(scores.astype(np.float64), -500, 500)))
        metrics = classification_metrics(label, scores, probability, 0.5)
        return {name: metrics[name] for name in ("auroc", "auprc")}
    mean, sd = label_scale(dataset, config.task)
    metrics = regression_metrics(label, scores * sd + mean)
    return {name: metrics[name] for name in ("concordance_index", "mse")}


def _out_of_patience(progress: Progress, patience: int | None) -> bool:
    return patience is not None and progress.epoch - progress.best_epoch >= patience


def _progress_line(progress: Progress, epochs: int, rows: int) -> dict[str, Any]:
    speed = progress.trained_rows / max(progress.seconds, 1e-9)
    left = (epochs - progress.epoch) * rows - progress.rows
    return {
        "epoch": progress.epoch + 1,
        "share": progress.rows / max(rows, 1),
        "loss": progress.loss_sum / max(progress.rows, 1),
        "samples_per_second": speed,
        "eta_seconds": left / max(speed, 1e-9),
    }


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM or SIGINT; a second Ctrl-C stops at once. Only the main thread can listen."""
    received: list[int] = []
    previous = {}

    def handler(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is threading.main_thread():  # elsewhere the caller keeps its own handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
