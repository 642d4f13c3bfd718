"""Progress of a training and its reporting: a status line, metrics.jsonl and TensorBoard events."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jaxdti.console import console, say, say_compiled
from jaxdti.evaluation.part import json_ready
from jaxdti.files import atomic


def _ignore(*_: Any) -> None:
    pass


@dataclass
class TrialProgress:
    """Training progress of one trial."""

    loss_sum: float = 0.0  # over the rows of the epoch under way
    rows: int = 0
    best_value: float | None = None  # validation score that selects the weights
    best_epoch: int = 0
    last_epoch: int = 0  # epochs it took part in, to their end
    failed: str | None = None  # why it was given up
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics of every completed epoch


@dataclass
class Progress:
    """Host-side progress of a run, checkpointed with the state."""

    members: list[TrialProgress]
    epoch: int = 0  # epochs completed
    chunk: int = 0  # chunks completed in the epoch under way
    seconds: float = 0.0  # spent training, over all resumptions
    trained_rows: int = 0


def restored_progress(saved: dict[str, Any]) -> Progress:
    """From what ``dataclasses.asdict`` made of it."""
    members = [TrialProgress(**member) for member in saved["members"]]
    return Progress(members, saved["epoch"], saved["chunk"], saved["seconds"], saved["trained_rows"])


@dataclass(frozen=True)
class Reporter:
    """What a training tells: ``update`` at each look at the device, ``epoch`` once it is over for a trial (its number
    and record), ``failed`` when a trial is given up, ``compiled`` for each program."""

    update: Callable[[dict[str, Any]], None] = _ignore
    epoch: Callable[[int, dict[str, Any]], None] = _ignore
    epochs: Callable[[Iterable[tuple[int, dict[str, Any]]]], None] = _ignore  # as ``epoch``, of many at once
    failed: Callable[[int, str], None] = _ignore
    compiled: Callable[[str, float], None] = _ignore


class RunReporter:
    """Writes the metrics of a run; on resuming, what lies beyond the restored epoch is dropped first."""

    def __init__(self, output: Path, progress: Progress, epochs: int, tensorboard: bool, *, quiet: bool = False):
        """``quiet``: a status line instead of a line an epoch and trial; earlier epochs are those in the file."""
        self._metrics = output / "metrics.jsonl"
        self._epochs = epochs
        self._trials = len(progress.members)
        self._status = console.status("compiling") if console.is_terminal else None
        histories = [member.history for member in progress.members]
        with atomic(self._metrics) as temporary:
            temporary.write_text("".join(self._kept(progress.epoch) if quiet else self._written(histories)))
        folder = output / "tensorboard"
        folders = [folder / f"replica_{i}" if self._trials > 1 else folder for i in range(self._trials)]
        firsts = [history[-1]["step"] + 1 if history else 0 for history in histories]
        self._writers = [
            SummaryWriter(str(folder), purge_step=first)
            for folder, first in zip(folders, firsts, strict=True)
            if tensorboard
        ]

    def _written(self, histories: list[list[dict[str, Any]]]) -> list[str]:
        """The lines as they were written: epoch by epoch, within an epoch trial by trial."""
        lines = (
            (record["epoch"], i, self._line(i, record)) for i, of_trial in enumerate(histories) for record in of_trial
        )
        return [line for _, _, line in sorted(lines)]

    def _kept(self, epoch: int) -> list[str]:
        """The lines of the file up to ``epoch``."""
        if not (epoch and self._metrics.is_file()):
            return []
        with open(self._metrics, encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
        return [line for line in whole if json.loads(line)["epoch"] <= epoch]

    def __enter__(self) -> "RunReporter":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status:
            self._status.stop()
        for writer in self._writers:
            writer.close()

    def reporter(self) -> Reporter:
        return Reporter(
            update=self._update,
            epoch=self._epoch,
            epochs=self._epochs_of_many,
            failed=self._failed,
            compiled=say_compiled,
        )

    def _line(self, replica: int, record: dict[str, Any]) -> str:
        named = {"replica": replica} if self._trials > 1 else {}
        return json.dumps(named | json_ready(record)) + "\n"

    def _name(self, replica: int) -> str:
        return f"replica {replica}  " if self._trials > 1 else ""

    def _update(self, line: dict[str, Any]) -> None:
        if self._status:
            self._status.update(
                f"epoch {line['epoch']}/{self._epochs} {line['share']:.0%}  loss {line['loss']:.4f}  "
                f"{line['samples_per_second']:.1f} samples/s  ETA {_duration(line['eta_seconds'])}"
            )

    def _epoch(self, replica: int, record: dict[str, Any]) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(self._line(replica, record))
        if self._writers:
            writer = self._writers[replica]
            for name, value in record.items():
                if name not in ("epoch", "step"):
                    writer.add_scalar(name, value, record["step"])
            writer.flush()
        shown = [name for name in record if name.startswith(("validation_", "selection_"))]
        scores = "  ".join(f"{name.replace('_', ' ')} {record[name]:.4f}" for name in shown)
        left = (self._epochs - record["epoch"]) * record["seconds"] / record["epoch"]
        say(
            f"{self._name(replica)}epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}  {scores}  "
            f"{record['samples_per_second']:.1f} samples/s  ETA {_duration(left)}"
        )

    def _epochs_of_many(self, records: Iterable[tuple[int, dict[str, Any]]]) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.writelines(self._line(i, record) for i, record in records)

    def _failed(self, replica: int, reason: str) -> None:
        say(f"{self._name(replica)}failed, the others go on: {reason}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def progress_line(progress: Progress, epochs: int, rows: int) -> dict[str, Any]:
    """The status of a training of ``epochs`` epochs with ``rows`` training rows in all."""
    speed = progress.trained_rows / max(progress.seconds, 1e-9)
    done = sum(member.rows for member in progress.members)
    left = (epochs - progress.epoch) * rows - done
    return {
        "epoch": progress.epoch + 1,
        "share": done / max(rows, 1),
        "loss": sum(member.loss_sum for member in progress.members) / max(done, 1),
        "samples_per_second": speed,
        "eta_seconds": left / max(speed, 1e-9),
    }
