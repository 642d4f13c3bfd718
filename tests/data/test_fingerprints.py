import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from jaxdti.data.fingerprints import AMINO_ACIDS, composition, ecfp4, three_mer_counts, three_mers
from jaxdti.errors import DataError

SMILES = ["CC(=O)Oc1ccccc1C(=O)O", "[Mg+2]", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "[Na+].[Cl-]"]


def test_ecfp4_is_the_morgan_fingerprint_of_radius_2():
    found = ecfp4(SMILES)
    assert found.shape == (4, 1024) and found.dtype == np.uint8
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    for row, smiles in zip(found, SMILES, strict=True):
        unfolded = generator.GetSparseFingerprint(Chem.MolFromSmiles(smiles)).GetOnBits()
        assert set(np.flatnonzero(row)) == {identifier % 1024 for identifier in unfolded}


def test_a_bad_smiles_is_named():
    with pytest.raises(DataError, match="drug 1: SMILES 'C1CC' does not parse"):
        ecfp4(["C", "C1CC"])


def test_three_mers_count_every_window():
    sequence = "ACDACDA"  # ACD twice, CDA twice, DAC once
    row = three_mers([sequence]).toarray()[0].reshape(20, 20, 20)
    a, c, d = (AMINO_ACIDS.index(letter) for letter in "ACD")
    np.testing.assert_allclose([row[a, c, d], row[c, d, a], row[d, a, c]], np.array([2, 2, 1]) / 3)
    assert np.count_nonzero(row) == 3


def test_three_mers_skip_unknown_letters_and_short_sequences():
    found = three_mers(["ACXACD", "AC", "", "XXXX", "ACD"]).toarray()
    assert found.shape == (5, 8000) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], found[4])  # only ACD has no X
    assert not found[1:4].any()


@given(st.lists(st.text("ACDEFGHIKLMNPQRSTVWYXUBZ", max_size=40), max_size=5))
def test_three_mers_are_unit_vectors(sequences):
    lengths = np.linalg.norm(three_mers(sequences).toarray(), axis=1)
    known = [any(set(s[i : i + 3]) <= set(AMINO_ACIDS) for i in range(len(s) - 2)) for s in sequences]
    np.testing.assert_allclose(lengths, np.array(known, float), atol=1e-6)


def test_composition_is_the_share_of_each_letter():
    found = composition(["AACX", "", "W"])
    assert found.shape == (3, 20) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :2], [0.5, 0.25])
    np.testing.assert_array_equal(found.sum(axis=1), [0.75, 0, 1])


def test_three_mers_without_overlap_are_those_of_str_count():
    rng = np.random.default_rng(0)
    sequences = [
        "".join(rng.choice(list("ACX"), size)) for size in rng.integers(0, 60, 20)
    ]  # few letters: many repeats
    words = [a + b + c for a in AMINO_ACIDS for b in AMINO_ACIDS for c in AMINO_ACIDS]
    found = three_mer_counts(sequences, overlapping=False).toarray()
    assert found.tolist() == [[sequence.count(word) for word in words] for sequence in sequences]
    assert (three_mer_counts(sequences).toarray() > found).any()
