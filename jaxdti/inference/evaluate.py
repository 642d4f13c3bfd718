"""Metrics of a trained run on a labelled table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa

from jaxdti.config import Config, DataConfig
from jaxdti.console import say
from jaxdti.data.pairs.layouts import Reading
from jaxdti.data.pairs.leaks import known_pairs
from jaxdti.data.pairs.load import Dataset, data_record, describe_data, load_data
from jaxdti.data.pairs.rejected import ReadReport
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.data.pairs.validation import load_interactions
from jaxdti.data.tables import open_table, table_name, write_table
from jaxdti.errors import DataError
from jaxdti.evaluation.part import evaluate_part
from jaxdti.files import write_json
from jaxdti.inference.trained import TrainedRun, load_run


@dataclass(frozen=True)
class Evaluation:
    """A labelled table, scored: its metrics, JSON-ready, and what they are of."""

    metrics: dict[str, Any]
    scores: pa.Table  # row (from one), SMILES, Protein, label, score and, for classification, probability
    report: ReadReport


def evaluate(
    run: Path,
    table: Path,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    max_rejected: float | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Scores a labelled table and writes ``NAME_metrics.json``, ``NAME_scores.csv`` and, if any, ``NAME_rejected.csv``.

    Args:
      run: directory written by ``jaxdti train`` or ``jaxdti import``.
      table: CSV, TSV or Parquet with SMILES, protein and label columns. Its rows are checked as in training.
      output: directory of the three files; default: the current one.
      max_rejected: share of rejected rows above which this is an error; default: the run's.
      overwrite: replace the files of an earlier evaluation.
      reading: drug_column, protein_column, label_column, and the side tables drugs and proteins.

    Returns:
      The metrics of ``evaluate_table``.

    Raises:
      DataError: the run or the table cannot be read, no row is valid, the output cannot be written, or one of its files
        is there and is not to be overwritten.
    """
    place = output or Path("."), table_name(table)
    check_files(*place, overwrite)
    found = evaluate_table(load_run(run), table, run, max_rejected=max_rejected, **reading)
    write_evaluation(found, *place)
    return found.metrics


def evaluate_table(
    trained: TrainedRun,
    source: Path | pa.Table,
    run: Path | None,
    *,
    max_rejected: float | None = None,
    **reading: Unpack[Reading],
) -> Evaluation:
    """Scores a labelled table, from a file or in memory, and writes nothing; arguments as ``evaluate``.

    Its metrics are as those of the test part in training: 95 % intervals over pairs, or over drugs or proteins where
    the training part has none of them, and for regression the metrics of pairs unseen in training. The threshold and
    temperature are the run's own. "rows_trained_on" is how many rows repeat a pair of the training part of ``run``;
    where that part cannot be read, "rows_not_checked" is why, and pairs are resampled.

    Raises:
      DataError: the table cannot be read, or no row is valid.
    """
    config = trained.config
    data = DataConfig(
        max_atoms=config.data.max_atoms,
        max_residues=config.data.max_residues,
        max_rejected=config.data.max_rejected if max_rejected is None else max_rejected,
        replicates=config.data.replicates,
        cache_dir=config.data.cache_dir,
        **reading,
    )
    loaded = load_interactions(data, {"table": source}, config.task)
    for line in loaded.report.lines():
        say(line)
    pairs = loaded.table
    if len(pairs) == 0:
        raise DataError(f"{open_table(source).path}: no valid labelled row to evaluate")
    score = trained.score(pairs, loaded.store)
    everything, train, known = _beside_training(run, config, pairs)
    metrics = evaluate_part(
        everything,
        train,
        np.arange(len(everything) - len(pairs), len(everything)),
        score,
        task=config.task,
        calibration=trained.calibration,
        bootstrap=config.output.bootstrap,
    )
    if config.task == "classification":
        metrics["threshold"] = trained.calibration.threshold
        metrics["calibrated"] = trained.calibrated
    return Evaluation(metrics | known, _score_table(trained, pairs, score), loaded.report)


def _beside_training(
    run: Path | None, config: Config, pairs: InteractionTable
) -> tuple[InteractionTable, np.ndarray, dict[str, Any]]:
    """``pairs`` behind the table of the run, the rows trained on, and how many pairs repeat one of them."""
    try:
        if run is None:
            raise DataError("the model has no run directory, which would record its training data")
        dataset = training_data(run, config)
    except DataError as error:
        return pairs, np.zeros(0, np.int64), {"rows_not_checked": str(error)}
    train = dataset.parts["train"]
    repeated = int(known_pairs(dataset.table, train, pairs).sum())
    return append_rows(dataset.table, pairs), train, {"rows_trained_on": repeated}


def _score_table(trained: TrainedRun, pairs: InteractionTable, score: np.ndarray) -> pa.Table:
    columns = {
        "row": pa.array(pairs.row + 1),
        "SMILES": pa.array(pairs.drugs[pairs.drug].tolist(), pa.string()),
        "Protein": pa.array(pairs.proteins[pairs.protein].tolist(), pa.string()),
        "label": pa.array(pairs.label.astype(np.float64)),
        "score": pa.array(score),
    }
    if trained.config.task == "classification":
        columns["probability"] = pa.array(trained.calibration.probability(score))
    return pa.table(columns)


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where metrics, scores and rejected rows go."""
    return folder / f"{name}_metrics.json", folder / f"{name}_scores.csv", folder / f"{name}_rejected.csv"


def check_files(folder: Path, name: str, overwrite: bool) -> None:
    """Raises DataError where a file of an evaluation is there and is not to be overwritten."""
    for path in () if overwrite else _files(folder, name):
        if path.exists():
            raise DataError(f"{path}: already exists; give another --output, or --overwrite")


def write_evaluation(found: Evaluation, folder: Path, name: str) -> None:
    """Writes the files that ``evaluate`` names; raises DataError where they cannot be written."""
    metrics_file, scores_file, rejected_file = _files(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rejected_file.unlink(missing_ok=True)  # of an earlier evaluation
        if found.report.rejected:
            found.report.write_rejected(rejected_file)
            say(f"rejected rows are listed in {rejected_file}")
        write_table(found.scores, scores_file)
        write_json(metrics_file, found.metrics)
    except OSError as error:
        raise DataError(f"{folder}: the results cannot be written ({error.strerror or error})") from error


def append_rows(table: InteractionTable, others: InteractionTable) -> InteractionTable:
    """The rows of ``table``, whose drugs and proteins keep their numbers, and behind them those of ``others``."""

    def numbered(names: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All distinct names, and the number of each of ``more`` among them."""
        number = {name: i for i, name in enumerate(dict.fromkeys([*names, *more]))}
        return np.array(list(number), object), np.array([number[name] for name in more], np.int32)

    drugs, drug = numbered(table.drugs, others.drugs)
    proteins, protein = numbered(table.proteins, others.proteins)
    rest = {name: np.concatenate([getattr(t, name) for t in (table, others)]) for name in ("label", "part", "row")}
    return InteractionTable(
        drugs=drugs,
        proteins=proteins,
        drug=np.concatenate([table.drug, drug[others.drug]]),
        protein=np.concatenate([table.protein, protein[others.protein]]),
        **rest,
    )


def training_data(run: Path, config: Config) -> Dataset:
    """What the run was trained on.

    Raises:
      DataError: that cannot be told, as the run's data are gone, changed, or never were here.
    """
    recorded = _records(run.resolve())
    if not recorded:
        raise DataError(f"{run} does not record its training data")
    try:
        dataset = load_data(config.data, config.task)
    except (DataError, OSError) as error:
        raise DataError(f"the data of {run} cannot be read from this folder ({error})") from error
    if describe_data(dataset)["sha256"] not in [data_record(path)["sha256"] for path in recorded]:
        raise DataError(f"the data of {run} have changed since it was trained")
    return dataset


def _records(run: Path) -> list[Path]:
    """The data.json of a run; of a replica that of its run, of a sweep's setting those of the sweep."""
    whole = run.parent.parent
    if (run / "data.json").is_file():
        return [run / "data.json"]
    if run.parent.name == "replicas":
        return [path for path in (whole / "data.json",) if path.is_file()]
    return sorted((whole / "data").glob("*/data.json")) if run.parent.name == "settings" else []
