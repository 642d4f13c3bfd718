"""What a run tells: one progress line, metrics.jsonl, TensorBoard events and the closing table."""

import json
import os
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from tensorboardX import SummaryWriter

from jaxdti.evaluation.baselines import baseline_table
from jaxdti.evaluation.evaluation import json_ready
from jaxdti.training.loop import Reporter

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for the user, on standard error."""
    _console.print(line, markup=False)


class RunReporter:
    """Writes the metrics of a run; on resuming, what lies beyond the restored epoch is dropped first."""

    def __init__(self, output: Path, history: list[dict[str, Any]], epochs: int, tensorboard: bool):
        self._metrics = output / "metrics.jsonl"
        self._epochs = epochs
        self._status = _console.status("compiling") if _console.is_terminal else None
        temporary = self._metrics.with_name(".metrics.jsonl.tmp")
        temporary.write_text("".join(json.dumps(json_ready(record)) + "\n" for record in history))
        os.replace(temporary, self._metrics)
        first = history[-1]["step"] + 1 if history else 0
        self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=first) if tensorboard else None

    def __enter__(self) -> "RunReporter":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status:
            self._status.stop()
        if self._writer:
            self._writer.close()

    def reporter(self) -> Reporter:
        return Reporter(update=self._update, epoch=self._epoch, compiled=self._compiled)

    def _update(self, line: dict[str, Any]) -> None:
        if self._status:
            self._status.update(
                f"epoch {line['epoch']}/{self._epochs} {line['share']:.0%}  loss {line['loss']:.4f}  "
                f"{line['samples_per_second']:.1f} samples/s  ETA {_duration(line['eta_seconds'])}"
            )

    def _epoch(self, record: dict[str, Any]) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(json_ready(record)) + "\n")
        if self._writer:
            for name, value in record.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, record["step"])
            self._writer.flush()
        scores = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in record.items() if name.startswith("validation_")
        )
        left = (self._epochs - record["epoch"]) * record["seconds"] / record["epoch"]
        say(
            f"epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}  {scores}  "
            f"{record['samples_per_second']:.1f} samples/s  ETA {_duration(left)}"
        )

    def _compiled(self, name: str, seconds: float) -> None:
        say(f"compiled {name} in {seconds:.1f} s")


def show_results(task: str, summary: dict[str, Any], output: Path) -> None:
    """Prints the network beside the baselines on the test part, and the ceiling where it is known."""
    results = {"DrugBAN (this run)": summary["test"], **summary["baselines"]}
    header, *rows = baseline_table(results, task)
    console = Console(highlight=False)
    table = Table(title="test", box=box.HEAVY_HEAD if console.is_terminal else None)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "ceiling_auroc" in summary:
        print(f"Bayes ceiling: test AUROC {summary['ceiling_auroc']:.3f}")
    print(f"best epoch {summary['best_epoch']} of {summary['epochs']}, {_duration(summary['seconds'])} of training")
    print(f"written to {output}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
