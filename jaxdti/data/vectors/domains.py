"""Feature vectors of a source domain with classes, and of target domains that are shifted and may lack classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdti.data.fingerprints import ecfp4
from jaxdti.data.molecules import featurize_batch
from jaxdti.data.tables import DRUG_NAMES, LABEL_NAMES, TableFile, Wanted, compute, find_column, read_table, text_cells
from jaxdti.errors import DataError

_LARGEST = np.finfo(np.float32).max
TABLES = "tables"  # the name of the one task that given tables make

Parts = dict[str, np.ndarray]  # train and validation of the source, target_train (unlabelled) and test of the target


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """How rows of tables become feature vectors: standardised columns of numbers, or ECFP4 of SMILES."""

    columns: tuple[str, ...] = ()  # of numbers, in order
    mean: tuple[float, ...] = ()  # of each column, which is subtracted,
    deviation: tuple[float, ...] = ()  # and what the difference is divided by
    fingerprint_bits: int | None = None  # instead

    @property
    def size(self) -> int:
        """The length of a vector."""
        return self.fingerprint_bits or len(self.columns)

    def read(self, path: Path, drug_column: str | None = None) -> np.ndarray:
        """float32 [N, F] of the rows of a table.

        Raises:
          DataError: a column is missing, or a row holds something else than finite numbers or a molecule.
        """
        vectors, faults = self.read_rows(read_table(path, self.wanted(path, drug_column)), path)
        return _sound(path, vectors, faults)

    def wanted(self, path: Path, drug_column: str | None = None) -> list[str]:
        """The columns of the table that hold the features; raises DataError where one is missing."""
        columns = TableFile(path).columns
        if self.fingerprint_bits:
            name = find_column(columns, Wanted("drug (SMILES)", "data.drug_column", drug_column, DRUG_NAMES), path)
            return [str(name)]
        if missing := [name for name in self.columns if name not in columns]:
            raise DataError(f"{path}: no column {missing[0]!r}, which the source has ({len(missing)} such columns)")
        return list(self.columns)

    def read_rows(self, table: pa.Table, path: Path) -> tuple[np.ndarray, list[str]]:
        """float32 [N, F] and what is wrong with each row, "" where nothing is; the vector of a faulty row is 0.

        Args:
          table: with the ``wanted`` columns alone, those of numbers in order.
          path: for messages.
        """
        if self.fingerprint_bits:
            return _fingerprints(table, self.fingerprint_bits, path)
        values, faults = _numbers(table, path)
        vectors = (values - np.asarray(self.mean)) / np.asarray(self.deviation)
        vectors[np.isnan(values).any(axis=1)] = 0.0
        for i in np.flatnonzero((np.abs(vectors) > _LARGEST).any(axis=1)).tolist():
            faults[i] = "a number is beyond float32 once it is standardised"
            vectors[i] = 0.0
        return vectors.astype(np.float32), faults


@dataclass(frozen=True, kw_only=True)
class VectorDomains:
    """Tasks of adaptation over one array of features."""

    features: np.ndarray  # float32 [N, F]
    label: np.ndarray  # int64 [N], number of the class; -1 where it is not known
    classes: tuple[str, ...]  # [K]
    tasks: dict[str, tuple[Parts, ...]]  # name -> rows of the features, int64, one set of parts for each seed
    lines: tuple[str, ...] = ()  # what the data are, for the user
    databases: dict[str, np.ndarray] = field(default_factory=dict)  # name -> bool [N]; test rows are told apart by it
    space: FeatureSpace | None = None  # None where the vectors are those of no table


def read_domains(
    source: Path,
    target: Path | None,
    test: Path,
    *,
    validation: float,
    seeds: Sequence[int],
    label_column: str | None = None,
    fingerprint_bits: int | None = None,
    drug_column: str | None = None,
    space: FeatureSpace | None = None,
) -> VectorDomains:
    """One task from tables (CSV, TSV, Parquet) of numbers, or of SMILES, beside a column of labels.

    Columns of numbers are standardised by the source's means and deviations.

    Args:
      source: rows with labels.
      target: rows of the target domain; a label column is not read. None: there are none.
      test: rows of the target domain with labels, to measure on.
      validation: share of the source rows that validates.
      seeds: a draw of the validation rows for each.
      label_column: that of the classes; found among the usual names when None.
      fingerprint_bits: the tables hold SMILES, whose ECFP4 of so many bits are the features; None: numbers.
      drug_column: that of the SMILES; found among the usual names when None.
      space: of a trained network, instead of what the source gives.

    Raises:
      DataError: a column is missing or holds something else than finite numbers or SMILES, the source has fewer than
        two rows or classes, or the test has a class that the source has not.
    """
    wanted = Wanted("label", "vectors.label_column", label_column, (("label",), *LABEL_NAMES))
    columns = {path: str(find_column(TableFile(path).columns, wanted, path)) for path in (source, test)}
    if space is None:
        space = _space(source, columns[source], fingerprint_bits)
    texts = {path: _labels(path, column) for path, column in columns.items()}
    classes = tuple(sorted(set(texts[source])))
    if len(classes) < 2:
        raise DataError(f"{source}: {len(classes)} class in {columns[source]!r}; two or more are expected")
    if unknown := sorted(set(texts[test]) - set(classes)):
        raise DataError(f"{test}: {columns[test]!r} holds {unknown[0]!r}, which is no class of {source}")
    number = {name: i for i, name in enumerate(classes)}
    numbers = lambda path: np.asarray([number[text] for text in texts[path]], np.int64)
    blocks = [space.read(path, drug_column) for path in (source, target, test) if path is not None]
    if target is None:
        blocks.insert(1, np.zeros((0, space.size), np.float32))
    rows = np.split(np.arange(sum(map(len, blocks))), np.cumsum([len(block) for block in blocks])[:-1])
    parts = tuple(
        {**split_source(rows[0], validation, seed), "target_train": rows[1], "test": rows[2]} for seed in seeds
    )
    trained_on = {row.tobytes() for row in blocks[0]}
    repeated = sum(row.tobytes() in trained_on for row in blocks[2])
    leak = (f"{repeated:,} of the test rows have the features of a source row",) if repeated else ()
    return VectorDomains(
        features=np.concatenate(blocks),
        label=np.concatenate([numbers(source), np.full(len(rows[1]), -1), numbers(test)]),
        classes=classes,
        tasks={TABLES: parts},
        lines=(f"{len(rows[0]):,} source, {len(rows[1]):,} target and {len(rows[2]):,} test rows", *leak),
        space=space,
    )


def _space(source: Path, label_column: str, fingerprint_bits: int | None) -> FeatureSpace:
    if fingerprint_bits:
        return FeatureSpace(fingerprint_bits=fingerprint_bits)
    names = tuple(name for name in TableFile(source).columns if name != label_column)
    if not names:
        raise DataError(f"{source}: no column of features beside {label_column!r}")
    values = _sound(source, *_numbers(read_table(source, names), source))
    deviation = values.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    return FeatureSpace(columns=names, mean=tuple(values.mean(0).tolist()), deviation=tuple(scale.tolist()))


def split_source(rows: np.ndarray, validation: float, seed: int) -> Parts:
    """Source rows at random as train and validation, at least one row in each."""
    order = np.random.default_rng((seed, 0)).permutation(rows)
    size = min(max(round(validation * len(order)), 1), len(order) - 1)
    return {"train": np.sort(order[size:]), "validation": np.sort(order[:size])}


def _labels(path: Path, column: str) -> list[str]:
    texts = [_class_name(value) for value in read_table(path, [column])[column].to_pylist()]
    if empty := [i for i, text in enumerate(texts, 1) if not text]:
        raise DataError(f"{path}: {len(empty)} rows have no {column}, the first is row {empty[0]}")
    return texts


def _class_name(value: Any) -> str:
    """The text of a label, "" for a missing one; 1.0 is the class 1, as tables write the same labels either way."""
    text = "" if value is None else str(value).strip()
    whole = re.fullmatch(r"(-?\d+)\.0*", text)
    return whole[1] if whole else "" if text.lower() == "nan" else text


def _sound(path: Path, vectors: np.ndarray, faults: Sequence[str]) -> np.ndarray:
    """The vectors; raises DataError where a row is faulty."""
    if faulty := [i for i, fault in enumerate(faults) if fault]:
        raise DataError(f"{path}: row {faulty[0] + 1}: {faults[faulty[0]]} ({len(faulty)} such rows)")
    return vectors


def _numbers(table: pa.Table, path: Path) -> tuple[np.ndarray, list[str]]:
    """float64 [rows, columns], NaN where a cell is no finite number, and what is wrong with each row."""
    values, faults = np.zeros((table.num_rows, table.num_columns)), [""] * table.num_rows
    for j, name in enumerate(table.column_names):
        cells = table[name]
        values[:, j] = found = _as_numbers(cells, name, path)
        for i in np.flatnonzero(np.isnan(found)).tolist():
            faults[i] = faults[i] or f"column {name!r} holds {cells[i].as_py()!r}; a finite float32 number is expected"
    return values, faults


def _as_numbers(cells: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_boolean(cells.type):
        values = compute.cast(cells, pa.float64()).to_numpy()
    else:
        texts = compute.utf8_trim_whitespace(text_cells(cells, name, path))
        try:
            values = compute.cast(texts, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            values = np.array([_as_number(text) for text in texts.to_pylist()])
    return np.where(np.abs(values) <= _LARGEST, values, np.nan)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _fingerprints(table: pa.Table, bits: int, path: Path) -> tuple[np.ndarray, list[str]]:
    """float32 [rows, bits] of the one column of SMILES, 0 where it does not parse, and what is wrong with each row."""
    (name,) = table.column_names
    texts = compute.utf8_trim_whitespace(text_cells(table[name], name, path)).to_pylist()
    errors = featurize_batch(texts).error
    faults = [f"SMILES {text!r}: {error}" if error else "" for text, error in zip(texts, errors, strict=True)]
    sound = [i for i, fault in enumerate(faults) if not fault]
    vectors = np.zeros((len(texts), bits), np.float32)
    vectors[sound] = ecfp4([texts[i] for i in sound], bits=bits)
    return vectors, faults
