import csv
import gzip
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, RDLogger

from jaxdti.data.pairs.leaks import known_pairs, leak_report, seen_in_train
from jaxdti.data.pairs.table import InteractionTable


def make_table(drug, protein, label):
    drug, protein = np.asarray(drug, np.int32), np.asarray(protein, np.int32)
    return InteractionTable(
        drugs=np.array(["C" * (i + 1) for i in range(drug.max() + 1)], dtype=object),
        proteins=np.array(["M" * (i + 1) for i in range(protein.max() + 1)], dtype=object),
        drug=drug,
        protein=protein,
        label=np.asarray(label, np.float32),
        part=np.full(len(drug), "table", dtype=object),
        row=np.arange(len(drug)),
    )


def test_counts_by_hand():
    #                  train        | validation | test
    table = make_table([0, 0, 1, 2, 1, 0, 3, 0], [0, 1, 1, 2, 1, 3, 3, 0], [1, 0, 1, 0, 0, 1, 0, np.nan])
    report = leak_report(table, {"train": np.arange(4), "validation": np.array([4, 5]), "test": np.array([6, 7, 7])})
    first, second, third = report.overlaps
    assert (first.earlier, first.later) == ("train", "validation")
    assert (first.drugs, first.proteins, first.pairs, first.rows, first.conflicts) == (2, 1, 1, 1, 1)
    # An unlabelled repetition is a shared pair, not a conflict.
    assert (second.drugs, second.proteins, second.pairs, second.rows, second.conflicts) == (1, 1, 1, 2, 0)
    assert (third.drugs, third.proteins, third.pairs, third.rows, third.conflicts) == (1, 1, 0, 0, 0)
    assert report.pairs_across == 2
    assert report.parts["train"].drugs == 3 and report.parts["test"].rows == 3 and report.parts["test"].pairs == 2
    text = "\n".join(report.lines())
    assert "test shares with train: 1 of 2 drugs" in text and "more than one part: 2" in text


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 1), st.integers(0, 2)), min_size=3),
)
def test_counts_match_python_sets(rows):
    drug, protein, label, part = np.array(rows).T
    table = make_table(drug, protein, label)
    parts = {name: np.flatnonzero(part == number) for number, name in enumerate(("train", "validation", "test"))}
    report = leak_report(table, parts)
    pairs = {name: {(drug[i], protein[i]) for i in index} for name, index in parts.items()}
    for overlap, (a, b) in zip(report.overlaps, combinations(parts, 2), strict=True):
        shared = pairs[a] & pairs[b]
        labels = {pair: {row[2] for row in rows if row[:2] == pair and row[3] in _numbers(a, b)} for pair in shared}
        assert overlap.pairs == len(shared)
        assert overlap.rows == sum((drug[i], protein[i]) in shared for i in parts[b])
        assert overlap.drugs == len({drug[i] for i in parts[a]} & {drug[i] for i in parts[b]})
        assert overlap.proteins == len({protein[i] for i in parts[a]} & {protein[i] for i in parts[b]})
        assert overlap.conflicts == sum(len(found) > 1 for found in labels.values())
    mask = seen_in_train(table, parts["train"], parts["test"])
    assert mask.tolist() == [(drug[i], protein[i]) in pairs["train"] for i in parts["test"]]


def _numbers(*names):
    return [("train", "validation", "test").index(name) for name in names]


def test_seen_in_train_does_not_confuse_sides():
    table = make_table([0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1])
    assert seen_in_train(table, np.array([0]), np.array([1, 2, 3])).tolist() == [False, False, True]


def read_rows(path):
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def test_pairs_of_another_table_are_known_by_name():
    table = make_table([0, 1, 1], [0, 0, 1], [1, 0, 1])
    other = replace(
        table,
        drugs=np.array(["new", table.drugs[1], table.drugs[0]], object),
        proteins=table.proteins[::-1],
        drug=np.array([0, 1, 1, 2, 2], np.int32),
        protein=np.array([1, 1, 0, 1, 0], np.int32),
    )
    assert len(other.proteins) == 2
    assert known_pairs(table, np.array([0, 1, 2]), other).tolist() == [False, True, True, True, False]
    assert known_pairs(table, np.array([1]), other).tolist() == [False, True, False, False, False]


def canonical_table(smiles, sequences, labels):
    """By dict and RDKit alone, not by the package's reader, so that the known facts test the report."""
    RDLogger.DisableLog("rdApp.*")
    canonical = {text: Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in dict.fromkeys(smiles)}
    drugs, proteins = {}, {}
    drug = [drugs.setdefault(canonical[text], len(drugs)) for text in smiles]
    protein = [proteins.setdefault(text.upper(), len(proteins)) for text in sequences]
    return make_table(drug, protein, labels)


def test_davis_repeats_929_test_rows(data_dir):
    folder = data_dir / "davis"
    drugs = {row["drug"]: row["SMILES"] for row in read_rows(folder / "drugs.csv.gz")}
    proteins = {row["protein"]: row["Protein"] for row in read_rows(folder / "proteins.csv.gz")}
    rows = read_rows(folder / "affinity.csv.gz")
    table = canonical_table(
        [drugs[row["drug"]] for row in rows],
        [proteins[row["protein"]] for row in rows],
        [float(row["pKd"]) for row in rows],
    )
    test = np.array([row["fold"] == "test" for row in rows])
    report = leak_report(table, {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)})
    assert report.parts["test"].rows == 5010
    assert report.overlaps[0].rows == 929
    assert seen_in_train(table, np.flatnonzero(~test), np.flatnonzero(test)).sum() == 929


@pytest.mark.slow
def test_biosnap_has_4_pairs_across_parts(data_dir):
    folder = data_dir / "biosnap" / "random"
    rows = [(part, row) for part in ("train", "val", "test") for row in read_rows(folder / f"{part}.csv.gz")]
    table = canonical_table(
        [row["SMILES"] for _, row in rows],
        [row["Protein"] for _, row in rows],
        [float(row["Y"]) for _, row in rows],
    )
    names = np.array([part for part, _ in rows])
    report = leak_report(table, {part: np.flatnonzero(names == part) for part in ("train", "val", "test")})
    assert report.pairs_across == 4
    assert sum(overlap.conflicts for overlap in report.overlaps) == 0
