"""The 25-letter code and the normalisation of sequences."""

import csv
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.data.pairs.sequences import LETTERS, encode_sequence, normalise_sequence

# As the published model numbers them.
NUMBERS = "A1 C2 B3 E4 D5 G6 F7 I8 H9 K10 M11 L12 O13 N14 Q15 P16 S17 R18 U19 T20 W21 V22 Y23 X24 Z25".split()


def test_letters_have_the_published_numbers():
    assert len(LETTERS) == len(set(LETTERS)) == 25
    for text in NUMBERS:
        assert encode_sequence(text[0]).tolist() == [int(text[1:])]


def test_codes_equal_the_reference_arrays(reference_dir):
    expected = np.load(reference_dir / "drugban_features_row0.npz")["protein_ids_all32"]
    with open(reference_dir / "drugban_rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, numbers in zip(rows, expected, strict=True):
        codes = encode_sequence(normalise_sequence(row["Protein"])[0], 1200)
        np.testing.assert_array_equal(np.pad(codes, (0, 1200 - len(codes))), numbers)


@pytest.mark.parametrize(
    ("raw", "sequence", "unknown"),
    [
        ("mktay", "MKTAY", 0),
        (" MK TA\tY\r\nIA\u00a0K\n", "MKTAYIAK", 0),
        ("MKTAY*", "MKTAY", 0),
        ("MKTAY* *\n", "MKTAY", 0),
        ("MKXBZUO", "MKXBZUO", 0),
        ("J" + "A" * 19, "X" + "A" * 19, 1),  # exactly 5 %
        ("A" * 19 + "*" + "A" * 20, "A" * 19 + "X" + "A" * 20, 1),
        ("A" * 60 + "1-é", "A" * 60 + "XXX", 3),
    ],
)
def test_normalised(raw, sequence, unknown):
    assert normalise_sequence(raw) == (sequence, unknown)


@pytest.mark.parametrize("raw", ["", "  \n", "*", " * "])
def test_nothing_left_is_refused(raw):
    with pytest.raises(ValueError, match="empty sequence"):
        normalise_sequence(raw)


@pytest.mark.parametrize("raw", ["J" + "A" * 18, "CC(=O)Oc1ccccc1C(=O)O", "12345"])
def test_more_than_five_per_cent_unknown_is_refused(raw):
    with pytest.raises(ValueError, match=r"\d+ of \d+ letters are not amino acids"):
        normalise_sequence(raw)


@given(st.text(alphabet=string.printable + "éß蛋", max_size=80))
def test_normalising_is_idempotent_and_leaves_only_letters(raw):
    try:
        sequence, unknown = normalise_sequence(raw)
    except ValueError:
        return
    assert set(sequence) <= set(LETTERS) and unknown <= 0.05 * len(sequence)
    assert normalise_sequence(sequence) == (sequence, 0)
    codes = encode_sequence(sequence)
    assert codes.dtype == np.uint8 and codes.min() >= 1 and codes.max() <= 25
    assert "".join(LETTERS[code - 1] for code in codes) == sequence


def test_cut_at_the_end_and_zero_for_foreign_letters():
    assert encode_sequence("ACB", 2).tolist() == [1, 2]
    assert encode_sequence("AJ*é").tolist() == [1, 0, 0, 0]
