"""The two forms of scoring encoded pairs, their plans and the choice between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxdti.config import ModelConfig
from jaxdti.data.pairs.buckets import Shape
from jaxdti.inference.encode import Entities, Grams
from jaxdti.inference.pairs import (
    TilePlan,
    choose_form,
    decode,
    filled_groups,
    folded_heads,
    group_calls,
    group_sizes,
    grouped,
    overhang,
    plan_grams,
    plan_pairwise,
    pool_groups,
    residue_windows,
    row_tiles,
    score_grid,
    score_groups,
    slot_tiles,
)
from jaxdti.layers.bilinear import gram_attention, gram_state, pool_size, pooled_attention, pooling_divisor
from jaxdti.models.drugban import DrugBAN, init_variables

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


def one_after_the_other(values, lengths, after):
    """Rows [R, K] of the states, with rubbish between them and ``after`` rows at the end, and their first rows."""
    rng, rows, first = np.random.default_rng(5), [], []
    for state, length in zip(values, lengths, strict=True):
        first.append(sum(map(len, rows)))
        rows += [state[:length], rng.normal(size=(2, values.shape[-1]))]
    return jnp.asarray(np.concatenate([*rows, rng.normal(size=(after, values.shape[-1]))]), jnp.float32), np.array(
        first
    )


def pooled(heads, encoded, drug, protein, windows, most=4):
    """f [N, K] of pairs, from as many calls as their groups take."""
    (v, first_atom), (q, first_residue) = (
        one_after_the_other(x, n, overhang(windows)) for x, n in zip(encoded, (ATOMS, RESIDUES), strict=True)
    )
    counts, sizes = (np.array(ATOMS)[drug], np.array(RESIDUES)[protein]), group_sizes(max(ATOMS))
    found = np.full((len(drug), RANK), np.nan)
    for (call_sizes, window), groups in group_calls(grouped(counts[0], protein), counts, sizes, windows, most):
        places = first_atom[drug], first_residue[protein]
        filled = jax.tree.map(jnp.asarray, filled_groups(groups, places, counts, call_sizes, most))
        members = np.concatenate(groups)
        np.testing.assert_array_equal(filled.atoms[: len(members)], counts[0][members])
        np.testing.assert_array_equal(filled.residues[: len(members)], counts[1][members])
        found[members] = pool_groups(call_sizes, window, heads, v, q, filled)[: len(members)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("steps", [(384, 128), (8, 3)], ids=["short", "in steps"])
def test_groups_are_pooled_by_definition(encoded, backend, steps, monkeypatch):
    """On CPU in a loop, elsewhere all at once."""
    monkeypatch.setattr("jaxdti.inference.pairs._RESIDUES", steps[0])
    monkeypatch.setattr("jaxdti.inference.pairs._LAST_RESIDUES", steps[1])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    w, b = np.random.default_rng(2).normal(size=RANK).astype(np.float32), np.float32(-0.7)
    drug, protein = (x.ravel() for x in np.indices((3, 4)))
    order = np.random.default_rng(3).permutation(12)
    order = order[np.argsort(protein[order], kind="stable")]
    windows = residue_windows(np.array(RESIDUES))
    assert (windows == ()) == (backend == "cpu")
    found = pooled((jnp.asarray(w), jnp.asarray(b)), encoded, drug[order], protein[order], windows)
    expected = by_definition(*encoded, w, b)[drug[order], protein[order]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    grid = gram_attention(*grams_of(encoded[0]), *grams_of(encoded[1]), jnp.asarray(w), jnp.asarray(b))
    np.testing.assert_allclose(found, grid[drug[order], protein[order]], rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@given(data=st.data())
def test_groups_hold_every_pair_once_and_one_protein(data):
    proteins = np.sort(data.draw(arrays(np.int64, data.draw(st.integers(1, 60)), elements=st.integers(0, 8))))
    atoms = data.draw(arrays(np.int64, len(proteins), elements=st.integers(1, 290)))
    groups = grouped(atoms, proteins)
    assert [i for group in groups for i in group.tolist()] == list(range(len(proteins)))
    for group in groups:
        assert len(set(proteins[group])) == 1 and len(group) <= 16
        assert atoms[group].sum() <= 96 or len(group) == 1
    counts, sizes = (atoms, np.full(len(atoms), 5)), group_sizes(290)
    for windows in ((), (16,)):
        calls = group_calls(groups, counts, sizes, windows, 3)
        assert sorted(i for _, part in calls for group in part for i in group) == list(range(len(proteins)))
        for (call_sizes, window), part in calls:
            assert len(part) <= 3 and sum(map(len, part)) <= 16
            assert max(atoms[group].sum() for group in part) <= call_sizes[-1]
            assert (call_sizes, window) == (sizes, None) if not windows else len(call_sizes) == 1 and window == 16


def test_sizes_of_groups_hold_the_largest_drug():
    assert group_sizes(1) == group_sizes(96) == (24, 48, 72, 96)
    assert group_sizes(97) == (24, 48, 72, 96, 120) and group_sizes(192) == (24, 48, 72, 96, 192)
    assert group_sizes(290) == (24, 48, 72, 96, 192, 288, 312)


@pytest.mark.parametrize("pool", ["sum", "sqrt", "mean"])
def test_the_divisor_is_that_of_the_masks(pool):
    masks = np.arange(9)[None] < np.array([3, 0, 7])[:, None], np.arange(32)[None] < np.array([11, 0, 30])[:, None]
    found = pooling_divisor(pool, jnp.array([3, 0, 7]), jnp.array([11, 0, 30]))
    np.testing.assert_array_equal(found, pool_size(pool, *map(jnp.asarray, masks)))


@pytest.mark.slow
def test_programs_take_stacked_variables_and_agree(encoded):
    v, q = encoded
    single = [init_variables(CONFIG, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    model, atoms, residues = DrugBAN(CONFIG), jnp.array(ATOMS), jnp.array(RESIDUES)
    protein, drug = (x.ravel() for x in np.indices((4, 3)))
    counts, sizes = (np.array(ATOMS)[drug], np.array(RESIDUES)[protein]), group_sizes(7)
    (drugs, first_atom), (proteins, first_residue) = (
        one_after_the_other(v, ATOMS, 0),
        one_after_the_other(q, RESIDUES, 384),
    )
    places = first_atom[drug], first_residue[protein]
    groups = jax.tree.map(jnp.asarray, filled_groups(grouped(counts[0], protein), places, counts, sizes, 4))

    @jax.jit
    def both(variables):
        grid = score_grid(model, variables, Grams(*grams_of(v), atoms), Grams(*grams_of(q), residues))
        return score_groups(model, sizes, None, variables, drugs, proteins, groups)[:12], grid

    together = jax.vmap(both)(stacked)
    for replica, variables in enumerate(single):
        pairwise, grid = both(variables)
        assert np.ptp(pairwise) > 1e-3
        np.testing.assert_allclose(grid.T.reshape(-1), pairwise, rtol=1e-4, atol=1e-4 * np.abs(pairwise).max())
        np.testing.assert_allclose(together[0][replica], pairwise, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together[1][replica], grid, rtol=1e-5, atol=1e-6)
        f = pool_groups(sizes, None, folded_heads(model, variables), drugs, proteins, groups)
        decoded = decode(model, variables, f, groups.atoms, groups.residues)
        np.testing.assert_allclose(decoded[:12], pairwise, rtol=1e-5, atol=1e-6)


def choice(drugs, proteins, residues, pairs=None, tile=1000):
    """For drugs of 24 atoms; every drug with every protein, unless ``pairs`` of them are drawn."""
    drug, protein = (x.ravel() for x in np.indices((drugs, proteins)))
    if pairs is not None:
        taken = np.random.default_rng(0).choice(drugs * proteins, pairs, replace=False)
        drug, protein = drug[taken], protein[taken]
    plan = TilePlan(min(drugs, tile), min(proteins, tile))
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
    plan = TilePlan(299, 1)
    drug, protein = (x.ravel() for x in np.indices((300, 300)))
    sizes = np.full(300, 24), np.full(300, 200)
    assert choose_form(*sizes, drug, protein, 768, plan) == "pairwise"


def entities(kind, sizes, counts):
    """As many entities of each size as ``counts`` says, four at a time; proteins lie end to end, 400 rows together."""
    lengths, of_entity = np.repeat(sizes, counts).astype(np.int32), np.repeat(np.arange(len(sizes)), counts)
    if kind == "protein":
        return Entities(kind, lengths, np.zeros(len(lengths), np.int32), (Shape(0, 0, 400),), (6,), (400,), gap=3)
    shapes, rows = tuple(Shape(size, size, 0) for size in sizes), tuple(4 * size for size in sizes)
    return Entities(kind, lengths, of_entity.astype(np.int32), shapes, (4,) * len(sizes), rows, gap=None)


@pytest.mark.parametrize("memory", [1, 40_000, 300_000, 1 << 30])
def test_pairwise_tiles_fit_into_the_memory(memory):
    both = entities("drug", (8, 24), (50, 20)), entities("protein", (64, 320), (30, 9))
    plan = plan_pairwise(*both, RANK, 4, memory)
    assert (plan.drugs + plan.proteins) * RANK * 4 <= memory + (4 * 24 + 400) * RANK * 4
    for of_kind, most in zip(both, (plan.drugs, plan.proteins), strict=True):
        index = np.random.default_rng(0).permutation(len(of_kind.counts))
        tiles = row_tiles(of_kind, index, most)
        assert sorted(np.concatenate([tile.members for tile in tiles])) == sorted(index)
        assert (len(tiles) == 1) == (memory >= 300_000)
        for tile in tiles:
            assert all(row + of_kind.rows[block.bucket] <= most for block, row in tile.blocks)
            order = np.argsort(tile.places)
            ends = tile.places[order] + of_kind.counts[tile.members[order]]
            assert (ends[:-1] <= tile.places[order][1:]).all() and ends[-1] <= most


def test_gram_tiles_hold_every_entity_once():
    for of_kind in (entities("drug", (8, 24), (50, 20)), entities("protein", (64, 320), (30, 9))):
        index = np.random.default_rng(0).permutation(len(of_kind.counts))
        tiles = slot_tiles(of_kind, index, 11)
        assert sorted(np.concatenate([tile.members for tile in tiles])) == sorted(index)
        for tile in tiles:
            assert sorted(tile.places) == list(range(len(tile.members))) and len(tile.members) <= 11
            slot = dict(zip(tile.members.tolist(), tile.places.tolist(), strict=True))
            for block, slots in tile.blocks:
                assert all(slot[e] == s for e, s in zip(block.index.tolist(), slots.tolist(), strict=True) if e >= 0)


def test_gram_tiles_fit_into_half_of_the_memory():
    state = 4 * 768 * 768
    assert plan_grams(68, 442, 768, 1 << 30) == TilePlan(68, 148)  # 442 in three tiles as even as can be
    for drugs, proteins, memory in ((68, 442, 1 << 30), (5000, 442, 1 << 30), (3, 3, 1), (9000, 9000, 1 << 40)):
        plan = plan_grams(drugs, proteins, 768, memory)
        assert (plan.drugs + plan.proteins) * state <= max(memory // 2, 2 * state)
        assert max(plan.drugs, plan.proteins) <= 768
