"""Scores of many pairs with given variables: encoders, cached states, pairs."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.data.pairs.buckets import Buckets, Shape, choose_buckets, one_bucket, pair_cost
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.inference.encode import Encode, Entities, Grams, States, drug_entities, make_encoder, protein_entities
from jaxdti.inference.pairs import (
    Groups,
    Tile,
    TilePlan,
    choose_form,
    filled_groups,
    group_calls,
    group_sizes,
    grouped,
    overhang,
    plan_grams,
    plan_pairwise,
    residue_windows,
    row_tiles,
    score_grid,
    score_groups,
    slot_tiles,
)
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.compilation import told_jit
from jaxdti.training.task import Scorer

MEMORY = 1 << 29  # bytes of states; on CPU, pages of more cost more than what is encoded twice
_MOST_LENGTHS = 4  # of drugs


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
    scored once. Each distinct drug is encoded once too, as long as the states of all drugs of a call take no more than
    half of ``memory`` (a quarter, in the Gram form); otherwise once for every protein tile that it is wanted with.
    The form, pairwise or Gram, is the cheaper one for these rows (``choose_form``).

    Programs, compiled and told at first use: the proteins' encoder, one a length of drugs, of which there are at most
    4, and one for the pairs. On accelerators the pairwise form has one for each size of ``group_sizes`` with each of at
    most 4 lengths of proteins that it meets. The zeros that tiles begin with are not counted.

    Args:
      features: on the device; a store stays on the host, and every encoder call brings those of its own entities.
      buckets: those of the training; two fewer, and 4, are the most lengths of drugs, so that training and scoring
        together compile two programs a bucket.
      batch_size: most drugs, and groups of pairs of one protein, that one program call takes.
      memory: bytes of states on the device, at least those of one drug and one protein.
    """
    config = replace(config, dropout=0.0)  # it has no part here, and would make programs of its own
    lengths = min(max(len(buckets.shapes) - 2, 1), _MOST_LENGTHS)
    drugs = drug_entities(config, features, _drug_work(config, features, table), lengths, batch_size)
    proteins = protein_entities(config, features, batch_size)
    model, rank = DrugBAN(config), config.joint_features * config.pool_size
    encoders = make_encoder(config, features, drugs), make_encoder(config, features, proteins)
    pairwise_plan = plan_pairwise(drugs, proteins, rank, jnp.dtype(config.dtype).itemsize, memory)
    gram_plan = plan_grams(len(np.unique(table.drug)), len(np.unique(table.protein)), rank, memory)
    pairwise = _pairwise(model, drugs, proteins, pairwise_plan, encoders, rank, batch_size)
    gram = _gram(model, drugs, proteins, gram_plan, encoders, rank)

    def score_rows(variables: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.zeros(0, np.float32)
        pairs, of_row = np.unique(np.stack([table.drug[rows], table.protein[rows]]), axis=1, return_inverse=True)
        (drug_ids, drug), (protein_ids, protein) = (np.unique(ids, return_inverse=True) for ids in pairs)
        form = choose_form(drugs.counts[drug_ids], proteins.counts[protein_ids], drug, protein, rank, gram_plan)
        scores = (gram if form == "gram" else pairwise)(variables, *pairs)
        return scores[of_row.reshape(-1)]

    return score_rows


def _drug_work(config: ModelConfig, features: DeviceFeatures | FeatureStore, table: InteractionTable) -> np.ndarray:
    """What an atom of each drug of the table costs: its encoder, and its pairs."""
    residues = np.diff(np.asarray(features.residue_offsets))
    uses = np.bincount(table.drug, minlength=len(features.atom_offsets) - 1)
    multiplications = 2e-6 * config.joint_features * config.pool_size  # millions for an atom with a residue
    pair_work = multiplications * residues[table.protein].mean() if len(table) else 0.0
    return pair_cost(1, 0) * (uses > 0) + pair_work * uses


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
    config, dtype = model.config, jnp.dtype(model.config.dtype)
    sizes, windows = group_sizes(int(drugs.counts.max())), residue_windows(proteins.counts)

    @cache
    def program(sizes: tuple[int, ...], window: int | None):
        def name(variables, drugs, proteins, groups: Groups) -> str:
            each = f" of {sizes[0]} atoms, {window} residues" if window else ""
            return f"attention of {len(groups.start)} groups of pairs{each}"

        return told_jit(partial(score_groups, model, sizes, window), name, ("groups", config, sizes, window))

    def score_tile(variables, states, places, drug, protein) -> np.ndarray:
        counts, parts = (drugs.counts[drug], proteins.counts[protein]), []
        for key, groups in group_calls(grouped(counts[0], protein), counts, sizes, windows, batch_size):
            filled = filled_groups(groups, places, counts, key[0], batch_size)
            parts.append((np.concatenate(groups), program(*key)(variables, *states, filled)))
        scores = np.zeros(len(drug), np.float32)
        for members, part in parts:
            scores[members] = np.asarray(part)[: len(members)]
        return scores

    def score(variables: dict[str, Any], drug: np.ndarray, protein: np.ndarray) -> np.ndarray:
        return _over_tiles(
            variables,
            (drug, protein),
            (partial(row_tiles, drugs, most=plan.drugs), partial(row_tiles, proteins, most=plan.proteins)),
            (
                partial(jnp.zeros, (plan.drugs, rank), dtype),
                partial(jnp.zeros, (plan.proteins + overhang(windows), rank), dtype),
            ),
            encoders,
            score_tile,
        )

    return score


def _gram(
    model: DrugBAN, drugs: Entities, proteins: Entities, plan: TilePlan, encoders: Encoders, rank: int
) -> PairScorer:
    """As ``_pairwise``, in the Gram form: whole tiles are scored, and the wanted pairs picked."""
    name = lambda variables, drugs, proteins: f"scores of {len(drugs.count)} drugs x {len(proteins.count)} proteins"
    program = told_jit(partial(score_grid, model), name, ("grid", model.config))

    def empty(slots: int) -> States:
        total, count = np.zeros((slots, rank), np.float32), np.zeros(slots, np.int32)
        return Grams(jnp.zeros((rank, slots, rank)), *jax.device_put((total, count)))

    def score_tile(variables, states, places, drug, protein) -> np.ndarray:
        return np.asarray(program(variables, *states))[places]

    def score(variables: dict[str, Any], drug: np.ndarray, protein: np.ndarray) -> np.ndarray:
        return _over_tiles(
            variables,
            (drug, protein),
            (partial(slot_tiles, drugs, most=plan.drugs), partial(slot_tiles, proteins, most=plan.proteins)),
            (partial(empty, plan.drugs), partial(empty, plan.proteins)),
            encoders,
            score_tile,
        )

    return score


def _over_tiles(
    variables: dict[str, Any],
    pairs: tuple[np.ndarray, np.ndarray],
    tiles_of: tuple[Callable[[np.ndarray], list[Tile]], Callable[[np.ndarray], list[Tile]]],
    empty: tuple[Callable[[], States], Callable[[], States]],
    encoders: Encoders,
    score_tile: Callable[..., np.ndarray],
) -> np.ndarray:
    """Encodes tile after tile and scores the pairs that meet there: float32 [N] in the order of ``pairs``.

    Everything in pairs is (of drugs, of proteins). ``score_tile(variables, states, places, drug, protein)`` gives the
    scores of pairs of entities, whose places are in the states of two tiles.
    """
    drug, protein = pairs
    drug_tiles, protein_tiles = tiles_of[0](np.unique(drug)), tiles_of[1](np.unique(protein))
    drug_place, protein_place = np.zeros(drug.max() + 1, int), np.zeros(protein.max() + 1, int)
    meeting = _tile_of(protein_tiles, protein) * len(drug_tiles) + _tile_of(drug_tiles, drug)
    order = np.lexsort((protein, meeting))  # pairs of one protein together
    scores = np.zeros(len(drug), np.float32)
    drug_buffer, protein_buffer = _Buffer(encoders[0], empty[0]), _Buffer(encoders[1], empty[1])
    for rows in np.split(order, np.flatnonzero(np.diff(meeting[order])) + 1):
        p = int(meeting[rows[0]]) // len(drug_tiles)
        # Where drugs do not stay, only those that this tile of proteins is wanted with.
        drug_tile = drug_tiles[0] if len(drug_tiles) == 1 else tiles_of[0](np.unique(drug[rows]))[0]
        for buffer, tile, place in (
            (drug_buffer, drug_tile, drug_place),
            (protein_buffer, protein_tiles[p], protein_place),
        ):
            buffer.fill(variables, tile)
            place[tile.members] = tile.places
        places = drug_place[drug[rows]], protein_place[protein[rows]]
        states = drug_buffer.states, protein_buffer.states
        scores[rows] = score_tile(variables, states, places, drug[rows], protein[rows])
    return scores


def _tile_of(tiles: list[Tile], index: np.ndarray) -> np.ndarray:
    """int [N]: the tile of each entity."""
    of_entity = np.zeros(index.max() + 1, int)
    for i, tile in enumerate(tiles):
        of_entity[tile.members] = i
    return of_entity[index]


class _Buffer:
    """One tile of states at a time, refilled in place: a fresh gigabyte would have to be paged in for each."""

    def __init__(self, encode: Encode, empty: Callable[[], States]):
        self.encode, self.states = encode, empty()
        self.tile: Tile | None = None

    def fill(self, variables: dict[str, Any], tile: Tile) -> None:
        if tile is not self.tile:
            for block, place in tile.blocks:
                self.states = self.encode(variables, block, place, self.states)
            self.tile = tile
