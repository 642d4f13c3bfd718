"""Drugs and proteins encoded once each into states that any pair can be scored from.

Drugs are padded to a few lengths. Proteins are laid end to end, so that next to nothing is spent on padding and one
program takes them all; only the published behaviour (``model.reference``) needs each at its full size.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.data.pairs.buckets import Shape
from jaxdti.data.pairs.device import DeviceFeatures, chosen_features
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.layers.bilinear import gram_state
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.compilation import told_jit

ATOM_GRANULE, RESIDUE_GRANULE, BOND_GRANULE = 8, 16, 8
GRAM_STEP = 128  # rows of an entity that its Gram state takes in at a time, so that little of it is padding
_LEAST_GAIN = 0.03  # share of the work that one more length bucket, so one more program, has to save


class Grams(flax.struct.PyTreeNode):
    """The Gram states of T entities of any length; see ``jaxdti.layers.bilinear.gram_attention``."""

    gram: Array  # float32 [K, T, K]
    total: Array  # float32 [T, K]
    count: Array  # int32 [T]; atoms or residues that pooling counts


class Block(NamedTuple):
    """What one call of an encoder takes, and where the states lie among the rows that it gives."""

    bucket: int
    index: np.ndarray  # int32 [B] of entities, filler -1 last
    start: np.ndarray  # int32 [B], ascending: the first row of each state; of filler, past the last row


@dataclass(frozen=True)
class Entities:
    """How the drugs, or the proteins, of a table go through their encoder."""

    kind: str  # "drug" | "protein"
    counts: np.ndarray  # int32 [E]; the rows of an entity's state that pooling counts
    of_entity: np.ndarray  # int32 [E]; the bucket of each entity
    shapes: tuple[Shape, ...]  # of a bucket: padded sizes of an entity, or of a whole block; the other kind's are 0
    batches: tuple[int, ...]  # most entities of a block
    rows: tuple[int, ...]  # rows of a block's states
    gap: int | None  # positions between proteins that lie end to end; None where entities are padded

    def blocks(self, index: np.ndarray) -> list[Block]:
        """Blocks that hold the entities ``index`` int [n], distinct, once each."""
        found = []
        for bucket, (batch, rows) in enumerate(zip(self.batches, self.rows, strict=True)):
            mine = index[self.of_entity[index] == bucket]
            if self.gap is None:
                parts = [mine[start : start + batch] for start in range(0, len(mine), batch)]
                starts = [np.arange(len(part)) * (rows // batch) for part in parts]
            else:
                placed = laid_end_to_end(self.counts[mine], rows, self.gap, batch)
                parts, starts = [mine[members] for members, _ in placed], [start for _, start in placed]
            for part, start in zip(parts, starts, strict=True):
                filler = (0, batch - len(part))
                taken = np.pad(part.astype(np.int32), filler, constant_values=-1)
                found.append(Block(bucket, taken, np.pad(start.astype(np.int32), filler, constant_values=rows)))
        return found


def choose_lengths(lengths: np.ndarray, weights: np.ndarray, granule: int, most: int) -> tuple[int, ...]:
    """At most ``most`` padded lengths, ascending, that waste little; every entity takes the shortest that holds it.

    Dynamic programming over the lengths rounded up to ``granule`` minimises ``sum(weights * padded length)`` for each
    number of buckets; one more bucket has to save 3 % of that, so that a few odd entities get no program of their own.

    Args:
      lengths: int [E], at least one entity.
      weights: float [E], work per unit of padded length.
    """
    levels, level = np.unique(np.maximum(-(-lengths // granule), 1) * granule, return_inverse=True)
    below = np.concatenate([[0.0], np.cumsum(np.bincount(level, weights, len(levels)))])
    least = levels * below[1:]  # [j]: work of the levels 0..j in the buckets so far
    cuts = [[int(top)] for top in levels]
    for _ in range(1, min(most, len(levels))):
        # Levels 0..i as before, i+1..j in one more bucket.
        work = least[:, None] + levels[None, :] * (below[None, 1:] - below[1:, None])
        work[np.tril_indices(len(levels))] = np.inf
        last = np.argmin(work, axis=0)
        better = work[last, np.arange(len(levels))]
        if better[-1] > (1.0 - _LEAST_GAIN) * least[-1]:
            break
        cuts = [[*cuts[i], int(levels[j])] if np.isfinite(better[j]) else cuts[j] for j, i in enumerate(last)]
        least = np.minimum(better, least)
    return tuple(cuts[-1])


def laid_end_to_end(
    lengths: np.ndarray, size: int | None, gap: int, most: int, blocks: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entities in as few blocks as needed: positions in ``lengths`` and their first rows, both int [n], for each block.

    The longest comes first, each into the emptiest block that there is, of ``blocks`` or of as many as the sum wants.

    Args:
      size: rows of a block, none of the lengths is larger; None: as many as it takes.
      gap: free rows after each entity but the last.
      most: entities of a block.
    """
    if size is not None:
        blocks = max(1, -(-int((lengths + gap).sum()) // (size + gap)))
    members: list[list[int]] = [[] for _ in range(blocks)]
    starts: list[list[int]] = [[] for _ in range(blocks)]
    emptiest = [(0, block) for block in range(blocks)]
    for entity in np.argsort(-lengths, kind="stable").tolist():
        filled, block = emptiest[0]
        length = int(lengths[entity])
        if (size is not None and filled + length > size) or len(members[block]) == most:
            filled, block = 0, len(members)
            members.append([])
            starts.append([])
            heapq.heappush(emptiest, (length + gap, block))
        else:
            heapq.heapreplace(emptiest, (filled + length + gap, block))
        members[block].append(entity)
        starts[block].append(filled)
    return [(np.array(m), np.array(s)) for m, s in zip(members, starts, strict=True) if m]


def drug_entities(
    config: ModelConfig, features: DeviceFeatures | FeatureStore, weights: np.ndarray, most: int, batch_size: int
) -> Entities:
    """All drugs of ``features``, padded to at most ``most`` lengths; ``weights`` as in ``choose_lengths``.

    ``batch_size`` bounds the encoder's batches. Under ``reference`` there is the one published size.

    Raises:
      ValueError: a drug or a protein is larger than that.
    """
    atoms, bonds = np.diff(np.asarray(features.atom_offsets)), np.diff(np.asarray(features.bond_offsets))
    if config.reference:
        _check_fits("atoms", atoms, REFERENCE_ATOMS)
        sizes, counts = (REFERENCE_ATOMS,), np.full(len(atoms), REFERENCE_ATOMS)
    else:
        sizes, counts = choose_lengths(atoms, weights, ATOM_GRANULE, most), atoms
    of_entity = np.searchsorted(sizes, atoms).astype(np.int32)
    most_bonds = [int(bonds[of_entity == i].max(initial=1)) for i in range(len(sizes))]
    shapes = tuple(
        Shape(size, -(-most // BOND_GRANULE) * BOND_GRANULE, 0) for size, most in zip(sizes, most_bonds, strict=True)
    )
    batches = tuple(_batch(size, of_entity == i, batch_size) for i, size in enumerate(sizes))
    rows = tuple(batch * size for batch, size in zip(batches, sizes, strict=True))
    return Entities("drug", counts.astype(np.int32), of_entity, shapes, batches, rows, gap=None)


def protein_entities(config: ModelConfig, features: DeviceFeatures | FeatureStore, batch_size: int) -> Entities:
    """All proteins of ``features``, end to end; under ``reference`` at most ``batch_size`` at a time, padded.

    Raises:
      ValueError: as ``drug_entities``.
    """
    residues = np.diff(np.asarray(features.residue_offsets))
    one_bucket = np.zeros(len(residues), np.int32)
    if config.reference:
        _check_fits("residues", residues, REFERENCE_RESIDUES)
        left = REFERENCE_RESIDUES - sum(kernel - 1 for kernel in config.protein_kernels)
        batch, counts = _batch(REFERENCE_RESIDUES, one_bucket == 0, batch_size), np.full(len(residues), left, np.int32)
        shapes = (Shape(0, 0, REFERENCE_RESIDUES),)
        return Entities("protein", counts, one_bucket, shapes, (batch,), (batch * left,), gap=None)
    gap = max(kernel // 2 for kernel in config.protein_kernels)  # as far as a convolution reaches
    blocks = max(1, -(-int((residues + gap).sum()) // _positions()))
    placed = laid_end_to_end(residues, None, gap, len(residues), blocks)
    ends = [int(start[-1] + residues[members[-1]]) for members, start in placed]
    size = max(-(-max(ends) // RESIDUE_GRANULE), 1) * RESIDUE_GRANULE
    most = max(len(members) for members, _ in placed)
    return Entities("protein", residues.astype(np.int32), one_bucket, (Shape(0, 0, size),), (most,), (size,), gap)


def _check_fits(name: str, lengths: np.ndarray, size: int) -> None:
    if (most := int(lengths.max(initial=0))) > size:
        raise ValueError(f"model.reference pads to {size} {name}, and an entity has {most}; lower data.max_{name}")


def _positions() -> int:
    # On 2 CPU cores 8 proteins of 512 residues took 1.7 ms each, 64 took 3.7: the activations leave the caches. Scoring
    # with 16 met twice as many page faults and took twice the system time.
    return 4096 if jax.default_backend() == "cpu" else 65536


def _batch(length: int, members: np.ndarray, most: int) -> int:
    return max(1, min(_positions() // length, most, int(members.sum())))


def encoded_rows(
    model: DrugBAN,
    method: str,
    entities: Entities,
    bucket: int,
    variables: dict[str, Any],
    features: DeviceFeatures,
    index: Array,
    start: Array,
) -> Array:
    """The rows [rows, F] of a block's states, ``method`` "encode" or "project" of the model. Pure in ``variables``."""
    shape = entities.shapes[bucket]
    if entities.gap is None:
        valid, safe = index >= 0, jnp.maximum(index, 0)
        batch = features.drugs(safe, shape) if entities.kind == "drug" else features.proteins(safe, shape)
    else:
        valid, batch = jnp.ones(1, bool), features.proteins_end_to_end(index, start, shape.residues)
    found: Any = model.apply(variables, batch, valid, method=f"{method}_{entities.kind}")
    values, _ = found
    return values.reshape(-1, values.shape[-1])


def _put_grams(into: Grams, slots: Array, rows: Array, index: Array, start: Array, count: Array, step: int) -> Grams:
    """Gram states of a block, put into ``slots`` [B]: of ``count`` [B] rows each from ``start`` [B] on, in steps."""
    rows = jnp.pad(rows, ((0, step), (0, 0)))
    rank = rows.shape[1]

    def put(i: Array, into: Grams) -> Grams:
        def add(part: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            x = jax.lax.dynamic_slice(rows, (start[i] + part * step, 0), (step, rank))
            mine = part * step + jnp.arange(step) < count[i]
            gram, total = gram_state((x * mine[:, None].astype(x.dtype))[None])
            return state[0] + gram[:, 0], state[1] + total[0]

        none = jnp.zeros((rank, rank), into.gram.dtype), jnp.zeros(rank, into.total.dtype)
        gram, total = jax.lax.fori_loop(0, -(-count[i] // step), add, none)
        return Grams(
            gram=into.gram.at[:, slots[i]].set(gram),
            total=into.total.at[slots[i]].set(total),
            count=into.count.at[slots[i]].set(count[i]),
        )

    return jax.lax.fori_loop(0, (index >= 0).sum(), put, into)


States = Array | Grams  # rows [R, K] in the compute dtype, V or Q of ``BilinearAttention``, in the pairwise form
Encode = Callable[[dict[str, Any], Block, Any, States], States]


def make_encoder(config: ModelConfig, features: DeviceFeatures | FeatureStore, entities: Entities) -> Encode:
    """Builds ``encode(variables, block, place, into) -> states``: a block's states are put into ``into``.

    ``place`` is the row, int, where the block's rows begin in the array ``into`` [R, K], or the slots int32 [B] of its
    entities in ``Grams``. ``into`` is given up; rows and slots that no block has filled mean nothing. One program a
    bucket and kind of state.

    A store stays on the host, and every block brings the features of its own entities. How many blocks are under way is
    not limited: their features are small beside the states that they become.
    """
    model = DrugBAN(config)

    def program(bucket: int):
        longest = entities.rows[bucket] // (entities.batches[bucket] if entities.gap is None else 1)
        step = min(longest, GRAM_STEP)

        def run(variables, features, index, start, count, place, into: States) -> States:
            rows = encoded_rows(model, "project", entities, bucket, variables, features, index, start)
            if isinstance(into, Grams):
                return _put_grams(into, place, rows, index, start, count, step)
            return jax.lax.dynamic_update_slice(into, rows, (place, 0))

        def name(variables, features, index, start, count, place, into: States) -> str:
            return f"encoder of {block_name(entities, bucket)}{', Gram' if isinstance(into, Grams) else ''}"

        return told_jit(run, name, ("encoder", config, *program_key(entities, bucket)), donate="into")

    programs = [program(bucket) for bucket in range(len(entities.shapes))]

    def encode(variables: dict[str, Any], block: Block, place: Any, into: States) -> States:
        chosen, index = own_features(features, entities, block)
        count = np.where(block.index >= 0, entities.counts[block.index], 0)
        return programs[block.bucket](variables, chosen, index, block.start, count, np.int32(place), into)

    return encode


def program_key(entities: Entities, bucket: int) -> tuple[Any, ...]:
    """What ``encoded_rows`` of a bucket depends on, beside the model and its arguments."""
    return entities.kind, entities.shapes[bucket], entities.gap


def block_name(entities: Entities, bucket: int) -> str:
    """What one call of a bucket's encoder takes, for people."""
    shape = entities.shapes[bucket]
    if entities.gap is None:
        return f"{entities.batches[bucket]} {entities.kind}s of {shape.atoms or shape.residues}"
    return f"{entities.kind}s, {shape.residues} residues"


def own_features(
    features: DeviceFeatures | FeatureStore, entities: Entities, block: Block
) -> tuple[DeviceFeatures, np.ndarray]:
    """What an encoder takes of a block: features, and the indices int32 [B] into them, -1 for filler.

    Of a store these are the features of that block alone.
    """
    if not isinstance(features, FeatureStore):
        return features, block.index
    mine, none, shape = block.index[block.index >= 0], block.index[:0], entities.shapes[block.bucket]
    if entities.gap is not None:
        shape = Shape(0, 0, -(-shape.residues // len(block.index)))  # so many on average
    drugs, proteins = (mine, none) if entities.kind == "drug" else (none, mine)
    own = chosen_features(features, drugs, proteins, len(block.index), shape)
    return own, np.where(block.index >= 0, np.arange(len(block.index), dtype=np.int32), block.index)
