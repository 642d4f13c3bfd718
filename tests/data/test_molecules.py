"""Molecules as integers, against the published featuriser's arrays and RDKit itself."""

import csv
import subprocess
import sys
from io import BytesIO
from pickle import dump, load

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from jaxdti.data import molecules
from jaxdti.data.molecules import (
    ATOM_COLUMNS,
    ELEMENTS,
    HYBRIDISATIONS,
    featurize_batch,
    featurize_molecule,
    read_molecule,
    serve,
)
from jaxdti.layers.graph import ATOM_FEATURE_WIDTHS, atom_features

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def test_atoms_and_bonds_equal_the_reference_arrays(reference_dir):
    arrays = np.load(reference_dir / "drugban_features_row0.npz")
    with open(reference_dir / "drugban_rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert (len(ELEMENTS), len(HYBRIDISATIONS)) == (ATOM_FEATURE_WIDTHS[0], ATOM_FEATURE_WIDTHS[5])
    found, expected = [], []
    for i, row in enumerate(rows):
        _, atoms, bonds = featurize_molecule(row["SMILES"])
        assert len(atoms) == arrays["num_atoms_all32"][i]
        found.append(atoms)
        expected.append(arrays["atom_features_all32"][i][: len(atoms), :74])
        assert 2 * len(bonds) + len(atoms) + 290 == arrays["num_edges_all32"][i]
    np.testing.assert_array_equal(atom_features(jnp.asarray(np.concatenate(found))), np.concatenate(expected))


def test_bonds_join_the_same_atoms_as_the_reference_edges(reference_dir):
    arrays = np.load(reference_dir / "drugban_features_row0.npz")
    with open(reference_dir / "drugban_rows.csv", newline="") as file:
        smiles = next(csv.DictReader(file))["SMILES"]
    _, _, bonds = featurize_molecule(smiles)
    directed = 2 * len(bonds)
    expected = sorted(zip(arrays["edge_src"][:directed].tolist(), arrays["edge_dst"][:directed].tolist(), strict=True))
    assert sorted(map(tuple, np.concatenate([bonds, bonds[:, ::-1]]).tolist())) == expected
    # The recorded degree counts two self-loops for each atom.
    degree = np.bincount(bonds.ravel(), minlength=20) + 2
    np.testing.assert_array_equal(degree, arrays["in_degree"][:20])


@pytest.mark.parametrize(
    ("smiles", "canonical", "atoms"),
    [
        (ASPIRIN, "CC(=O)Oc1ccccc1C(=O)O", 13),
        ("OC(=O)c1ccccc1OC(C)=O", "CC(=O)Oc1ccccc1C(=O)O", 13),
        ("[Mg+2]", "[Mg+2]", 1),  # one atom, no bond
        ("CC(=O)[O-].[Na+]", "CC(=O)[O-].[Na+]", 5),  # a salt: all fragments stay
        ("[214Pb]", "[214Pb]", 1),
        (" CCO\n", "CCO", 3),
        ("C[C@H](N)C(=O)O |r|", "C[C@H](N)C(=O)O", 6),  # extended SMILES
    ],
)
def test_valid_molecules(smiles, canonical, atoms):
    found, numbers, bonds = featurize_molecule(smiles)
    assert found == canonical
    assert numbers.shape == (atoms, len(ATOM_COLUMNS)) and numbers.dtype == np.int8
    assert bonds.shape[1] == 2 and bonds.dtype == np.int16


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "empty SMILES"),
        ("  ", "empty SMILES"),
        ("CCX", "not a valid SMILES"),
        ("C1CC", "not a valid SMILES"),
        ("C(C)(C)(C)(C)C", "valence"),
        ("c1cccc1", "kekulize"),
        ("CC O", "white space"),  # RDKit alone would read ethane
        ("[CH3+127]", "more than 127"),
    ],
)
def test_unreadable_molecules_say_why(smiles, reason, capfd):
    with pytest.raises(ValueError, match=f"(?i){reason}"):
        featurize_molecule(smiles)
    assert capfd.readouterr() == ("", "")  # RDKit's own log stays silent


def test_more_atoms_than_indices_are_refused(monkeypatch):
    monkeypatch.setattr(molecules, "_MOST_ATOMS", 3)
    with pytest.raises(ValueError, match="more than 3 atoms"):
        featurize_molecule("CCCC")


def test_columns_of_a_charged_aromatic_and_an_unlisted_atom():
    columns = {name: i for i, name in enumerate(ATOM_COLUMNS)}
    _, atoms, _ = featurize_molecule("[Ru+3]")
    assert atoms[0, columns["element"]] == -1
    assert atoms[0, columns["formal_charge"]] == 3
    assert not atom_features(jnp.asarray(atoms))[0, : len(ELEMENTS)].any()
    _, atoms, bonds = featurize_molecule("c1cc[nH]c1")
    nitrogen = atoms[atoms[:, columns["element"]] == ELEMENTS.index("N")][0]
    assert nitrogen[columns["aromatic"]] == 1 and nitrogen[columns["hydrogens"]] == 1
    assert nitrogen[columns["degree"]] == 2 and len(bonds) == 5


def test_stereo_twins_share_flat_smiles_and_features():
    left, right = read_molecule("C[C@H](N)C(=O)O"), read_molecule("C[C@@H](N)C(=O)O")
    assert left.canonical != right.canonical
    assert left.flat == right.flat == read_molecule("CC(N)C(=O)O").flat
    np.testing.assert_array_equal(np.sort(left.atoms, axis=0), np.sort(right.atoms, axis=0))


FLAT = [
    *("CCO", "C[C@H](N)C(=O)O", "F/C=C/F", "FC=CF", "C[C@@H]1CC[C@H](C)CC1", "C[C@H](C)C"),
    *("[2H]C", "[13CH4]", "[214Pb]", "[H][H]", "[2H][2H]", "[1*]C", "[CH3:1]C", "N->[Pt]", "C~C", "C$C"),
    *("CC[C@H](F)Cl |&1:2|", "CC |$a;b$|", "C[N+](C)(C)CC(=O)[O-]", "[Na+].[Cl-]", "C%12CCCC%12", "[nH]1cccc1"),
]


@pytest.mark.parametrize("smiles", FLAT)
def test_flat_smiles_is_the_one_rdkit_writes(smiles):
    mol = Chem.MolFromSmiles(smiles)
    found = read_molecule(smiles)
    assert (found.canonical, found.flat) == (Chem.MolToSmiles(mol), Chem.MolToSmiles(mol, isomericSmiles=False))


def by_hand(smiles):
    """Atoms and bonds by RDKit's own questions, atom by atom: the specification of the columns."""
    mol = Chem.MolFromSmiles(smiles)
    within = lambda number, most: number if number <= most else -1
    rows = [
        (
            ELEMENTS.index(atom.GetSymbol()) if atom.GetSymbol() in ELEMENTS else -1,
            within(atom.GetDegree(), 10),
            within(atom.GetValence(Chem.ValenceType.IMPLICIT), 6),
            atom.GetFormalCharge(),
            atom.GetNumRadicalElectrons(),
            HYBRIDISATIONS.index(atom.GetHybridization()) if atom.GetHybridization() in HYBRIDISATIONS else -1,
            int(atom.GetIsAromatic()),
            within(atom.GetTotalNumHs(), 4),
        )
        for atom in mol.GetAtoms()
    ]
    ranks = list(Chem.CanonicalRankAtoms(mol))
    place = {rank: i for i, rank in enumerate(ranks)}
    bonds = [(place[bond.GetBeginAtomIdx()], place[bond.GetEndAtomIdx()]) for bond in mol.GetBonds()]
    return [rows[rank] for rank in ranks], bonds


def test_columns_of_a_batch_are_rdkits_atom_by_atom():
    hard = ["[UH6]", "[SiH4]", "[C]", "[CH2]", "[CH3-]", "S(F)(F)(F)(F)(F)F", "[H][H]", "[Fe+2]", "B(O)O", "[U-127]"]
    smiles = [ASPIRIN, "nonsense", *FLAT, *hard]
    batch = featurize_batch(smiles)
    assert batch.atoms.flags.c_contiguous and batch.bonds.flags.c_contiguous  # as they are stored
    first_atom, first_bond = 0, 0
    for i, text in enumerate(smiles):
        last_atom, last_bond = first_atom + batch.atom_counts[i], first_bond + batch.bond_counts[i]
        atoms, bonds = ([], []) if text == "nonsense" else by_hand(text)
        assert batch.atoms[first_atom:last_atom].tolist() == [list(row) for row in atoms], text
        assert batch.bonds[first_bond:last_bond].tolist() == [list(pair) for pair in bonds], text
        first_atom, first_bond = last_atom, last_bond
    assert (first_atom, first_bond) == (len(batch.atoms), len(batch.bonds))


@given(st.randoms(use_true_random=False))
def test_the_way_a_molecule_is_written_changes_nothing_but_the_order(random):
    mol = Chem.MolFromSmiles(ASPIRIN)
    order = list(range(mol.GetNumAtoms()))
    random.shuffle(order)
    written = Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False)
    canonical, atoms, bonds = featurize_molecule(written)
    expected, first, first_bonds = featurize_molecule(ASPIRIN)
    assert canonical == expected

    def described(atoms, bonds):
        rows = list(map(tuple, atoms.tolist()))
        return sorted(rows), sorted(tuple(sorted((rows[a], rows[b]))) for a, b in bonds.tolist())

    assert described(atoms, bonds) == described(first, first_bonds)


@given(st.text(max_size=12))
def test_any_text_is_a_molecule_or_a_value_error(text):
    try:
        _, atoms, bonds = featurize_molecule(text)
    except ValueError:
        return
    assert len(atoms) and (not len(bonds) or bonds.max() < len(atoms))


def test_batch_keeps_order_and_marks_the_unreadable():
    batch = featurize_batch(["CCO", "nonsense", "C"])
    assert batch.canonical == ["CCO", "", "C"]
    assert [bool(error) for error in batch.error] == [False, True, False]
    assert batch.atom_counts.tolist() == [3, 0, 1] and batch.bond_counts.tolist() == [2, 0, 0]
    assert len(batch.atoms) == 4 and len(batch.bonds) == 2


def test_batch_of_nothing():
    for smiles in ([], ["nonsense"]):
        batch = featurize_batch(smiles)
        assert batch.atoms.shape == (0, 8) and batch.atoms.dtype == np.int8
        assert batch.bonds.shape == (0, 2) and batch.bonds.dtype == np.int16
        assert batch.atom_counts.tolist() == [0] * len(smiles) and batch.atom_counts.dtype == np.int64


def test_worker_answers_until_its_input_ends():
    requests, replies = BytesIO(), BytesIO()
    for chunk in (["CCO"], ["C", "CC"]):
        dump(chunk, requests)
    requests.seek(0)
    serve(requests, replies)
    replies.seek(0)
    assert load(replies) is True  # ready
    assert load(replies)[0] == ["CCO"]
    assert load(replies)[0] == ["C", "CC"]


def test_worker_script_needs_neither_jax_nor_the_package():
    code = f"import runpy, sys; runpy.run_path({molecules.__file__!r}); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
