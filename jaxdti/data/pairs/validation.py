"""From tables to validated pairs: every row is checked, and what was rejected or changed is reported.

Rows are numbered from one in messages and in ``rejected.csv``: the first row after the header is data row 1 (blank
lines are not rows). ``InteractionTable.row`` counts the same rows from zero.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxdti.config import DataConfig
from jaxdti.data.pairs.featurise import Molecules, build_store, featurize_smiles
from jaxdti.data.pairs.layouts import Column, Piece, label_column, read_layout, read_pairs, read_unlabelled
from jaxdti.data.pairs.rejected import ReadReport, RejectedRow, TooManyRejected
from jaxdti.data.pairs.sequences import normalise_sequence
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.data.tables import compute, text_cells

# Kinds of rejection, as counted in the summary.
EMPTY = "empty cell"
SMILES = "SMILES cannot be read"
ATOMS = "too many atoms"
SEQUENCE = "not a protein sequence"
KEY = "unknown key"
NUMBER = "label is not a number"
FINITE = "label is not finite"
BINARY = "label is not 0 or 1"
CONFLICT = "conflicting labels"

UNLABELLED = ("target_train",)  # parts of unlabelled pairs, whose labels are not read even where there are some

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"


@dataclass(frozen=True, kw_only=True)
class LoadedData:
    """Validated pairs with their features."""

    table: InteractionTable
    store: FeatureStore
    report: ReadReport


@dataclass(frozen=True, kw_only=True)
class PredictionData:
    """All N rows of a table to score, and the pairs of those that are valid."""

    columns: pa.Table  # [N], every column in its order; the two that were read may be dictionary-encoded
    table: InteractionTable  # the valid rows in order, labels NaN; ``row`` points into ``columns``
    store: FeatureStore
    errors: np.ndarray  # str objects [N], why a row cannot be scored; "" where it can
    report: ReadReport


def load_interactions(
    data: DataConfig,
    parts: Mapping[str, Path | pa.Table],
    task: str,
    *,
    require_label: bool = True,
    part_of_row: np.ndarray | None = None,
) -> LoadedData:
    """Reads, checks and featurises the files of a dataset.

    Args:
      data: columns, side tables (``drugs``, ``proteins``), limits and cache.
      parts: file, or table in memory, of each part: "train", "validation", "test", or "table"; of "target_train" no
        label is read.
      task: "classification" (labels 0 and 1) or "regression" (any finite number).
      require_label: where False, a missing label column or an empty label gives NaN.

      part_of_row: for a single file that holds several parts, the part of each of its data rows (str objects).

    Returns:
      The kept rows in file order, part after part. Duplicates and conflicts are looked for within a part.

    Raises:
      TooManyRejected: more than ``data.max_rejected`` of all rows rejected, or no row of a file kept.
      DataError: a file cannot be read as a table, or a column is missing.
    """
    layout, label = read_layout(data), label_column(data, require_label)
    read = lambda part, source: read_pairs(part, source, layout, None if part in UNLABELLED else label)
    pieces = [read(part, source) for part, source in parts.items()]
    labels = [_check_labels(piece, task, require_label and piece.name not in UNLABELLED) for piece in pieces]
    checked = _check_rows(pieces, labels, data)
    part = checked.table.part if part_of_row is None else part_of_row[checked.table.row]
    kept, repeats, conflicts = _resolve_repeats(checked.table, part, task, data.replicates)
    rejected = [*checked.rejected, *_conflict_rows(pieces, conflicts)]
    table = _compact(kept)
    report = _report(pieces, table, checked, rejected, repeats, task, data)
    _check_share(report, pieces, data.max_rejected)
    return LoadedData(table=table, store=_store(table, checked, data), report=report)


def load_for_prediction(source: Path | pa.Table, data: DataConfig) -> PredictionData:
    """Reads the pairs to score from a file, or from a table in memory; no row is removed, labels are not read.

    Raises:
      DataError: the file cannot be read as a table, or a column is missing.
    """
    piece, columns = read_unlabelled(source, read_layout(data))
    checked = _check_rows([piece], [_no_labels(piece)], data)
    errors = np.full(len(piece), "", object)
    for row in checked.rejected:
        errors[row.row - 1] = f"{row.field}: {row.reason}"
    table = _compact(checked.table)
    report = _report([piece], table, checked, checked.rejected, 0, "classification", data)
    return PredictionData(
        columns=columns, table=table, store=_store(table, checked, data), errors=errors, report=report
    )


class Fault(NamedTuple):
    """Why a value is rejected."""

    kind: str  # one of the kinds above
    reason: str  # for the user, with the details


class Labels(NamedTuple):
    """Labels of N rows, and what is wrong with them."""

    value: np.ndarray  # float32 [N]; NaN = unlabelled
    fault: np.ndarray  # int8 [N], index into LABEL_FAULTS


LABEL_FAULTS = (
    Fault("", ""),
    Fault(EMPTY, "empty label"),
    Fault(NUMBER, "not a number"),
    Fault(FINITE, "not a finite number"),
    Fault(BINARY, "neither 0 nor 1 (for affinities: task=regression)"),
)


class Entities(NamedTuple):
    """What became of the distinct texts of drugs or proteins."""

    identity: dict[str, str]  # text -> canonical SMILES or sequence, where there is no fault
    faults: dict[str, Fault]  # text -> what is wrong with it
    numbers: dict[str, int]  # identity -> its number, in order of appearance


class Checked(NamedTuple):
    """What the checks of single rows leave."""

    table: InteractionTable  # rows without a fault
    rejected: list[RejectedRow]
    molecules: Molecules
    unknown: dict[str, int]  # sequence -> letters that became X


def _no_labels(piece: Piece) -> Labels:
    return Labels(np.full(len(piece), np.nan, np.float32), np.zeros(len(piece), np.int8))


def _check_labels(piece: Piece, task: str, required: bool) -> Labels:
    if piece.label is None:
        return _no_labels(piece)
    text = compute.utf8_trim_whitespace(_label_text(piece.label, piece.label_field, Path(piece.path)))
    number = compute.if_else(compute.match_substring_regex(text, _NUMBER), text, pa.scalar(None, pa.string()))
    number = compute.replace_substring_regex(number, r"^\+", "").cast(pa.float64()).to_numpy()
    with np.errstate(over="ignore"):
        value = number.astype(np.float32)
    empty = compute.equal(text, "").to_numpy()
    infinite = compute.match_substring_regex(text, _NOT_FINITE).to_numpy() | np.isinf(value)
    fault = np.select([empty, infinite, np.isnan(value)], [int(required), 3, 2], 0).astype(np.int8)
    if task == "classification":
        fault[(fault == 0) & ~empty & (number != 0) & (number != 1)] = 4
    return Labels(value, fault)


def _label_text(label: pa.ChunkedArray, field: str, path: Path) -> pa.ChunkedArray:
    if pa.types.is_boolean(label.type):
        label = label.cast(pa.int8())
    return text_cells(label, field, path)


def _check_rows(pieces: Sequence[Piece], labels: Sequence[Labels], data: DataConfig) -> Checked:
    molecules = featurize_smiles(_distinct(piece.drug for piece in pieces), _cache(data))
    drugs = _judge_drugs(molecules, data.max_atoms)
    proteins, unknown = _judge_proteins(_distinct(piece.protein for piece in pieces))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("drug", "protein", "label", "part", "row")}
    rejected = []
    for piece, label in zip(pieces, labels, strict=True):
        drug, protein = _entity_rows(piece.drug, drugs), _entity_rows(piece.protein, proteins)
        good = (drug >= 0) & (protein >= 0) & (label.fault == 0)
        rows["drug"].append(drug[good])
        rows["protein"].append(protein[good])
        rows["label"].append(label.value[good])
        rows["part"].append(np.full(good.sum(), piece.name, object))
        rows["row"].append(np.flatnonzero(good))
        for row in np.flatnonzero(~good).tolist():
            if drug[row] < 0:
                rejected.append(_reject_entity(piece, row, piece.drug, drugs))
            elif protein[row] < 0:
                rejected.append(_reject_entity(piece, row, piece.protein, proteins))
            else:
                rejected.append(_reject_label(piece, row, LABEL_FAULTS[label.fault[row]]))
    columns = {name: np.concatenate(values) for name, values in rows.items()}
    table = InteractionTable(drugs=_objects(drugs.numbers), proteins=_objects(proteins.numbers), **columns)
    return Checked(table, rejected, molecules, unknown)


def _distinct(columns: Iterable[Column]) -> list[str]:
    return list(dict.fromkeys(text for column in columns for text in column.texts if text))


def _judge_drugs(molecules: Molecules, max_atoms: int) -> Entities:
    faults = {}
    for text, error, atoms in zip(molecules.smiles, molecules.error, molecules.atom_counts.tolist(), strict=True):
        if error:
            faults[text] = Fault(SMILES, error)
        elif atoms > max_atoms:
            faults[text] = Fault(ATOMS, f"{atoms} atoms; at most {max_atoms} are accepted")
    texts = zip(molecules.smiles, molecules.canonical, strict=True)
    return _numbered({text: canonical for text, canonical in texts if text not in faults}, faults)


def _judge_proteins(texts: Sequence[str]) -> tuple[Entities, dict[str, int]]:
    identity, faults, unknown = {}, {}, {}
    for text in texts:
        try:
            identity[text], count = normalise_sequence(text)
            unknown[identity[text]] = count
        except ValueError as error:
            faults[text] = Fault(SEQUENCE, str(error))
    return _numbered(identity, faults), unknown


def _numbered(identity: dict[str, str], faults: dict[str, Fault]) -> Entities:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(identity.values()))}
    return Entities(identity, faults, numbers)


def _entity_rows(column: Column, entities: Entities) -> np.ndarray:
    """int32 [N]: the number of each row's drug or protein, -1 where it has a fault."""
    number = lambda text: entities.numbers[entities.identity[text]] if text in entities.identity else -1
    return np.array([number(text) for text in column.texts], np.int32)[column.index]


def _reject_entity(piece: Piece, row: int, column: Column, entities: Entities) -> RejectedRow:
    cell, text = column.cells[column.index[row]], column.texts[column.index[row]]
    field, value = column.cell_field, cell
    if text is None:
        fault = Fault(KEY, f"no such key in {column.text_file}")
    elif not cell:
        fault = Fault(EMPTY, "empty cell")
    else:
        fault = entities.faults[text] if text else Fault(EMPTY, f"empty cell in {column.text_file}")
        field, value = column.text_field, text or cell
    return RejectedRow(piece.path, row + 1, field, value, fault.reason, fault.kind)


def _reject_label(piece: Piece, row: int, fault: Fault) -> RejectedRow:
    assert piece.label is not None
    value = piece.label[row].as_py()
    return RejectedRow(
        piece.path, row + 1, piece.label_field, "" if value is None else str(value), fault.reason, fault.kind
    )


def _resolve_repeats(
    table: InteractionTable, part_of_row: np.ndarray, task: str, replicates: str
) -> tuple[InteractionTable, int, np.ndarray]:
    """Looks for pairs that occur more than once in a part.

    Returns:
      The rows to keep, in their order; how many rows repeat a pair (conflicting ones apart); and the conflicting rows
      as ``part`` and ``row`` objects [C, 2].
    """
    none = np.zeros((0, 2), object)
    if not len(table):
        return table, 0, none
    names = {name: number for number, name in enumerate(dict.fromkeys(part_of_row.tolist()))}
    part = np.fromiter((names[name] for name in part_of_row), np.int64, len(table))
    pair = (part * len(table.drugs) + table.drug) * len(table.proteins) + table.protein
    # Within a pair the labelled rows come first, then the order of the file.
    order = np.lexsort([np.isnan(table.label), pair])
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    first, label = order[starts], table.label[order]
    if task == "regression" and replicates == "keep":
        return table, len(table) - len(first), none
    if task == "regression":
        labelled = ~np.isnan(label)
        total = np.bincount(group, np.where(labelled, label, 0.0).astype(np.float64))
        count = np.bincount(group, labelled)
        mean = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
        merged = replace(table.rows(first), label=mean.astype(np.float32))
        return merged.rows(np.lexsort([merged.row, part[first]])), len(table) - len(first), none
    low, high = np.fmin.reduceat(label, starts), np.fmax.reduceat(label, starts)
    conflict = low < high
    bad = order[conflict[group]]
    bad.sort()
    kept = np.sort(first[~conflict])
    repeats = len(table) - len(bad) - len(kept)
    return table.rows(kept), repeats, np.stack([table.part[bad], table.row[bad].astype(object)], axis=1)


def _conflict_rows(pieces: Sequence[Piece], conflicts: np.ndarray) -> list[RejectedRow]:
    by_name = {piece.name: piece for piece in pieces}
    fault = Fault(CONFLICT, "the same pair also occurs with the other label")
    return [_reject_label(by_name[part], row, fault) for part, row in conflicts.tolist()]


def _compact(table: InteractionTable) -> InteractionTable:
    """Leaves out drugs and proteins without a row; the others are numbered by first appearance."""
    drugs, drug = _renumbered(table.drugs, table.drug)
    proteins, protein = _renumbered(table.proteins, table.protein)
    return replace(table, drugs=drugs, proteins=proteins, drug=drug, protein=protein)


def _renumbered(names: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return names[used[order]], np.argsort(order)[inverse].astype(np.int32)


def _report(
    pieces: Sequence[Piece],
    table: InteractionTable,
    checked: Checked,
    rejected: Sequence[RejectedRow],
    repeats: int,
    task: str,
    data: DataConfig,
) -> ReadReport:
    kept = Counter(table.part.tolist())
    unknown = [checked.unknown[protein] for protein in table.proteins]
    flat = dict(zip(checked.molecules.canonical, checked.molecules.flat, strict=True))
    alike = Counter(flat[drug] for drug in table.drugs)
    return ReadReport(
        read={piece.name: len(piece) for piece in pieces},
        kept={piece.name: kept[piece.name] for piece in pieces},
        rejected=tuple(rejected),
        duplicates=repeats if task == "classification" else 0,
        replicates=repeats if task == "regression" else 0,
        replicates_averaged=task == "regression" and data.replicates == "mean",
        proteins_cut=sum(len(protein) > data.max_residues for protein in table.proteins),
        residues_unknown=sum(unknown),
        proteins_unknown=sum(count > 0 for count in unknown),
        stereo_twins=sum(count for count in alike.values() if count > 1),
    )


def _check_share(report: ReadReport, pieces: Sequence[Piece], limit: float) -> None:
    read, rejected = sum(report.read.values()), len(report.rejected)
    if not rejected:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.rejected_by_kind.items())
    row = report.rejected[0]
    first = f"first: {row.file}, data row {row.row}, {row.field}={_short(row.value)}: {row.reason}"
    if rejected > limit * read:
        raise TooManyRejected(
            f"{rejected} of {read} rows rejected ({rejected / read:.1%}; data.max_rejected allows {limit:.1%}): "
            f"{kinds}; {first}",
            report,
        )
    for piece in pieces:
        if not report.kept[piece.name]:
            raise TooManyRejected(f"{piece.path}: no valid row among {len(piece)}: {kinds}; {first}", report)


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _store(table: InteractionTable, checked: Checked, data: DataConfig) -> FeatureStore:
    return build_store(table, checked.molecules, data.max_residues, _cache(data))


def _cache(data: DataConfig) -> Path | None:
    return Path(data.cache_dir) if data.cache_dir else None


def _objects(texts: Iterable[str]) -> np.ndarray:
    texts = list(texts)
    out = np.empty(len(texts), object)
    out[:] = texts
    return out
