"""Length buckets of single entities, and their encoders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import ModelConfig
from jaxdti.data.batches import Shape
from jaxdti.inference.encode import (
    Grams,
    Projected,
    choose_lengths,
    drug_entities,
    encoder_batches,
    make_encoder,
    project,
)
from jaxdti.layers.graph import ATOM_FEATURE_WIDTHS
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.features import DeviceFeatures
from jaxdti.training.state import init_variables

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


def test_batches_hold_every_entity_once_and_filler_falls_outside():
    index, slots = np.array([7, 3, 9, 4, 1]), np.array([0, 2, 3, 5, 6])
    batches = encoder_batches(index, slots, 2, 8)
    assert [taken.tolist() for taken, _ in batches] == [[7, 3], [9, 4], [1, -1]]
    assert [places.tolist() for _, places in batches] == [[0, 2], [3, 5], [6, 8]]
    assert encoder_batches(index[:0], slots[:0], 2, 8) == []


def test_drug_buckets_hold_their_drugs(features):
    entities = drug_entities(CONFIG, features, np.ones(5), 3, 2)
    for bucket, shape in enumerate(entities.shapes):
        mine = np.array(ATOMS)[entities.of_entity == bucket]
        assert mine.max() <= shape.atoms and mine.max() - 1 <= shape.bonds and shape.residues == 0
    assert len(entities.shapes) == 3 and entities.states == (8, 16, 24) and max(entities.batches) == 2


def test_states_land_in_their_slots_and_are_those_of_one_entity_alone(features):
    entities = drug_entities(CONFIG, features, np.ones(5), 3, 2)
    variables = init_variables(CONFIG, 0)
    index = np.array([3, 0, 4, 2, 1])
    alone = [
        project(DrugBAN(CONFIG), "drug", variables, features, jnp.array([i]), Shape(ATOMS[i], ATOMS[i], 0))
        for i in index
    ]
    into = Grams(jnp.full((3, 6, 3), 7.0), jnp.full((6, 3), 7.0), jnp.full(6, 7))
    grams = make_encoder(CONFIG, features, entities)(variables, index, into)
    assert grams.count.tolist() == [*np.array(ATOMS)[index], 7]
    for slot, state in enumerate(alone):
        v = np.asarray(state.values[0], np.float64)
        assert v.shape == (ATOMS[index[slot]], 3)
        np.testing.assert_allclose(grams.gram[:, slot], v.T @ v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(grams.total[slot], v.sum(0), rtol=1e-4, atol=1e-5)
    assert (np.asarray(grams.gram)[:, 5] == 7.0).all() and (np.asarray(grams.total)[5] == 7.0).all()

    short = np.flatnonzero(entities.of_entity == 0)[::-1].copy()
    assert len(short) == 3
    projected = make_encoder(CONFIG, features, entities)(
        variables, short, Projected(jnp.zeros((3, 8, 3)), jnp.zeros(3, jnp.int32))
    )
    assert projected.count.tolist() == [ATOMS[i] for i in short]
    for slot, i in enumerate(short):
        state = alone[index.tolist().index(i)].values[0]
        np.testing.assert_allclose(projected.values[slot, : ATOMS[i]], state, rtol=1e-4, atol=1e-5)
        assert not np.asarray(projected.values[slot, ATOMS[i] :]).any()


@pytest.mark.parametrize(("kind", "shape"), [("drug", Shape(9, 8, 0)), ("protein", Shape(0, 0, 40))])
def test_encoders_take_stacked_variables(features, kind, shape):
    single = [init_variables(CONFIG, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    index = jnp.array([1, -1, 0])
    run = jax.jit(lambda variables: project(DrugBAN(CONFIG), kind, variables, features, index, shape))
    together = jax.vmap(run)(stacked)
    for replica, variables in enumerate(single):
        alone = run(variables)
        np.testing.assert_allclose(together.values[replica], alone.values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(together.count[replica], alone.count)
        assert alone.count[1] == 0 and not np.asarray(alone.values[1]).any() and np.asarray(alone.values[0]).any()
