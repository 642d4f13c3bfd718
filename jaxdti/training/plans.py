"""Plans: which rows each step of an epoch takes, from seed and epoch alone."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import TARGET
from jaxdti.config import TrainingConfig
from jaxdti.data.pairs.buckets import Buckets, Chunk, plan_epoch
from jaxdti.training.task import Replica, VectorReplica


def _stream(members: np.ndarray, seed: tuple[int, ...], first: int, count: int) -> np.ndarray:
    """int32 [count]: entries ``first``, ... of the concatenated passes over ``members``, each shuffled anew."""
    passes = range(first // len(members), (first + count - 1) // len(members) + 1)
    orders = [np.random.default_rng((*seed, number)).permutation(members) for number in passes]
    begin = first - passes[0] * len(members)
    return np.concatenate(orders)[begin : begin + count].astype(np.int32)


class VectorBatch(flax.struct.PyTreeNode):
    """Rows of the features with their labels; leading axes are batches, epochs or replicas."""

    row: Array  # int32 [..., B]
    label: Array  # float32 [..., B]; 0 or 1, the number of a class, or a value; anything where masked
    row_mask: Array  # bool [..., B]
    target: Array | None = None  # int32 [..., B], unlabelled rows of another domain beside; -1 where there is none


def _steps(replica: VectorReplica, batch_size: int) -> int:
    return -(-len(replica.train) // batch_size)


def _epochs(replica: VectorReplica, config: TrainingConfig) -> int:
    return config.epochs if replica.epochs is None else min(replica.epochs, config.epochs)


def _plan(
    replicas: Sequence[VectorReplica], config: TrainingConfig, epochs: range, batch_size: int, steps: int
) -> tuple[VectorBatch, np.ndarray]:
    """Batches [R, E, S, B] and the number of them that have rows, int32 [R, E].

    The rows of an epoch are shuffled and dealt evenly: a last batch of one row would have no variance.
    """
    shape = (len(replicas), len(epochs), steps, batch_size)
    row, label, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    counts = np.zeros(shape[:2], np.int32)
    target = np.full(shape, -1, np.int32) if any(len(replica.target) for replica in replicas) else None
    for i, replica in enumerate(replicas):
        own = [j for j, epoch in enumerate(epochs) if epoch < _epochs(replica, config)]
        counts[i, own] = count = _steps(replica, batch_size)
        places = _places(len(replica.train), count, batch_size)
        for j in own:
            order = np.random.default_rng((replica.seed, epochs[j])).permutation(replica.train)
            for into, values in ((row, order), (label, replica.label[order]), (mask, True)):
                into[i, j].reshape(-1)[places] = values
            if target is not None and len(replica.target):
                beside = _target_batches(replica.target, batch_size, count, (replica.seed, epochs[j], 1))
                target[i, j, : len(beside), : beside.shape[1]] = beside
    batches = VectorBatch(row=row, label=label, row_mask=mask, target=target)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(jnp.asarray, batches), counts


def _places(rows: int, steps: int, batch_size: int) -> np.ndarray:
    """Where ``rows`` rows dealt evenly to ``steps`` batches go in the flat [steps * batch_size]."""
    step = np.repeat(np.arange(steps), rows // steps + (np.arange(steps) < rows % steps))
    first = np.searchsorted(step, np.arange(steps))
    return step * batch_size + np.arange(rows) - first[step]


def _target_batches(rows: np.ndarray, size: int, steps: int, seed: tuple[int, ...]) -> np.ndarray:
    """int64 [steps, size or all rows if fewer]: shuffled anew whenever they are used up, no row twice in a batch."""
    rng, size = np.random.default_rng(seed), min(size, len(rows))
    full = len(rows) // size
    rounds = [rng.permutation(rows)[: full * size].reshape(full, size) for _ in range(-(-steps // full))]
    return np.concatenate(rounds)[:steps]


def _padded(rows: Sequence[np.ndarray]) -> Array:
    """Rows of each replica, int32 [R, T], -1 behind them."""
    filled = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for i, own in enumerate(rows):
        filled[i, : len(own)] = own
    return jnp.asarray(filled)


def refreshes(chunks: Sequence[Chunk], every: int | None) -> list[bool]:
    """Whether the class weights are due before each chunk: the first one, and where ``every`` more steps are done.

    The plan alone decides, so that a resumed epoch refreshes where an unbroken one does. Steps count from the start of
    the epoch and without filler; a chunk is never cut, so that a refresh waits for its end.
    """
    if every is None:
        return [i == 0 for i in range(len(chunks))]
    steps = [int(np.any(chunk.rows >= 0, axis=(0, 2)).sum()) for chunk in chunks]
    before = np.cumsum([0, *steps])[:-1] // every
    return (np.diff(before, prepend=-1) > 0).tolist()


def plan_domains(
    replicas: Sequence[Replica], buckets: Buckets, batch_size: int, steps: int, *, epoch: int
) -> list[Chunk]:
    """The chunks of an epoch, rows int64 [replicas, steps, 2 B]: those of the source, with target rows beside them.

    In each bucket the target rows are shuffled and repeated as often as its batches of source rows need them; no batch
    has a row twice. A bucket without target rows trains on its source rows alone.
    """
    seeds = [replica.config.training.seed for replica in replicas]
    sources = [replica.parts["train"] for replica in replicas]
    chunks = plan_epoch(sources, buckets, batch_size, steps, seeds=seeds, epoch=epoch)
    queues = [_Queue(r.parts["target_train"], buckets, seed, epoch) for r, seed in zip(replicas, seeds, strict=True)]
    paired = []
    for chunk in chunks:
        target = np.full_like(chunk.rows, -1)
        for r, queue in enumerate(queues):
            for step in range(chunk.rows.shape[1]):
                if np.any(chunk.rows[r, step] >= 0):
                    rows = queue.take(chunk.bucket, batch_size)
                    target[r, step, : len(rows)] = rows
        paired.append(Chunk(chunk.bucket, np.stack([chunk.rows, target], -1).reshape(*chunk.rows.shape[:2], -1)))
    return paired


class _Queue:
    """The target rows of each bucket, shuffled anew whenever they are used up."""

    def __init__(self, rows: np.ndarray, buckets: Buckets, seed: int, epoch: int):
        self.random = np.random.default_rng([seed, epoch, TARGET])
        self.members = [rows[buckets.of_row[rows] == bucket] for bucket in range(len(buckets.shapes))]
        self.waiting = [rows[:0] for _ in self.members]

    def take(self, bucket: int, count: int) -> np.ndarray:
        """The next ``count`` rows of a bucket, or all of them where it has no more."""
        members = self.members[bucket]
        count = min(count, len(members))
        if len(self.waiting[bucket]) < count:
            # What is left comes first, and not again among the first ones of the next round.
            left = self.waiting[bucket]
            fresh = self.random.permutation(members)
            again = np.isin(fresh, left)
            self.waiting[bucket] = np.concatenate([left, fresh[~again], fresh[again]])
        taken, self.waiting[bucket] = self.waiting[bucket][:count], self.waiting[bucket][count:]
        return taken
