"""Checkpoints of a run: one atomic Orbax step holds the training state, the best weights and the position."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdti.console import say
from jaxdti.errors import DataError
from jaxdti.training.mesh import is_lead

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file it touches


class Checkpoints:
    """Saves and restores under ``directory``; the last two steps are kept.

    A step is written under a temporary name and renamed, so that a kill leaves the earlier step intact. Of several
    processes one saves, and gives NumPy arrays; each restores for itself.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, create=False, multiprocessing_options=_alone()
        )
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
        """State, best weights and progress of the last step that can be read; the arguments give structure and shapes.

        Later, damaged steps are told and removed, so that they can be saved again.

        Raises:
          DataError: there are steps, but none can be read.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, state, best)
            except Exception as error:  # Orbax and TensorStore raise many kinds, bare Exception among them
                reasons[step] = _first_line(error)
                continue
            for damaged, reason in reasons.items() if is_lead() else ():
                say(f"{self._directory / str(damaged)}: damaged ({reason}); going back to the checkpoint before it")
                shutil.rmtree(self._directory / str(damaged), ignore_errors=True)
            self._manager.reload()
            return found
        step, reason = next(iter(reasons.items()))
        raise DataError(
            f"{self._directory}: no checkpoint can be read; the last one, {step}, is damaged or of another version of "
            f"jaxdti ({reason})"
        )

    def _restore(self, step: int, state: Any, best: Any) -> tuple[Any, Any, dict[str, Any]]:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
                best=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, best)),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["best"], restored["progress"]

    def close(self) -> None:
        self._manager.close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax must not wait for the other processes of a run: they write nothing."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me))


@contextlib.contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(directory)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def save_weights(directory: Path, variables: Any) -> None:
    """Writes the weights of a finished or imported run, atomically, replacing earlier ones."""
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        checkpointer.save(directory.absolute(), jax.device_get(variables), force=True)


def load_weights(directory: Path, like: Any) -> Any:
    """Reads what ``save_weights`` wrote; ``like`` gives structure, shapes and dtypes.

    Raises:
      DataError: there are no weights, they are of another model, or damaged.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory}: no trained weights here; expected the run directory of a finished `jaxdti train`"
        )
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        try:
            stored = checkpointer.metadata(directory.absolute()).item_metadata
            if stored is None:
                raise DataError(f"{directory}: the weights are damaged, their description cannot be read")
            _check_shapes(directory, _shapes(stored.tree), _shapes(target))
            return checkpointer.restore(directory.absolute(), target)
        except DataError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds, bare Exception among them
            raise DataError(f"{directory}: the weights are damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _check_shapes(directory: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Names the first array that does not fit; a restore that fails half-way leaves open files and unawaited tasks."""
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise DataError(
                f"{directory}: the weights do not fit the run's configuration: {name} has shape "
                f"{stored.get(name, 'none')}, expected {wanted.get(name, 'no such array')}"
            )
