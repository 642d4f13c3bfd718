"""Checkpoints of a run: one atomic Orbax step holds the training state, the best weights and the position."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdti.data.interactions import DataError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file it touches


class Checkpoints:
    """Saves and restores under ``directory``; the last two steps are kept.

    A step is written under a temporary name and renamed, so that a kill leaves the earlier step intact.
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, best: Any, progress: dict[str, Any]) -> None:
        """Writes ``state`` and ``best`` (pytrees of arrays) and ``progress`` (JSON) as a step later than the last."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                best=ocp.args.StandardSave(best),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def latest(self) -> int | None:
        """The last complete step, None when there is none."""
        return self._manager.latest_step()

    def restore(self, state: Any, best: Any) -> tuple[Any, Any, dict[str, Any]]:
        """State, best weights and progress of the last step; the arguments give structure, shapes and dtypes."""
        restored = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
                best=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, best)),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["best"], restored["progress"]

    def close(self) -> None:
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(directory)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def save_weights(directory: Path, variables: Any) -> None:
    """Writes the weights of a finished or imported run, atomically, replacing earlier ones."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), variables, force=True)


def load_weights(directory: Path, like: Any) -> Any:
    """Reads what ``save_weights`` wrote; ``like`` gives structure, shapes and dtypes.

    Raises:
      DataError: there are no weights, or they are of another model.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory}: no trained weights here; expected the run directory of a finished `jaxdti train`"
        )
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(directory.absolute(), target)
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"{directory}: the weights do not fit the run's configuration ({reason})") from error
