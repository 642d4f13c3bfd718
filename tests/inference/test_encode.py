"""Length buckets of single entities, and their encoders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.config import ModelConfig
from jaxdti.data.pairs.buckets import Shape
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.inference.encode import (
    Entities,
    Grams,
    choose_lengths,
    drug_entities,
    encoded_rows,
    laid_end_to_end,
    make_encoder,
    protein_entities,
)
from jaxdti.layers.graph import ATOM_FEATURE_WIDTHS
from jaxdti.models.drugban import DrugBAN, init_variables

CONFIG = ModelConfig(
    drug_features=4,
    drug_layers=1,
    protein_features=4,
    protein_kernels=(3,),
    joint_features=3,
    pool_size=1,
    decoder_features=(4,),
)
ATOMS, RESIDUES = (3, 9, 1, 17, 8), (5, 40, 16)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, max(width, 2), sum(ATOMS)) for width in ATOM_FEATURE_WIDTHS]
    offsets = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    bonds = [[i, i + 1] for count in ATOMS for i in range(count - 1)]
    return DeviceFeatures(
        atoms=jnp.asarray(np.stack(columns, 1), jnp.int8),
        atom_offsets=jnp.asarray(offsets(ATOMS)),
        bonds=jnp.asarray(bonds, jnp.int16),
        bond_offsets=jnp.asarray(offsets([count - 1 for count in ATOMS])),
        residues=jnp.asarray(rng.integers(1, 26, sum(RESIDUES)), jnp.uint8),
        residue_offsets=jnp.asarray(offsets(RESIDUES)),
    )


def padded_work(lengths, weights, sizes):
    return float(np.sum(weights * np.array(sizes)[np.searchsorted(sizes, lengths)]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_lengths_are_the_best_of_all_choices(seed, most):
    rng = np.random.default_rng(seed)
    lengths, weights = rng.integers(1, 70, 40), rng.random(40) + 0.1
    found = choose_lengths(lengths, weights, 8, most)
    levels = np.unique(-(-lengths // 8) * 8).tolist()
    # By brute force, for as many buckets as were chosen.
    choices = [(*inner, levels[-1]) for inner in itertools.combinations(levels[:-1], len(found) - 1)]
    best = min(padded_work(lengths, weights, sizes) for sizes in choices)
    assert len(found) <= most and found[-1] == levels[-1] and list(found) == sorted(set(found))
    assert padded_work(lengths, weights, found) == pytest.approx(best)


def test_a_bucket_has_to_pay():
    lengths = np.array([100] * 999 + [90])
    assert choose_lengths(lengths, np.ones(1000), 1, 4) == (100,)
    assert choose_lengths(np.array([10, 100]), np.ones(2), 1, 4) == (10, 100)
    assert choose_lengths(np.array([0]), np.ones(1), 8, 4) == (8,)
    assert choose_lengths(np.array([5, 5]), np.zeros(2), 8, 4) == (8,)


def padded(kind, counts, of_entity, shapes, batches, rows):
    arrays = np.array(counts, np.int32), np.array(of_entity, np.int32)
    return Entities(kind, *arrays, shapes, batches, rows, gap=None)


def test_padded_blocks_hold_every_entity_once_and_filler_falls_outside():
    shapes = Shape(8, 8, 0), Shape(16, 16, 0)
    entities = padded("drug", [5, 12, 3, 8, 9, 7, 6], [0, 1, 0, 0, 1, 0, 0], shapes, (2, 3), (16, 48))
    blocks = entities.blocks(np.array([6, 4, 0, 3, 1]))
    assert [(b.bucket, b.index.tolist(), b.start.tolist()) for b in blocks] == [
        (0, [6, 0], [0, 8]),
        (0, [3, -1], [0, 16]),
        (1, [4, 1, -1], [0, 16, 48]),
    ]
    assert entities.blocks(np.zeros(0, np.int64)) == []


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    room=st.integers(0, 100),
    gap=st.integers(0, 5),
    most=st.integers(1, 9),
)
def test_entities_end_to_end_are_whole_and_apart(lengths, room, gap, most):
    lengths = np.array(lengths)
    size = int(lengths.max()) + room
    placed = laid_end_to_end(lengths, size, gap, most)
    assert sorted(i for members, _ in placed for i in members.tolist()) == list(range(len(lengths)))
    for members, start in placed:
        assert 1 <= len(members) <= most and start[0] == 0 and start[-1] + lengths[members[-1]] <= size
        np.testing.assert_array_equal(start[1:], (start + lengths[members] + gap)[:-1])


def test_little_is_lost_where_many_proteins_lie_end_to_end():
    lengths = np.random.default_rng(0).integers(30, 1200, 800)
    placed = laid_end_to_end(lengths, 4160, 4, 40)
    assert lengths.sum() > 0.97 * 4160 * len(placed)


def test_drug_buckets_hold_their_drugs(features):
    entities = drug_entities(CONFIG, features, np.ones(5), 3, 2)
    for bucket, shape in enumerate(entities.shapes):
        mine = np.array(ATOMS)[entities.of_entity == bucket]
        assert mine.max() <= shape.atoms and mine.max() - 1 <= shape.bonds and shape.residues == 0
    assert [shape.atoms for shape in entities.shapes] == [8, 16, 24] and max(entities.batches) == 2
    assert entities.rows == tuple(b * shape.atoms for b, shape in zip(entities.batches, entities.shapes, strict=True))


def projected(kind, variables, features):
    """The projected states [n, K] of all entities, from one call of the model with all of them padded."""
    lengths = ATOMS if kind == "drug" else RESIDUES
    index = jnp.arange(len(lengths))
    batch = features.drugs(index, Shape(17, 16, 0)) if kind == "drug" else features.proteins(index, Shape(0, 0, 40))
    project = jax.jit(lambda v: DrugBAN(CONFIG).apply(v, batch, index >= 0, method=f"project_{kind}")[0])
    return [np.asarray(state[:n]) for state, n in zip(project(variables), lengths, strict=True)]


def both_kinds(features):
    return drug_entities(CONFIG, features, np.ones(5), 3, 2), protein_entities(CONFIG, features, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drug", "protein"])
def test_states_land_in_their_places_and_are_those_of_the_model(features, kind, monkeypatch):
    monkeypatch.setattr("jaxdti.inference.encode._positions", lambda: 40)  # two blocks of proteins
    entities = both_kinds(features)[kind == "protein"]
    lengths, variables = ATOMS if kind == "drug" else RESIDUES, init_variables(CONFIG, 0)
    encode, blocks = make_encoder(CONFIG, features, entities), entities.blocks(np.arange(len(lengths))[::-1])
    assert len(blocks) > 1
    expected = projected(kind, variables, features)
    grams = Grams(jnp.full((3, 9, 3), 7.0), jnp.full((9, 3), 7.0), jnp.full(9, 7))
    rows, slot, placed = jnp.zeros((2 * sum(entities.rows) * len(blocks), 3)), 0, 5
    for block in blocks:
        grams = encode(variables, block, slot + np.arange(len(block.index), dtype=np.int32), grams)
        rows = encode(variables, block, placed, rows)
        for entity, start in zip(block.index.tolist(), block.start.tolist(), strict=True):
            if entity < 0:
                continue
            v, first = expected[entity], placed + start
            assert entities.counts[entity] == lengths[entity]
            np.testing.assert_allclose(rows[first : first + lengths[entity]], v, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(grams.gram[:, slot], v.T @ v, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(grams.total[slot], v.sum(0), rtol=1e-4, atol=1e-5)
            assert grams.count[slot] == lengths[entity]
            slot += 1
        placed += entities.rows[block.bucket]
    assert slot == len(lengths)
    assert (np.asarray(grams.gram)[:, slot:] == 7.0).all() and (np.asarray(grams.total)[slot:] == 7.0).all()


def test_long_states_are_summed_in_steps(features, monkeypatch):
    monkeypatch.setattr("jaxdti.inference.encode.GRAM_STEP", 7)
    entities, variables = both_kinds(features)[1], init_variables(CONFIG, 0)
    (block,) = entities.blocks(np.arange(3))
    into = Grams(jnp.zeros((3, 3, 3)), jnp.zeros((3, 3)), jnp.zeros(3, jnp.int32))
    grams = make_encoder(CONFIG, features, entities)(variables, block, np.arange(3, dtype=np.int32), into)
    expected = projected("protein", variables, features)
    for slot, entity in enumerate(block.index.tolist()):
        v = expected[entity]
        np.testing.assert_allclose(grams.gram[:, slot], v.T @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drug", "protein"])
def test_encoders_take_stacked_variables(features, kind):
    entities = both_kinds(features)[kind == "protein"]
    single = [init_variables(CONFIG, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    block = entities.blocks(np.array([1, 0]))[-1]
    rows = lambda v: encoded_rows(
        DrugBAN(CONFIG), "project", entities, block.bucket, v, features, block.index, block.start
    )
    together = jax.vmap(jax.jit(rows))(stacked)
    for replica, variables in enumerate(single):
        alone = rows(variables)
        np.testing.assert_allclose(together[replica], alone, rtol=1e-5, atol=1e-5)
        real = np.zeros(len(alone), bool)
        for entity, start in zip(block.index, block.start, strict=True):
            real[start : start + entities.counts[entity]] = entity >= 0
        assert real.any() and not real.all()
        assert np.asarray(alone)[real].any() and not np.asarray(alone)[~real].any()
