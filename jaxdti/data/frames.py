"""Tables in memory, of whatever library, as Arrow tables, and results back in the kind that was given.

pandas and polars are not needed: their data frames are recognised, and imported only by whoever passes one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdti.data.tables import show_columns
from jaxdti.errors import DataError

_KINDS = "a path, a pandas or polars DataFrame, an Arrow table or a dict of columns"
_ARROW = (pa.ArrowException, TypeError, ValueError, OverflowError)


def as_arrow(source: Any) -> pa.Table:
    """An Arrow table [N rows] of a table in memory; missing values, pandas' NaN among them, are null.

    Args:
      source: a pandas DataFrame (its index is left out), anything that offers ``__arrow_c_stream__`` (polars
        DataFrame, Arrow Table and RecordBatchReader), or a mapping of names to columns [N] (lists, NumPy arrays).

    Raises:
      DataError: something else, no rows, columns of different lengths, or a name that occurs twice.
    """
    if isinstance(source, Mapping):
        table = _from_columns(source.items())
    elif _is_frame(source, "pandas"):
        # Column by column: a frame may hold objects that Arrow does not know, such as RDKit's molecules.
        table = _from_columns((name, source.iloc[:, i]) for i, name in enumerate(source.columns))
    elif hasattr(source, "__arrow_c_stream__") or isinstance(source, pa.RecordBatch):
        try:
            table = pa.table(source)
        except _ARROW as error:
            raise DataError(f"table: {type(source).__name__} holds no columns; expected {_KINDS}") from error
    else:
        hint = "; call its collect() first" if type(source).__name__ == "LazyFrame" else ""
        raise DataError(f"table: {type(source).__name__} found; expected {_KINDS}{hint}")
    for name, count in Counter(table.column_names).items():
        if count > 1:
            raise DataError(f"table: the column name {name!r} occurs twice")
    if table.num_rows == 0:
        raise DataError(f"table: no data rows; columns found: {show_columns(table.column_names) or 'none'}")
    return pa.table({name: _plain(table[name]) for name in table.column_names})


def as_given(source: Any, result: pa.Table) -> Any:
    """``result`` in the kind of ``source``.

    The first columns of ``result`` are those of ``source``, in their order, perhaps under other names; they are taken
    from ``source``, with its index and dtypes, and what follows is added.
    """
    if isinstance(source, Mapping):
        names = result.column_names
        added = {name: result[name].to_numpy() for name in names[len(source) :]}
        return dict(zip(names, source.values(), strict=False)) | added
    if _is_frame(source, "pandas"):
        return _onto_pandas(source, result)
    if _is_frame(source, "polars"):
        import polars

        width = source.width
        renamed = dict(zip(source.columns, result.column_names, strict=False))
        added = polars.DataFrame(result.select(result.column_names[width:]))
        return source.rename(renamed).hstack(added)
    return result


def _onto_pandas(frame: Any, result: pa.Table) -> Any:
    out, width, names = frame.copy(), frame.shape[1], result.column_names
    if any(str(old) != new for old, new in zip(frame.columns, names, strict=False)):
        out.columns = names[:width]
    for name in names[width:]:
        out[name] = result[name].to_pandas().array  # without an index, which would be aligned
    return out


def _is_frame(source: Any, library: str) -> bool:
    """Whether it is a DataFrame of the library, or of a class derived from it."""
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.split(".")[0] == library for kind in type(source).__mro__
    )


def _from_columns(columns: Iterable[tuple[Any, Any]]) -> pa.Table:
    arrays, names = [], []
    for name, values in columns:
        arrays.append(_column(str(name), values))
        names.append(str(name))
        if len(arrays[-1]) != len(arrays[0]):
            raise DataError(
                f"table: column {names[-1]!r} has {len(arrays[-1])} values, column {names[0]!r} has {len(arrays[0])}"
            )
    return pa.table(arrays, names=names)


def _column(name: str, values: Any) -> pa.ChunkedArray:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
        raise DataError(f"table: column {name!r} is of type {type(values).__name__}; a list or an array is expected")
    if getattr(values, "ndim", 1) != 1:
        raise DataError(f"table: column {name!r} has the shape {tuple(values.shape)}; one dimension is expected")
    try:
        found = pa.array(values, from_pandas=True)
    except _ARROW:  # values of several types, or objects: as they print, so that a bad cell is reported as such
        missing = lambda value: value is None or (isinstance(value, float | np.floating) and np.isnan(value))
        found = pa.array([None if missing(value) else str(value) for value in values], pa.string())
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Views of strings, as polars has them, as strings: not all of Arrow's functions know them."""
    kind = column.type
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return column.cast(pa.dictionary(pa.int32(), pa.string()))
    return column
