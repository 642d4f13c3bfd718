"""What the commands print and write beside their results."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdti.errors import DataError

UNCALIBRATED = "imported weights: probabilities are the plain sigmoid, the threshold is 0.5; nothing was fitted to data"


def metric_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a table of metrics, each with its interval where there is one."""
    rows = [("metric", "value", "95 % interval")]
    for name, value in metrics.items():
        if name.endswith("_ci") or isinstance(value, bool | str):
            continue
        shown = "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        low, high = metrics.get(f"{name}_ci") or (None, None)
        between = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        rows.append((name.replace("_", " "), shown, between))
    return rows


def write_scores(scores: Any, path: Path) -> None:
    """Writes the table of scores, and prints how many rows have none."""
    from jaxdti.data.tables import write_table

    write_table(scores, path)
    invalid = sum(map(bool, scores["error"].to_pylist()))
    unscored = f", {invalid:,} without a score (see the column error)" if invalid else ""
    print(f"{scores.num_rows:,} rows{unscored}; written to {path}")


def is_table(source: str) -> bool:
    """A file, or what looks like the name of one; anything else is the name of a dataset."""
    return Path(source).is_file() or bool(Path(source).suffix)


@contextlib.contextmanager
def listing_rejected(path: Path) -> Iterator[None]:
    """Writes the rejected rows to ``path`` when there are too many of them, and names it in the error."""
    from jaxdti.data.pairs.validation import TooManyRejected

    try:
        yield
    except TooManyRejected as error:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            error.report.write_rejected(path)
        except OSError as failure:
            raise DataError(f"{error}; the list {path} cannot be written ({failure.strerror or failure})") from error
        raise DataError(f"{error}; all of them are listed in {path}") from error


def print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows of text, the header first: a drawn table on a terminal, aligned columns elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*rows[0], title=title)
        for row in rows[1:]:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(title)
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def check_place(path: Path) -> None:
    """Before the long work: the folder of an output file must be there, and the file no folder."""
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; the name of a file is expected")
