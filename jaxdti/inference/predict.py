"""Scores for new pairs: one output row per input row."""

from collections.abc import Collection
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa

from jaxdti.config import Config, DataConfig
from jaxdti.console import say
from jaxdti.data.pairs.layouts import Columns
from jaxdti.data.pairs.validation import PredictionData, load_for_prediction
from jaxdti.inference.trained import TrainedRun, load_run

_ADDED = ("score", "score_sd", "probability", "error")


def predict(
    run: Path | TrainedRun,
    source: Path | pa.Table,
    *,
    drug_column: str | None = None,
    protein_column: str | None = None,
    drugs: str | None = None,
    proteins: str | None = None,
) -> pa.Table:
    """Scores the pairs of a table with a trained run.

    Args:
      run: directory written by ``jaxdti train`` or ``jaxdti import``, or what ``load_run`` made of it.
      source: CSV, TSV or Parquet file, or an Arrow table, with a SMILES and a protein column.
      drug_column, protein_column: their names where they are not usual ones.
      drugs, proteins: side tables of the relational layout.

    Returns:
      Every row and column of the input in order, with ``score`` (logit, or affinity in the unit of the training
      labels; the mean over the replicas, if there are several), then ``score_sd`` (their spread), for classification
      ``probability``, and ``error`` (empty where the row is valid; elsewhere the scores are null).
      Input columns of these four names stay, as ``score_input`` and so on, which is said, as are the counts of what
      was rejected or altered in the rows.

    Raises:
      DataError: the run or the table cannot be read.
    """
    trained = run if isinstance(run, TrainedRun) else load_run(run)
    found = read_unscored(
        trained.config,
        source,
        drug_column=drug_column,
        protein_column=protein_column,
        drugs=drugs,
        proteins=proteins,
    )
    valid = np.zeros(found.columns.num_rows, bool)
    valid[found.table.row] = True
    score, spread = np.zeros((2, len(valid)))
    members = trained.score_members(found.table, found.store)
    score[found.table.row], spread[found.table.row] = members.mean(0), members.std(0)

    added = {"score": pa.array(score, mask=~valid)}
    if len(members) > 1:
        added["score_sd"] = pa.array(spread, mask=~valid)
    if trained.config.task == "classification":
        added["probability"] = pa.array(trained.calibration.probability(score), mask=~valid)
    added["error"] = pa.array(found.errors.tolist(), pa.string())
    table = make_room(found.columns, _ADDED)
    for name, column in added.items():
        table = table.append_column(name, column)
    return table


def read_unscored(config: Config, source: Path | pa.Table, **columns: Unpack[Columns]) -> PredictionData:
    """The rows of a table under the limits of a run; what was rejected or altered in them is said.

    ``columns`` names the columns and side tables, as ``predict``.
    """
    limits = config.data
    data = DataConfig(
        max_atoms=limits.max_atoms, max_residues=limits.max_residues, cache_dir=limits.cache_dir, **columns
    )
    found = load_for_prediction(source, data)
    if len(found.errors) > 1 or not found.report.rejected:  # of a single pair the error says it all
        for line in found.report.lines()[1:]:  # the first one counts rows that are kept, and here all of them are
            say(line)
    return found


def make_room(table: pa.Table, added: Collection[str]) -> pa.Table:
    """Renames columns that are called as those of a prediction: an earlier spread beside new scores would mislead."""
    names = list(table.column_names)
    for place, name in enumerate(names):
        if name in added:
            while name in names or name in added:
                name += "_input"
            say(f"the input column {names[place]} is kept as {name}")
            names[place] = name
    return table.rename_columns(names)
