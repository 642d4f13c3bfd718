"""The front door: training, loading and using models from Python.

A *table* is a path to CSV, TSV or Parquet (``str`` or ``Path``), a pandas or polars DataFrame, anything else with
``__arrow_c_stream__`` (pyarrow Table, RecordBatchReader), or a dict of columns (lists or NumPy arrays). Its SMILES,
protein and label columns are found among the usual names, as on the command line, or named with ``drug_column``,
``protein_column`` and ``label_column``. Whatever is wrong with it is a ``DataError``, with the command line's message.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from jaxdti.config import Config, DataConfig, config_to_dict, load_config
from jaxdti.config.keywords import config_with, full_path
from jaxdti.data.pairs.layouts import Columns, Reading
from jaxdti.data.tables import table_name
from jaxdti.errors import DataError
from jaxdti.inference.evaluate import check_files, evaluate_table, write_evaluation
from jaxdti.inference.model import Model, Place, as_path, load, table_source
from jaxdti.studies import pairs
from jaxdti.studies import sweep as sweeps

__all__ = ["Model", "evaluate", "load", "predict", "resume", "sweep", "train", "transfer"]


def train(
    table: Any = None,
    *,
    config: Config | Mapping[str, Any] | Place | None = None,
    output: Place | None = None,
    overwrite: bool = False,
    **keys: Any,
) -> Model:
    """Trains a model, evaluates it beside the baselines and loads it; progress goes to standard error.

    Args:
      table: labelled pairs (see ``jaxdti.api``), split by ``data.split`` into train, validation and test as those of
        ``data.table``. None where ``config`` or the keys name the data.
      config: a ``Config``, a path of a YAML file or nested mappings; None for the defaults.
      output: the run directory, which is new or empty. None: ``output.directory`` of the configuration; otherwise a
        temporary one that lives as long as the model, and is gone where training fails or is interrupted.
      overwrite: replace the run that is in ``output``.
      keys: keys of the configuration: ``epochs=20``, ``split="cold_drug"``, ``label_column="active"`` where a short
        name is clear, ``model={"dropout": 0.1}`` for a section, ``**{"training.epochs": 20}`` for any path.

    A table in memory is kept in ``output/table.parquet``, so that the run can be resumed.

    Raises:
      DataError: an unknown key, an unfit value or table, or ``output`` exists.
      NonFiniteLoss: the loss became NaN or infinite.
      Interrupted: a signal arrived; ``jaxdti.resume(output)`` goes on.
    """
    chosen = config_with(_config(config), keys)
    return _new_run(pairs.train, chosen, table, output, overwrite)


def transfer(
    run: Place | Model,
    table: Any = None,
    *,
    config: Config | Mapping[str, Any] | Place | None = None,
    output: Place | None = None,
    overwrite: bool = False,
    **keys: Any,
) -> Model:
    """Carries the network of a run to other data; the arguments are those of ``train``.

    ``mode`` (``transfer.mode``) has to be given: full, feature or shallow. Without ``config`` task, model and largest
    sizes are the source's.

    Raises:
      DataError, NonFiniteLoss, Interrupted: as ``train``; or the source has no directory, or does not suit the mode.
    """
    source = load(run)
    place = source.directory
    if place is None:
        raise DataError("transfer: the model has no run directory; name one, such as RUN/replicas/0")
    inherited = Config(
        task=source.config.task,
        model=source.config.model,
        data=DataConfig(max_atoms=source.config.data.max_atoms, max_residues=source.config.data.max_residues),
    )
    chosen = config_with(_config(config, inherited), keys, first="transfer")
    begin = lambda config, output, **more: pairs.transfer(place, config, output, **more)
    return _new_run(begin, chosen, table, output, overwrite)


def resume(run: Place) -> Model:
    """Continues an interrupted ``train`` or ``transfer`` from its last checkpoint.

    Raises:
      DataError: not a run that can be resumed, or its data have changed.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    pairs.resume(as_path(run, "run"))
    return load(run)


def predict(run: Place | Model, table: Any, **columns: Unpack[Columns]) -> Any:
    """``load(run).predict(table)``: the table in its kind, with ``score``, ``probability`` and ``error``."""
    return load(run).predict(table, **columns)


def evaluate(
    run: Place | Model,
    table: Any,
    output: Place | None = None,
    *,
    overwrite: bool = False,
    max_rejected: float | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """``load(run).evaluate(table)``.

    With ``output``, a folder, the three files of ``jaxdti evaluate`` are written there, NAME being that of the file of
    the table, or "table"; ``overwrite`` replaces those of an earlier evaluation.
    """
    model = load(run)
    if output is None:
        return model.evaluate(table, max_rejected=max_rejected, **reading)
    source, folder = table_source(table), as_path(output, "output")
    name = table_name(source) if isinstance(source, Path) else "table"
    check_files(folder, name, overwrite)
    found = evaluate_table(model.run, source, model.directory, max_rejected=max_rejected, **reading)
    write_evaluation(found, folder, name)
    return found.metrics


def sweep(
    config: Config | Mapping[str, Any] | Place,
    grid: Mapping[str, Any] | Sequence[str],
    output: Place,
    *,
    random: int | None = None,
    random_seed: int = 0,
    together: int | None = None,
    **keys: Any,
) -> sweeps.SweepResults:
    """Trains every setting of a grid; see ``jaxdti.studies.sweep.sweep``, which this calls.

    Args:
      config, keys: what the settings share, as ``train``; the data are named there (``table="pairs.csv"``).
      grid: values by key, such as ``{"learning_rate": [1e-4, 5e-5], "dropout": "0..0.5"}`` (a range is a text, and
        needs ``random``), or texts as on the command line.
      output: a new or empty directory; ``jaxdti.load(output + "/settings/0")`` loads the first setting.
    """
    if isinstance(grid, Mapping):
        grid = [f"{full_path(name)}={_grid_values(values)}" for name, values in grid.items()]
    chosen, place = config_with(_config(config), keys), as_path(output, "output")
    return sweeps.sweep(chosen, grid, place, random=random, random_seed=random_seed, together=together)


def _grid_values(values: Any) -> str:
    """A text as it is, and a list of values as the command line writes them."""
    plain = lambda value: json.dumps(value, default=lambda number: number.item())  # of NumPy
    return values if isinstance(values, str) else ",".join(v if isinstance(v, str) else plain(v) for v in values)


def _config(config: Config | Mapping[str, Any] | Place | None, default: Config | None = None) -> Config:
    """Any form of a configuration; what a file or mapping leaves out, and None, is the default's."""
    default = default or Config()
    if config is None or isinstance(config, Config):
        return config or default
    if isinstance(config, Mapping):
        return config_with(default, config)
    return load_config(as_path(config, "config"), defaults=_flat(default))


def _flat(config: Config) -> dict[str, Any]:
    tree = config_to_dict(config)
    return {"task": tree["task"]} | {
        f"{section}.{name}": value
        for section in ("data", "model")
        for name, value in tree[section].items()
        if value != getattr(getattr(Config(), section), name) and not isinstance(value, dict)
    }


def _new_run(begin: Callable[..., Any], config: Config, table: Any, output: Place | None, overwrite: bool) -> Model:
    """Calls ``begin(config, output, overwrite, table)`` for pairs, and loads what it writes."""
    _check_pairs(config)
    source = None if table is None else table_source(table)
    if source is not None:
        if config.data.table:
            raise DataError(f"data.table={config.data.table} is set, and a table is given; leave out one")
        kept = str(source) if isinstance(source, Path) else "table in memory"
        config = replace(config, data=replace(config.data, table=kept))
    memory = source if isinstance(source, pa.Table) else None
    chosen = output if output is not None else config.output.directory
    if chosen is not None:
        begin(config, as_path(chosen, "output"), overwrite=overwrite, table=memory)
        return load(chosen)
    temporary = Path(tempfile.mkdtemp(prefix="jaxdti-"))
    try:
        begin(config, temporary, table=memory)
        model = load(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, temporary, ignore_errors=True)
    return model


def _check_pairs(config: Config) -> None:
    if config.vectors.given:
        raise DataError(
            "a configuration on feature vectors, not on pairs: jaxdti.studies.vectors.train_vectors takes it"
        )
    if config.response.dataset or config.response.source_expression:
        raise DataError("a drug response configuration, not one on pairs: jaxdti.studies.response.run.respond takes it")
