"""Tables on disk: CSV, TSV and Parquet, plain or compressed, read into and written from Arrow tables.

What a file is follows from its first bytes, not from its name. Text cells are read as strings, so that nothing is
lost; columns named in ``encode`` come dictionary-encoded, one copy of each distinct string.
"""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from jaxdti.errors import DataError
from jaxdti.files import atomic

compute: Any = pyarrow.compute  # its functions are made at run time, where a type checker cannot see them

DELIMITERS = (",", "\t", ";")
HEADER_BYTES = 1 << 20  # the header line must end within this
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLOCK_BYTES = 4 << 20  # read at once; each block has its own dictionaries until they are unified
_EXTENSIONS = (".csv", ".tsv", ".parquet", ".gz", ".zst")
_SHOWN_COLUMNS = 40  # in a message

# Usual names, compared without case, white space, underscores, hyphens and dots. The first tier with a hit decides.
DRUG_NAMES = (
    ("smiles",),
    ("canonicalsmiles", "isosmiles", "isomericsmiles", "compoundisosmiles", "compoundsmiles", "ligandsmiles")
    + ("drugsmiles", "moleculesmiles", "smilesstring"),
    ("drug", "compound", "ligand", "molecule"),
)
PROTEIN_NAMES = (
    ("proteinsequence", "targetsequence", "sequence", "aminoacidsequence", "aasequence", "proteinseq", "targetseq")
    + ("bindingdbtargetchainsequence", "bindingdbtargetchainsequence1"),
    ("protein", "target", "fasta", "seq"),
)
LABEL_NAMES = (
    ("y", "label", "labels"),
    ("interaction", "interactions", "affinity", "bindingaffinity", "activity", "kibascore", "kiba")
    + ("pkd", "pki", "pic50", "pec50"),
)
DRUG_KEY_NAMES = (("drug",), ("drugid", "drugkey", "drugindex"), ("compound", "ligand"), ("compoundid", "ligandid"))
PROTEIN_KEY_NAMES = (("protein",), ("proteinid", "proteinkey", "proteinindex"), ("target",), ("targetid",))


class Wanted(NamedTuple):
    """A column to look for: what it holds, its name if the user gave one, and the usual names otherwise."""

    what: str  # for messages, such as "drug (SMILES)"
    option: str | None  # the option that can name it, such as data.drug_column
    name: str | None
    usual: tuple[tuple[str, ...], ...]
    required: bool = True


def find_column(columns: Sequence[str], wanted: Wanted, path: Path) -> str | None:
    """The column that holds what is wanted; None only where it is not required.

    Raises:
      DataError: there is none, or several match equally well.
    """
    found = show_columns(columns)
    if wanted.name is not None:
        if wanted.name in columns:
            return wanted.name
        raise DataError(f"{path}: no column {wanted.name!r} ({wanted.option}); columns found: {found}")
    for tier in wanted.usual:
        hits = [column for column in columns if _plain(column) in tier]
        if len(hits) == 1:
            return hits[0]
        if hits:
            several = " and ".join(map(repr, hits))
            remedy = f"name one with {wanted.option}" if wanted.option else "rename one"
            raise DataError(f"{path}: {several} could each be the {wanted.what} column; {remedy}")
    if not wanted.required:
        return None
    usual = ", ".join(name for tier in wanted.usual for name in tier)
    hint = "" if len(columns) > 1 else "; only one column: the delimiter must be a comma, a tab or a semicolon"
    remedy = f", or name it with {wanted.option}" if wanted.option else ""
    raise DataError(f"{path}: no {wanted.what} column; columns found: {found}; wanted: one of {usual}{remedy}{hint}")


def show_columns(columns: Sequence[str]) -> str:
    """The column names for a message, of many only the first."""
    shown = ", ".join(map(repr, columns[:_SHOWN_COLUMNS]))
    return shown if len(columns) <= _SHOWN_COLUMNS else f"{shown}, ... ({len(columns):,} columns)"


def text_cells(cells: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Cells of any type as strings; a missing one, which only Parquet knows, is an empty one.

    Raises:
      DataError: cells that are no single value, such as lists, or bytes that are not UTF-8.
    """
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    try:
        return cells.cast(pa.string()).fill_null("")
    except pa.ArrowNotImplementedError as error:
        raise DataError(f"{path}: column {name!r} holds values of type {cells.type}; text is expected") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name!r}: the text is not UTF-8") from error


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if not (letter.isspace() or letter in "_-."))


class TableFile:
    """An opened table: its column names are known, its rows are read on request."""

    def __init__(self, path: Path):
        """Raises DataError where the file is missing, empty or not a table."""
        self.path = path
        self._codec, head = _read_head(path)
        self._parquet = head.startswith(b"PAR1")
        if self._parquet:
            self.columns = self._parquet_schema().names
        else:
            self.delimiter, self.columns = _read_header(path, head)
        for name, count in Counter(self.columns).items():
            if count > 1:
                raise DataError(f"{path}: the column name {name!r} occurs twice")

    def read(self, columns: Sequence[str] | None = None, encode: Sequence[str] = ()) -> pa.Table:
        """The rows of some or all columns; text of CSV and TSV as strings, those of ``encode`` dictionary-encoded.

        Raises:
          DataError: no rows, ragged rows, not UTF-8, or damaged.
        """
        columns = list(self.columns if columns is None else columns)
        try:
            table = self._read_parquet(columns, encode) if self._parquet else self._read_text(columns, encode)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError) as error:
            raise DataError(f"{self.path}: {self._fault(error)}") from error
        if table.num_rows == 0:
            raise DataError(f"{self.path}: {self._no_rows()}")
        return table

    def _no_rows(self) -> str:
        return f"no data rows, only the header with columns {show_columns(self.columns)}"

    def _parquet_source(self) -> pa.NativeFile:
        if self._codec is None:
            return pa.memory_map(str(self.path))
        with pa.input_stream(str(self.path), compression=self._codec) as stream:
            return pa.BufferReader(stream.read())

    def _parquet_schema(self) -> pa.Schema:
        try:
            return arrow_parquet.read_schema(self._parquet_source())
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.path}: damaged Parquet file ({_one_line(error)})") from error

    def _read_parquet(self, columns: list[str], encode: Sequence[str]) -> pa.Table:
        return arrow_parquet.read_table(self._parquet_source(), columns=columns, read_dictionary=list(encode))

    def _read_text(self, columns: list[str], encode: Sequence[str], **parsing) -> pa.Table:
        encoded = pa.dictionary(pa.int32(), pa.string())
        types = {name: encoded if name in encode else pa.string() for name in self.columns}
        with pa.input_stream(str(self.path), compression=self._codec) as stream:
            return arrow_csv.read_csv(
                stream,
                read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=not parsing),
                parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, **parsing),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, include_columns=columns, strings_can_be_null=False
                ),
            )

    def _fault(self, error: Exception) -> str:
        text = _one_line(error)
        if self._parquet:
            return f"damaged Parquet file ({text})"
        if "UTF8" in text:
            return "the text is not UTF-8"
        if "Empty CSV file" in text:  # the header has no line end
            return self._no_rows()
        if "Expected" not in text:
            return f"cannot be read ({text})"
        ragged = []
        handler = lambda row: ragged.append(row) or "skip"
        try:
            self._read_text(list(self.columns), (), invalid_row_handler=handler)
        except pa.ArrowInvalid:  # another fault, in a row before or after the ragged one
            if not ragged:
                return "the text is not UTF-8"
        row = ragged[0]  # numbered from 1, the header being 1
        return f"data row {row.number - 1} has {row.actual_columns} columns; the header has {row.expected_columns}"


class TableInMemory:
    """An Arrow table behind the interface of ``TableFile``; in messages it is called "table"."""

    path = Path("table")

    def __init__(self, table: pa.Table):
        self._table, self.columns = table, table.column_names

    def read(self, columns: Sequence[str] | None = None, encode: Sequence[str] = ()) -> pa.Table:
        """The rows of some or all columns, as they are; ``encode`` says nothing here."""
        return self._table if columns is None else self._table.select(list(columns))


def open_table(source: str | Path | pa.Table) -> TableFile | TableInMemory:
    """A file, or a table in memory, whose columns can be looked at before any row is read."""
    return TableInMemory(source) if isinstance(source, pa.Table) else TableFile(Path(source))


def read_table(path: Path, columns: Sequence[str] | None = None, encode: Sequence[str] = ()) -> pa.Table:
    """Reads a CSV, TSV or Parquet file, plain or compressed with gzip or Zstandard (see ``TableFile.read``)."""
    return TableFile(path).read(columns, encode)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read_head(path: Path) -> tuple[str | None, bytes]:
    """The compression and the first decompressed bytes."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        codec = "gzip" if magic[:2] == b"\x1f\x8b" else "zstd" if magic == b"\x28\xb5\x2f\xfd" else None
        with pa.input_stream(str(path), compression=codec) as stream:
            head = stream.read(HEADER_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read ({_one_line(error)})") from error
    if not head.removeprefix(BYTE_ORDER_MARK).strip():
        raise DataError(f"{path}: the file is empty")
    return codec, head


def _read_header(path: Path, head: bytes) -> tuple[str, list[str]]:
    """The delimiter and the column names of a text table."""
    head = head.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n")
    if b"\0" in head or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: not a text table (UTF-8 CSV or TSV) and not Parquet")
    line = head.splitlines()[0]
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the text is not UTF-8") from error
    if len(line) == HEADER_BYTES or any(ord(letter) < 32 and letter != "\t" for letter in text):
        raise DataError(f"{path}: the first line is not a header of column names")
    rows = {delimiter: _split_header(text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda candidate: len(rows[candidate]))
    if rows[delimiter][-1].endswith("\n"):
        raise DataError(f"{path}: the header has a quote that does not end within the first line")
    return delimiter, rows[delimiter]


def _split_header(text: str, delimiter: str) -> list[str]:
    """The names in a header line; a quote that does not end leaves the last one with a line break."""
    try:
        return next(csv.reader([text + "\n"], delimiter=delimiter))
    except csv.Error:  # a field longer than the module takes: with this delimiter the line is one name
        return [text]


def table_name(path: Path) -> str:
    """The file's name without the extensions of tables and compressions; other dots belong to the name."""
    name = path
    while name.suffix.lower() in _EXTENSIONS:
        name = name.with_suffix("")
    return name.name


def check_output(path: Path) -> None:
    """Raises DataError unless ``write_table`` knows the file's extension."""
    _output_format(path)


def _output_format(path: Path) -> tuple[str, str | None]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = {".gz": "gzip", ".zst": "zstd"}.get(suffixes[-1]) if suffixes else None
    kind = suffixes[-2 if codec else -1] if len(suffixes) > (codec is not None) else ""
    if kind in (".csv", ".tsv") or (kind == ".parquet" and codec is None):
        return kind, codec
    raise DataError(f"{path}: unknown extension; .csv, .tsv (each also with .gz or .zst) or .parquet is expected")


def write_table(table: pa.Table, path: Path) -> None:
    """Writes CSV, TSV (plain, .gz, .zst) or Parquet by the extension; the file appears whole or not at all.

    Raises:
      DataError: another extension, or the place cannot be written.
    """
    kind, codec = _output_format(path)
    try:
        with atomic(path) as temporary:
            if kind == ".parquet":
                arrow_parquet.write_table(table, temporary)
            else:
                _write_text(table, temporary, "," if kind == ".csv" else "\t", codec)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else _one_line(error)
        raise DataError(f"{path}: cannot be written ({cause})") from error


def _write_text(table: pa.Table, path: Path, delimiter: str, codec: str | None) -> None:
    with pa.output_stream(str(path), compression=codec) as stream:
        # Arrow would quote every column name.
        header = [_quoted(name, delimiter) for name in table.column_names]
        stream.write((delimiter.join(header) + "\n").encode())
        for batch in table.to_batches(max_chunksize=1 << 16):  # dictionaries are decoded piece by piece
            columns = [_as_text(column) for column in batch.columns]
            stream.write(_rows_as_text(pa.table(columns, names=table.column_names), delimiter))


def _rows_as_text(table: pa.Table, delimiter: str) -> pa.Buffer:
    """The lines of a few rows; Arrow quotes either every text or none, and refuses none where one needs it."""
    try:
        return _formatted(table, delimiter, "none")
    except pa.ArrowInvalid:
        return _formatted(table, delimiter, "needed")


def _formatted(table: pa.Table, delimiter: str, quoting_style: str) -> pa.Buffer:
    lines = pa.BufferOutputStream()
    options = arrow_csv.WriteOptions(delimiter=delimiter, include_header=False, quoting_style=quoting_style)
    arrow_csv.write_csv(table, lines, options)
    return lines.getvalue()


def _quoted(name: str, delimiter: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"' if any(c in name for c in f'{delimiter}"\r\n') else name


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # An empty cell is written as nothing, where Arrow would write "" with its quotes.
        return compute.if_else(compute.equal(column, ""), pa.scalar(None, column.type), column)
    return column
