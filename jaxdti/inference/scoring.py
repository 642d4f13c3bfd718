"""Scores of many pairs with given variables: encoders, cached states, pairs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdti.compilation import told_jit
from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.data.batches import Buckets, Shape, choose_buckets, one_bucket, pair_cost
from jaxdti.data.interactions import FeatureStore, InteractionTable
from jaxdti.inference.encode import (
    Encode,
    Entities,
    Grams,
    Projected,
    States,
    drug_entities,
    make_encoder,
    protein_entities,
)
from jaxdti.inference.pairs import (
    TilePlan,
    choose_form,
    decode,
    folded_heads,
    plan_grams,
    plan_pairwise,
    pool_pairs,
    score_grid,
)
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.features import DeviceFeatures

Scorer = Callable[[dict[str, Any], np.ndarray], np.ndarray]

MEMORY = 1 << 29  # bytes of states; on CPU, pages of more cost more than what is encoded twice
_MOST_BUCKETS = 4  # lengths of drugs, and lengths of proteins


def buckets_for(
    config: ModelConfig, table: InteractionTable, store: FeatureStore, count: int, batch_size: int
) -> Buckets:
    """Length buckets for these pairs, or the one fixed shape of the published code under ``reference``."""
    if config.reference:
        most_bonds = int(store.bond_counts.max(initial=1))
        return one_bucket(table, Shape(REFERENCE_ATOMS, -(-most_bonds // 8) * 8, REFERENCE_RESIDUES))
    return choose_buckets(table, store, count, least_rows=batch_size)


def make_scorer(
    config: ModelConfig,
    features: DeviceFeatures | FeatureStore,
    table: InteractionTable,
    buckets: Buckets,
    batch_size: int,
    *,
    memory: int = MEMORY,
) -> Scorer:
    """Builds ``scorer(variables, rows) -> float32 [len(rows)]``: raw network outputs of table rows.

    They come in the order of ``rows``, which may name a row more than once. BatchNorm uses the running statistics.

    Each distinct protein is encoded once a call, in tiles whose states fit into ``memory``, and each distinct pair is
    scored once. Each distinct drug is encoded once too, as long as the states of all the table's drugs take no more
    than half of ``memory`` (a quarter, in the Gram form); otherwise once for every protein tile that it is wanted with.
    The form, pairwise or Gram, is the cheaper one for these rows (``choose_form``).

    Programs, compiled and told at first use, where E <= 8 is the number of length buckets of drugs and of proteins and
    S <= 16 that of their pairs: pairwise E encoders, S that pool, and two more, so at most 26; Gram E encoders and one
    more, so at most 9. The zeros that each kind of tile begins with are not counted. Fewer lengths would save programs
    and cost more in padding (benchmarks/README.md).

    Args:
      features: on the device; a store stays on the host, and every encoder call brings those of its own entities.
      buckets: those of the training; how many they are bounds the length buckets of drugs and of proteins, as does 4.
      batch_size: most entities, and pairs, that one program call takes.
      memory: bytes of states on the device, at least those of one drug and one protein.
    """
    config = replace(config, dropout=0.0)  # it has no part here, and would make programs of its own
    drugs, proteins = _entities(config, features, table, min(len(buckets.shapes), _MOST_BUCKETS), batch_size)
    model, rank = DrugBAN(config), config.joint_features * config.pool_size
    encoders = make_encoder(config, features, drugs), make_encoder(config, features, proteins)
    pairwise_plan = plan_pairwise(drugs, proteins, rank, jnp.dtype(config.dtype).itemsize, memory)
    gram_plan = plan_grams(len(np.unique(table.drug)), len(np.unique(table.protein)), rank, memory)
    pairwise = _pairwise(model, drugs, proteins, pairwise_plan, encoders, rank, batch_size)
    gram = _gram(model, drugs, proteins, gram_plan, encoders, rank)
    drug_rows, protein_rows = np.array(drugs.states)[drugs.of_entity], np.array(proteins.states)[proteins.of_entity]

    def score_rows(variables: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.zeros(0, np.float32)
        pairs, of_row = np.unique(np.stack([table.drug[rows], table.protein[rows]]), axis=1, return_inverse=True)
        (drug_ids, drug), (protein_ids, protein) = (np.unique(ids, return_inverse=True) for ids in pairs)
        form = choose_form(drug_rows[drug_ids], protein_rows[protein_ids], drug, protein, rank, gram_plan)
        scores = (gram if form == "gram" else pairwise)(variables, *pairs)
        return scores[of_row.reshape(-1)]

    return score_rows


def _entities(
    config: ModelConfig, features: DeviceFeatures | FeatureStore, table: InteractionTable, most: int, batch_size: int
) -> tuple[Entities, Entities]:
    """Drugs and proteins of the table by length: the work that each adds is its encoder's and its pairs'."""
    atoms, residues = np.diff(np.asarray(features.atom_offsets)), np.diff(np.asarray(features.residue_offsets))
    drug_uses = np.bincount(table.drug, minlength=len(atoms))
    protein_uses = np.bincount(table.protein, minlength=len(residues))
    multiplications = 2e-6 * config.joint_features * config.pool_size  # millions for an atom with a residue
    drug_work = multiplications * residues[table.protein].mean() if len(table) else 0.0
    protein_work = multiplications * atoms[table.drug].mean() if len(table) else 0.0
    return (
        drug_entities(config, features, pair_cost(1, 0) * (drug_uses > 0) + drug_work * drug_uses, most, batch_size),
        protein_entities(
            config, features, pair_cost(0, 1) * (protein_uses > 0) + protein_work * protein_uses, most, batch_size
        ),
    )


PairScorer = Callable[[dict[str, Any], np.ndarray, np.ndarray], np.ndarray]
Encoders = tuple[Encode, Encode]


def _pairwise(
    model: DrugBAN,
    drugs: Entities,
    proteins: Entities,
    plan: TilePlan,
    encoders: Encoders,
    rank: int,
    batch_size: int,
) -> PairScorer:
    """``score(variables, drug, protein)``: scores of distinct pairs of entities, int [N] each, in the pairwise form."""

    def pool_name(heads, drugs: Projected, proteins: Projected, drug, *_) -> str:
        atoms, residues = drugs.values.shape[1], proteins.values.shape[1]
        return f"attention of {len(drug)} pairs of {atoms} atoms, {residues} residues"

    config = model.config
    heads = told_jit(partial(folded_heads, model), lambda *_: "attention weights", ("heads", config))
    pool = told_jit(pool_pairs, pool_name, "pool")
    finish = told_jit(partial(decode, model), lambda variables, f, *_: f"decoder of {len(f)} pairs", ("decode", config))

    def empty(entities: Entities, slots: tuple[int, ...], bucket: int) -> States:
        shape = (slots[bucket], entities.states[bucket], rank)
        return Projected(jnp.zeros(shape, jnp.dtype(config.dtype)), jax.device_put(np.zeros(shape[0], np.int32)))

    def score_tile(variables, drug_states, protein_states, drug, protein) -> np.ndarray:
        parts, folded = [], heads(variables)
        for start in range(0, len(drug), batch_size):
            batch = np.zeros((2, batch_size), np.int32)
            count = len(drug[start : start + batch_size])
            batch[:, :count] = drug[start : start + count], protein[start : start + count]
            pooled = pool(folded, drug_states, protein_states, *batch, np.int32(count))
            parts.append((finish(variables, *pooled), count))
        return np.concatenate([np.asarray(part)[:count] for part, count in parts])

    def score(variables: dict[str, Any], drug: np.ndarray, protein: np.ndarray) -> np.ndarray:
        return _over_tiles(
            variables,
            (drug, protein),
            (
                tiles(np.unique(drug), drugs.of_entity, plan.drugs),
                tiles(np.unique(protein), proteins.of_entity, plan.proteins),
            ),
            (partial(empty, drugs, plan.drugs), partial(empty, proteins, plan.proteins)),
            encoders,
            plan.keep_drugs,
            score_tile,
        )

    return score


def _gram(
    model: DrugBAN, drugs: Entities, proteins: Entities, plan: TilePlan, encoders: Encoders, rank: int
) -> PairScorer:
    """As ``_pairwise``, in the Gram form: whole tiles are scored, and the wanted pairs picked."""
    name = lambda variables, drugs, proteins: f"scores of {len(drugs.count)} drugs x {len(proteins.count)} proteins"
    program = told_jit(partial(score_grid, model), name, ("grid", model.config))

    def empty(slots: int, key: int) -> States:
        total, count = np.zeros((slots, rank), np.float32), np.zeros(slots, np.int32)
        return Grams(jnp.zeros((rank, slots, rank)), *jax.device_put((total, count)))

    def score_tile(variables, drug_states, protein_states, drug, protein) -> np.ndarray:
        return np.asarray(program(variables, drug_states, protein_states))[drug, protein]

    def by_length(index: np.ndarray, entities: Entities, slots: tuple[int, ...]):
        index = np.unique(index)
        ordered = index[
            np.argsort(entities.of_entity[index], kind="stable")
        ]  # few buckets a tile, full encoder batches
        return tiles(ordered, np.zeros(len(entities.of_entity), np.int32), slots)

    def score(variables: dict[str, Any], drug: np.ndarray, protein: np.ndarray) -> np.ndarray:
        return _over_tiles(
            variables,
            (drug, protein),
            (by_length(drug, drugs, plan.drugs), by_length(protein, proteins, plan.proteins)),
            (partial(empty, plan.drugs[0]), partial(empty, plan.proteins[0])),
            encoders,
            plan.keep_drugs,
            score_tile,
        )

    return score


Tile = tuple[int, np.ndarray]  # the kind of its buffer (its length bucket, if it has one) and its entities


def tiles(index: np.ndarray, kind: np.ndarray, slots: tuple[int, ...]) -> list[Tile]:
    """The distinct entities ``index`` in tiles of one kind and of at most ``slots[kind]``, in the given order."""
    found = []
    for key, size in enumerate(slots):
        mine = index[kind[index] == key]
        found.extend((key, mine[start : start + size]) for start in range(0, len(mine), size))
    return found


def _over_tiles(
    variables: dict[str, Any],
    pairs: tuple[np.ndarray, np.ndarray],
    tiles_of: tuple[list[Tile], list[Tile]],
    empty: tuple[Callable[[int], States], Callable[[int], States]],
    encoders: Encoders,
    keep_drugs: bool,
    score_tile: Callable[..., np.ndarray],
) -> np.ndarray:
    """Encodes tile after tile and scores the pairs that meet there: float32 [N] in the order of ``pairs``.

    Everything in pairs is (of drugs, of proteins). ``score_tile(variables, drug states, protein states, drug slots,
    protein slots)`` gives the scores of the pairs of two tiles.
    """
    (drug, protein), (drug_tiles, protein_tiles) = pairs, tiles_of
    drug_tile, drug_slot = _places(drug_tiles, int(drug.max()) + 1)
    protein_tile, protein_slot = _places(protein_tiles, int(protein.max()) + 1)
    meeting = protein_tile[protein] * len(drug_tiles) + drug_tile[drug]
    order = np.lexsort((protein, meeting))  # pairs of one protein together, so that it stays in the caches
    groups = np.split(order, np.flatnonzero(np.diff(meeting[order])) + 1)

    scores = np.zeros(len(drug), np.float32)
    kept: dict[int, States] = {}
    protein_buffer, drug_buffer = _Buffer(encoders[1], empty[1]), _Buffer(encoders[0], empty[0])
    encoded = -1
    for rows in groups:
        p, d = divmod(int(meeting[rows[0]]), len(drug_tiles))
        if p != encoded:
            protein_buffer.fill(variables, *protein_tiles[p])
            encoded = p
        key, members = drug_tiles[d]
        slots = drug_slot[drug[rows]]
        if not keep_drugs:
            # Only those that this tile of proteins is wanted with.
            present, slots = np.unique(slots, return_inverse=True)
            states = drug_buffer.fill(variables, key, members[present])
        else:
            if d not in kept:
                kept[d] = encoders[0](variables, members, empty[0](key))
            states = kept[d]
        scores[rows] = score_tile(variables, states, protein_buffer.states, slots, protein_slot[protein[rows]])
    return scores


def _places(found: list[Tile], count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [count] each: the tile of an entity and its slot in there."""
    tile, slot = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for i, (_, members) in enumerate(found):
        tile[members], slot[members] = i, np.arange(len(members))
    return tile, slot


class _Buffer:
    """One tile of states at a time, refilled in place: a fresh gigabyte would have to be paged in for each."""

    def __init__(self, encode: Encode, empty: Callable[[int], States]):
        self.encode, self.empty = encode, empty
        self.key, self.states = -1, None

    def fill(self, variables: dict[str, Any], key: int, members: np.ndarray) -> States:
        if self.states is None or key != self.key:
            self.states = None  # before the next one is allocated
            self.key, self.states = key, self.empty(key)
        self.states = self.encode(variables, members, self.states)
        return self.states
