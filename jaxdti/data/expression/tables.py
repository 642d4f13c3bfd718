"""Expression profiles of two domains: read, checked, matched gene by gene and put on one scale.

Source samples are cell lines, target samples patients. Nothing is dropped in silence: what does not take part is
given back as ``LeftOut``, with the reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxdti.data.tables import TableFile, Wanted, compute, find_column
from jaxdti.errors import DataError

SAMPLE_NAMES = (
    ("sample", "sampleid", "samplename"),
    ("cell", "cellline", "celllinename", "depmapid", "patient", "patientid", "barcode", "tissueid"),
)
_FEWEST_GENES = 2
_MOST_INCOMPLETE = 0.05  # share of samples with missing values that may be left out
_SHOWN = 5  # names in a line for the user; the rest is in the list


class LeftOut(NamedTuple):
    """Something of the input that takes no part."""

    what: str  # gene, source sample, target sample, source record, target record, drug
    name: str
    reason: str


@dataclass(frozen=True)
class ExpressionTable:
    """N samples and G genes, each named once."""

    samples: np.ndarray  # str objects [N]
    genes: np.ndarray  # str objects [G]
    values: np.ndarray  # float32 [N, G]; NaN where the cell is empty


class ExpressionFile:
    """An opened table of samples x genes: the names of its columns are known, values are read on request."""

    def __init__(self, path: Path, sample_column: str | None = None):
        """The column of sample names is ``sample_column`` if there is one, one with a usual name, or the first.

        Raises:
          DataError: not a table, several sample columns, or a gene symbol that two columns have.
        """
        self._file = TableFile(path)
        self.path = path
        wanted = Wanted("sample", "response.sample_column", sample_column, SAMPLE_NAMES, required=False)
        usual = named_or_usual(self._file.columns, wanted, path)
        self.unnamed = usual is None  # no column says that it holds sample names
        self.sample_column = usual or self._file.columns[0]
        self.columns: dict[str, str] = {}  # gene symbol -> column
        for name in self._file.columns:
            if name == self.sample_column:
                continue
            if (symbol := gene_symbol(name)) in self.columns:
                raise DataError(
                    f"{path}: the gene {symbol} has two columns, {self.columns[symbol]!r} and {name!r}; "
                    "average them, or remove one"
                )
            self.columns[symbol] = name

    def read(self, genes: Sequence[str]) -> ExpressionTable:
        """The values of these genes, in this order.

        Raises:
          DataError: a cell is neither a finite number (float32) nor empty, a sample occurs twice or has no name, or the
            first column, in the place of sample names, holds fractions.
        """
        table = self._file.read([self.sample_column, *(self.columns[gene] for gene in genes)])
        samples = text_column(table, self.sample_column)
        if self.unnamed and all(map(_is_fraction, samples)):
            raise DataError(
                f"{self.path}: no column of sample names: the first, {self.sample_column!r}, holds values such as "
                f"{samples[0]!r}; add one, or name it with response.sample_column"
            )
        names, counts = np.unique(samples.astype(str), return_counts=True)
        if counts.max() > 1 or "" in names:
            twice = "a sample without a name" if "" in names else f"the sample {str(names[counts.argmax()])!r} twice"
            raise DataError(f"{self.path}: {twice} in column {self.sample_column!r}; one row a sample is expected")
        values = np.empty((len(samples), len(genes)), np.float32)
        for i, gene in enumerate(genes):
            given = number_column(table, self.columns[gene], self.path, samples)
            with np.errstate(over="ignore"):
                values[:, i] = given
            if np.any(large := np.isinf(values[:, i])):
                raise DataError(
                    f"{self.path}: {self.columns[gene]} of {samples[large.argmax()]!r} is {given[large.argmax()]:g}; "
                    f"a number of at most {np.finfo(np.float32).max:.2g} is expected"
                )
        return ExpressionTable(samples, np.array(genes, dtype=object), values)

    def group(self, column: str) -> np.ndarray:
        """The texts of another column, str objects [N].

        Raises:
          DataError: no such column.
        """
        if column not in self._file.columns:
            raise DataError(f"{self.path}: no column {column!r} (response.group_column)")
        return text_column(self._file.read([column]), column)


def _is_fraction(text: str) -> bool:
    """A number that is not a whole one, as expression is and no identifier of a sample."""
    try:
        return "." in text and math.isfinite(float(text))
    except ValueError:
        return False


def named_or_usual(columns: Sequence[str], wanted: Wanted, path: Path) -> str | None:
    """``find_column``, but a table without the name that the user gave is searched for the usual ones.

    The tables of the two domains may name their samples, or drugs, differently; one option serves all of them.
    """
    return find_column(columns, wanted if wanted.name in columns else wanted._replace(name=None), path)


def gene_symbol(name: str) -> str:
    """The name by which genes are matched: without surrounding white space, in upper case."""
    return name.strip().upper()


def text_column(table: pa.Table, name: str) -> np.ndarray:
    """A column as stripped texts, str objects [N]; missing ones are empty."""
    values = table[name].to_pylist()
    return np.array(["" if value is None else str(value).strip() for value in values], dtype=object)


def number_column(table: pa.Table, name: str, path: Path, samples: np.ndarray) -> np.ndarray:
    """A column as float64 [N], NaN where the cell is empty or says nan, na or null.

    Raises:
      DataError: another text, or an infinite number; the sample is named.
    """
    column = table[name].combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = compute.utf8_trim_whitespace(column)
        empty = compute.is_in(compute.utf8_lower(column), value_set=pa.array(["", "nan", "na", "null"]))
        column = compute.if_else(empty, pa.scalar(None, column.type), column)
    try:
        values = compute.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        row = next((i for i, value in enumerate(column.to_pylist()) if not _is_number(value)), 0)
        value = column[row].as_py()
        raise DataError(f"{path}: {name} of {samples[row]!r} is {value!r}; a number is expected") from error
    if np.any(infinite := np.isinf(values)):
        raise DataError(f"{path}: {name} of {samples[infinite.argmax()]!r} is infinite; a number is expected")
    return values


def _is_number(value: object) -> bool:
    try:
        float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return value is None
    return True


def shared_genes(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[LeftOut], list[str]]:
    """Gene symbols that both tables have, in the order of the source; what is missing where; lines for the user.

    Raises:
      DataError: fewer than two.
    """
    in_source, in_target = set(source), set(target)
    genes = [gene for gene in source if gene in in_target]
    only_source = [gene for gene in source if gene not in in_target]
    only_target = [gene for gene in target if gene not in in_source]
    if len(genes) < _FEWEST_GENES:
        raise DataError(
            f"source and target expression share {len(genes)} gene symbols of {len(source)} and {len(target)} columns "
            f"(such as {', '.join(map(repr, source[:3]))} and {', '.join(map(repr, target[:3]))}); "
            "both must be samples x genes, with the same kind of symbols"
        )
    left_out = [LeftOut("gene", gene, "not in the target expression") for gene in only_source]
    left_out += [LeftOut("gene", gene, "not in the source expression") for gene in only_target]
    lines = [f"{len(genes)} genes in both domains"]
    for only, where in ((only_source, "source"), (only_target, "target")):
        if only:
            lines.append(f"  {len(only)} columns only in the {where}: {some_of(only)}")
    return genes, left_out, lines


def drop_incomplete(table: ExpressionTable, domain: str) -> tuple[ExpressionTable, list[LeftOut]]:
    """Without the samples that lack a value.

    Raises:
      DataError: those are more than 5 % of the samples; the gene that most of them lack is named.
    """
    missing = np.isnan(table.values)
    bad = missing.any(1)
    if bad.mean() > _MOST_INCOMPLETE:
        worst = missing.sum(0).argmax()
        raise DataError(
            f"{domain} expression: {bad.sum()} of {len(table.samples)} samples lack a value, most often of "
            f"{table.genes[worst]} ({missing[:, worst].sum()} samples); at most {_MOST_INCOMPLETE:.0%} are left out: "
            "remove such genes, or fill in their values"
        )
    left_out = []
    for i in np.flatnonzero(bad):
        gene = table.genes[missing[i].argmax()]
        left_out.append(LeftOut(f"{domain} sample", table.samples[i], f"lacks {missing[i].sum()} values, as of {gene}"))
    return ExpressionTable(table.samples[~bad], table.genes, table.values[~bad]), left_out


def drop_constant(
    source: ExpressionTable, target: ExpressionTable, rows: np.ndarray
) -> tuple[ExpressionTable, ExpressionTable, list[LeftOut]]:
    """Without the genes that have a single value in one of the domains: they tell nothing that carries over.

    Of the target, ``rows`` (bool [M]) decide.
    """
    flat = {"source": np.ptp(source.values, axis=0) == 0, "target": np.ptp(target.values[rows], axis=0) == 0}
    kept = ~(flat["source"] | flat["target"])
    left_out = [
        LeftOut("gene", gene, f"constant in the {' and the '.join(d for d in flat if flat[d][i])}")
        for i, gene in enumerate(source.genes)
        if not kept[i]
    ]
    if kept.sum() < _FEWEST_GENES:
        raise DataError(
            f"expression: {kept.sum()} of {len(source.genes)} shared genes vary in both domains; at least 2 have to"
        )
    cut = lambda table: ExpressionTable(table.samples, table.genes[kept], np.ascontiguousarray(table.values[:, kept]))
    return cut(source), cut(target), left_out


def standardise(
    source: np.ndarray, target: np.ndarray, *, log: bool, scale: str, clip: float | None, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Both matrices, float32 [N, G] and [M, G], on the scale that networks take; lines for the user.

    Args:
      log: ``log(1 + x)`` first.
      scale: "domain": each gene gets mean 0 and standard deviation 1 in each domain; "source": likewise with the mean
        and deviation of the source in both; "none": as they are.
      clip: last, values beyond -clip and clip are set to these; None for all as they are.
      rows: bool [M], the target samples that give its mean and deviation.

    Raises:
      DataError: log of a value below 0.
    """
    lines = []
    domains = [source.astype(np.float64), target.astype(np.float64)]
    if log:
        lowest = min(x.min() for x in domains)
        if lowest < 0:
            raise DataError(
                f"response.log: the lowest expression is {lowest:g}; counts or TPM, 0 or more, are expected"
            )
        domains = [np.log1p(x) for x in domains]
    if scale != "none":
        of = [domains[0], domains[0] if scale == "source" else domains[1][rows]]
        domains = [(x - y.mean(0)) / y.std(0) for x, y in zip(domains, of, strict=True)]
    if clip is not None:
        beyond = [float(np.mean(np.abs(x) > clip)) for x in domains]
        lines.append(f"clipped at {clip:g}: {beyond[0]:.2%} of the source and {beyond[1]:.2%} of the target values")
        domains = [np.clip(x, -clip, clip) for x in domains]
    source, target = (x.astype(np.float32) for x in domains)
    return source, target, lines


def some_of(names: Sequence[str]) -> str:
    """The first of many names, for a line to the user."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
