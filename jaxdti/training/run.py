"""A training run: its directory, from the configuration to the summary."""

import hashlib
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pyarrow as pa

from jaxdti import __version__
from jaxdti.config import Config, load_config, save_config
from jaxdti.data.batches import Buckets, plan_epoch
from jaxdti.data.interactions import DataError
from jaxdti.data.load import Dataset, load_data
from jaxdti.data.named import write_json
from jaxdti.data.splits import table_identity, write_split
from jaxdti.data.tables import write_table
from jaxdti.evaluation.baselines import evaluate_baselines
from jaxdti.evaluation.calibration import Calibration, fit_calibration
from jaxdti.evaluation.evaluation import evaluate_part, json_ready
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.inference.trained import write_model_card
from jaxdti.training.checkpoints import open_checkpoints, save_weights
from jaxdti.training.features import device_features
from jaxdti.training.loop import Interrupted, NonFiniteLoss, Progress, class_weights, fit, label_scale
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.report import RunReporter, say, show_results
from jaxdti.training.state import init_state

__all__ = ["Interrupted", "NonFiniteLoss", "resume", "train"]

SCORED_PARTS = ("validation", "test")


def train(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains, evaluates and writes a run directory; returns its summary.

    The directory holds config.yaml, environment.json, data.json, split.json, rejected.csv (if any), checkpoints/,
    metrics.jsonl, tensorboard/, weights/, model.json, predictions.parquet, baselines.json and summary.json.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      NonFiniteLoss, Interrupted: see ``jaxdti.training.loop.fit``; the run can be resumed after ``Interrupted``.
    """
    _check_directory(output, overwrite)
    dataset = load_data(config.data, config.task)  # before anything is deleted or created: the data may be unfit
    _create_directory(output)
    save_config(config, output / "config.yaml")
    if dataset.report is not None and dataset.report.rejected:
        dataset.report.write_rejected(output / "rejected.csv")
        say(f"rejected rows are listed in {output / 'rejected.csv'}")
    write_split(output / "split.json", dataset.parts, dataset.table, dataset.split, config.data.split_seed)
    write_json(output / "data.json", _describe_data(dataset))
    return _run(config, output, dataset)


def resume(run: Path) -> dict[str, Any]:
    """Continues an interrupted run from its last checkpoint, or from its start where there is none yet.

    Raises:
      DataError: not a run directory, or the data are no longer those it began with.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    if not (run / "config.yaml").is_file() or not (run / "data.json").is_file():
        raise DataError(f"{run}: not a run that can be resumed; expected a directory with config.yaml and data.json")
    config = load_config(run / "config.yaml")
    dataset = load_data(config.data, config.task)
    begun, now = json.loads((run / "data.json").read_text()), _describe_data(dataset)
    if begun["sha256"] != now["sha256"]:
        raise DataError(f"{run}: the data changed since the run began (sha256 {begun['sha256']}, now {now['sha256']})")
    return _run(config, run, dataset)


def _check_directory(output: Path, overwrite: bool) -> None:
    """Only a directory that is a run is ever overwritten."""
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
    except OSError as error:  # a name too long, a folder that may not be read
        raise DataError(f"{output}: cannot be the run directory ({error.strerror})") from error
    if not overwrite:
        raise DataError(f"{output}: already exists; give another --output, or --overwrite, or --resume {output}")
    if not (output / "config.yaml").is_file():
        raise DataError(f"{output}: is not a run directory (no config.yaml); --overwrite would delete foreign files")


def _create_directory(output: Path) -> None:
    """An empty directory in place of what ``_check_directory`` accepted."""
    try:
        if output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{output}: cannot create the run directory ({error.strerror})") from error


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    """Sizes, the summary lines and a hash over pairs, labels and parts."""
    total = hashlib.sha256(table_identity(dataset.table).encode())
    total.update(dataset.table.label.tobytes())
    for part, rows in dataset.parts.items():
        total.update(part.encode() + rows.tobytes())
    return {
        "sha256": total.hexdigest(),
        "parts": {part: len(rows) for part, rows in dataset.parts.items()},
        "drugs": len(dataset.table.drugs),
        "proteins": len(dataset.table.proteins),
        "summary": dataset.lines,
        "ceiling_auroc": dataset.ceiling,
    }


def describe_environment() -> dict[str, Any]:
    """Versions, devices and numerics, as stored with every result."""
    import flax
    import rdkit

    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "jaxdti": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "rdkit": rdkit.__version__,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "matmul_precision": precision or "default",
    }


def _run(config: Config, output: Path, dataset: Dataset) -> dict[str, Any]:
    """Everything after the data: build, restore, fit, evaluate, write."""
    started = time.perf_counter()
    for line in dataset.lines:
        say(line)
    if np.ptp(dataset.table.label[dataset.parts["validation"]]) == 0:
        say("warning: all validation labels are equal: no epoch can be chosen, so the weights of the last one are kept")
    write_json(output / "environment.json", describe_environment())
    features = device_features(dataset.store)
    training = config.training
    buckets = buckets_for(config.model, dataset.table, dataset.store, training.buckets, training.batch_size)
    say(_describe_buckets(buckets))
    scorer = make_scorer(config.model, features, dataset.table, buckets, training.batch_size)
    tx = make_optimizer(training, _steps_per_epoch(config, dataset, buckets))
    state = init_state(config.model, tx, training.seed)
    best = {"params": state.params, "batch_stats": state.batch_stats}
    best = jax.tree.map(lambda x: x.copy(), best)
    progress = Progress()
    with open_checkpoints(output / "checkpoints") as checkpoints:
        if checkpoints.latest() is not None:
            state, best, saved = checkpoints.restore(state, best)
            progress = Progress(**saved)
            say(f"resuming after epoch {progress.epoch}, chunk {progress.chunk}")
        with RunReporter(output, progress.history, training.epochs, config.output.tensorboard) as report:
            state, best, progress = fit(
                config, dataset, features, buckets, scorer, tx, state, best, progress, checkpoints, report.reporter()
            )
    return _finish(config, output, dataset, scorer, best, progress, time.perf_counter() - started)


def _steps_per_epoch(config: Config, dataset: Dataset, buckets: Buckets) -> int:
    chunks = plan_epoch(dataset.parts["train"], buckets, config.training.batch_size, 1, seed=0, epoch=0)
    return len(chunks)


def _describe_buckets(buckets: Buckets) -> str:
    shapes = ", ".join(f"{shape.atoms} x {shape.residues}" for shape in buckets.shapes)
    waste = "" if np.isnan(buckets.padding) else f"; {buckets.padding:.0%} of the work is padding"
    return f"batch shapes (atoms x residues): {shapes}{waste}"


def _finish(config: Config, output: Path, dataset: Dataset, scorer, best, progress: Progress, seconds: float) -> dict:
    """Evaluates the best weights and writes everything a user reads."""
    table, parts = dataset.table, dataset.parts
    mean, sd = label_scale(dataset, config.task)
    scores = {part: scorer(best, parts[part]).astype(np.float64) * sd + mean for part in SCORED_PARTS}
    calibration = _calibrate(config, dataset, scores["validation"])
    save_weights(output / "weights", best)
    write_model_card(output, config.task, (mean, sd), calibration, calibrated=config.task == "classification")
    write_table(_predictions(config, dataset, scores, calibration), output / "predictions.parquet")

    summary: dict[str, Any] = {}
    for part in ("test", "validation"):
        summary[part] = evaluate_part(
            table,
            parts["train"],
            parts[part],
            scores[part],
            task=config.task,
            calibration=calibration,
            bootstrap=config.output.bootstrap if part == "test" else 0,
        )
    baselines = {}
    if config.output.baselines:
        say("scoring the baselines on the same split")
        baselines = evaluate_baselines(
            table,
            parts["train"],
            parts["validation"],
            parts["test"],
            task=config.task,
            seed=config.training.seed,
            bootstrap=config.output.bootstrap,
        )
        write_json(output / "baselines.json", json_ready(baselines))
    summary |= {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": round(progress.seconds, 1),
        "samples_per_second": progress.trained_rows / max(progress.seconds, 1e-9),
        "total_seconds": round(seconds, 1),
        "baselines": {name: metrics for name, metrics in json_ready(baselines).items()},
    }
    if dataset.ceiling is not None:
        summary["ceiling_auroc"] = dataset.ceiling
    write_json(output / "summary.json", json_ready(summary))
    show_results(config.task, summary, output)
    return summary


def _calibrate(config: Config, dataset: Dataset, score: np.ndarray) -> Calibration:
    """Temperature and threshold from the validation part; class weights are undone first."""
    label = dataset.table.label[dataset.parts["validation"]]
    if config.task == "regression":
        return Calibration()
    low, high = class_weights(dataset, config)
    return fit_calibration(label, score, logit_offset=float(np.log(high / low)))


def _predictions(config: Config, dataset: Dataset, scores: dict[str, np.ndarray], calibration: Calibration) -> pa.Table:
    rows = np.concatenate([dataset.parts[part] for part in SCORED_PARTS])
    score = np.concatenate([scores[part] for part in SCORED_PARTS])
    table = dataset.table
    columns: dict[str, Any] = {
        "drug": pa.array(table.drugs[table.drug[rows]].tolist(), pa.string()),
        "protein": pa.array(table.proteins[table.protein[rows]].tolist(), pa.string()),
        "label": pa.array(table.label[rows].astype(np.float64)),
        "score": pa.array(score),
    }
    if config.task == "classification":
        columns["probability"] = pa.array(calibration.probability(score))
    columns["split"] = pa.array(np.repeat(SCORED_PARTS, [len(scores[part]) for part in SCORED_PARTS]).tolist())
    return pa.table(columns)
