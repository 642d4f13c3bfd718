"""Feature vectors of a source domain with classes, and of target domains that are shifted and may lack classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxdti.data.interactions import DataError
from jaxdti.data.tables import TableFile, compute, read_table

TABLES = "tables"  # the name of the one task that given tables make

Parts = dict[str, np.ndarray]  # train and validation of the source, target_train (unlabelled) and test of the target


@dataclass(frozen=True, kw_only=True)
class VectorDomains:
    """Tasks of adaptation over one array of features."""

    features: np.ndarray  # float32 [N, F]
    label: np.ndarray  # int64 [N], number of the class; -1 where it is not known
    classes: tuple[str, ...]  # [K]
    tasks: dict[str, tuple[Parts, ...]]  # name -> rows of the features, int64, one set of parts for each seed
    lines: tuple[str, ...] = ()  # what the data are, for the user
    databases: dict[str, np.ndarray] = field(default_factory=dict)  # name -> bool [N]; test rows are told apart by it


def read_domains(
    source: Path, target: Path, test: Path, *, label_column: str, validation: float, seeds: Sequence[int]
) -> VectorDomains:
    """One task from tables (CSV, TSV, Parquet) whose columns are numbers, but for the column of labels.

    Features are standardised by the source's means and deviations.

    Args:
      source: rows with labels.
      target: rows of the target domain; a label column is not read.
      test: rows of the target domain with labels, to measure on.
      validation: share of the source rows that validates.
      seeds: a draw of the validation rows for each.

    Raises:
      DataError: a column is missing or holds something else than finite numbers, there are fewer than two classes, or
        the test has a class that the source has not.
    """
    names = [name for name in TableFile(source).columns if name != label_column]
    if not names:
        raise DataError(f"{source}: no column of features beside {label_column!r}")
    texts = {path: _labels(path, label_column) for path in (source, test)}
    classes = tuple(sorted(set(texts[source])))
    if len(classes) < 2:
        raise DataError(f"{source}: {len(classes)} class in {label_column!r}; two or more are expected")
    if unknown := sorted(set(texts[test]) - set(classes)):
        raise DataError(f"{test}: {label_column!r} holds {unknown[0]!r}, which is no class of {source}")
    blocks = [_numbers(path, names) for path in (source, target, test)]
    mean, deviation = blocks[0].mean(0), blocks[0].std(0)
    features = (np.concatenate(blocks) - mean) / np.where(deviation > 0, deviation, 1.0)
    number = {name: i for i, name in enumerate(classes)}
    numbers = lambda path: np.asarray([number[text] for text in texts[path]], np.int64)
    rows = np.split(np.arange(len(features)), np.cumsum([len(block) for block in blocks])[:-1])
    parts = tuple(
        {**split_source(rows[0], validation, seed), "target_train": rows[1], "test": rows[2]} for seed in seeds
    )
    return VectorDomains(
        features=features.astype(np.float32),
        label=np.concatenate([numbers(source), np.full(len(rows[1]), -1), numbers(test)]),
        classes=classes,
        tasks={TABLES: parts},
        lines=(f"{len(rows[0]):,} source, {len(rows[1]):,} target and {len(rows[2]):,} test rows",),
    )


def split_source(rows: np.ndarray, validation: float, seed: int) -> Parts:
    """Source rows at random as train and validation, at least one row in each."""
    order = np.random.default_rng((seed, 0)).permutation(rows)
    size = min(max(round(validation * len(order)), 1), len(order) - 1)
    return {"train": np.sort(order[size:]), "validation": np.sort(order[:size])}


def _labels(path: Path, column: str) -> list[str]:
    if column not in TableFile(path).columns:
        raise DataError(f"{path}: no column {column!r} (vectors.label_column)")
    texts = [
        str(value).strip() if value is not None else "" for value in read_table(path, [column])[column].to_pylist()
    ]
    if empty := [i for i, text in enumerate(texts, 1) if not text]:
        raise DataError(f"{path}: {len(empty)} rows have no {column}, the first is row {empty[0]}")
    return texts


def _numbers(path: Path, names: Sequence[str]) -> np.ndarray:
    """float64 [rows, columns] of the named columns."""
    there = set(TableFile(path).columns)
    if missing := [name for name in names if name not in there]:
        raise DataError(f"{path}: no column {missing[0]!r}, which the source has ({len(missing)} such columns)")
    table, columns = read_table(path, names), []
    for name in names:
        column = table[name]
        try:
            if pa.types.is_string(column.type):
                column = compute.utf8_trim_whitespace(column)
            values = compute.cast(column, pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{path}: column {name!r} holds something else than numbers ({error})") from error
        if bad := np.flatnonzero(~np.isfinite(values)).tolist():
            raise DataError(
                f"{path}: column {name!r}: {len(bad)} values are missing or infinite, first in row {bad[0] + 1}"
            )
        columns.append(values)
    return np.stack(columns, 1)
