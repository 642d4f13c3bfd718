"""Where arrays live: one mesh over the devices of all processes, and what the processes have to agree on.

The mesh has the axes ("replica", "data"): replicas are spread over the devices first, and the devices that are left
split the batch of each. With one device and one process everything here is the identity.
"""

import atexit
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdti.errors import DataError

REPLICATED = PartitionSpec()
STATES = PartitionSpec("replica")  # [R, ...]
BATCHES = PartitionSpec("replica", None, "data")  # [R, steps, B]

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_DAY = 86_400  # seconds


def join_processes() -> None:
    """Connects this process to the others of a run, before any other JAX call; a second call does nothing.

    They are found through JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    where these are not set through Slurm, Open MPI, Kubernetes or the TPU pod.

    Raises:
      DataError: there is nothing of the kind, or only some of the variables are set.
    """
    if jax.distributed.is_initialized():
        return
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing and len(missing) < len(_VARIABLES):
        raise DataError(f"training.distributed: {' and '.join(missing)} must be set too")
    settings: dict[str, Any] = {}
    if not missing:
        address, count, index = (os.environ[name] for name in _VARIABLES)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise DataError(
                f"training.distributed: JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}: expected 0 to one less "
                "than the number of processes"
            )
        settings = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    try:
        # The others wait at their end until the first process has written its results.
        jax.distributed.initialize(**settings, shutdown_timeout_seconds=_DAY)
    except ValueError as error:
        raise DataError(
            f"training.distributed: no other processes are found ({error}); start one per host or GPU with Slurm, on a "
            f"TPU pod, or with {', '.join(_VARIABLES)}"
        ) from error


@contextmanager
def joined_processes(distributed: bool) -> Iterator[bool]:
    """Joins the processes if asked to, for the block; gives whether this is the first one, as ``is_lead``.

    An error ends this process at once, and with that the others: JAX would wait for them at its end, and they wait for
    this one.
    """
    if not distributed:
        yield True
        return
    join_processes()
    try:
        yield is_lead()
    except BaseException as error:
        atexit.register(os._exit, 2 if isinstance(error, DataError) else 1)
        raise


def is_lead() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def make_mesh(replicas: int, batch_size: int) -> Mesh:
    """Axis "replica" of gcd(replicas, devices) devices, axis "data" of the others.

    Raises:
      DataError: the batch does not divide evenly over the data axis.
    """
    devices = np.array(jax.devices())
    spread = math.gcd(replicas, len(devices))
    data = len(devices) // spread
    if batch_size % data:
        raise DataError(
            f"training.batch_size={batch_size}: must be a multiple of {data}, the number of devices that share a batch "
            f"({len(devices)} devices, training.replicas={replicas})"
        )
    return Mesh(devices.reshape(spread, data), ("replica", "data"))


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Global arrays from the same host or local arrays in every process."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def shard(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(shard, tree)


def to_host(tree: Any) -> Any:
    """NumPy copies of global arrays, in every process; all of them have to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def local(tree: Any) -> Any:
    """Replicated global arrays as arrays of this process's first device, without a copy."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def take_replica(tree: Any, replica: int, mesh: Mesh) -> Any:
    """Replica ``replica`` of a tree [R, ...] that lies as ``STATES``, on this process's first device."""
    return local(_taker(mesh)(tree, put(np.int32(replica), mesh, REPLICATED)))


@cache
def _taker(mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
    pick = lambda tree, replica: jax.tree.map(lambda x: x[replica], tree)
    return jax.jit(pick, out_shardings=NamedSharding(mesh, REPLICATED))


def over_replicas(program: Callable[..., tuple[Any, Any]], mesh: Mesh) -> Callable[..., tuple[Any, Any]]:
    """Compiles ``program(state, features, batches) -> (state, metrics)`` over stacked replicas for the mesh.

    Every device runs the program on its own replicas alone: left to the partitioner, a loop over replicas (as in
    ``jaxdti.layers.convolution``) would bring each of them to every device. The batch is partitioned automatically, so
    that sums over it, such as BatchNorm's, are those of the whole batch. The state is given up; metrics [R, ...] come
    out replicated.
    """
    mapped = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=(STATES, REPLICATED, STATES),
        out_specs=STATES,
        axis_names={"replica"},
        check_vma=False,
    )
    return jax.jit(
        mapped, donate_argnums=0, out_shardings=(NamedSharding(mesh, STATES), NamedSharding(mesh, REPLICATED))
    )


def largest(value: int) -> int:
    """The largest of the processes' values; all of them have to call it."""
    return value if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(value)).max())


def of_lead(values: np.ndarray) -> np.ndarray:
    """The first process's values; all of them have to call it with arrays of one shape.

    Decisions rest on these, so that rounding that differs between hosts cannot part the processes.
    """
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)
