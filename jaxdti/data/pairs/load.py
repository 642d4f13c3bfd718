"""From a configuration to validated, featurised and split data: the one way in for training and baselines."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdti.config import DataConfig
from jaxdti.data.named import DatasetFiles, dataset_parts, part_of_rows, settings_to_read
from jaxdti.data.pairs.clusters import ClusterDomains, domains_of_parts, draw_domains, published_domains
from jaxdti.data.pairs.featurise import build_store, featurize_smiles
from jaxdti.data.pairs.leaks import leak_report
from jaxdti.data.pairs.planted import as_interactions, describe, make_planted
from jaxdti.data.pairs.rejected import ReadReport
from jaxdti.data.pairs.splits import (
    DOMAIN_PARTS,
    PARTS,
    describe_domains,
    describe_split,
    hold_out,
    make_split,
    read_split,
    split_domains,
    table_identity,
)
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.data.pairs.validation import load_interactions
from jaxdti.data.registry import EMBEDDED, get_dataset
from jaxdti.data.tables import read_table
from jaxdti.errors import DataError

GIVEN = "given"
# The two published cluster splits that `jaxdti data split --published` repeats, by the dataset with all their rows.
# BioSNAP's draw is repeated. BindingDB's (seed 42) needs the order of the full table, which its files do not tell: the
# domains of the clusters are those of the published parts.
_BIOSNAP, _BIOSNAP_DRAW, _BIOSNAP_ORDER = "biosnap/random", 10, 1024  # the last: seed that shuffled the full table
_BINDINGDB, _BINDINGDB_PARTS = "bindingdb/random", "bindingdb/cluster"
PUBLISHED = (_BIOSNAP, _BINDINGDB)
_READING = ("drugs", "proteins", "drug_column", "protein_column", "label_column")  # how to read a file
_SPLITTING = ("split", "split_fractions", "split_seed", "cluster_threshold", "target_share")  # how to split a table
_HELD_OUT = 0.1  # share of train that becomes validation where the published split has none


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pairs, features and the rows of each part, ready to train on."""

    table: InteractionTable
    store: FeatureStore
    parts: dict[str, np.ndarray]  # int64 row indices of "train", "validation", "test", and of "target_train" if any
    report: ReadReport | None  # None for the embedded dataset
    lines: list[str]  # what a user should read about the data
    split: str  # "given", a kind of ``data.split``, or "file"
    ceiling: float | None = None  # AUROC that no model can pass on average; known for the embedded dataset only


def load_data(data: DataConfig, task: str, table: pa.Table | None = None) -> Dataset:
    """Reads the data that the configuration names, in one of three ways: a dataset, given parts or a table to split.

    ``table`` stands for the file ``data.table``, which then need not be there.

    Raises:
      DataError: nothing or too much is named, a file is missing or unfit, the task does not suit, or a part is empty.
    """
    keys = {**{part: part for part in PARTS}, "target_train": "target"}
    files = {part: Path(path) for part, key in keys.items() if (path := getattr(data, key))}
    named = [f"data.{name}" for name in ("dataset", *keys.values(), "table") if getattr(data, name)]
    if sum((bool(data.dataset), bool(files), bool(data.table))) > 1:
        raise DataError(f"{' and '.join(named)} are set: a dataset, given parts and a table exclude each other")
    splitting = _set(data, _SPLITTING)
    if data.split_file and splitting:
        raise DataError(
            f"{splitting[0]} and data.split_file={data.split_file} are both set: the file says which rows are in which "
            "part; leave one of them out"
        )
    if data.dataset == EMBEDDED:
        dataset = _planted(data, task)
    elif data.dataset:
        dataset = _named(data, task)
    elif "train" in files and "test" in files:
        dataset = _given(data, task, files)
    elif data.table:
        dataset = _split_here(data, task, Path(data.table) if table is None else table)
    else:
        raise DataError(_incomplete(named))
    if data.split_file and dataset.split == GIVEN:
        raise DataError(f"data.split_file={data.split_file} is set, but {' and '.join(named)} come split already")
    if splitting and dataset.split == GIVEN:
        given = f"data.dataset={data.dataset}" if data.dataset else " and ".join(named)
        raise DataError(
            f"{splitting[0]} is set, but {given} come split already; leave out --{splitting[0].partition('=')[0]}, or "
            "give one table of all pairs with --data.table to split it here"
        )
    return dataset


def _set(data: DataConfig, names: tuple[str, ...]) -> list[str]:
    """Those of the fields that are not at their default, with their value."""
    text = lambda value: ",".join(map(str, value)) if isinstance(value, tuple) else value
    given = {name: getattr(data, name) for name in names}
    return [f"data.{name}={text(value)}" for name, value in given.items() if value != getattr(DataConfig, name)]


def _incomplete(named: list[str]) -> str:
    return (
        f"no complete data named ({' and '.join(named) or 'nothing'} set): expected data.dataset (see `jaxdti data "
        f"list`), or data.train and data.test with or without data.validation and data.target, or data.table"
    )


def _planted(data: DataConfig, task: str) -> Dataset:
    _check_task("planted", "classification", task)
    if reading := _set(data, _READING):
        raise DataError(f"{reading[0]} is set, but data.dataset=planted is generated, not read; leave it out")
    planted = make_planted(data.planted)
    table = as_interactions(planted)
    cache = Path(data.cache_dir) if data.cache_dir else None
    store = build_store(table, featurize_smiles(table.drugs.tolist(), cache), data.max_residues, cache)
    return Dataset(
        table=table,
        store=store,
        parts={part: rows for part in DOMAIN_PARTS if len(rows := np.flatnonzero(table.part == part))},
        report=None,
        lines=describe(planted),
        split=GIVEN,
        ceiling=planted.bayes_auroc,
    )


def _named(data: DataConfig, task: str) -> Dataset:
    assert data.dataset is not None
    files = dataset_parts(data.dataset)
    _check_task(data.dataset, files.task, task)
    data = settings_to_read(files, data)
    if files.parts:
        return _given(data, task, _parts_to_train(files), files.note)
    assert files.pairs is not None
    if files.part_column is None:
        return _split_here(data, task, files.pairs)
    column = read_table(files.pairs, [files.part_column])[files.part_column]
    part = part_of_rows(files, {files.part_column: column.cast(pa.string()).to_numpy(zero_copy_only=False)})
    loaded = load_interactions(data, {"table": files.pairs}, task, part_of_row=part)
    table = replace(loaded.table, part=part[loaded.table.row])
    return _with_parts(table, loaded.store, loaded.report, files.note)


def _parts_to_train(files: DatasetFiles) -> dict[str, Path]:
    named = {part: path for part, path in files.parts.items() if part in DOMAIN_PARTS}
    if "train" not in named or "test" not in named:
        raise DataError(f"dataset {files.name} has the parts {', '.join(files.parts)}; training needs train and test")
    return named


def _given(data: DataConfig, task: str, files: dict[str, Path], note: str = "") -> Dataset:
    loaded = load_interactions(data, files, task)
    if data.dataset and data.split_file:  # the published parts are joined and split as the file says
        parts = read_split(data.split_file, loaded.table)
        lines = loaded.report.lines() + describe_split(loaded.table, parts)
        return Dataset(
            table=loaded.table, store=loaded.store, parts=parts, report=loaded.report, lines=lines, split="file"
        )
    return _with_parts(loaded.table, loaded.store, loaded.report, note)


def _with_parts(table: InteractionTable, store: FeatureStore, report: ReadReport, note: str) -> Dataset:
    """A given split: its parts, a validation part held out of train where it has none, and what the parts share."""
    parts = {part: np.flatnonzero(table.part == part) for part in DOMAIN_PARTS if np.any(table.part == part)}
    lines = report.lines() + ([note] if note else [])
    if "validation" not in parts and "train" in parts:
        parts["train"], parts["validation"] = hold_out(table, parts["train"], _HELD_OUT, seed=0)
        lines.append(f"no validation part is given: {_HELD_OUT:.0%} of the pairs of train are held out")
    _need_parts(parts)
    parts = {part: parts[part] for part in DOMAIN_PARTS if part in parts}
    lines += leak_report(table, parts).lines()
    return Dataset(table=table, store=store, parts=parts, report=report, lines=lines, split=GIVEN)


def _split_here(data: DataConfig, task: str, source: Path | pa.Table) -> Dataset:
    loaded = load_interactions(data, {"table": source}, task)
    table, lines = loaded.table, loaded.report.lines()
    if data.split_file:
        split, parts = "file", read_split(data.split_file, table)
        lines += describe_split(table, parts)
    elif data.split == "cluster":
        domains = draw_domains(table, data.split_seed, threshold=data.cluster_threshold, share=data.target_share)
        split, (parts, described) = "cluster", _split_domains(data, table, domains)
        lines += described
    else:
        split, parts = data.split, make_split(table, data.split, data.split_fractions, data.split_seed)
        lines += describe_split(table, parts)
    _need_parts(parts)
    return Dataset(table=table, store=loaded.store, parts=parts, report=loaded.report, lines=lines, split=split)


def _split_domains(
    data: DataConfig, table: InteractionTable, domains: ClusterDomains
) -> tuple[dict[str, np.ndarray], list[str]]:
    parts = split_domains(table, domains, data.split_fractions[1:], data.split_seed)
    return parts, describe_domains(table, domains, parts)


def load_published_clusters(data: DataConfig, task: str) -> Dataset:
    """Joins the parts of a dataset and splits them into the source and target domain of its published cluster split.

    Validation is held out of the source, and the target divided, by ``data.split_fractions`` and ``data.split_seed``:
    the published division of the target is not repeated.

    Args:
      data: ``dataset`` is one of ``PUBLISHED``.
      task: "classification".

    Raises:
      DataError: no recipe is known for this dataset, or its files are missing or unfit.
    """
    if data.dataset not in PUBLISHED:
        raise DataError(f"{data.dataset}: its cluster split cannot be repeated; known for {', '.join(PUBLISHED)}")
    files = dataset_parts(data.dataset)
    _check_task(data.dataset, files.task, task)
    loaded = load_interactions(data, _parts_to_train(files), task)
    table, lines = loaded.table, loaded.report.lines()
    if data.dataset == _BIOSNAP:
        domains = _repeat_biosnap(data, files, table)
    else:
        domains = _domains_of_bindingdb(data, task, table)
        lines.append(f"domain of each cluster: as in the published parts, {_BINDINGDB_PARTS}")
    parts, described = _split_domains(data, table, domains)
    return Dataset(
        table=table,
        store=loaded.store,
        parts=parts,
        report=loaded.report,
        lines=lines + described,
        split="cluster",
    )


def _repeat_biosnap(data: DataConfig, files: DatasetFiles, table: InteractionTable) -> ClusterDomains:
    # Read as regression, repeated rows stay: the first one decides when a cluster appears.
    everything = load_interactions(data, _parts_to_train(files), "regression").table
    if not (np.array_equal(everything.drugs, table.drugs) and np.array_equal(everything.proteins, table.proteins)):
        raise DataError(f"{files.name}: rows with conflicting labels, so not the published table")
    return published_domains(everything, np.argsort(_place_in_biosnap(everything)), _BIOSNAP_DRAW)


def _domains_of_bindingdb(data: DataConfig, task: str, table: InteractionTable) -> ClusterDomains:
    published = load_interactions(data, dataset_parts(_BINDINGDB_PARTS).parts, task).table
    source = published.part == "train"
    return domains_of_parts(table, published.rows(source), published.rows(~source))


def _place_in_biosnap(table: InteractionTable) -> np.ndarray:
    """int64 [N]: the place of each row in DrugBAN's full.csv, whose shuffled rows are the three random parts."""
    sizes = get_dataset(_BIOSNAP).rows
    places = np.random.RandomState(_BIOSNAP_ORDER).permutation(sum(sizes.values()))
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    return places[np.array([starts[part] for part in table.part]) + table.row]


def _need_parts(parts: dict[str, np.ndarray]) -> None:
    for part in PARTS:
        if len(parts.get(part, ())) == 0:
            raise DataError(f"the {part} part has no rows; found {', '.join(parts) or 'none'}")


def _check_task(name: str, expected: str, task: str) -> None:
    if task != expected:
        raise DataError(f"dataset {name} is for task={expected}, found task={task}")


def data_record(path: Path) -> dict[str, Any]:
    """A data.json, with at least the "sha256" of ``describe_data``; raises DataError where it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    return record


def describe_data(dataset: Dataset) -> dict[str, Any]:
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
