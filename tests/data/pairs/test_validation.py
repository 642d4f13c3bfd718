"""Every line of the validation table: what is rejected, what is changed, and that the report says so."""

import csv
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.config import DataConfig
from jaxdti.data import tables
from jaxdti.data.pairs import validation
from jaxdti.data.pairs.sequences import encode_sequence
from jaxdti.data.pairs.validation import (
    ATOMS,
    BINARY,
    CONFLICT,
    EMPTY,
    FINITE,
    NUMBER,
    SEQUENCE,
    SMILES,
    TooManyRejected,
    load_for_prediction,
    load_interactions,
)
from jaxdti.errors import DataError

P1, P2 = "MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWY"


def write(path: Path, rows, header=("SMILES", "Protein", "Y")) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def load(tmp_path, *rows, task="classification", require_label=True, **options):
    path = write(tmp_path / "t.csv", rows)
    data = DataConfig(**({"max_rejected": 1.0} | options))
    return load_interactions(data, {"table": path}, task, require_label=require_label)


def triples(table):
    return list(zip(table.drugs[table.drug], table.proteins[table.protein], table.label.tolist(), strict=True))


GOOD = ("CCO", P1, "1")


@pytest.mark.parametrize(
    ("row", "task", "field", "value", "kind", "reason"),
    [
        (("CCX", P1, "1"), "classification", "SMILES", "CCX", SMILES, "not a valid SMILES"),
        (("C(C)(C)(C)(C)C", P1, "1"), "classification", "SMILES", "C(C)(C)(C)(C)C", SMILES, "valence"),
        (("", P1, "1"), "classification", "SMILES", "", EMPTY, "empty cell"),
        (("  ", P1, "1"), "classification", "SMILES", "", EMPTY, "empty cell"),
        (("CCO", "", "1"), "classification", "Protein", "", EMPTY, "empty cell"),
        (("CCO", P1, ""), "classification", "Y", "", EMPTY, "empty label"),
        (("CCO", P1, "yes"), "classification", "Y", "yes", NUMBER, "not a number"),
        (("CCO", P1, "0,5"), "regression", "Y", "0,5", NUMBER, "not a number"),
        (("CCO", P1, "1_0"), "regression", "Y", "1_0", NUMBER, "not a number"),
        (("CCO", P1, "nan"), "classification", "Y", "nan", FINITE, "not a finite"),
        (("CCO", P1, "NaN"), "regression", "Y", "NaN", FINITE, "not a finite"),
        (("CCO", P1, "-inf"), "regression", "Y", "-inf", FINITE, "not a finite"),
        (("CCO", P1, "1e39"), "regression", "Y", "1e39", FINITE, "not a finite"),  # infinite as float32
        (("CCO", P1, "2"), "classification", "Y", "2", BINARY, "neither 0 nor 1"),
        (("CCO", P1, "0.5"), "classification", "Y", "0.5", BINARY, "neither 0 nor 1"),
        (("CCO", P1, "1.00000000001"), "classification", "Y", "1.00000000001", BINARY, "neither 0 nor 1"),
        (("C" * 291, P1, "1"), "classification", "SMILES", "C" * 291, ATOMS, "291 atoms; at most 290"),
        (("CCO", "MK1234", "1"), "classification", "Protein", "MK1234", SEQUENCE, "4 of 6 letters"),
        (("CCO", "*", "1"), "classification", "Protein", "*", SEQUENCE, "empty sequence"),
    ],
)
def test_rejected_rows_say_where_and_why(tmp_path, row, task, field, value, kind, reason):
    found = load(tmp_path, GOOD, row, task=task)
    (rejected,) = found.report.rejected
    assert rejected[:4] == (str(tmp_path / "t.csv"), 2, field, value)
    assert rejected.kind == kind and reason in rejected.reason
    assert triples(found.table) == [("CCO", P1, 1.0)]
    assert found.report.rejected_by_kind == {kind: 1}
    assert found.report.read == {"table": 2} and found.report.kept == {"table": 1}
    assert f"1 {kind}" in "\n".join(found.report.lines())


@pytest.mark.parametrize("text", ["1", "1.0", "+1", " 1 ", "1e0", "1.", "10e-1"])
def test_ways_to_write_one(tmp_path, text):
    assert load(tmp_path, ("CCO", P1, text)).table.label.tolist() == [1.0]


def test_affinities_are_kept_as_numbers(tmp_path):
    found = load(tmp_path, ("CCO", P1, "7.25"), ("CCO", P2, "-3e-1"), ("C", P1, ".5"), task="regression")
    np.testing.assert_array_equal(found.table.label, np.float32([7.25, -0.3, 0.5]))


def test_drug_of_290_atoms_is_accepted_and_the_limit_can_be_set(tmp_path):
    assert load(tmp_path, ("C" * 290, P1, "1")).store.atom_counts.tolist() == [290]
    assert len(load(tmp_path, GOOD, ("CCCC", P1, "1"), max_atoms=3).report.rejected) == 1


def test_long_protein_is_cut_at_the_end_and_counted(tmp_path):
    long = "MKTAYIAKQR" * 121  # 1,210 residues
    found = load(tmp_path, ("CCO", long, "1"), ("C", long, "0"), ("C", long[:1200], "1"))
    assert found.report.proteins_cut == 1 and "proteins cut at the end: 1" in found.report.lines()
    assert sorted(map(len, found.table.proteins)) == [1200, 1210]  # identity is the whole sequence
    assert found.store.residue_counts.tolist() == [1200, 1200]
    np.testing.assert_array_equal(found.store.residues[:1200], encode_sequence(long[:1200]))


def test_sequences_are_normalised_silently(tmp_path):
    path = tmp_path / "t.csv"
    lines = ["SMILES,Protein,Y", f"CCO,{P1.lower()},1", f'C,"{P1[:9]} \n{P1[9:]}",0', f"CC,{P1}*,1", ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = load_interactions(DataConfig(), {"table": path}, "classification")
    assert triples(found.table) == [("CCO", P1, 1.0), ("C", P1, 0.0), ("CC", P1, 1.0)]
    assert not found.report.rejected and found.report.lines() == ["table: 3 rows read, 3 kept"]


def test_unknown_letters_become_x_and_are_counted(tmp_path):
    sequence = "A" * 19 + "J" + "C" * 19 + "*" + "D"
    found = load(tmp_path, ("CCO", sequence, "1"), ("C", sequence, "1"), ("C", P1, "1"))
    assert found.table.proteins[0] == "A" * 19 + "X" + "C" * 19 + "X" + "D"
    assert (found.report.residues_unknown, found.report.proteins_unknown) == (2, 1)
    assert "unknown residues set to X: 2 in 1 proteins" in found.report.lines()


def test_more_than_five_per_cent_unknown_rejects_the_row(tmp_path):
    found = load(tmp_path, ("CCO", "J" + "A" * 19, "1"), ("CCO", "J" + "A" * 18, "1"))
    assert [row.row for row in found.report.rejected] == [2]


@pytest.mark.parametrize(
    ("smiles", "atoms"), [("[Mg+2]", 1), ("[Zn]", 1), ("CC(=O)[O-].[Na+]", 5), ("C.C.C", 3), ("[102Ru]", 1)]
)
def test_ions_salts_and_fragments_are_accepted(tmp_path, smiles, atoms):
    found = load(tmp_path, (smiles, P1, "1"))
    assert found.store.atom_counts.tolist() == [atoms] and not found.report.rejected


def test_duplicates_by_canonical_smiles_and_sequence_keep_the_first(tmp_path):
    rows = [("OCC", P1, "1"), ("C", P1, "0"), ("CCO", P1.lower(), "1.0"), (" CCO", P1 + "*", "1"), ("C", P2, "0")]
    found = load(tmp_path, *rows)
    assert found.table.row.tolist() == [0, 1, 4]
    assert found.report.duplicates == 2 and "duplicate rows dropped: 2" in found.report.lines()
    assert not found.report.rejected and len(found.table.drugs) == len(found.table.proteins) == 2


def test_conflicting_labels_reject_every_row_of_the_pair(tmp_path):
    found = load(tmp_path, ("CCO", P1, "1"), ("C", P1, "0"), ("OCC", P1, "0"), ("CCO", P1, "1"))
    assert triples(found.table) == [("C", P1, 0.0)]
    assert [(row.row, row.field, row.value, row.kind) for row in found.report.rejected] == [
        (1, "Y", "1", CONFLICT),
        (3, "Y", "0", CONFLICT),
        (4, "Y", "1", CONFLICT),
    ]
    assert found.report.duplicates == 0


def test_repeats_across_parts_stay(tmp_path):
    paths = {
        "train": write(tmp_path / "a.csv", [("CCO", P1, "1"), ("CCO", P1, "1"), ("C", P1, "1")]),
        "test": write(tmp_path / "b.csv", [("OCC", P1, "1"), ("C", P1, "0"), ("CC", P2, "2")]),
    }
    found = load_interactions(DataConfig(max_rejected=0.5), paths, "classification")
    assert found.table.part.tolist() == ["train", "train", "test", "test"]
    assert found.table.row.tolist() == [0, 2, 0, 1] and found.report.duplicates == 1
    assert found.report.read == {"train": 3, "test": 3} and found.report.kept == {"train": 2, "test": 2}
    assert [(row.file, row.row) for row in found.report.rejected] == [(str(paths["test"]), 3)]
    assert found.table.drug.tolist() == [0, 1, 0, 1]  # one numbering for all parts


def test_replicates_are_kept_and_counted_or_averaged(tmp_path):
    rows = [("CCO", P1, "5"), ("C", P2, "6"), ("OCC", P1, "8"), ("CCO", P1, "5")]
    kept = load(tmp_path, *rows, task="regression")
    assert kept.table.label.tolist() == [5, 6, 8, 5] and kept.report.replicates == 2
    assert "replicate measurements kept: 2" in kept.report.lines()
    mean = load(tmp_path, *rows, task="regression", replicates="mean")
    assert triples(mean.table) == [("CCO", P1, 6.0), ("C", P2, 6.0)] and mean.table.row.tolist() == [0, 1]
    assert mean.report.replicates == 2 and "replicate measurements averaged: 2" in mean.report.lines()


def test_averaged_parts_stay_in_the_order_given(tmp_path):
    paths = {name: write(tmp_path / f"{name}.csv", [("CCO", P1, label)]) for name, label in (("train", 1), ("test", 2))}
    found = load_interactions(DataConfig(replicates="mean"), paths, "regression")
    assert found.table.part.tolist() == ["train", "test"] and found.table.label.tolist() == [1, 2]


def test_stereo_twins_are_warned_of(tmp_path):
    rows = [("C[C@H](N)C(=O)O", P1, "1"), ("C[C@@H](N)C(=O)O", P1, "0"), ("C/C=C/C", P1, "1"), ("[13CH4]", P1, "1")]
    found = load(tmp_path, *rows, ("C", P2, "1"))
    assert found.report.stereo_twins == 4  # two alanines, and methane with its isotope
    assert len(found.table) == 5 and any("warning: 4 drugs differ" in line for line in found.report.lines())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["file is empty"]),
        (b"SMILES,Protein,Y\n", ["only the header"]),
        (b"SMILES,Protein,IC50_text\nCCO,MKT,1\n", ["no label column", "'SMILES', 'Protein', 'IC50_text'", "y, label"]),
        (b"SMILES|Protein|Y\nCCO|MKT|1\n", ["'SMILES|Protein|Y'", "delimiter", "wanted"]),
        (bytes(range(256)), ["not a text table"]),
        ("SMILES,Protein,Y\n\u00e9,MKT,1\n".encode("latin-1"), ["not UTF-8"]),
    ],
)
def test_files_that_are_no_table_are_one_line(tmp_path, content, parts):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_interactions(DataConfig(), {"train": path}, "classification")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(part in message for part in parts), message


def test_too_many_rejected_is_an_error_with_the_list(tmp_path):
    rows = [("CCO" + "C" * i, P1, "1") for i in range(94)] + [("CCX" + "C" * 99, P1, "1")] * 6
    with pytest.raises(TooManyRejected) as caught:
        load(tmp_path, *rows, max_rejected=0.05)
    message = str(caught.value)
    assert message.startswith("6 of 100 rows rejected (6.0%; data.max_rejected allows 5.0%): 6 SMILES cannot be read")
    assert f"first: {tmp_path / 't.csv'}, data row 95, SMILES='CCXCC" in message and "\n" not in message
    caught.value.report.write_rejected(tmp_path / "rejected.csv")
    with open(tmp_path / "rejected.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["file", "row", "field", "value", "reason"] and len(lines) == 7
    assert lines[1][1:] == ["95", "SMILES", "CCX" + "C" * 99, "not a valid SMILES"]
    assert len(load(tmp_path, *rows, max_rejected=0.06).table) == 94  # exactly the share is accepted


def test_a_part_without_a_valid_row_is_an_error(tmp_path):
    paths = {
        "train": write(tmp_path / "a.csv", [("C" * i, P1, "1") for i in range(1, 100)]),
        "test": write(tmp_path / "b.csv", [("CCO", P1, "?")]),
    }
    with pytest.raises(TooManyRejected, match=r"b\.csv: no valid row among 1: 1 label is not a number"):
        load_interactions(DataConfig(), paths, "classification")


def test_writing_rejected_rows_leaves_one_file(tmp_path):
    report = load(tmp_path, GOOD, ('C"X,\n', P1, "1")).report
    report.write_rejected(tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        assert list(csv.reader(file))[1][3] == 'C"X,'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "t.csv"]


def test_labels_may_be_missing_where_they_are_not_required(tmp_path):
    path = write(tmp_path / "u.csv", [("CCO", P1), ("C", P1)], header=("SMILES", "Protein"))
    found = load_interactions(DataConfig(), {"table": path}, "classification", require_label=False)
    assert np.isnan(found.table.label).all() and len(found.table) == 2
    rows = [("CCO", P1, ""), ("C", P1, "1"), ("OCC", P1, "0"), ("CC", P1, "?")]
    found = load(tmp_path, *rows, require_label=False)
    # The labelled row of a pair is kept, not the unlabelled one; a label that is there has to be valid.
    assert found.table.row.tolist() == [1, 2] and [row.row for row in found.report.rejected] == [4]
    assert found.report.duplicates == 1


def test_parquet_numbers_booleans_and_missing_values(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {"SMILES": ["CCO", "C", None, "CC"], "Protein": pa.array([P1] * 4, pa.large_string())}
    for labels, kept in (
        ([True, False, True, None], [1, 0]),
        ([1, 0, 1, 3], [1, 0]),
        ([0.0, 1.0, 1.0, np.nan], [0, 1]),
    ):
        pa.parquet.write_table(pa.table({**columns, "Label": labels}), path, row_group_size=2)
        found = load_interactions(DataConfig(max_rejected=0.5), {"table": path}, "classification")
        assert found.table.label.tolist() == kept
        assert [row.row for row in found.report.rejected] == [3, 4]


def test_many_blocks_with_dictionaries_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 128)
    rows = [("C" * (i % 7 + 1), P1[i:] if i % 2 else P2[i:], str(i)) for i in range(12)]
    found = load(tmp_path, *rows, task="regression")
    assert triples(found.table) == [(smiles, protein, float(label)) for smiles, protein, label in rows]


def test_named_columns(tmp_path):
    path = write(tmp_path / "t.csv", [("CCN", "CCO", P1, "1", "0")], header=("SMILES", "mine", "p", "Y", "l"))
    data = DataConfig(drug_column="mine", protein_column="p", label_column="l")
    assert triples(load_interactions(data, {"table": path}, "classification").table) == [("CCO", P1, 0.0)]


def test_prediction_keeps_every_row_and_column(tmp_path):
    rows = [("a", "CCO", P1), ("b", "CCX", P1), ("c", "CCO", P1), ("d", "C", "12"), ("e", "", "")]
    path = write(tmp_path / "t.csv", rows, header=("id", "Drug", "Target Sequence"))
    found = load_for_prediction(path, DataConfig())
    assert found.columns.column_names == ["id", "Drug", "Target Sequence"]
    assert [tuple(row.values()) for row in found.columns.to_pylist()] == rows
    assert found.errors.tolist() == [
        "",
        "Drug: not a valid SMILES",
        "",
        "Target Sequence: 2 of 2 letters are not amino acids (at most 5 % are accepted)",
        "Drug: empty cell",
    ]
    assert found.table.row.tolist() == [0, 2] and np.isnan(found.table.label).all()
    assert found.store.atom_counts.tolist() == [3]


def test_prediction_of_nothing_valid_and_from_memory():
    found = load_for_prediction(pa.table({"SMILES": ["?"], "Protein": [P1], "n": [7]}), DataConfig())
    assert len(found.table) == 0 and len(found.store.atoms) == 0 and found.errors[0]
    assert found.columns["n"].to_pylist() == [7]
    found = load_for_prediction(pa.table({"SMILES": ["C"], "Protein": [P1]}), DataConfig())
    assert triples(found.table)[0][:2] == ("C", P1) and found.errors.tolist() == [""]


DRUGS = ["CCO", "OCC", "C", "CCX", "", " C "]
PROTEINS = [P1, P1.lower(), P2 + "*", "1234", ""]
LABELS = ["0", "1", "1.0", "", "x", "nan", "3"]


@given(
    st.lists(
        st.tuples(st.sampled_from(DRUGS), st.sampled_from(PROTEINS), st.sampled_from(LABELS)), min_size=1, max_size=25
    )
)
def test_every_row_is_kept_dropped_or_rejected_exactly_once(tmp_path_factory, rows):
    """Against a plain reading of the rules, row by row."""
    identity = {"CCO": "CCO", "OCC": "CCO", "C": "C", " C ": "C"}
    sequence = {P1: P1, P1.lower(): P1, P2 + "*": P2}
    valid = {
        i: ((identity[d], sequence[p]), float(y))
        for i, (d, p, y) in enumerate(rows)
        if d in identity and p in sequence and y in ("0", "1", "1.0")
    }
    labels: dict = {}
    for pair, label in valid.values():
        labels.setdefault(pair, set()).add(label)
    kept, seen = [], set()
    for i, (pair, label) in valid.items():
        if len(labels[pair]) == 1 and pair not in seen:
            seen.add(pair)
            kept.append((i, *pair, label))
    conflicts = sum(len(labels[pair]) == 2 for pair, _ in valid.values())
    path = write(tmp_path_factory.getbasetemp() / "rows.csv", rows)
    try:
        found = load_interactions(DataConfig(max_rejected=1.0), {"table": path}, "classification")
    except TooManyRejected as error:
        assert not kept and len(error.report.rejected) == len(rows)
        return
    assert [(row, *triple) for row, triple in zip(found.table.row.tolist(), triples(found.table), strict=True)] == kept
    assert len(found.report.rejected) == len(rows) - len(valid) + conflicts
    assert found.report.duplicates == len(valid) - conflicts - len(kept)
    assert len({row.row for row in found.report.rejected}) == len(found.report.rejected)


@pytest.mark.slow
def test_human_again_takes_under_a_second(data_dir):
    names = {"train": "train", "validation": "val", "test": "test"}
    paths = {part: data_dir / "human" / "random" / f"{name}.csv.gz" for part, name in names.items()}
    load_interactions(DataConfig(), paths, "classification")
    start = time.perf_counter()
    found = load_interactions(DataConfig(), paths, "classification")
    seconds = time.perf_counter() - start
    assert found.report.kept == {"train": 4197, "validation": 600, "test": 1200}
    assert (len(found.table.drugs), len(found.table.proteins)) == (2726, 2001)
    assert found.table.label.mean() == pytest.approx(0.4391, abs=5e-5)
    assert found.store.atom_counts.mean() == pytest.approx(22.6, abs=0.05)
    assert found.store.residue_counts.max() == 1200 and found.report.proteins_cut == 170
    assert seconds < 1.0


def test_known_conflicts_of_the_kinase_set(data_dir):
    folder = data_dir / "families" / "kinase"
    data = DataConfig(drugs=str(folder / "drugs.csv.gz"), proteins=str(folder / "proteins.csv.gz"))
    found = load_interactions(data, {"table": folder / "pairs.csv.gz"}, "classification")
    conflicts = [row for row in found.report.rejected if row.kind == validation.CONFLICT]
    assert len(conflicts) >= 84  # 42 pairs have both labels
    assert found.report.read["table"] == 111237
    assert len(found.table) == 110853 - 42  # distinct pairs, less the conflicting ones
