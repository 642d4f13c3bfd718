"""Pairs scored from encoded drugs and proteins, by the cheaper of two exact forms, under a memory budget."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.inference.encode import Entities, Grams, Projected
from jaxdti.layers.bilinear import gram_attention, pooled_attention
from jaxdti.models.drugban import DrugBAN, score


@dataclass(frozen=True)
class TilePlan:
    """How many states are held at a time."""

    drugs: tuple[int, ...]  # slots of a drug tile, by drug bucket; one number where tiles mix buckets
    proteins: tuple[int, ...]  # likewise
    keep_drugs: bool  # all drug tiles are held together, so that each drug is encoded once


def plan_pairwise(drugs: Entities, proteins: Entities, rank: int, item: int, memory: int) -> TilePlan:
    """Tiles of ``Projected`` states, each of one bucket, within about ``memory`` bytes.

    All drugs stay if they fit into half of it; otherwise a tile of drugs and a tile of proteins get half of it each.

    Args:
      rank: K, columns of a state.
      item: bytes of a number of a state.
    """
    members = np.bincount(drugs.of_entity, minlength=len(drugs.states))
    row = rank * item
    all_drugs = int(np.sum(members * drugs.states)) * row
    keep = all_drugs <= memory // 2
    left = memory - (all_drugs if keep else memory // 2)
    return TilePlan(
        drugs=tuple(members.tolist()) if keep else _slots(drugs, memory // 2, row),
        proteins=_slots(proteins, left, row),
        keep_drugs=keep,
    )


def _slots(entities: Entities, memory: int, row: int) -> tuple[int, ...]:
    members = np.bincount(entities.of_entity, minlength=len(entities.states))
    return tuple(
        max(1, min(count, memory // (states * row)))
        for count, states in zip(members.tolist(), entities.states, strict=True)
    )


def plan_grams(drugs: int, proteins: int, rank: int, memory: int) -> TilePlan:
    """Tiles of ``Grams`` states, of any lengths, within about ``memory`` bytes.

    Half of it holds the states of ``drugs`` and ``proteins`` distinct entities, in which all drugs stay if they take
    half; the rest is for the products, so no tile has more than K slots.
    """
    held = max(2, memory // (2 * 4 * rank * rank))
    keep = drugs <= min(max(1, held // 2), rank)
    drug_slots = drugs if keep else max(1, min(held // 2, rank))
    return TilePlan(
        drugs=(drug_slots,),
        proteins=(_even(proteins, max(1, min(held - drug_slots, rank))),),
        keep_drugs=keep,
    )


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

    where A and L are padded and D P counts whole tiles, wanted or not, so the Gram form pays where many of the possible
    pairs are wanted: all proteins of 600 residues with all of 20 drugs or more. Where drugs are not kept, their states
    are built once a protein tile.

    Args:
      drug_rows, protein_rows: int [D], [P], padded lengths of the distinct entities.
      drug, protein: int [N], the pairs, as positions in these.
      rank: K.
      grams: the tiles that the Gram form would use.
    """
    pairwise = 4.0 * rank * float(np.sum(drug_rows[drug].astype(float) * protein_rows[protein]))
    drug_tiles = -(-len(drug_rows) // grams.drugs[0])
    protein_tiles = -(-len(protein_rows) // grams.proteins[0])
    tile = float(max(grams.drugs[0], _LEAST_TILE) * max(grams.proteins[0], _LEAST_TILE))
    builds = 1 if grams.keep_drugs else protein_tiles
    states = builds * float(drug_rows.sum()) + float(protein_rows.sum())
    return "gram" if 2.0 * rank**2 * (states + drug_tiles * protein_tiles * tile) < pairwise else "pairwise"


def folded_heads(model: DrugBAN, variables: dict[str, Any]) -> tuple[Array, Array]:
    """w float32 [K] and b float32 [] of the attention."""
    folded: Any = model.apply(variables, method="folded_heads")
    return folded


def pool_pairs(
    heads: tuple[Array, Array], drugs: Projected, proteins: Projected, drug: Array, protein: Array, count: Array
) -> tuple[Array, Array, Array]:
    """What ``decode`` takes, of the first ``count`` of B pairs of slots int32 [B]; the rest mean nothing.

    Pooled attention f [B, K], atoms int32 [B], residues int32 [B]. ``heads`` are those of ``folded_heads``. This is
    compiled for each pair of length buckets; everything before and after it is not.
    """

    def pooled(i: Array, j: Array) -> Array:
        return pooled_attention(drugs.values[i][None], proteins.values[j][None], *heads)[0]

    if jax.default_backend() == "cpu":
        # One pair at a time: XLA's batched product is about 8 times slower on CPU (24 atoms, 512 residues, K = 768:
        # 1.2 against 0.15 ms a pair), and nothing is spent on filler.
        f = jnp.zeros((len(drug), drugs.values.shape[-1]))
        f = jax.lax.fori_loop(0, count, lambda n, f: f.at[n].set(pooled(drug[n], protein[n])), f)
    else:
        f = jax.vmap(pooled)(drug, protein)
    return f, drugs.count[drug], proteins.count[protein]


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
