"""Length buckets and epoch plans: which rows meet in which batch, as integers only."""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.struct
import numpy as np

from jaxdti.data.pairs.table import FeatureStore, InteractionTable


@dataclass(frozen=True, order=True)
class Shape:
    """The padded sizes of one bucket."""

    atoms: int
    bonds: int
    residues: int


@dataclass(frozen=True)
class Buckets:
    """Shapes and the bucket of every table row."""

    shapes: tuple[Shape, ...]
    of_row: np.ndarray  # int32 [N], index into ``shapes``
    padding: float  # share of the encoders' and the attention's work that goes into padding


class PairBatch(flax.struct.PyTreeNode):
    """B drug-protein pairs of one length bucket; indices point into the device-resident features."""

    drug: np.ndarray  # int32 [B]
    protein: np.ndarray  # int32 [B]
    label: np.ndarray  # float32 [B]; 0 or 1, or an affinity such as pKd = -log10(Kd in mol/L)
    row_mask: np.ndarray  # bool [B], False for filler rows, which must not touch anything


@dataclass(frozen=True)
class Chunk:
    """Batches of one bucket for one program call; ``rows`` int64 [replicas, steps, B], -1 for filler."""

    bucket: int
    rows: np.ndarray


def pair_cost(atoms: np.ndarray | int, residues: np.ndarray | int) -> np.ndarray:
    """Forward multiply-adds of one DrugBAN pair of the paper's sizes, in millions (padding included)."""
    atoms, residues = np.asarray(atoms, float), np.asarray(residues, float)
    return 0.25 * atoms + 0.39 * residues + 0.0015 * atoms * residues


def choose_buckets(table: InteractionTable, store: FeatureStore, count: int, *, least_rows: int) -> Buckets:
    """At most ``count`` bucket shapes that waste little work on these rows.

    Starting from one bucket that holds everything, the split (of one bucket, along atoms or residues) that saves most
    padded work is made, until there are ``count`` buckets or no split leaves ``least_rows`` rows on both sides.
    Sizes are rounded up (atoms to 8, residues to 32), so that similar tables share compiled programs.
    """
    atoms = store.atom_counts[table.drug]
    bonds = store.bond_counts[table.drug]
    residues = store.residue_counts[table.protein]
    groups = [np.arange(len(table))]
    while len(groups) < count:
        splits = [_best_split(group, atoms, residues, least_rows) for group in groups]
        best = max(range(len(groups)), key=lambda i: splits[i][0])
        saved, left, right = splits[best]
        if saved <= 0.0:
            break
        groups[best : best + 1] = [left, right]
    of_row = np.zeros(len(table), np.int32)
    shapes = []
    padded = 0.0
    for i, group in enumerate(groups):
        of_row[group] = i
        shape = Shape(
            _round_up(atoms[group].max(initial=1), 8),
            _round_up(bonds[group].max(initial=1), 8),
            _round_up(residues[group].max(initial=1), 32),
        )
        shapes.append(shape)
        padded += len(group) * float(pair_cost(shape.atoms, shape.residues))
    useful = float(pair_cost(atoms, residues).sum())
    return Buckets(tuple(shapes), of_row, 1.0 - useful / padded if padded else 0.0)


def one_bucket(table: InteractionTable, shape: Shape) -> Buckets:
    """Everything in one bucket of a fixed shape, as the published code pads."""
    return Buckets((shape,), np.zeros(len(table), np.int32), float("nan"))


def _round_up(value: int, multiple: int) -> int:
    return -(-int(value) // multiple) * multiple


def _best_split(group: np.ndarray, atoms: np.ndarray, residues: np.ndarray, least: int):
    """(work saved, rows below, rows above) of the best cut of this group along one axis; (0, ..., ...) if none."""
    best = (0.0, group, group)
    if len(group) < 2 * least:
        return best
    top_atoms, top_residues = _round_up(atoms[group].max(), 8), _round_up(residues[group].max(), 32)
    whole = len(group) * float(pair_cost(top_atoms, top_residues))
    for values, multiple in ((atoms[group], 8), (residues[group], 32)):
        for cut in np.unique(-(-values // multiple) * multiple)[:-1]:
            below, above = group[values <= cut], group[values > cut]
            if min(len(below), len(above)) < least:
                continue
            cost = sum(
                len(part) * float(pair_cost(_round_up(atoms[part].max(), 8), _round_up(residues[part].max(), 32)))
                for part in (below, above)
            )
            if whole - cost > best[0]:
                best = (whole - cost, below, above)
    return best


def plan_epoch(
    rows: Sequence[np.ndarray], buckets: Buckets, batch_size: int, steps: int, *, seeds: Sequence[int], epoch: int
) -> list[Chunk]:
    """The shuffled chunks of one epoch of every replica; a pure function of its arguments.

    Replica r trains on the table rows ``rows[r]``, shuffled by ``seeds[r]``. All replicas are at the same bucket at
    the same time, so the order of the chunks is the epoch's alone; it is shuffled, so that neither learning nor running
    statistics sort by length. A bucket's rows are spread evenly over their batches, so that no batch is tiny; where a
    replica has fewer batches than another, and in a bucket's last chunk, empty steps fill up.
    """
    generators = [np.random.default_rng([seed, epoch]) for seed in seeds]
    chunks = []
    for bucket in range(len(buckets.shapes)):
        batches = [
            _spread(generator.permutation(mine[buckets.of_row[mine] == bucket]), batch_size)
            for generator, mine in zip(generators, rows, strict=True)
        ]
        for start in range(0, max(map(len, batches)), steps):
            filled = np.full((len(batches), steps, batch_size), -1, np.int64)
            for r, mine in enumerate(batches):
                for i, batch in enumerate(mine[start : start + steps]):
                    filled[r, i, : len(batch)] = batch
            chunks.append(Chunk(bucket, filled))
    return [chunks[i] for i in np.random.default_rng(epoch).permutation(len(chunks))]


def _spread(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """As few batches as hold the rows, of nearly equal size."""
    return np.array_split(rows, -(-len(rows) // batch_size)) if len(rows) else []


def most_distinct(index: np.ndarray, rows: np.ndarray) -> int:
    """The most distinct values of ``index`` in one batch of the table rows ``rows`` [..., B], -1 for filler.

    Filler counts as the entity 0, where ``pair_batch`` points it.
    """
    values = np.sort(np.where(rows >= 0, index[rows], 0), axis=-1)
    return int(1 + (np.diff(values, axis=-1) > 0).sum(-1).max(initial=0))


def shared_proteins(table: InteractionTable, chunks: Sequence[Chunk]) -> dict[int, int]:
    """By bucket, how many distinct proteins to encode a batch instead of one a pair, where that pays.

    Where batches have at most two thirds as many proteins as pairs (measured: see benchmarks/README.md). ``chunks`` are
    those of any epoch; the number leaves room for others, but a batch may still have more.
    """
    most: dict[int, int] = {}
    for chunk in chunks:
        most[chunk.bucket] = max(most.get(chunk.bucket, 0), most_distinct(table.protein, chunk.rows))
    batch_size = chunks[0].rows.shape[-1] if chunks else 0
    sizes = {bucket: _round_up(count + 2, 8) for bucket, count in most.items()}
    return {bucket: size for bucket, size in sizes.items() if size <= 2 * batch_size / 3}


def plan_evaluation(rows: np.ndarray, buckets: Buckets, batch_size: int) -> list[Chunk]:
    """One batch a chunk, every row once, in bucket order."""
    chunks = []
    for bucket in range(len(buckets.shapes)):
        mine = rows[buckets.of_row[rows] == bucket]
        for start in range(0, len(mine), batch_size):
            filled = np.full((1, batch_size), -1, np.int64)
            filled[0, : len(mine[start : start + batch_size])] = mine[start : start + batch_size]
            chunks.append(Chunk(bucket, filled))
    return chunks


def pair_batch(table: InteractionTable, rows: np.ndarray) -> PairBatch:
    """Rows int64 [..., B], -1 for filler -> a batch of that shape; filler points at entity 0 and is masked."""
    valid = rows >= 0
    safe = np.where(valid, rows, 0)
    return PairBatch(
        drug=np.where(valid, table.drug[safe], 0).astype(np.int32),
        protein=np.where(valid, table.protein[safe], 0).astype(np.int32),
        label=np.where(valid, table.label[safe], 0.0).astype(np.float32),
        row_mask=valid,
    )
