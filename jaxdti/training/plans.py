"""Plans: which rows each step of an epoch takes, from seed and epoch alone."""

from collections.abc import Callable, Sequence
from functools import cached_property

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.adaptation.domains import TARGET
from jaxdti.data.pairs.buckets import Buckets, Chunk, PairBatch, Shape, plan_epoch
from jaxdti.training.task import Trial


class BucketPlan:
    """Batches of pairs of similar lengths, in chunks of ``steps`` batches; their sizes are the same in every epoch."""

    def __init__(
        self,
        trials: Sequence[Trial],
        buckets: Buckets,
        batch_size: int,
        steps: int,
        batch: Callable[[np.ndarray], PairBatch],
        distinct: Callable[[Chunk], int | None] = lambda chunk: None,
    ):
        """
        Args:
          batch: table rows int64 [trials, steps, B], -1 for filler -> their batch.
          distinct: how many proteins a chunk's program encodes a batch; None: one a pair.
        """
        self.trials, self.buckets, self.batch_size, self.steps = trials, buckets, batch_size, steps
        self.batch, self.distinct = batch, distinct

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.buckets.shapes

    def epoch(self, epoch: int) -> list[Chunk]:
        """The chunks of an epoch, rows int64 [trials, steps, B]."""
        rows = [trial.rows["train"] for trial in self.trials]
        seeds = [trial.seed for trial in self.trials]
        return plan_epoch(rows, self.buckets, self.batch_size, self.steps, seeds=seeds, epoch=epoch)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch of the first trial; the learning rate's schedule counts in them."""
        rows = [self.trials[0].rows["train"]]
        return len(plan_epoch(rows, self.buckets, self.batch_size, 1, seeds=[0], epoch=0))


class BesidePlan(BucketPlan):
    """A ``BucketPlan`` with as many target rows of the same bucket beside the source rows of each batch.

    Rows are int64 [trials, steps, 2 B], source and target in turn. In each bucket the target rows are shuffled and
    repeated as often as its batches of source rows need them; no batch has a row twice. A bucket without target rows
    trains on its source rows alone.
    """

    def epoch(self, epoch: int) -> list[Chunk]:
        queues = [_TargetQueue(t.rows["target_train"], self.buckets, t.seed, epoch) for t in self.trials]
        paired = []
        for chunk in super().epoch(epoch):
            target = np.full_like(chunk.rows, -1)
            for r, queue in enumerate(queues):
                for step in range(chunk.rows.shape[1]):
                    if np.any(chunk.rows[r, step] >= 0):
                        rows = queue.take(chunk.bucket, self.batch_size)
                        target[r, step, : len(rows)] = rows
            paired.append(Chunk(chunk.bucket, np.stack([chunk.rows, target], -1).reshape(*chunk.rows.shape[:2], -1)))
        return paired


class _TargetQueue:
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


def refreshes(chunks: Sequence[Chunk], every: int | None) -> list[bool]:
    """Whether the class weights are due before each chunk: the first one, and where ``every`` more steps are done.

    The plan alone decides, so that a resumed epoch refreshes where an unbroken one does. Steps count from the start of
    the epoch and without filler; a chunk is never cut, so that a refresh waits for its end.
    """
    if every is None:
        return [i == 0 for i in range(len(chunks))]
    before = np.cumsum([0, *map(steps_of, chunks)])[:-1] // every
    return (np.diff(before, prepend=-1) > 0).tolist()


def steps_of(chunk: Chunk) -> int:
    """The steps of a chunk in which any trial has rows."""
    return int(np.any(chunk.rows >= 0, axis=(0, 2)).sum())


class RowBatch(flax.struct.PyTreeNode):
    """Rows of the features with their labels; leading axes are batches, epochs or trials."""

    row: Array  # int32 [..., B]
    label: Array  # float32 [..., B]; 0 or 1, the number of a class, or a value; anything where masked
    row_mask: Array  # bool [..., B]
    target: Array | None = None  # int32 [..., B], unlabelled rows of another domain beside; -1 where there is none


class EvenPlan:
    """Rows shuffled and dealt evenly to the batches of an epoch: a last batch of one row would have no variance.

    Trials may have different numbers of rows; ``steps_per_epoch`` is that of the longest. Those with target rows get
    as many of them beside.
    """

    def __init__(self, trials: Sequence[Trial], batch_size: int, *, target: bool = True):
        """``target``: whether the objective takes target rows, where trials have them."""
        self.trials, self.target = trials, target and any(len(trial.part("target_train")) for trial in trials)
        longest = max((len(trial.part("train")) for trial in trials), default=0)
        self.batch_size = min(batch_size, longest)
        self.steps_per_epoch = -(-longest // max(self.batch_size, 1))

    def steps_of(self, trial: int) -> int:
        return -(-len(self.trials[trial].rows["train"]) // self.batch_size)

    def epochs(self, chosen: Sequence[int], epochs: range, last: int) -> tuple[RowBatch, np.ndarray]:
        """Batches [R, E, S, B] of the trials ``chosen``, and the number of them that have rows, int32 [R, E].

        Args:
          last: epochs of the whole training.
        """
        shape = (len(chosen), len(epochs), self.steps_per_epoch, self.batch_size)
        row, label, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
        counts = np.zeros(shape[:2], np.int32)
        target = np.full(shape, -1, np.int32) if self.target else None
        for i, number in enumerate(chosen):
            trial = self.trials[number]
            trains = [j for j, epoch in enumerate(epochs) if epoch < trial.last_epoch(last)]
            counts[i, trains] = count = self.steps_of(number)
            places = _places(len(trial.rows["train"]), count, self.batch_size)
            for j in trains:
                order = np.random.default_rng((trial.seed, epochs[j])).permutation(trial.rows["train"])
                for into, values in ((row, order), (label, trial.label[order]), (mask, True)):
                    into[i, j].reshape(-1)[places] = values
                if target is not None and len(trial.part("target_train")):
                    seed = (trial.seed, epochs[j], TARGET)
                    beside = _target_batches(trial.rows["target_train"], self.batch_size, count, seed)
                    target[i, j, : len(beside), : beside.shape[1]] = beside
        batches = RowBatch(row=row, label=label, row_mask=mask, target=target)  # pyright: ignore[reportArgumentType]
        return jax.tree.map(jnp.asarray, batches), counts


def _places(rows: int, steps: int, batch_size: int) -> np.ndarray:
    """Where ``rows`` rows dealt evenly to ``steps`` batches go in the flat [steps * batch_size]."""
    step = np.repeat(np.arange(steps), rows // steps + (np.arange(steps) < rows % steps))
    first = np.searchsorted(step, np.arange(steps))
    return step * batch_size + np.arange(rows) - first[step]


def _target_batches(rows: np.ndarray, size: int, steps: int, seed: tuple[int, ...]) -> np.ndarray:
    """int64 [steps, size or all rows if fewer]: shuffled anew whenever they are used up, no row twice in a batch.

    Not ``_TargetQueue``, whose draws differ: those of earlier runs must be repeated.
    """
    rng, size = np.random.default_rng(seed), min(size, len(rows))
    full = len(rows) // size
    rounds = [rng.permutation(rows)[: full * size].reshape(full, size) for _ in range(-(-steps // full))]
    return np.concatenate(rounds)[:steps]


def padded(rows: Sequence[np.ndarray]) -> Array:
    """Rows of each trial, int32 [R, T], -1 behind them."""
    filled = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for i, values in enumerate(rows):
        filled[i, : len(values)] = values
    return jnp.asarray(filled)


def stream(members: np.ndarray, seed: tuple[int, ...], first: int, count: int) -> np.ndarray:
    """int32 [count]: entries ``first``, ... of the concatenated passes over ``members``, each shuffled anew."""
    passes = range(first // len(members), (first + count - 1) // len(members) + 1)
    orders = [np.random.default_rng((*seed, number)).permutation(members) for number in passes]
    begin = first - passes[0] * len(members)
    return np.concatenate(orders)[begin : begin + count].astype(np.int32)
