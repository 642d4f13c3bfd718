"""The flat and the relational layout, read into the same thing: two columns of distinct texts and one of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa

from jaxdti.config import DataConfig
from jaxdti.data.tables import (
    DRUG_KEY_NAMES,
    DRUG_NAMES,
    LABEL_NAMES,
    PROTEIN_KEY_NAMES,
    PROTEIN_NAMES,
    TableFile,
    Wanted,
    find_column,
    open_table,
    text_cells,
)
from jaxdti.errors import DataError

_DRUG_KEY = Wanted("drug key", None, None, DRUG_KEY_NAMES)
_PROTEIN_KEY = Wanted("protein key", None, None, PROTEIN_KEY_NAMES)


class Columns(TypedDict, total=False):
    """How to read a table of pairs without labels: fields of ``DataConfig``, all of which may be left out."""

    drug_column: str | None
    protein_column: str | None
    drugs: str | None
    proteins: str | None


class Reading(Columns, total=False):
    """How to read one with labels."""

    label_column: str | None


class Column(NamedTuple):
    """Drugs or proteins of N rows; in the relational layout looked up by key."""

    index: np.ndarray  # int64 [N], index into cells and texts
    cells: list[str]  # distinct cells of the table of pairs, stripped: the texts themselves or keys
    texts: list[str | None]  # SMILES or sequences, stripped; None where the key is unknown
    cell_field: str  # name of the column of the cells
    text_field: str  # name of the column of the texts, in the side table if there is one
    text_file: str


class Piece(NamedTuple):
    """One part as read."""

    name: str
    path: str
    drug: Column
    protein: Column
    label: pa.ChunkedArray | None
    label_field: str

    def __len__(self) -> int:
        return len(self.drug.index)


class Side(NamedTuple):
    """A table of drugs or proteins by key."""

    path: Path
    field: str
    texts: dict[str, str]


class Layout(NamedTuple):
    """How to find the pairs: the columns of the texts, and the side tables of a relational dataset."""

    drug: Wanted
    protein: Wanted
    drugs: Side | None
    proteins: Side | None


def read_layout(data: DataConfig) -> Layout:
    """Reads the side tables that ``data`` names.

    Raises:
      DataError: unreadable side table, missing column, or a key that stands there twice.
    """
    drug = Wanted("drug (SMILES)", "data.drug_column", data.drug_column, DRUG_NAMES)
    protein = Wanted("protein (sequence)", "data.protein_column", data.protein_column, PROTEIN_NAMES)
    drugs = _read_side(Path(data.drugs), _DRUG_KEY, drug) if data.drugs else None
    proteins = _read_side(Path(data.proteins), _PROTEIN_KEY, protein) if data.proteins else None
    return Layout(drug, protein, drugs, proteins)


def _read_side(path: Path, key_wanted: Wanted, text_wanted: Wanted) -> Side:
    file = TableFile(path)
    key = _key_column(file.columns, key_wanted, path)
    field = _need([column for column in file.columns if column != key], text_wanted, path)
    table = file.read([key, field])
    first: dict[str, int] = {}
    keys, texts = (text_cells(table[name], name, path).to_pylist() for name in (key, field))
    keys = [value.strip() for value in keys]
    for row, value in enumerate(keys):
        if first.setdefault(value, row) != row:
            raise DataError(
                f"{path}: data row {row + 1}: the key {key}={value!r} is that of row {first[value] + 1} too"
            )
    return Side(path, field, {value: text.strip() for value, text in zip(keys, texts, strict=True)})


def read_pairs(name: str, source: Path | pa.Table, layout: Layout, label: Wanted | None) -> Piece:
    """Reads a part, of its columns only those that are needed; without ``label`` it is unlabelled.

    Raises:
      DataError: the file is not a table, or a column is missing.
    """
    file = open_table(source)
    path = file.path
    drug, protein = _pair_columns(path, file.columns, layout)
    label_field = find_column(file.columns, label, path) if label else None
    table = file.read([drug, protein, *([label_field] if label_field else [])], encode=[drug, protein])
    return Piece(
        name=name,
        path=str(path),
        drug=_column(table[drug], drug, layout.drugs, path),
        protein=_column(table[protein], protein, layout.proteins, path),
        label=table[label_field] if label_field else None,
        label_field=label_field or "",
    )


def read_unlabelled(source: Path | pa.Table, layout: Layout) -> tuple[Piece, pa.Table]:
    """The pairs of a file or of a table in memory, and all its columns."""
    file = open_table(source)
    path = file.path
    drug, protein = _pair_columns(path, file.columns, layout)
    table = file.read(encode=[drug, protein])
    return Piece(
        name="table",
        path=str(path),
        drug=_column(table[drug], drug, layout.drugs, path),
        protein=_column(table[protein], protein, layout.proteins, path),
        label=None,
        label_field="",
    ), table


def label_column(data: DataConfig, required: bool) -> Wanted:
    """What to look for as the label."""
    return Wanted("label", "data.label_column", data.label_column, LABEL_NAMES, required)


def _pair_columns(path: Path, columns: Sequence[str], layout: Layout) -> tuple[str, str]:
    drug = _key_column(columns, _DRUG_KEY, path) if layout.drugs else _need(columns, layout.drug, path)
    protein = _key_column(columns, _PROTEIN_KEY, path) if layout.proteins else _need(columns, layout.protein, path)
    if drug == protein:
        raise DataError(f"{path}: the column {drug!r} cannot be both drug and protein")
    return drug, protein


def _key_column(columns: Sequence[str], wanted: Wanted, path: Path) -> str:
    """The key column; an exact spelling wins, as `protein` may stand beside `Protein`, the sequence."""
    exact = [name for tier in wanted.usual for name in tier if name in columns]
    return exact[0] if exact else _need(columns, wanted, path)


def _need(columns: Sequence[str], wanted: Wanted, path: Path) -> str:
    name = find_column(columns, wanted, path)
    assert name is not None  # find_column raises where a required column is missing
    return name


def _column(values: pa.ChunkedArray, field: str, side: Side | None, path: Path) -> Column:
    kind = values.type
    if not (pa.types.is_dictionary(kind) and kind.value_type in (pa.string(), pa.large_string())):
        values = text_cells(values, field, path).dictionary_encode()
    values = values.unify_dictionaries()
    cells = [(value or "").strip() for value in values.chunk(0).dictionary.to_pylist()] if len(values) else []
    indices = [chunk.indices.fill_null(len(cells)).to_numpy(zero_copy_only=False) for chunk in values.chunks]
    index = np.concatenate([np.zeros(0, np.int64), *indices]).astype(np.int64)
    cells.append("")
    if side is None:
        return Column(index, cells, list(cells), field, field, str(path))
    texts = [side.texts.get(cell) if cell else "" for cell in cells]
    return Column(index, cells, texts, field, side.field, str(side.path))
