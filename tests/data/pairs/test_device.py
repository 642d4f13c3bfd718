"""Gathering ragged features on the device gives what slicing the store gives, whatever the bucket's shape."""

import functools

import jax
import numpy as np
import pytest

from jaxdti.data.pairs.buckets import PairBatch, Shape
from jaxdti.data.pairs.device import DeviceFeatures, chunk_features, device_features, feature_bytes
from jaxdti.data.pairs.table import FeatureStore

ATOM_COUNTS = (3, 1, 5)
BOND_COUNTS = (2, 0, 5)
RESIDUE_COUNTS = (4, 7, 1)
SHAPES = (Shape(5, 5, 7), Shape(16, 8, 32))


def offsets(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def store(bond_counts=BOND_COUNTS):
    rng = np.random.default_rng(0)
    return FeatureStore(
        atom_offsets=offsets(ATOM_COUNTS),
        atoms=rng.integers(-1, 40, (sum(ATOM_COUNTS), 8)).astype(np.int8),
        bond_offsets=offsets(bond_counts),
        bonds=rng.integers(0, 5, (sum(bond_counts), 2)).astype(np.int16),
        residue_offsets=offsets(RESIDUE_COUNTS),
        residues=rng.integers(1, 26, sum(RESIDUE_COUNTS)).astype(np.uint8),
    )


@functools.partial(jax.jit, static_argnames="shape")
def gather(features, drug, protein, shape):
    return features.drugs(drug, shape), features.proteins(protein, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_gathered_entities_equal_slices_of_the_store(shape):
    source = store()
    drug, protein = np.int32([2, 0, 1, 2]), np.int32([1, 2, 0, 2])
    drugs, proteins = jax.device_get(gather(device_features(source), drug, protein, shape))
    assert drugs.atoms.shape == (4, shape.atoms, 8) and drugs.atoms.dtype == np.int8
    assert drugs.bonds.shape == (4, shape.bonds, 2) and drugs.bonds.dtype == np.int32
    assert proteins.residues.shape == (4, shape.residues) and proteins.residues.dtype == np.uint8
    np.testing.assert_array_equal(drugs.atom_count, source.atom_counts[drug])
    np.testing.assert_array_equal(drugs.bond_count, source.bond_counts[drug])
    np.testing.assert_array_equal(proteins.residue_count, source.residue_counts[protein])
    for row in range(4):
        atoms = source.atoms[slice(*source.atom_offsets[drug[row] : drug[row] + 2])]
        bonds = source.bonds[slice(*source.bond_offsets[drug[row] : drug[row] + 2])]
        residues = source.residues[slice(*source.residue_offsets[protein[row] : protein[row] + 2])]
        np.testing.assert_array_equal(drugs.atoms[row, : len(atoms)], atoms)
        np.testing.assert_array_equal(drugs.bonds[row, : len(bonds)], bonds)
        np.testing.assert_array_equal(proteins.residues[row, : len(residues)], residues)
        assert (proteins.residues[row, len(residues) :] == 0).all()


def test_proteins_lie_end_to_end():
    source = store()
    place = functools.partial(jax.jit, static_argnames="length")(DeviceFeatures.proteins_end_to_end)
    found = place(device_features(source), np.int32([1, 2, 0, -1]), np.int32([0, 9, 12, 16]), length=16)
    slices = [source.residues[slice(*source.residue_offsets[i : i + 2])] for i in (1, 2, 0)]
    expected = np.zeros(16, np.uint8)
    expected[:7], expected[9:10], expected[12:16] = slices
    np.testing.assert_array_equal(found.residues, expected[None])
    np.testing.assert_array_equal(np.flatnonzero(found.mask), [*range(7), 9, *range(12, 16)])
    alone = place(device_features(source), np.int32([2]), np.int32([3]), length=5)
    np.testing.assert_array_equal(np.flatnonzero(alone.mask), [3])


def test_drugs_without_any_bond():
    features = device_features(store(bond_counts=(0, 0, 0)))
    drugs, _ = gather(features, np.int32([0, 2]), np.int32([0, 0]), SHAPES[0])
    np.testing.assert_array_equal(drugs.bond_count, [0, 0])
    np.testing.assert_array_equal(drugs.atom_count, [3, 5])


def test_offsets_and_codes_keep_their_narrow_types():
    features = device_features(store())
    assert isinstance(features, DeviceFeatures)
    kinds = {name: str(leaf.dtype) for name, leaf in vars(features).items()}
    assert kinds == {
        "atoms": "int8",
        "atom_offsets": "int32",
        "bonds": "int16",
        "bond_offsets": "int32",
        "residues": "uint8",
        "residue_offsets": "int32",
    }


@pytest.mark.parametrize("name", ["atoms", "bonds", "residues"])
def test_more_than_int32_can_address_is_refused(name):
    source = store()
    ends = getattr(source, f"{name[:-1]}_offsets").copy()
    ends[-1] = 2**31
    with pytest.raises(ValueError, match=f"2,147,483,648 {name}: int32 offsets"):
        device_features(FeatureStore(**(vars(source) | {f"{name[:-1]}_offsets": ends})))


@pytest.mark.parametrize("valid", [(True,) * 6, (True, False, True, True, False, True), (False,) * 6])
def test_features_of_a_chunk_alone_give_the_gathers_of_the_whole_store(valid):
    source, shape, valid = store(), SHAPES[0], np.array(valid).reshape(2, 3)
    drug, protein = np.int32([[2, 0, 1], [2, 1, 0]]), np.int32([[1, 2, 0], [1, 1, 2]])
    batch = PairBatch(drug=drug, protein=protein, label=np.float32(drug), row_mask=valid)
    features, local = chunk_features(source, batch, shape)
    assert local.drug.dtype == local.protein.dtype == np.int32 and local.drug.shape == (2, 3)
    sizes = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in vars(features).items()}
    assert sizes == {
        "atoms": ((6 * 5, 8), "int8"),
        "atom_offsets": ((7,), "int32"),
        "bonds": ((6 * 5, 2), "int16"),
        "bond_offsets": ((7,), "int32"),
        "residues": ((6 * 7,), "uint8"),
        "residue_offsets": ((7,), "int32"),
    }
    found = jax.device_get(gather(jax.device_put(features), local.drug[valid], local.protein[valid], shape))
    expected = jax.device_get(gather(device_features(source), drug[valid], protein[valid], shape))
    for kind in (0, 1):
        for name, values in vars(expected[kind]).items():
            mine, (rows, *_) = getattr(found[kind], name), values.shape
            if name in ("atoms", "bonds"):  # past an entity's end is somebody else's
                count = expected[kind].atom_count if name == "atoms" else expected[kind].bond_count
                for row in range(rows):
                    np.testing.assert_array_equal(mine[row, : count[row]], values[row, : count[row]])
            else:
                np.testing.assert_array_equal(mine, values)


def test_the_size_of_features_is_that_of_their_arrays():
    assert feature_bytes(store()) == sum(leaf.nbytes for leaf in jax.tree.leaves(device_features(store())))
