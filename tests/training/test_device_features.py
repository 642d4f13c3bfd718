"""Gathering ragged features on the device gives what slicing the store gives, whatever the bucket's shape."""

import functools

import jax
import numpy as np
import pytest

from jaxdti.data.batches import Shape
from jaxdti.data.interactions import FeatureStore
from jaxdti.training.features import DeviceFeatures, device_features

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
