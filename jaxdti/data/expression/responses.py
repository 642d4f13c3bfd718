"""Drug responses of samples: read, reduced to one record of each sample and drug, and turned into labels.

Label 1 always means: responds. In the source that is a low ln IC50 or AUC, in the target a recorded responder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdti.data.expression.tables import SAMPLE_NAMES, LeftOut, named_or_usual, number_column, some_of, text_column
from jaxdti.data.tables import TableFile, Wanted, find_column
from jaxdti.errors import DataError

DRUG_NAMES = (("drug",), ("drugname", "compound", "treatment"), ("drugid", "compoundid"))
VALUE_NAMES = {
    "continuous": (("lnic50", "logic50", "auc", "ic50"), ("response", "value", "y", "label")),
    "binary": (("responder", "response", "label", "y"), ("sensitive", "value")),
}
DATE_NAMES = (("daysstart", "date", "startdate", "start"),)
FEWEST_OF_A_CLASS = 20
SMALLEST_SHARE = 0.05


@dataclass(frozen=True)
class ResponseTable:
    """R records, one at most of a sample and a drug."""

    sample: np.ndarray  # str objects [R]
    drug: np.ndarray  # str objects [R]
    value: np.ndarray  # float64 [R], finite: ln IC50 or AUC (low = sensitive), or 1 = responds and 0 = does not


def read_responses(
    path: Path,
    domain: str,
    kind: str,
    *,
    sample_column: str | None = None,
    drug_column: str | None = None,
    value_column: str | None = None,
    date_column: str | None = None,
) -> tuple[ResponseTable, list[LeftOut], list[str]]:
    """The records of a table, what was left out, and lines for the user.

    Records without a sample, a drug or a value are left out. Of several records of one sample and drug, continuous ones
    are averaged; of binary ones the first by date counts (the first row where there is no date), and those that
    contradict it are listed.

    Args:
      domain: "source" or "target", for messages.
      kind: "continuous" or "binary".
      sample_column, drug_column: names; the usual ones where not given, or where the table does not have them.
      value_column, date_column: likewise, but the table must have them. Dates are numbers, such as days since the
        diagnosis.

    Raises:
      DataError: no such column, no record left, a binary value other than 0 and 1, or continuous values that are all
        0 or 1: labels, whose sign is the other one.
    """
    file = TableFile(path)
    option = f"response.{domain}_value_column"
    sample = named_or_usual(file.columns, Wanted("sample", "response.sample_column", sample_column, SAMPLE_NAMES), path)
    drug = named_or_usual(file.columns, Wanted("drug", "response.drug_column", drug_column, DRUG_NAMES), path)
    value = find_column(file.columns, Wanted("response", option, value_column, VALUE_NAMES[kind]), path)
    wanted = Wanted("date", "response.date_column", date_column, DATE_NAMES, required=False)
    date = find_column(file.columns, wanted, path) if kind == "binary" or date_column else None
    assert sample and drug and value
    table = file.read(list(dict.fromkeys(name for name in (sample, drug, value, date) if name)))
    samples, drugs = text_column(table, sample), text_column(table, drug)
    values = number_column(table, value, path, samples)
    dates = number_column(table, date, path, samples) if date else np.zeros(len(samples))
    complete = np.isfinite(values) & (samples != "") & (drugs != "")
    left_out = [
        LeftOut(f"{domain} record", f"row {i + 1}", _lacking(samples[i], drugs[i], values[i]))
        for i in np.flatnonzero(~complete)
    ]
    lines = [f"{domain} responses: {complete.sum():,} records of {len(samples):,}"]
    if left_out:
        lines[0] += f"; {len(left_out):,} lack a sample, a drug or a value"
    if not complete.any():
        raise DataError(f"{path}: none of {len(samples)} records has a sample, a drug and a value")
    samples, drugs, values, dates = (x[complete] for x in (samples, drugs, values, dates))
    other = ~np.isin(values, (0.0, 1.0))
    if kind == "continuous" and not other.any():
        raise DataError(
            f"{path}: each of {len(values)} values of {value} is 0 or 1, as labels are; with "
            f"response.{domain}_kind=continuous a low value means responds: set response.{domain}_kind=binary for "
            "labels (1 = responds)"
        )
    if kind == "binary" and other.any():
        raise DataError(
            f"{path}: {value} of {samples[other.argmax()]!r} is {values[other.argmax()]:g}; 1 (responds) or 0 is "
            f"expected; for ln IC50 or AUC set response.{domain}_kind=continuous"
        )
    table, more, counted = _one_record_each(samples, drugs, values, dates, domain, kind)
    return table, left_out + more, lines + counted


def _lacking(sample: str, drug: str, value: float) -> str:
    lacks = [word for word, gone in (("sample", not sample), ("drug", not drug), ("value", np.isnan(value))) if gone]
    return f"no {' and no '.join(lacks)}"


def _one_record_each(
    samples: np.ndarray, drugs: np.ndarray, values: np.ndarray, dates: np.ndarray, domain: str, kind: str
) -> tuple[ResponseTable, list[LeftOut], list[str]]:
    # Names of drugs are compared without case; the first spelling stays.
    keys = np.array([f"{sample}\0{drug.casefold()}" for sample, drug in zip(samples, drugs, strict=True)], dtype=object)
    order = np.lexsort((np.arange(len(keys)), np.where(np.isnan(dates), np.inf, dates), keys.astype(str)))
    _, starts, counts = np.unique(keys[order].astype(str), return_index=True, return_counts=True)
    first = order[starts]
    left_out, lines = [], []
    if repeated := int(np.sum(counts > 1)):
        if kind == "continuous":
            values = values.copy()
            values[first] = np.add.reduceat(values[order], starts) / counts
            lines.append(f"  {repeated:,} pairs of sample and drug were measured several times: averaged")
        else:
            owner = np.repeat(first, counts)
            conflict = values[order] != values[owner]
            left_out = [
                LeftOut(f"{domain} record", f"{samples[i]}, {drugs[i]}", f"says {values[i]:g}, the first {values[j]:g}")
                for i, j in zip(order[conflict], owner[conflict], strict=True)
            ]
            lines.append(
                f"  {repeated:,} pairs of sample and drug have several records: the first by date counts; "
                f"{len(np.unique(owner[conflict])):,} are contradicted by a later one"
            )
    kept = np.sort(first)
    return ResponseTable(samples[kept], drugs[kept], values[kept]), left_out, lines


def response_matrix(
    table: ResponseTable, samples: np.ndarray, drugs: Sequence[str], domain: str
) -> tuple[np.ndarray, list[LeftOut], list[str]]:
    """float64 [N, D] of these samples and drugs, NaN where there is no record.

    Records of other samples are left out; records of other drugs are ignored.

    Raises:
      DataError: no record is of one of the samples.
    """
    row_of = {name: i for i, name in enumerate(samples)}
    column_of = {name.casefold(): i for i, name in enumerate(drugs)}
    rows = np.array([row_of.get(name, -1) for name in table.sample])
    columns = np.array([column_of.get(name.casefold(), -1) for name in table.drug])
    if not np.any(rows >= 0):
        raise DataError(
            f"{domain} responses: no sample has expression; responses name {table.sample[0]!r}, ..., "
            f"the expression table {samples[0]!r}, ..."
        )
    matrix = np.full((len(samples), len(drugs)), np.nan)
    known = (rows >= 0) & (columns >= 0)
    matrix[rows[known], columns[known]] = table.value[known]
    strangers = list(dict.fromkeys(table.sample[rows < 0]))
    lines = [f"  {len(strangers):,} samples with responses have no {domain} expression"] if strangers else []
    return matrix, [LeftOut(f"{domain} sample", name, "responses, but no expression") for name in strangers], lines


def label_of(values: np.ndarray, kind: str, threshold: np.ndarray | float | None) -> np.ndarray:
    """1 = responds: continuous values (ln IC50, AUC) below the threshold; binary ones as they are. NaN stays."""
    if kind == "binary":
        return values
    assert threshold is not None
    return np.where(np.isnan(values), np.nan, (values < threshold).astype(np.float64))


def class_problem(label: np.ndarray) -> str | None:
    """Why labels (NaN = none) do not make a classifier: fewer than 20, or than 5 %, of a class. None if they do."""
    known = label[np.isfinite(label)]
    sensitive, resistant = int(np.sum(known == 1)), int(np.sum(known == 0))
    counts = f"{sensitive} sensitive and {resistant} resistant source samples"
    fewest = min(sensitive, resistant)
    if fewest < FEWEST_OF_A_CLASS:
        return f"{counts}; at least {FEWEST_OF_A_CLASS} of each are needed"
    if fewest < SMALLEST_SHARE * len(known):
        return f"{counts}; at least {SMALLEST_SHARE:.0%} of each are needed"
    return None


def read_thresholds(path: Path, drug_column: str | None = None) -> dict[str, float]:
    """Threshold of each drug (lower-case name) from a table with a drug column and one that begins with "threshold".

    Raises:
      DataError: no such columns, or two thresholds of one drug.
    """
    file = TableFile(path)
    drug = named_or_usual(file.columns, Wanted("drug", "response.drug_column", drug_column, DRUG_NAMES), path)
    named = [name for name in file.columns if name.casefold().startswith("threshold")]
    if len(named) != 1:
        found = ", ".join(map(repr, file.columns))
        raise DataError(f"{path}: one column whose name begins with 'threshold' is expected; columns found: {found}")
    assert drug
    table = file.read([drug, named[0]])
    drugs = text_column(table, drug)
    values = number_column(table, named[0], path, drugs)
    return one_value_each([name.casefold() for name in drugs], values.tolist(), np.isfinite(values), named[0], path)


def one_value_each(
    names: Sequence[str], values: Sequence[Any], known: np.ndarray, column: str, path: Path
) -> dict[str, Any]:
    """Name -> value, of the rows where ``known`` (bool [N]).

    Raises:
      DataError: two rows of a name contradict each other.
    """
    first: dict[str, int] = {}
    for i in np.flatnonzero(known).tolist():
        if values[j := first.setdefault(names[i], i)] != values[i]:
            raise DataError(
                f"{path}: data rows {j + 1} and {i + 1}: {column} of {names[i]!r} is {values[j]!r} and {values[i]!r}; "
                "one value is expected"
            )
    return {name: values[i] for name, i in first.items()}


def fold_of_samples(values: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int [N], the fold of each sample that has a value, -1 of the others; values are spread evenly over the folds."""
    known = np.flatnonzero(np.isfinite(values))
    rng = np.random.default_rng(seed)
    order = known[np.lexsort((rng.random(len(known)), values[known]))]
    blocks = [rng.permutation(folds)[: len(order) - start] for start in range(0, len(order), folds)]
    fold = np.full(len(values), -1)
    fold[order] = np.concatenate(blocks) if blocks else []
    return fold


def fold_labels(values: np.ndarray, kind: str, fold: np.ndarray, held_out: int, threshold: float | None) -> np.ndarray:
    """Labels [N] under the given threshold, or the median of the samples that are not held out; NaN without a value."""
    if kind == "continuous" and threshold is None:
        threshold = float(np.median(values[(fold >= 0) & (fold != held_out)]))
    return label_of(values, kind, threshold)


def matching_drugs(
    wanted: Sequence[str], source: ResponseTable, target: ResponseTable | None
) -> tuple[list[str], list[LeftOut], list[str]]:
    """The drugs to model, as the source spells them: ``wanted``, or all that both domains have records of.

    Names are compared without case. Drugs of one domain only are left out, and counted in the lines for the user.

    Raises:
      DataError: a wanted drug has no source record, or the domains have no drug in common.
    """
    spelling = _spelling(source)
    if wanted:
        if unknown := [name for name in wanted if name.casefold() not in spelling]:
            some = ", ".join(sorted(spelling.values())[:10])
            raise DataError(f"response.drugs: {unknown[0]!r} has no source response; the source has {some}, ...")
        drugs = list(dict.fromkeys(spelling[name.casefold()] for name in wanted))
        repeated = len(wanted) - len(drugs)
        return drugs, [], [f"  response.drugs names {repeated} drugs again: modelled once"] if repeated else []
    if target is None:
        return list(spelling.values()), [], []
    there = _spelling(target)
    drugs = sorted(name for key, name in spelling.items() if key in there)
    if not drugs:
        raise DataError(
            f"source and target responses have no drug in common: {source.drug[0]!r}, ... and {target.drug[0]!r}, ..."
        )
    left_out, lines = [], []
    for domain, own, other, lacks in (
        ("source", spelling, there, "no target response"),
        ("target", there, spelling, "no source response"),
    ):
        if only := [name for key, name in own.items() if key not in other]:
            left_out += [LeftOut("drug", name, lacks) for name in only]
            lines.append(f"  {len(only)} drugs only in the {domain} responses, left out: {some_of(only)}")
    return drugs, left_out, lines


def _spelling(table: ResponseTable) -> dict[str, str]:
    """Case-folded name -> its first spelling, in the order of the table."""
    names: dict[str, str] = {}
    for name in table.drug:
        names.setdefault(name.casefold(), name)
    return names
