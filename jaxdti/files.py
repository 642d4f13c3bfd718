"""Writing files whole or not at all, and where the library keeps its own."""

import contextlib
import csv
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Writes a file whole or not at all: gives a temporary path beside ``path``, which replaces it in the end.

    When the block fails, ``path`` stays as it was and the temporary file is removed. A killed process leaves it behind;
    its name is hidden and ends in ``.tmp``, and is another one for every call, so that several writers do not meet.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table that appears whole or not at all; NaN is an empty cell."""
    plain = lambda value: "" if isinstance(value, float) and np.isnan(value) else value
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)


def save_arrays(path: Path, tree: Any, **more: Any) -> None:
    """Writes a pytree of arrays, and ``more`` by name; the file appears whole or not at all."""
    import jax  # here: reading tables needs no JAX, and loading it takes a second

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, temporary.open("wb") as file:  # NumPy would put .npz behind a name
        np.savez(file, **{_name(place): np.asarray(leaf) for place, leaf in leaves}, **more)


def load_arrays(path: Path, like: Any) -> Any:
    """What ``save_arrays`` wrote, as NumPy arrays in the structure of ``like``."""
    import jax

    with np.load(path) as stored:
        return jax.tree_util.tree_map_with_path(lambda place, leaf: stored[_name(place)], like)


def _name(place: Any) -> str:
    import jax

    return jax.tree_util.keystr(place, simple=True, separator="/")


def write_json(path: Path, content: object) -> None:
    """Writes JSON that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def user_cache_dir() -> Path:
    """``JAXDTI_CACHE``, or ``jaxdti`` in the user's cache directory."""
    chosen = os.environ.get("JAXDTI_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxdti"
