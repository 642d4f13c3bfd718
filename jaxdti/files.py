"""Writing files whole or not at all, and where the library keeps its own."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table that appears whole or not at all; NaN is an empty cell."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = lambda value: "" if isinstance(value, float) and np.isnan(value) else value
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, tree: Any, **more: Any) -> None:
    """Writes a pytree of arrays, and ``more`` by name; the file appears whole or not at all."""
    import jax  # here: reading tables needs no JAX, and loading it takes a second

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    try:
        np.savez(temporary, **{_name(place): np.asarray(leaf) for place, leaf in leaves}, **more)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache_dir() -> Path:
    """``JAXDTI_CACHE``, or ``jaxdti`` in the user's cache directory."""
    chosen = os.environ.get("JAXDTI_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxdti"
