"""The directory of a run: whether it is free, its creation, and what resuming needs."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pyarrow as pa

from jaxdti import __version__
from jaxdti.config import Config, load_config
from jaxdti.data.pairs.load import data_record
from jaxdti.errors import DataError

SOURCE = "source"  # folder of the network that a transferred run starts from
TABLE = "table.parquet"  # what was trained on, where it came from memory


SIZES_PROTOCOL = "sizes"  # in data.json of the transfer protocol by sizes, which is resumed by another command


_BEFORE_DATA = (SOURCE, TABLE, "config.yaml", "split.json", "rejected.csv")  # what a new run gets before its data.json


def recorded(config: Config, output: Path, table: pa.Table | None) -> Config:
    """The configuration with the place in ``output`` where a table from memory, if there is one, will be kept."""
    return config if table is None else replace(config, data=replace(config.data, table=str(output / TABLE)))


def resumable_config(run: Path) -> Config:
    """The configuration that a run began with; its data.json is missing where it was killed before it wrote that.

    Raises:
      DataError: not the directory of a run that can be resumed, or one of the transfer protocol by sizes.
    """
    begun = (run / "data.json").is_file()
    if not (run / "config.yaml").is_file() or not (begun or _is_hardly_begun(run)):
        raise DataError(f"{run}: not a run that can be resumed; expected a directory with config.yaml and data.json")
    if begun and data_record(run / "data.json").get("protocol") == SIZES_PROTOCOL:
        raise DataError(f"{run}: a transfer protocol; continue with `jaxdti transfer --protocol sizes --resume {run}`")
    return load_config(run / "config.yaml")


def _is_hardly_begun(run: Path) -> bool:
    """Whether nothing is there but what precedes data.json: an imported run or a replica never gets one."""
    return all(path.name in _BEFORE_DATA or path.suffix == ".tmp" for path in run.iterdir())


def check_unchanged(run: Path, now: str, record: Callable[[], None]) -> None:
    """Raises DataError unless ``now`` is the SHA-256 of the data that the run began with.

    A run that was killed before it recorded them gets its data.json from ``record``.
    """
    if not (run / "data.json").is_file():
        record()
    begun = data_record(run / "data.json")["sha256"]
    if begun != now:
        raise DataError(f"{run}: the data changed since the run began (sha256 {begun}, now {now})")


def is_free(output: Path) -> bool:
    """Whether nothing stands there yet but, at most, an empty directory.

    Raises:
      DataError: there can be no directory of that name.
    """
    try:
        return not output.exists() or (output.is_dir() and not any(output.iterdir()))
    except OSError as error:  # a name too long, a folder that may not be read
        raise DataError(f"{output}: cannot be the run directory ({error.strerror or error})") from error


def check_directory(output: Path, overwrite: bool) -> None:
    """Raises DataError unless ``output`` is free, or a run that is to be overwritten."""
    if is_free(output):
        return
    if not overwrite:
        raise DataError(f"{output}: already exists; give another --output, or --overwrite, or --resume {output}")
    for signs in (("config.yaml",), ("data.json", "model.json")):  # many a project has a config.yaml
        if not any((output / name).is_file() for name in signs):
            missing = " or ".join(signs)
            raise DataError(f"{output}: is not a run directory (no {missing}); --overwrite would delete foreign files")


@contextmanager
def new_directory(output: Path) -> Iterator[None]:
    """An empty directory in place of what ``is_free`` or ``check_directory`` accepted, while it gets its first files.

    One that is there is emptied and stays: it may be a link, or a mounted volume. What an error or a signal leaves
    unfinished is removed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        _empty(output)
    except OSError as error:
        raise DataError(f"{output}: cannot create the run directory ({error.strerror or error})") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _empty(output)
            output.rmdir()
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def describe_environment() -> dict[str, Any]:
    """Versions, devices and numerics, as stored with every result."""
    import flax
    import rdkit

    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "jaxdti": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "rdkit": rdkit.__version__,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "matmul_precision": precision or "default",
    }
