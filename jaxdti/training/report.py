"""What a run tells: one progress line, metrics.jsonl, TensorBoard events and the closing table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from tensorboardX import SummaryWriter

from jaxdti.config import Config
from jaxdti.console import console, say, say_compiled
from jaxdti.evaluation.baselines import baseline_table
from jaxdti.evaluation.evaluation import INTERVALS, json_ready
from jaxdti.training.loop import Reporter

_TRANSFERRED = {  # what a transferred network is called
    "full": "DrugBAN from the source",
    "feature": "DrugBAN, frozen part from the source",
    "shallow": "logistic regression on the source's features",
}


class RunReporter:
    """Writes the metrics of a run; on resuming, what lies beyond the restored epoch is dropped first."""

    def __init__(self, output: Path, histories: Sequence[list[dict[str, Any]]], epochs: int, tensorboard: bool):
        self._metrics = output / "metrics.jsonl"
        self._epochs = epochs
        self._replicas = len(histories)
        self._status = console.status("compiling") if console.is_terminal else None
        # As they were written: epoch by epoch, within an epoch replica by replica.
        records = sorted(
            (record["epoch"], i, self._line(i, record)) for i, history in enumerate(histories) for record in history
        )
        temporary = self._metrics.with_name(".metrics.jsonl.tmp")
        temporary.write_text("".join(line for _, _, line in records))
        os.replace(temporary, self._metrics)
        folder = output / "tensorboard"
        folders = [folder / f"replica_{i}" if self._replicas > 1 else folder for i in range(self._replicas)]
        firsts = [history[-1]["step"] + 1 if history else 0 for history in histories]
        self._writers = [
            SummaryWriter(str(folder), purge_step=first)
            for folder, first in zip(folders, firsts, strict=True)
            if tensorboard
        ]

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
        return Reporter(update=self._update, epoch=self._epoch, failed=self._failed, compiled=say_compiled)

    def _line(self, replica: int, record: dict[str, Any]) -> str:
        named = {"replica": replica} if self._replicas > 1 else {}
        return json.dumps(named | json_ready(record)) + "\n"

    def _name(self, replica: int) -> str:
        return f"replica {replica}  " if self._replicas > 1 else ""

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

    def _failed(self, replica: int, reason: str) -> None:
        say(f"{self._name(replica)}failed, the others go on: {reason}")


def show_results(config: Config, summary: dict[str, Any], output: Path) -> None:
    """Prints the network beside the baselines on the test part, and the ceiling where it is known."""
    task, method, replicas = config.task, config.adaptation.method, summary.get("replicas", [])
    name = "DrugBAN" if method == "none" else f"DrugBAN + {method.upper()}"
    name = _TRANSFERRED.get(config.transfer.mode, name)
    name += f", mean score of {len(replicas)}" if replicas else " (this run)"
    networks = {name: summary["test"]}
    if "source_only" in summary:
        networks["DrugBAN, source only"] = summary["source_only"]["test"]
    networks |= {other: found["test"] for other, found in summary.get("compared", {}).items()}
    header, *rows = baseline_table({**networks, **summary["baselines"]}, task)
    console = Console(highlight=False)
    table = Table(title="test", box=box.HEAVY_HEAD if console.is_terminal else None)
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "ceiling_auroc" in summary:
        print(f"Bayes ceiling: test AUROC {summary['ceiling_auroc']:.3f}")
    if replicas:
        kept = sum("failed" not in row for row in replicas)
        for metric, (mean, sd) in summary["replicas_mean"]["test"].items():
            if metric in INTERVALS[task]:
                print(f"single replicas: test {metric.replace('_', ' ')} {mean:.3f} ± {sd:.3f} (mean ± sd of {kept})")
        if kept < len(replicas):
            print(f"{len(replicas) - kept} of {len(replicas)} replicas failed: see summary.json")
    for other, differences in summary.get("difference_to", {}).items():
        metric = INTERVALS[task][0]
        if metric not in differences:
            continue
        text = f"test {metric.replace('_', ' ')} less that of {other.replace('_', ' ')}: {differences[metric]:+.3f}"
        low_high = differences.get(f"{metric}_ci")
        if low_high and None not in low_high:  # undefined where every resample has a single class
            text += " (95 % interval {:+.3f} to {:+.3f})".format(*low_high)
        if by_seed := differences.get(f"{metric}_seeds"):
            text += ", seed by seed {:+.3f} ± {:.3f}".format(*by_seed)
        print(text)
    for network, distance in summary.get("domain_gap", {}).items():
        print(f"proxy A-distance of the domains, {network.replace('_', ' ')}: {distance:.2f} (0 alike, 2 apart)")
    best = summary["best_epoch"]
    epochs = ", ".join(map(str, best)) if isinstance(best, list) else best
    if summary["epochs"]:
        print(f"best epoch {epochs} of {summary['epochs']}, {_duration(summary['seconds'])} of training")
    print(f"written to {output}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
