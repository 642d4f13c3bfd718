"""The two forms of scoring encoded pairs, their plans and the choice between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import ModelConfig
from jaxdti.data.batches import Shape
from jaxdti.inference.encode import Entities, Grams, Projected
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
from jaxdti.layers.bilinear import gram_attention, gram_state, pool_size, pooled_attention, pooling_divisor
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.state import init_variables

CONFIG = ModelConfig(
    drug_features=4,
    drug_layers=1,
    protein_features=4,
    protein_kernels=(3,),
    joint_features=5,
    pool_size=2,
    decoder_features=(4,),
)
RANK = 10
ATOMS, RESIDUES = (3, 1, 7), (11, 2, 30, 5)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def states(lengths, size, seed):
    """[T, size, K] of ReLU-like values, 0 past each length."""
    values = np.maximum(np.random.default_rng(seed).normal(size=(len(lengths), size, RANK)), 0.0)
    return (values * (np.arange(size)[None] < np.array(lengths)[:, None])[..., None]).astype(np.float32)


@pytest.fixture(scope="module")
def encoded():
    return states(ATOMS, 9, 0), states(RESIDUES, 32, 1)


def by_definition(v, q, w, b):
    """[D, P, K] in float64 from the map of every pair."""
    v, q, w, b = (np.asarray(x, np.float64) for x in (v, q, w, b))
    score = np.einsum("dak,plk,k->dpal", v, q, w) + b
    return np.einsum("dak,dpal,plk->dpk", v, score, q)


def grams_of(values):
    gram, total = gram_state(jnp.asarray(values))
    return gram, total


def test_both_forms_follow_the_definition(encoded):
    v, q = encoded
    rng = np.random.default_rng(2)
    w, b = rng.normal(size=RANK).astype(np.float32), np.float32(-0.7)
    expected = by_definition(v, q, w, b)
    scale = np.abs(expected).max(-1, keepdims=True)
    drug_gram, drug_total = grams_of(v)
    protein_gram, protein_total = grams_of(q)
    assert drug_gram.shape == (RANK, 3, RANK) and drug_total.shape == (3, RANK)
    gram = jax.jit(gram_attention)(drug_gram, drug_total, protein_gram, protein_total, w, b)
    np.testing.assert_array_less(np.abs(gram - expected) / scale, 1e-4)
    pairwise = np.stack([[pooled_attention(v[i : i + 1], q[j : j + 1], w, b)[0] for j in range(4)] for i in range(3)])
    np.testing.assert_array_less(np.abs(pairwise - expected) / scale, 1e-4)


def test_accelerators_compute_the_same(encoded, monkeypatch):
    """There the products are batched; on CPU they are looped over."""
    v, q = encoded
    heads = jnp.asarray(np.random.default_rng(2).normal(size=RANK), jnp.float32), jnp.float32(-0.7)
    drugs, proteins = Projected(jnp.asarray(v), jnp.array(ATOMS)), Projected(jnp.asarray(q), jnp.array(RESIDUES))
    drug, protein = jnp.array([2, 0, 2, 0]), jnp.array([3, 1, 0, 0])
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        f, atoms, residues = pool_pairs(heads, drugs, proteins, drug, protein, jnp.int32(3))
        assert atoms.tolist() == [7, 3, 7, 3] and residues.tolist() == [5, 2, 11, 11]
        found.append((f[:3], gram_attention(*grams_of(v), *grams_of(q), *heads)))
    (looped, looped_grid), (batched, batched_grid) = found
    assert np.abs(looped).max(1).min() > 0.1
    np.testing.assert_allclose(batched, looped, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batched_grid, looped_grid, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batched, batched_grid[drug[:3], protein[:3]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["sum", "sqrt", "mean"])
def test_the_divisor_is_that_of_the_masks(pool):
    masks = np.arange(9)[None] < np.array([3, 0, 7])[:, None], np.arange(32)[None] < np.array([11, 0, 30])[:, None]
    found = pooling_divisor(pool, jnp.array([3, 0, 7]), jnp.array([11, 0, 30]))
    np.testing.assert_array_equal(found, pool_size(pool, *map(jnp.asarray, masks)))


def test_programs_take_stacked_variables_and_agree(encoded):
    v, q = encoded
    single = [init_variables(CONFIG, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    model, atoms, residues = DrugBAN(CONFIG), jnp.array(ATOMS), jnp.array(RESIDUES)
    drugs, proteins = Projected(jnp.asarray(v), atoms), Projected(jnp.asarray(q), residues)
    drug, protein = (jnp.asarray(x.ravel()) for x in np.indices((3, 4)))

    @jax.jit
    def both(variables):
        pooled = pool_pairs(folded_heads(model, variables), drugs, proteins, drug, protein, jnp.int32(12))
        grid = score_grid(model, variables, Grams(*grams_of(v), atoms), Grams(*grams_of(q), residues))
        return decode(model, variables, *pooled), grid

    together = jax.vmap(both)(stacked)
    for replica, variables in enumerate(single):
        pairwise, grid = both(variables)
        assert np.ptp(pairwise) > 1e-3
        np.testing.assert_allclose(grid.reshape(-1), pairwise, rtol=1e-4, atol=1e-4 * np.abs(pairwise).max())
        np.testing.assert_allclose(together[0][replica], pairwise, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together[1][replica], grid, rtol=1e-5, atol=1e-6)


def choice(drugs, proteins, residues, pairs=None, keep=True, tile=1000):
    """For drugs of 24 atoms; every drug with every protein, unless ``pairs`` of them are drawn."""
    drug, protein = (x.ravel() for x in np.indices((drugs, proteins)))
    if pairs is not None:
        taken = np.random.default_rng(0).choice(drugs * proteins, pairs, replace=False)
        drug, protein = drug[taken], protein[taken]
    plan = TilePlan((min(drugs, tile),), (min(proteins, tile),), keep)
    return choose_form(np.full(drugs, 24), np.full(proteins, residues), drug, protein, 768, plan)


def test_the_gram_form_is_for_many_uses_of_an_entity():
    assert choice(68, 442, 788) == "gram"  # all of Davis
    assert choice(68, 442, 788, pairs=5010) == "pairwise"  # a sixth of it: the states cost more than they save
    assert choice(5, 400, 600) == "pairwise"  # too few uses of a protein
    assert choice(400, 1, 600) == "pairwise"  # and here of a drug
    assert choice(40, 400, 600) == "gram"
    assert choice(1, 1, 600) == "pairwise"
    assert choice(1000, 1000, 500, pairs=3000) == "pairwise"  # scattered pairs: most of a tile is not wanted


def test_small_tiles_and_drugs_encoded_again_count_against_the_gram_form():
    assert choice(300, 300, 64, tile=300) == "gram"
    assert choice(300, 300, 64, tile=10) == "pairwise"  # products too small
    assert choice(300, 300, 64, tile=32) == "gram"
    # 24 atoms built 300 times over outweigh what is saved.
    plan = TilePlan((300,), (1,), False)
    drug, protein = (x.ravel() for x in np.indices((300, 300)))
    sizes = np.full(300, 24), np.full(300, 200)
    assert choose_form(*sizes, drug, protein, 768, plan) == "pairwise"


def entities(kind, sizes, counts):
    of_entity = np.repeat(np.arange(len(sizes)), counts).astype(np.int32)
    return Entities(kind, tuple(Shape(0, 0, size) for size in sizes), of_entity, sizes, (4,) * len(sizes))


@pytest.mark.parametrize("memory", [1, 10_000, 300_000, 1 << 30])
def test_pairwise_tiles_fit_into_the_memory(memory):
    drugs, proteins = entities("drug", (8, 24), (50, 20)), entities("protein", (64, 320), (30, 9))
    plan = plan_pairwise(drugs, proteins, RANK, 4, memory)
    assert all(1 <= slots <= count for slots, count in zip(plan.drugs, (50, 20), strict=True))
    assert all(1 <= slots <= count for slots, count in zip(plan.proteins, (30, 9), strict=True))
    held = [slots * size * RANK * 4 for slots, size in zip(plan.drugs, drugs.states, strict=True)]
    drug_bytes = sum(held) if plan.keep_drugs else max(held)
    protein_bytes = max(slots * size * RANK * 4 for slots, size in zip(plan.proteins, proteins.states, strict=True))
    one_each = (24 + 320) * RANK * 4
    assert drug_bytes + protein_bytes <= memory + one_each
    assert plan.keep_drugs == (memory >= 2 * (50 * 8 + 20 * 24) * RANK * 4)
    if plan.keep_drugs:
        assert plan.drugs == (50, 20)


def test_gram_tiles_fit_into_half_of_the_memory():
    state = 4 * 768 * 768
    assert plan_grams(68, 442, 768, 1 << 30) == TilePlan((68,), (148,), True)  # 442 in three tiles as even as can be
    assert plan_grams(5000, 442, 768, 1 << 30).keep_drugs is False
    for drugs, proteins, memory in ((68, 442, 1 << 30), (5000, 442, 1 << 30), (3, 3, 1), (9000, 9000, 1 << 40)):
        plan = plan_grams(drugs, proteins, 768, memory)
        slots = plan.drugs[0] + plan.proteins[0]
        assert slots * state <= max(memory // 2, 2 * state) and max(plan.drugs + plan.proteins) <= 768
