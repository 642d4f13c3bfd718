"""Pairs scored from encoded drugs and proteins, by the cheaper of two exact forms, under a memory budget."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.inference.encode import RESIDUE_GRANULE, Block, Entities, Grams, choose_lengths
from jaxdti.layers.bilinear import gram_attention
from jaxdti.models.drugban import DrugBAN, score


class Tile(NamedTuple):
    """Entities whose states are held together."""

    blocks: tuple[tuple[Block, Any], ...]  # with the place of each, as encoders take it
    members: np.ndarray  # int [n], the entities
    places: np.ndarray  # int [n]; the first row of the state of each, or its slot


@dataclass(frozen=True)
class TilePlan:
    """How many states are held at a time: rows in the pairwise form, entities in the Gram form."""

    drugs: int
    proteins: int


def plan_pairwise(drugs: Entities, proteins: Entities, rank: int, item: int, memory: int) -> TilePlan:
    """Tiles of rows within about ``memory`` bytes, at least one block each: half of it for drugs, if they need so much.

    Args:
      rank: K, columns of a state.
      item: bytes of a number of a state.
    """
    all_drugs, all_proteins = (_rows(entities, np.arange(len(entities.counts))) for entities in (drugs, proteins))
    rows = memory // (rank * item)
    most_drugs = min(all_drugs, rows // 2)
    return TilePlan(
        drugs=max(max(drugs.rows), most_drugs),
        proteins=max(max(proteins.rows), min(all_proteins, rows - most_drugs)),
    )


def _rows(entities: Entities, index: np.ndarray) -> int:
    return sum(entities.rows[block.bucket] for block in entities.blocks(index))


def row_tiles(entities: Entities, index: np.ndarray, most: int) -> list[Tile]:
    """Tiles of at most ``most`` rows that hold the distinct entities ``index``, each once."""
    tiles: list[list[tuple[Block, int]]] = []
    filled = most
    for block in entities.blocks(index):
        rows = entities.rows[block.bucket]
        if filled + rows > most:
            tiles.append([])
            filled = 0
        tiles[-1].append((block, filled))
        filled += rows
    return [_tile(blocks, [row + block.start for block, row in blocks]) for blocks in tiles]


def slot_tiles(entities: Entities, index: np.ndarray, most: int) -> list[Tile]:
    """Tiles of at most ``most`` entities that hold the distinct ones ``index``, each once."""
    # Entities of a bucket lie together, so that blocks are full.
    ordered, tiles = index[np.argsort(entities.of_entity[index], kind="stable")], []
    for start in range(0, len(ordered), most):
        blocks, filled = [], 0
        for block in entities.blocks(ordered[start : start + most]):
            blocks.append((block, filled + np.arange(len(block.index), dtype=np.int32)))
            filled += int((block.index >= 0).sum())
        tiles.append(_tile(blocks, [slots for _, slots in blocks]))
    return tiles


def _tile(blocks: list[tuple[Block, Any]], places: list[np.ndarray]) -> Tile:
    members, at = np.concatenate([block.index for block, _ in blocks]), np.concatenate(places)
    return Tile(tuple(blocks), members[members >= 0], at[members >= 0])


def plan_grams(drugs: int, proteins: int, rank: int, memory: int) -> TilePlan:
    """Tiles of ``Grams`` states, of any lengths, within about ``memory`` bytes.

    Half of it holds the states of ``drugs`` and ``proteins`` distinct entities, in which all drugs stay if they take
    half; the rest is for the products, so no tile has more than K slots.
    """
    held = max(2, memory // (2 * 4 * rank * rank))
    drug_slots = max(1, min(drugs, held // 2, rank))
    return TilePlan(drugs=drug_slots, proteins=_even(proteins, max(1, min(held - drug_slots, rank))))


def _even(count: int, most: int) -> int:
    """The smallest tile that needs no more tiles than ``most`` does."""
    return -(-count // max(-(-count // most), 1))


_LEAST_TILE = 32  # a product of smaller tiles takes about as long


def choose_form(
    drug_rows: np.ndarray, protein_rows: np.ndarray, drug: np.ndarray, protein: np.ndarray, rank: int, grams: TilePlan
) -> str:
    """``"pairwise"`` or ``"gram"``: the one with fewer floating-point operations after the encoders.

    pairwise  4 K sum_pairs A L
    gram      2 K^2 (sum_drugs A + sum_proteins L + D P)

    where D P counts whole tiles, wanted or not, so the Gram form pays where many of the possible pairs are wanted: all
    proteins of 600 residues with all of 20 drugs or more. Where drugs take several tiles, their states are built once a
    protein tile.

    Args:
      drug_rows, protein_rows: int [D], [P], rows of the states of the distinct entities.
      drug, protein: int [N], the pairs, as positions in these.
      rank: K.
      grams: the tiles that the Gram form would use.
    """
    pairwise = 4.0 * rank * float(np.sum(drug_rows[drug].astype(float) * protein_rows[protein]))
    drug_tiles = -(-len(drug_rows) // grams.drugs)
    protein_tiles = -(-len(protein_rows) // grams.proteins)
    tile = float(max(grams.drugs, _LEAST_TILE) * max(grams.proteins, _LEAST_TILE))
    builds = 1 if drug_tiles == 1 else protein_tiles
    states = builds * float(drug_rows.sum()) + float(protein_rows.sum())
    return "gram" if 2.0 * rank**2 * (states + drug_tiles * protein_tiles * tile) < pairwise else "pairwise"


# The pairs of a protein go through the attention in groups, their atoms one under the other: products with few rows are
# slow, and those of 24 times as many are fastest (benchmarks/README.md).
_ATOMS = (24, 48, 72, 96)
_MOST_PAIRS = 16
_MOST_WINDOWS = 4  # lengths of proteins on accelerators
_RESIDUES, _LAST_RESIDUES = 384, 128  # that many at a time on CPU, and of those that are left


class Groups(flax.struct.PyTreeNode):
    """G groups of pairs, those of a group with the same protein, N pairs in all; filler at the end of each axis."""

    rows: Array  # int32 [G, A]: the rows of V, atom by atom; -1 for filler
    member: Array  # int32 [G, A]: which of the group's pairs the atom belongs to; -1 for filler
    pairs: Array  # int32 [G, P]: places of the group's pairs among the N; past their end for filler
    start: Array  # int32 [G]: the first row of Q
    count: Array  # int32 [G]: how many rows of it; 0 for filler
    size: Array  # int32 [G]: the smallest of ``group_sizes`` that holds the atoms
    atoms: Array  # int32 [N]: of each pair
    residues: Array  # int32 [N]


def pair_room(groups: int) -> int:
    """Pairs that a call of so many groups has room for: four a group, and at least a full group."""
    return max(4 * groups, _MOST_PAIRS)


def group_sizes(most_atoms: int) -> tuple[int, ...]:
    """Padded numbers of atoms of a group, ascending; drugs have at most ``most_atoms``, and large ones are alone."""
    step, largest = _ATOMS[0], _ATOMS[-1]
    if most_atoms <= largest:
        return _ATOMS
    return *_ATOMS, *range(2 * largest, most_atoms, largest), -(-most_atoms // step) * step


def grouped(atoms: np.ndarray, protein: np.ndarray) -> list[np.ndarray]:
    """Positions int [n] of the pairs of each group, in order.

    Args:
      atoms: int [N], of the pairs' drugs.
      protein: int [N]; pairs of a protein lie together.
    """
    groups: list[list[int]] = []
    last, filled = None, 0
    for i, (count, mine) in enumerate(zip(atoms.tolist(), protein.tolist(), strict=True)):
        if mine != last or filled + count > _ATOMS[-1] or len(groups[-1]) == _MOST_PAIRS:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        last, filled = mine, filled + count
    return [np.array(group) for group in groups]


def residue_windows(residues: np.ndarray) -> tuple[int, ...]:
    """Padded numbers of residues of a group, ascending, for proteins of these lengths; none on CPU, which pads none."""
    if jax.default_backend() == "cpu":
        return ()
    return choose_lengths(residues, np.ones(len(residues)), RESIDUE_GRANULE, _MOST_WINDOWS)


def overhang(windows: tuple[int, ...]) -> int:
    """Rows of Q that ``pool_groups`` may read past the last state."""
    return windows[-1] if windows else _RESIDUES  # all that a step takes, also of fewer rows


Program = tuple[tuple[int, ...], int | None]  # the sizes and the window of ``pool_groups``


def group_calls(
    groups: list[np.ndarray],
    counts: tuple[np.ndarray, np.ndarray],
    sizes: tuple[int, ...],
    windows: tuple[int, ...],
    most: int,
) -> list[tuple[Program, list[np.ndarray]]]:
    """Each call's program and groups: at most ``most`` of them, with no more pairs than there is room for.

    Args:
      groups: those of ``grouped``.
      counts: atoms and residues int [N] of the pairs.
    """
    key = np.zeros(len(groups), int)
    if windows:
        atoms = [counts[0][group].sum() for group in groups]
        residues = [counts[1][group[0]] for group in groups]
        key = np.searchsorted(sizes, atoms) * len(windows) + np.searchsorted(windows, residues)
    calls: list[tuple[Program, list[np.ndarray]]] = []
    last, pairs = -1, 0
    for i in np.argsort(key, kind="stable"):
        if key[i] != last or len(calls[-1][1]) == most or pairs + len(groups[i]) > pair_room(most):
            size, window = divmod(int(key[i]), max(len(windows), 1))
            calls.append((((sizes[size],), windows[window]) if windows else (sizes, None), []))
            pairs = 0
        calls[-1][1].append(groups[i])
        last, pairs = key[i], pairs + len(groups[i])
    return calls


def filled_groups(
    groups: list[np.ndarray],
    places: tuple[np.ndarray, np.ndarray],
    counts: tuple[np.ndarray, np.ndarray],
    sizes: tuple[int, ...],
    most: int,
) -> Groups:
    """The groups of a call as arrays, filled up to ``most`` of them. Their pairs are counted through, group by group.

    Args:
      places: int [N] each; the first rows of the pairs' drugs and proteins.
      counts: int [N] each; their atoms and residues.
      sizes: of the call's program.
    """
    rows, member = np.full((2, most, sizes[-1]), -1, np.int32)
    pairs = np.full((most, _MOST_PAIRS), pair_room(most), np.int32)
    start, count, size = np.zeros((3, most), np.int32)
    of_pair = np.zeros((2, pair_room(most)), np.int32)
    members, lengths = np.concatenate(groups), np.array([len(group) for group in groups])
    first = np.cumsum(lengths) - lengths  # pair of each group
    group = np.repeat(np.arange(len(groups)), lengths)  # of each pair
    number = np.arange(len(members)) - first[group]  # of each pair in its group
    atoms = counts[0][members]
    before = np.cumsum(atoms) - atoms  # atoms of the pairs before
    pair = np.repeat(np.arange(len(members)), atoms)  # of each atom
    atom, own = np.arange(len(pair)), group[pair]
    rows[own, atom - before[first][own]] = places[0][members][pair] + atom - before[pair]
    member[own, atom - before[first][own]] = number[pair]
    pairs[group, number] = np.arange(len(members))
    used, of_group = len(groups), members[first]
    start[:used], count[:used] = places[1][of_group], counts[1][of_group]
    size[:used] = np.searchsorted(sizes, np.add.reduceat(atoms, first))
    of_pair[:, : len(members)] = atoms, counts[1][members]
    arrays: Any = rows, member, pairs, start, count, size, *of_pair
    return Groups(*arrays)


def pool_groups(
    sizes: tuple[int, ...],
    window: int | None,
    heads: tuple[Array, Array],
    drugs: Array,
    proteins: Array,
    groups: Groups,
) -> Array:
    """``jaxdti.layers.bilinear.pooled_attention`` f float32 [N, K] of the pairs of the groups.

    Without a ``window``, on CPU, a loop takes one group after the other, and of its protein a part after the other, so
    that nothing is spent on filler. With one all groups are computed at once, with ``sizes[0]`` atoms and ``window``
    residues.

    Args:
      heads: w [K] and b [].
      drugs, proteins: rows of V and Q, [R, K]; those of Q go on for ``overhang`` past the last state.
    """
    weight, bias = heads
    wide, rank = jnp.promote_types(drugs.dtype, jnp.float32), drugs.shape[1]

    def pooled(size: int, rows: Array, member: Array, start: Array, count: Array) -> Array:
        rows, member = rows[:size], member[:size]
        v = drugs[rows] * (rows >= 0)[:, None].astype(drugs.dtype)
        weighted = v * weight.astype(v.dtype)[None]

        def add(step: int, first: Array | int, context: Array) -> Array:
            q = jax.lax.dynamic_slice(proteins, (start + first, 0), (step, rank))
            mine = first + jnp.arange(step) < count
            attention = jnp.where(mine[None], weighted @ q.T + bias.astype(v.dtype), 0.0)
            return context + jnp.matmul(attention, q, preferred_element_type=wide)

        context = jnp.zeros((size, rank), wide)
        if window is not None:
            context = add(window, 0, context)
        else:
            whole = count // _RESIDUES
            rest = -(-(count - whole * _RESIDUES) // _LAST_RESIDUES)
            later = lambda i: whole * _RESIDUES + i * _LAST_RESIDUES
            context = jax.lax.fori_loop(0, whole, lambda i, c: add(_RESIDUES, i * _RESIDUES, c), context)
            context = jax.lax.fori_loop(0, rest, lambda i, c: add(_LAST_RESIDUES, later(i), c), context)
        belongs = (member[None] == jnp.arange(_MOST_PAIRS)[:, None]).astype(wide)
        return jnp.matmul(belongs, v.astype(wide) * context, precision="highest")

    f = jnp.zeros((groups.atoms.shape[0], rank), wide)
    arrays = groups.rows, groups.member, groups.start, groups.count
    if window is not None:
        parts = jax.vmap(partial(pooled, sizes[0]))(*arrays)
        return f.at[groups.pairs.reshape(-1)].set(parts.reshape(-1, rank), mode="drop")

    def one_more(n: Array, f: Array) -> Array:
        part = jax.lax.switch(groups.size[n], [partial(pooled, size) for size in sizes], *(x[n] for x in arrays))
        return f.at[groups.pairs[n]].set(part, mode="drop")

    return jax.lax.fori_loop(0, (groups.count > 0).sum(), one_more, f)


def score_groups(
    model: DrugBAN,
    sizes: tuple[int, ...],
    window: int | None,
    variables: dict[str, Any],
    drugs: Array,
    proteins: Array,
    groups: Groups,
) -> Array:
    """float32 [N]: scores of the pairs of the groups, filler meaning nothing. Pure in ``variables``."""
    f = pool_groups(sizes, window, folded_heads(model, variables), drugs, proteins, groups)
    return decode(model, variables, f, groups.atoms, groups.residues)


def folded_heads(model: DrugBAN, variables: dict[str, Any]) -> tuple[Array, Array]:
    """w float32 [K] and b float32 [] of the attention."""
    folded: Any = model.apply(variables, method="folded_heads")
    return folded


def decode(model: DrugBAN, variables: dict[str, Any], f: Array, atoms: Array, residues: Array) -> Array:
    """float32 [B]: scores from pooled attention f [B, K] and the counts int32 [B] that pooling divides by."""
    logits: Any = model.apply(variables, f, atoms, residues, method="decode")
    return score(logits)


def score_grid(model: DrugBAN, variables: dict[str, Any], drugs: Grams, proteins: Grams) -> Array:
    """float32 [D, P]: scores of every drug of a tile with every protein of another. Pure in ``variables``."""
    heads = folded_heads(model, variables)
    f = gram_attention(drugs.gram, drugs.total, proteins.gram, proteins.total, *heads)
    shape = f.shape[:2]
    atoms = jnp.broadcast_to(drugs.count[:, None], shape).reshape(-1)
    residues = jnp.broadcast_to(proteins.count[None], shape).reshape(-1)
    return decode(model, variables, f.reshape(-1, f.shape[-1]), atoms, residues).reshape(shape)
