"""From a configuration to validated, featurised and split data: the one way in for training and baselines."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxdti.config import DataConfig
from jaxdti.data.features import build_store, featurize_smiles
from jaxdti.data.interactions import DataError, FeatureStore, InteractionTable
from jaxdti.data.leaks import leak_report
from jaxdti.data.named import EMBEDDED, dataset_parts, part_of_rows
from jaxdti.data.planted import as_interactions, describe, make_planted
from jaxdti.data.splits import describe_split, hold_out, make_split, read_split
from jaxdti.data.tables import read_table
from jaxdti.data.validation import ReadReport, load_interactions

PARTS = ("train", "validation", "test")
GIVEN = "given"
_HELD_OUT = 0.1  # share of train that becomes validation where the published split has none


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pairs, features and the rows of each part, ready to train on."""

    table: InteractionTable
    store: FeatureStore
    parts: dict[str, np.ndarray]  # int64 row indices of "train", "validation" and "test"
    report: ReadReport | None  # None for the embedded dataset
    lines: list[str]  # what a user should read about the data
    split: str  # "given", a kind of ``data.split``, or "file"
    ceiling: float | None = None  # AUROC that no model can pass on average; known for the embedded dataset only


def load_data(data: DataConfig, task: str) -> Dataset:
    """Reads the data that the configuration names, in one of three ways: a dataset, given parts or a table to split.

    Raises:
      DataError: nothing or too much is named, a file is missing or unfit, the task does not suit, or a part is empty.
    """
    files = {part: Path(path) for part in PARTS if (path := getattr(data, part))}
    named = [f"data.{name}" for name in ("dataset", *PARTS, "table") if getattr(data, name)]
    if sum((bool(data.dataset), bool(files), bool(data.table))) > 1:
        raise DataError(f"{' and '.join(named)} are set: a dataset, given parts and a table exclude each other")
    if data.dataset == EMBEDDED:
        dataset = _planted(data, task)
    elif data.dataset:
        dataset = _named(data, task)
    elif "train" in files and "test" in files:
        dataset = _given(data, task, files)
    elif data.table:
        dataset = _split_here(data, task, Path(data.table))
    else:
        raise DataError(_incomplete(named))
    if data.split_file and dataset.split == GIVEN:
        raise DataError(f"data.split_file={data.split_file} is set, but {' and '.join(named)} come split already")
    return dataset


def _incomplete(named: list[str]) -> str:
    return (
        f"no complete data named ({' and '.join(named) or 'nothing'} set): expected data.dataset (see `jaxdti data "
        f"list`), or data.train and data.test with or without data.validation, or data.table"
    )


def _planted(data: DataConfig, task: str) -> Dataset:
    _check_task("planted", "classification", task)
    planted = make_planted(data.planted)
    table = as_interactions(planted)
    cache = Path(data.cache_dir) if data.cache_dir else None
    store = build_store(table, featurize_smiles(table.drugs.tolist(), cache), data.max_residues, cache)
    parts = {part: np.flatnonzero(table.part == part) for part in PARTS}
    return Dataset(
        table=table,
        store=store,
        parts=parts,
        report=None,
        lines=describe(planted),
        split=GIVEN,
        ceiling=planted.bayes_auroc,
    )


def _named(data: DataConfig, task: str) -> Dataset:
    assert data.dataset is not None
    files = dataset_parts(data.dataset)
    _check_task(data.dataset, files.task, task)
    data = replace(data, label_column=files.label_column)
    if files.parts:
        named = {part: path for part, path in files.parts.items() if part in PARTS}
        if "train" not in named or "test" not in named:
            raise DataError(
                f"dataset {data.dataset} has the parts {', '.join(files.parts)}; training needs train and test"
            )
        return _given(data, task, named)
    assert files.pairs is not None
    data = replace(data, drugs=str(files.drugs), proteins=str(files.proteins))
    if files.part_column is None:
        return _split_here(data, task, files.pairs)
    column = read_table(files.pairs, [files.part_column])[files.part_column]
    part = part_of_rows(files, {files.part_column: column.cast(pa.string()).to_numpy(zero_copy_only=False)})
    loaded = load_interactions(data, {"table": files.pairs}, task, part_of_row=part)
    table = replace(loaded.table, part=part[loaded.table.row])
    return _with_parts(table, loaded.store, loaded.report, files.note)


def _given(data: DataConfig, task: str, files: dict[str, Path]) -> Dataset:
    loaded = load_interactions(data, files, task)
    return _with_parts(loaded.table, loaded.store, loaded.report, "")


def _with_parts(table: InteractionTable, store: FeatureStore, report: ReadReport, note: str) -> Dataset:
    """A given split: its parts, a validation part held out of train where it has none, and what the parts share."""
    parts = {part: np.flatnonzero(table.part == part) for part in PARTS if np.any(table.part == part)}
    lines = report.lines() + ([note] if note else [])
    if "validation" not in parts and "train" in parts:
        parts["train"], parts["validation"] = hold_out(table, parts["train"], _HELD_OUT, seed=0)
        lines.append(f"no validation part is given: {_HELD_OUT:.0%} of the pairs of train are held out")
    _need_parts(parts)
    parts = {part: parts[part] for part in PARTS}
    lines += leak_report(table, parts).lines()
    return Dataset(table=table, store=store, parts=parts, report=report, lines=lines, split=GIVEN)


def _split_here(data: DataConfig, task: str, path: Path) -> Dataset:
    loaded = load_interactions(data, {"table": path}, task)
    if data.split_file:
        split, parts = "file", read_split(data.split_file, loaded.table)
    else:
        split, parts = data.split, make_split(loaded.table, data.split, data.split_fractions, data.split_seed)
    _need_parts(parts)
    lines = loaded.report.lines() + describe_split(loaded.table, parts)
    return Dataset(table=loaded.table, store=loaded.store, parts=parts, report=loaded.report, lines=lines, split=split)


def _need_parts(parts: dict[str, np.ndarray]) -> None:
    for part in PARTS:
        if len(parts.get(part, ())) == 0:
            raise DataError(f"the {part} part has no rows; found {', '.join(parts) or 'none'}")


def _check_task(name: str, expected: str, task: str) -> None:
    if task != expected:
        raise DataError(f"dataset {name} is for task={expected}, found task={task}")
