"""A trained model for Python: tables of any kind in, tables, metrics, vectors and batches out.

A *table* is a path to CSV, TSV or Parquet (``str`` or ``Path``), a pandas or polars DataFrame, anything else with
``__arrow_c_stream__`` (pyarrow Table, RecordBatchReader), or a dict of columns (lists or NumPy arrays). Its SMILES,
protein and label columns are found among the usual names, as on the command line, or named with ``drug_column``,
``protein_column`` and ``label_column``. Whatever is wrong with it is a ``DataError``, with the command line's message.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa

from jaxdti.config import Config
from jaxdti.config.tree import nearest
from jaxdti.data.frames import as_arrow, as_given
from jaxdti.data.pairs.layouts import Columns, Reading
from jaxdti.errors import DataError
from jaxdti.evaluation.part import INTERVALS
from jaxdti.inference import embed as embedding
from jaxdti.inference.evaluate import evaluate_table
from jaxdti.inference.predict import predict
from jaxdti.inference.trained import TrainedRun, load_run
from jaxdti.models.drugban import DrugBAN

Place = str | os.PathLike[str]


class Model:
    """A trained network, or an ensemble of them; made by ``jaxdti.train``, ``load`` and ``transfer``.

    Attributes:
      run: configuration, weights and calibration (``jaxdti.inference.trained.TrainedRun``).
      directory: the run directory; None for a member of an ensemble.
    """

    def __init__(self, run: TrainedRun, directory: Path | None = None):
        self.run, self.directory = run, directory

    def __repr__(self) -> str:
        """Task, place, networks, parameters and, where it is known, the test metric that comes first."""
        parts = [*([str(self.directory)] if self.directory else []), self.run.describe()]
        metric = INTERVALS[self.config.task][0]
        if (value := self.summary.get("test", {}).get(metric)) is not None:
            parts.append(f"test {metric.replace('_', ' ').replace('auroc', 'AUROC')} {value:.3f}")
        return f"<jaxdti.Model: {', '.join(parts)}>"

    @property
    def config(self) -> Config:
        """What it was trained with."""
        return self.run.config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json of the run: test and validation metrics, baselines, seconds; empty for imported weights."""
        path = self.directory / "summary.json" if self.directory else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}

    @property
    def members(self) -> tuple["Model", ...]:
        """One model for each network of an ensemble, in the order of their seeds; of a single network, itself.

        They share the ensemble's calibration; ``jaxdti.load("RUN/replicas/0")`` has its own.
        """
        if len(self.run.members) == 1:
            return (self,)
        config = replace(self.config, training=replace(self.config.training, replicas=1))
        return tuple(Model(replace(self.run, config=config, members=(member,))) for member in self.run.members)

    @property
    def module(self) -> DrugBAN:
        """The Flax module; ``module.apply(variables, *featurize(table), train=False)`` -> logits float32 [N, 1 or 2].

        It takes ``(drug, protein, row_mask, dropout=0.0)``. In training give ``train=True, mutable=["batch_stats"]``
        and, with a dropout rate, ``rngs={"dropout": key}``. Its method ``features_and_logits`` gives both.
        """
        return DrugBAN(self.config.model)

    @property
    def variables(self) -> dict[str, Any]:
        """``{"params": ..., "batch_stats": ...}`` of the best epoch, arrays float32.

        Raises:
          DataError: an ensemble, whose networks have variables each: ``model.members[0].variables``.
        """
        return self._single("variables").run.members[0].variables

    def predict(self, table: Any, **columns: Unpack[Columns]) -> Any:
        """Scores every row of a table.

        Args:
          table: N rows with SMILES and protein columns; see ``jaxdti.inference.model``.
          columns: ``drug_column``, ``protein_column``, and ``drugs``, ``proteins``: paths of side tables by key.

        Returns:
          The table in the kind it came in (with its index and dtypes; an Arrow table for a path or a stream), in its
          order, with ``score`` float64 [N] (logit, or affinity in the unit of the training labels; of an ensemble the
          mean, with ``score_sd``), for classification ``probability`` float64 [N], and ``error``: empty, or why the row
          is invalid; its scores are then null (NaN in pandas and in a dict). Columns of these names that are there
          already are kept as ``score_input`` and so on.

        Raises:
          DataError: not a table, no rows, or a column is missing.
        """
        _check_names(columns, Columns)
        source = table_source(table)
        found = predict(self.run, source, **columns)
        return found if isinstance(source, Path) else as_given(table, found)

    def evaluate(self, table: Any, *, max_rejected: float | None = None, **reading: Unpack[Reading]) -> dict[str, Any]:
        """Metrics on a labelled table, as ``jaxdti evaluate`` writes them; nothing is written.

        Args:
          table: rows with SMILES, protein and label columns; labels 0 or 1, or affinities in the unit of training.
          max_rejected: share of rejected rows above which this is an error; default: the run's ``data.max_rejected``.
          reading: as ``predict``, and ``label_column``.

        Returns:
          ``auroc``, ``auprc``, ``accuracy``, ... or ``concordance_index``, ``mse``, ... with 95 % intervals ``*_ci``;
          ``pairs`` is the number of rows, ``rows_trained_on`` how many of them the model was trained on.

        Raises:
          DataError: not a table, no valid row, too many invalid ones, or a column is missing.
        """
        _check_names(reading, Reading)
        source = table_source(table)
        return evaluate_table(self.run, source, self.directory, max_rejected=max_rejected, **reading).metrics

    def embed(
        self,
        table: Any = None,
        *,
        drugs: Sequence[str] | None = None,
        proteins: Sequence[str] | None = None,
        drug_column: str | None = None,
        protein_column: str | None = None,
    ) -> np.ndarray:
        """Vectors of pairs, of drugs or of proteins, float32; a row of NaN where the input is invalid.

        Args:
          table: N pairs -> [N, model.joint_features (256)]: what the decoder makes the score of.
          drugs: N SMILES -> [N, model.drug_features (128)]: the mean over a molecule's atoms of the encoder's output.
          proteins: N sequences -> [N, model.protein_features (128)]: the mean over the residues, likewise.
          drug_column, protein_column: of the table, where they have no usual names.

        Raises:
          DataError: none or several of the three are given, the input is unfit, or the model is an ensemble.
        """
        given = {"table": table, "drugs": drugs, "proteins": proteins}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise DataError(f"embed: {' and '.join(named) or 'nothing'} given; one of table, drugs, proteins expected")
        run = self._single("embed").run
        if drugs is not None:
            return embedding.embed_drugs(run, _texts("drugs", drugs))
        if proteins is not None:
            return embedding.embed_proteins(run, _texts("proteins", proteins))
        return embedding.embed_pairs(run, table_source(table), drug_column=drug_column, protein_column=protein_column)

    def featurize(
        self, table: Any, *, drug_column: str | None = None, protein_column: str | None = None
    ) -> embedding.Batch:
        """All N rows of a table as one batch on the device: what ``module.apply`` takes, for one's own JAX code.

        From a table to a gradient:

            batch, labels = model.featurize(frame), jnp.asarray(frame["Y"], jnp.float32)
            def loss(params):
                logits = model.module.apply({**model.variables, "params": params}, *batch, train=False)
                return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(where=batch.row_mask)
            gradient = jax.grad(loss)(model.variables["params"])

        Returns:
          ``(drug, protein, row_mask)``, a named tuple and pytree: int8 [N, A, 8] atoms and int32 [N, E, 2] bonds, uint8
          [N, L] residues, bool [N] False for invalid rows. Everything is padded to the largest row: give parts of a
          large table.

        Raises:
          DataError: not a table, a column is missing, or no row is valid.
        """
        return embedding.featurize(
            self.config, table_source(table), drug_column=drug_column, protein_column=protein_column
        )

    def _single(self, what: str) -> "Model":
        if (count := len(self.run.members)) > 1:
            raise DataError(
                f"{what}: an ensemble of {count} networks has one for each: take model.members[0] or another of them"
            )
        return self


def load(run: Place | TrainedRun | Model) -> Model:
    """The model in a run directory, as ``jaxdti train``, ``transfer``, ``sweep`` or ``import`` wrote it.

    Raises:
      DataError: not a run directory, a run on feature vectors or of drug response, or training has not finished.
    """
    if isinstance(run, Model):
        return run
    return Model(run) if isinstance(run, TrainedRun) else Model(load_run(as_path(run, "run")), as_path(run, "run"))


def table_source(table: Any) -> Path | pa.Table:
    """A path, or a table in memory as an Arrow table; raises DataError where it is neither."""
    return Path(table) if isinstance(table, str | os.PathLike) else as_arrow(table)


def as_path(place: Any, what: str) -> Path:
    """A path from text or a path; raises DataError, naming ``what``, where it is neither."""
    if not isinstance(place, str | os.PathLike):
        raise DataError(f"{what}: {type(place).__name__} found; a path is expected")
    return Path(place)


def _texts(name: str, values: Any) -> list[str]:
    """The texts of a list, a NumPy array or a data frame's column."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(f"embed: {name} is of type {type(values).__name__}; a list of texts is expected")
    return as_arrow({name: values})[name].cast(pa.string()).to_pylist()


def _check_names(given: Mapping[str, Any], known: Any) -> None:
    """Raises DataError where a keyword is none of the typed dictionary's."""
    names = [*known.__annotations__]
    for name in given:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else f"choose from {', '.join(names)}"
            raise DataError(f"unknown key {name!r}; {hint}")
