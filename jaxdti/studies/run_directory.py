"""The life of a run directory: it is created, its data are recorded, it runs, it is resumed on the same data.

A kind of run is a ``Study``; ``run_study`` and ``resume_study`` are the same for all of them.
"""

import os
import platform
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import optax
import pyarrow as pa

from jaxdti import __version__
from jaxdti.config import Config, load_config, save_config
from jaxdti.console import say
from jaxdti.data.pairs.load import data_record
from jaxdti.errors import DataError, Interrupted
from jaxdti.files import write_json
from jaxdti.training.signals import stop_signals

SOURCE_FOLDER = "source"  # folder of the network that a transferred run starts from
TABLE = "table.parquet"  # what was trained on, where it came from memory
SIZES_PROTOCOL = "sizes"  # in data.json of the transfer protocol by sizes, which is resumed by another command
# What a new run gets before its data.json.
_FILES_BEFORE_DATA = (SOURCE_FOLDER, TABLE, "config.yaml", "split.json", "rejected.csv", "left_out.csv")

Data = TypeVar("Data")
Result = TypeVar("Result")


class Study(ABC, Generic[Data, Result]):
    """A kind of run. ``run_study`` calls the methods in their order here; ``resume_study`` leaves out ``begin``."""

    noun = "run"  # for messages

    @abstractmethod
    def load(self, config: Config) -> Data:
        """Reads and checks the data; prints and writes nothing."""

    def begin(self, config: Config, folder: Path) -> None:
        """Writes into an empty directory what resuming needs beside the data."""
        save_config(config, folder / "config.yaml")

    def record(self, config: Config, data: Data, folder: Path) -> None:
        """Writes what takes part. data.json comes last, and says that the rest is there."""
        (sha256,) = self.sha256(data)
        write_json(folder / "data.json", {"sha256": sha256})

    @abstractmethod
    def sha256(self, data: Data) -> list[str]:
        """Of the data, or of each of several."""

    def recorded_sha256(self, folder: Path) -> list[str] | None:
        """Of the data that the run began with; None where it was killed before it recorded them."""
        path = folder / "data.json"
        return [data_record(path)["sha256"]] if path.is_file() else None

    @abstractmethod
    def lines(self, data: Data) -> Sequence[str]:
        """What is said of the data."""

    @abstractmethod
    def run(self, config: Config, data: Data, folder: Path) -> Result:
        """Trains, evaluates and writes all else. What is finished in ``folder`` is not done again."""


def run_study(study: Study[Data, Result], config: Config, output: Path, *, overwrite: bool | None = False) -> Result:
    """Runs a study in a new directory.

    Args:
      overwrite: whether a run that stands there may be deleted; None for a study that never overwrites.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      Interrupted: a signal arrived; ``resume_study`` goes on.
    """
    check_directory(output, overwrite)
    data = study.load(config)  # before anything is deleted or created: the data may be unfit
    begin_study(study, config, data, output)
    return continue_study(study, config, data, output)


def resume_study(study: Study[Data, Result], config: Config, run: Path) -> Result:
    """Goes on with a run that was interrupted, where its data are still the same.

    One that was killed before it recorded its data begins with those that its configuration names now.

    Args:
      config: what ``run`` began with, see ``resumable_config``.

    Raises:
      DataError: the data are unfit, or no longer those that the run began with.
      Interrupted: as ``run_study``.
    """
    data = study.load(config)
    if study.recorded_sha256(run) is None:
        study.record(config, data, run)
    for before, now in zip(study.recorded_sha256(run) or [], study.sha256(data), strict=True):
        if before != now:
            raise DataError(f"{run}: the data changed since the {study.noun} began (sha256 {before}, now {now})")
    return continue_study(study, config, data, run)


def begin_study(study: Study[Data, Any], config: Config, data: Data, folder: Path) -> None:
    """Creates the directory of a run, with all that resuming needs."""
    with new_directory(folder):
        study.begin(config, folder)
        study.record(config, data, folder)


def continue_study(study: Study[Data, Result], config: Config, data: Data, folder: Path) -> Result:
    """Everything after the data: says what they are, writes environment.json, and runs."""
    for line in study.lines(data):
        say(line)
    write_json(folder / "environment.json", describe_environment())
    return study.run(config, data, folder)


class StopCheck:
    """To be called between two pieces of work: raises Interrupted once a signal has arrived."""

    def __init__(self, received: list[int]):
        self.received = received  # SIGTERM or SIGINT, as they arrive

    def __call__(self, *_: Any) -> None:
        if self.received:
            raise Interrupted(self.received[0])


@contextmanager
def interruptible() -> Iterator[StopCheck]:
    """Signals do not end the process here, but are noted for the check."""
    with stop_signals() as received:
        yield StopCheck(received)


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
        raise not_resumable(run, "run", "config.yaml and data.json")
    if begun and data_record(run / "data.json").get("protocol") == SIZES_PROTOCOL:
        raise DataError(f"{run}: a transfer protocol; continue with `jaxdti transfer --protocol sizes --resume {run}`")
    return load_config(run / "config.yaml")


def not_resumable(run: Path, noun: str, files: str) -> DataError:
    """The error that ``run`` is not the directory of such a run."""
    return DataError(f"{run}: not a {noun} that can be resumed; expected a directory with {files}")


def _is_hardly_begun(run: Path) -> bool:
    """Whether nothing is there but what precedes data.json: an imported run or a replica never gets one."""
    return all(path.name in _FILES_BEFORE_DATA or path.suffix == ".tmp" for path in run.iterdir())


def is_free(output: Path) -> bool:
    """Whether nothing stands there yet but, at most, an empty directory.

    Raises:
      DataError: there can be no directory of that name.
    """
    try:
        return not output.exists() or (output.is_dir() and not any(output.iterdir()))
    except OSError as error:  # a name too long, a folder that may not be read
        raise DataError(f"{output}: cannot be the run directory ({error.strerror or error})") from error


def check_directory(output: Path, overwrite: bool | None) -> None:
    """Raises DataError unless ``output`` is free, or a run that is to be overwritten; None: no run ever is."""
    if is_free(output):
        return
    if not overwrite:
        choices = f"--resume {output}" if overwrite is None else f"--overwrite, or --resume {output}"
        raise DataError(f"{output}: already exists; give another --output, or {choices}")
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
