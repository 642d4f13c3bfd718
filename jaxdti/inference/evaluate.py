"""Metrics of a trained run on a labelled table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdti.config import Config, DataConfig
from jaxdti.data.interactions import DataError, InteractionTable
from jaxdti.data.leaks import known_pairs
from jaxdti.data.load import load_data
from jaxdti.data.named import write_json
from jaxdti.data.tables import table_name, write_table
from jaxdti.data.validation import load_interactions
from jaxdti.evaluation.evaluation import evaluate_part
from jaxdti.inference.trained import load_run
from jaxdti.training.run import data_record, describe_data


def evaluate(
    run: Path,
    table: Path,
    output: Path | None = None,
    *,
    drug_column: str | None = None,
    protein_column: str | None = None,
    label_column: str | None = None,
    drugs: str | None = None,
    proteins: str | None = None,
    max_rejected: float | None = None,
) -> dict[str, Any]:
    """Scores a labelled table and writes ``NAME_metrics.json``, ``NAME_scores.csv`` and, if any, ``NAME_rejected.csv``.

    Args:
      run: directory written by ``jaxdti train`` or ``jaxdti import``.
      table: CSV, TSV or Parquet with SMILES, protein and label columns. Its rows are checked as in training.
      output: directory of the three files; default: the current one.
      max_rejected: share of rejected rows above which this is an error; default: the run's.

    Returns:
      The metrics, with 95 % intervals over pairs; the threshold and temperature are the run's own. "rows_trained_on" is
      how many rows repeat a pair of the run's training part; where that cannot be told, "rows_not_checked" is why.

    Raises:
      DataError: the run or the table cannot be read, no row is valid, or the output cannot be written.
    """
    trained = load_run(run)
    config = trained.config
    data = DataConfig(
        drug_column=drug_column,
        protein_column=protein_column,
        label_column=label_column,
        drugs=drugs,
        proteins=proteins,
        max_atoms=config.data.max_atoms,
        max_residues=config.data.max_residues,
        max_rejected=config.data.max_rejected if max_rejected is None else max_rejected,
        replicates=config.data.replicates,
        cache_dir=config.data.cache_dir,
    )
    loaded = load_interactions(data, {"table": table}, config.task)
    pairs = loaded.table
    if len(pairs) == 0:
        raise DataError(f"{table}: no valid labelled row to evaluate")
    score = trained.score(pairs, loaded.store)
    metrics = evaluate_part(
        pairs,
        np.zeros(0, np.int64),
        np.arange(len(pairs)),
        score,
        task=config.task,
        calibration=trained.calibration,
        bootstrap=config.output.bootstrap,
    )
    if config.task == "classification":
        metrics["threshold"] = trained.calibration.threshold
        metrics["calibrated"] = trained.calibrated
    try:
        metrics["rows_trained_on"] = rows_trained_on(run, config, pairs)
    except DataError as error:
        metrics["rows_not_checked"] = str(error)
    columns = {
        "row": pa.array(pairs.row + 1),
        "SMILES": pa.array(pairs.drugs[pairs.drug].tolist(), pa.string()),
        "Protein": pa.array(pairs.proteins[pairs.protein].tolist(), pa.string()),
        "label": pa.array(pairs.label.astype(np.float64)),
        "score": pa.array(score),
    }
    if config.task == "classification":
        columns["probability"] = pa.array(trained.calibration.probability(score))

    folder = output or Path(".")
    name = table_name(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if loaded.report.rejected:
            loaded.report.write_rejected(folder / f"{name}_rejected.csv")
        write_table(pa.table(columns), folder / f"{name}_scores.csv")
        write_json(folder / f"{name}_metrics.json", metrics)
    except OSError as error:
        raise DataError(f"{folder}: the results cannot be written ({error.strerror or error})") from error
    return metrics


def rows_trained_on(run: Path, config: Config, pairs: InteractionTable) -> int:
    """Rows whose pair is one of the run's training part.

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
    return int(known_pairs(dataset.table, dataset.parts["train"], pairs).sum())


def _records(run: Path) -> list[Path]:
    """The data.json of a run; of a replica that of its run, of a sweep's setting those of the sweep."""
    whole = run.parent.parent
    if (run / "data.json").is_file():
        return [run / "data.json"]
    if run.parent.name == "replicas":
        return [path for path in (whole / "data.json",) if path.is_file()]
    return sorted((whole / "data").glob("*/data.json")) if run.parent.name == "settings" else []
