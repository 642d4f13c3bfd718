"""The one way in: the embedded dataset, given parts, a table to split, relational tables, and every refusal."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from jaxdti.config import DataConfig, PlantedConfig
from jaxdti.data.named import DatasetFiles
from jaxdti.data.pairs import load
from jaxdti.data.pairs.load import load_data
from jaxdti.data.pairs.splits import DOMAIN_PARTS, make_split, write_split
from jaxdti.errors import DataError

SMILES = ("CCO", "CCN", "CC(=O)O", "c1ccccc1", "c1ccncc1", "CCCC", "CCCCO", "Clc1ccccc1")
PROTEINS = ("MKVLAAGIVG", "GGSSAAWWLL", "MKTAYIAKQR", "ACDEFGHIKL", "MNPQRSTVWY")


def write(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


def all_pairs():
    """40 rows (SMILES, sequence, label, affinity), every pair once."""
    rows = [(s, p, (i + j) % 2, 5 + i / 8) for i, s in enumerate(SMILES) for j, p in enumerate(PROTEINS)]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


@pytest.fixture
def files(tmp_path):
    header, rows = ("SMILES", "Protein", "Y", "pKd"), all_pairs()
    parts = {"train": rows[:24], "validation": rows[24:30], "test": rows[30:]}
    paths = {part: write(tmp_path / f"{part}.csv", header, chosen) for part, chosen in parts.items()}
    return paths | {"table": write(tmp_path / "table.csv", header, rows)}


def pair(table, row):
    return table.drugs[table.drug[row]], table.proteins[table.protein[row]]


def check(dataset, sizes, parts=("train", "validation", "test")):
    """Parts of these sizes, disjoint, and features of every entity."""
    assert list(dataset.parts) == list(parts)
    assert {part: len(rows) for part, rows in dataset.parts.items()} == dict(zip(dataset.parts, sizes, strict=True))
    rows = np.concatenate(list(dataset.parts.values()))
    assert len(np.unique(rows)) == len(rows) and rows.max() < len(dataset.table)
    assert len(dataset.store.atom_counts) == len(dataset.table.drugs)
    np.testing.assert_array_equal(dataset.store.residue_counts, [len(text) for text in dataset.table.proteins])


def test_the_embedded_dataset_needs_no_file():
    config = DataConfig(dataset="planted", planted=PlantedConfig(drugs=30, proteins=20, pairs=120, seed=1))
    dataset = load_data(config, "classification")
    check(dataset, [int(np.sum(dataset.table.part == part)) for part in ("train", "validation", "test")])
    assert sum(map(len, dataset.parts.values())) == len(dataset.table) and dataset.report is None
    assert dataset.ceiling is not None and 0.5 < dataset.ceiling <= 1.0 and dataset.lines
    with pytest.raises(DataError, match="dataset planted is for task=classification, found task=regression"):
        load_data(config, "regression")


def test_given_parts_stay_as_they_are(files):
    config = DataConfig(train=files["train"], validation=files["validation"], test=files["test"])
    dataset = load_data(config, "classification")
    check(dataset, (24, 6, 10))
    for part, rows in dataset.parts.items():
        with open(files[part], newline="") as file:
            given = list(csv.DictReader(file))
        assert [pair(dataset.table, row) for row in rows] == [(row["SMILES"], row["Protein"]) for row in given]
        assert dataset.table.label[rows].tolist() == [float(row["Y"]) for row in given]
    assert dataset.ceiling is None and any("0 pairs" in line for line in dataset.lines)


def test_validation_is_held_out_of_train_where_none_is_given(files):
    config = DataConfig(train=files["train"], test=files["test"])
    dataset = load_data(config, "classification")
    check(dataset, (22, 2, 10))
    assert "no validation part is given: 10% of the pairs of train are held out" in dataset.lines
    assert set(dataset.table.part[dataset.parts["validation"]]) == {"train"}
    again = load_data(config, "classification")
    np.testing.assert_array_equal(again.parts["validation"], dataset.parts["validation"])


def test_one_table_is_split_here(files):
    config = DataConfig(table=files["table"], split="cold_drug", split_fractions=(0.5, 0.25, 0.25), split_seed=3)
    dataset = load_data(config, "classification")
    check(dataset, (20, 10, 10))
    expected = make_split(dataset.table, "cold_drug", (0.5, 0.25, 0.25), 3)
    for part, rows in dataset.parts.items():
        np.testing.assert_array_equal(rows, expected[part])
    drugs = [set(dataset.table.drug[rows]) for rows in dataset.parts.values()]
    assert not (drugs[0] & drugs[1] or drugs[0] & drugs[2] or drugs[1] & drugs[2])


def test_a_written_split_is_used_again(files, tmp_path):
    first = load_data(DataConfig(table=files["table"], split_seed=5), "classification")
    write_split(tmp_path / "split.json", first.parts, first.table, "random", 5)
    config = DataConfig(table=files["table"], split_file=str(tmp_path / "split.json"))
    again = load_data(config, "classification")
    for part, rows in first.parts.items():
        np.testing.assert_array_equal(again.parts[part], rows)
    with pytest.raises(DataError, match="split.json: written for another table: 40 rows there, 24 valid rows here"):
        load_data(DataConfig(table=files["train"], split_file=str(tmp_path / "split.json")), "classification")


def relational(tmp_path):
    drugs = write(tmp_path / "drugs.csv", ("drug", "SMILES"), [(f"D{i}", s) for i, s in enumerate(SMILES)])
    proteins = write(tmp_path / "proteins.csv", ("protein", "sequence"), [(f"P{i}", s) for i, s in enumerate(PROTEINS)])
    fold = ("train0", "train1", "test")
    rows = [
        (f"D{SMILES.index(s)}", f"P{PROTEINS.index(p)}", affinity, fold[i % 3])
        for i, (s, p, _, affinity) in enumerate(all_pairs())
    ]
    return drugs, proteins, write(tmp_path / "pairs.csv", ("drug", "protein", "pKd", "fold"), rows)


def test_relational_tables_are_joined(tmp_path):
    drugs, proteins, pairs = relational(tmp_path)
    config = DataConfig(table=pairs, drugs=drugs, proteins=proteins, label_column="pKd")
    dataset = load_data(config, "regression")
    check(dataset, (28, 4, 8))
    expected = {(s, p): np.float32(affinity) for s, p, _, affinity in all_pairs()}
    assert {pair(dataset.table, row): dataset.table.label[row] for row in range(40)} == expected


def named(monkeypatch, **fields):
    """Any dataset name stands for these files."""
    fields = {"parts": {}, "task": "classification", "label_column": "Y"} | fields
    monkeypatch.setattr(load, "dataset_parts", lambda name: DatasetFiles(name=name, **fields))


def test_a_named_relational_set_keeps_its_published_folds(tmp_path, monkeypatch):
    drugs, proteins, pairs = relational(tmp_path)
    part_of = {"train0": "validation", "train1": "train", "test": "test"}
    settings = {"task": "regression", "label_column": "pKd", "part_column": "fold", "part_of": part_of, "note": "folds"}
    named(monkeypatch, drugs=drugs, proteins=proteins, pairs=pairs, **settings)
    dataset = load_data(DataConfig(dataset="davis"), "regression")
    check(dataset, (13, 14, 13))
    assert dataset.table.part.tolist() == [("validation", "train", "test")[i % 3] for i in range(40)]
    assert "folds" in dataset.lines
    with pytest.raises(DataError, match="dataset davis is for task=regression, found task=classification"):
        load_data(DataConfig(dataset="davis"), "classification")


def test_a_named_set_without_a_test_part_is_refused(files, monkeypatch):
    named(monkeypatch, parts={"train": files["train"], "target_train": files["test"]})
    with pytest.raises(DataError, match="dataset x/y has the parts train, target_train; training needs train and test"):
        load_data(DataConfig(dataset="x/y"), "classification")


def test_the_target_part_of_a_named_set_is_kept_and_others_are_left_out(files, monkeypatch):
    parts = {"train": "train", "target_train": "validation", "gpcr": "validation", "test": "test"}
    named(monkeypatch, parts={part: files[file] for part, file in parts.items()})
    dataset = load_data(DataConfig(dataset="x/y"), "classification")
    check(dataset, (22, 2, 6, 10), DOMAIN_PARTS)
    assert any(line.startswith("target_train shares with train") for line in dataset.lines)


def test_the_target_part_of_the_shifted_embedded_dataset_is_kept():
    config = DataConfig(dataset="planted", planted=PlantedConfig(kind="shifted", drugs=60, proteins=40, pairs=400))
    dataset = load_data(config, "classification")
    check(dataset, [int(np.sum(dataset.table.part == part)) for part in DOMAIN_PARTS], DOMAIN_PARTS)


def test_a_named_set_is_joined_and_split_by_a_file(files, tmp_path, monkeypatch):
    named(monkeypatch, parts={part: files[part] for part in ("train", "validation", "test")})
    given = load_data(DataConfig(dataset="x/y"), "classification")
    parts = dict(zip(DOMAIN_PARTS, np.split(np.arange(40), [10, 20, 30]), strict=True))
    write_split(tmp_path / "split.json", parts, given.table, "my own", 0)
    dataset = load_data(DataConfig(dataset="x/y", split_file=str(tmp_path / "split.json")), "classification")
    check(dataset, (10, 10, 10, 10), DOMAIN_PARTS)
    assert dataset.split == "file" and dataset.parts["test"].tolist() == list(range(30, 40))
    paths = {part: files[part] for part in ("train", "validation", "test")}
    with pytest.raises(DataError, match="split_file.* come split already"):
        load_data(DataConfig(**paths, split_file=str(tmp_path / "split.json")), "classification")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["files", "dataset", "planted"])
@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("split", "cold_drug", "cold_drug"),
        ("split_seed", 1, "1"),
        ("split_fractions", (0.8, 0.1, 0.1), "0.8,0.1,0.1"),
        ("cluster_threshold", 0.3, "0.3"),
        ("target_share", 0.5, "0.5"),
    ],
)
def test_how_to_split_data_that_come_split_is_refused(files, monkeypatch, given, key, value, shown):
    paths = {part: files[part] for part in ("train", "validation", "test")}
    if given == "dataset":
        named(monkeypatch, parts=paths)
    data = DataConfig(**paths) if given == "files" else DataConfig(dataset=given, planted=PlantedConfig(pairs=400))
    load_data(replace(data, split="random"), "classification")  # the default, which a stored configuration holds
    fault = rf"data.{key}={shown} is set, but data\.\S+ .*leave out --data.{key}, .* --data.table"
    with pytest.raises(DataError, match=fault):
        load_data(replace(data, **{key: value}), "classification")


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [("label_column", "Kd_nM", "pKd"), ("drugs", "mine.csv", r"\S+drugs.csv"), ("proteins", "mine.csv", r"\S+.csv")],
)
def test_what_a_dataset_brings_is_not_replaced(tmp_path, monkeypatch, key, value, own):
    drugs, proteins, pairs = relational(tmp_path)
    part_of = {"train0": "validation", "train1": "train", "test": "test"}
    settings = {"task": "regression", "label_column": "pKd", "part_column": "fold", "part_of": part_of}
    named(monkeypatch, drugs=drugs, proteins=proteins, pairs=pairs, **settings)
    load_data(DataConfig(dataset="davis", label_column="pKd", drugs=drugs, drug_column="SMILES"), "regression")
    with pytest.raises(DataError, match=rf"data.{key}={value} is set, but dataset davis brings its own \({own}\)"):
        load_data(DataConfig(dataset="davis", **{key: value}), "regression")


def test_a_flat_or_generated_dataset_takes_no_side_tables(files, monkeypatch):
    named(monkeypatch, parts={part: files[part] for part in ("train", "validation", "test")})
    with pytest.raises(DataError, match=r"data.drugs=mine.csv is set, but dataset x/y brings its own \(none\)"):
        load_data(DataConfig(dataset="x/y", drugs="mine.csv"), "classification")
    with pytest.raises(DataError, match="data.drug_column=S is set, but data.dataset=planted is generated, not read"):
        load_data(DataConfig(dataset="planted", drug_column="S"), "classification")


def test_one_table_is_split_by_cluster_here(files):
    """These drugs and proteins resemble none another at a threshold of 0.2: every one is a cluster."""
    config = DataConfig(table=files["table"], split="cluster", split_seed=2, cluster_threshold=0.2, target_share=0.5)
    dataset = load_data(config, "classification")
    check(dataset, (11, 1, 6, 2), DOMAIN_PARTS)  # 4 x 3 source and 4 x 2 target pairs of 8 drugs and 5 proteins
    lines = "\n".join(dataset.lines)
    assert "drug clusters: 8 of 8 drugs, the largest of 1; source 4, target 4" in lines
    assert "protein clusters: 5 of 5 proteins, the largest of 1; source 3, target 2" in lines
    assert "belong to different ones: 20" in lines and dataset.split == "cluster"
    assert "test shares with train: 0 of 2 drugs, 0 of 2 proteins" in lines
    with pytest.raises(DataError, match="a part is empty"):
        load_data(replace(config, target_share=0.0), "classification")


@pytest.mark.parametrize(
    "fields, fault",
    [
        ({}, r"no complete data named \(nothing set\): expected data.dataset .* or data.table$"),
        ({"train": "a.csv"}, r"no complete data named \(data.train set\)"),
        ({"validation": "a.csv", "test": "b.csv"}, r"\(data.validation and data.test set\)"),
        ({"dataset": "planted", "table": "a.csv"}, "data.dataset and data.table are set: .* exclude each other"),
        ({"train": "a.csv", "test": "b.csv", "table": "c.csv"}, "data.train and data.test and data.table are set"),
        ({"table": "a.csv", "split": "scaffold", "split_file": "b.json"}, "split_file=b.json are both set"),
        ({"table": "a.csv", "split_seed": 2, "split_file": "b.json"}, "data.split_seed=2 and .*b.json are both set"),
        ({"dataset": "human/randon"}, "human/random"),
        ({"table": "nowhere.csv"}, "nowhere.csv"),
        ({"train": "nowhere.csv", "test": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_names_no_data_is_refused_in_one_line(fields, fault):
    with pytest.raises(DataError, match=fault) as error:
        load_data(DataConfig(**fields), "classification")
    assert "\n" not in str(error.value)


def test_a_part_without_rows_is_refused(tmp_path, files, monkeypatch):
    drugs, proteins, pairs = relational(tmp_path)
    part_of = {"train0": "train", "train1": "train", "test": "gpcr"}
    settings = {"task": "regression", "label_column": "pKd", "part_column": "fold", "part_of": part_of}
    named(monkeypatch, drugs=drugs, proteins=proteins, pairs=pairs, **settings)
    with pytest.raises(DataError, match="the test part has no rows; found train, validation"):
        load_data(DataConfig(dataset="davis"), "regression")


@pytest.mark.slow
def test_a_split_file_beside_given_parts_is_refused(tmp_path):
    data = DataConfig(dataset="planted", split_file=str(tmp_path / "split.json"), planted=PlantedConfig(pairs=400))
    with pytest.raises(DataError, match="split_file.* come split already"):
        load_data(data, "classification")


def test_replicates_are_averaged_within_a_published_part_only(tmp_path, monkeypatch):
    folder = tmp_path / "davis"
    folder.mkdir()
    (folder / "drugs.csv").write_text("drug,SMILES\n0,CCO\n1,CCN\n")
    (folder / "proteins.csv").write_text("protein,Protein\n0,MKTAYIAKQR\n1,MKTWYIAKQR\n")
    rows = ["0,0,5,train1", "0,0,7,train1", "0,0,9,test", "1,1,6,train0", "1,0,6,train2"]
    (folder / "affinity.csv").write_text("drug,protein,pKd,fold\n" + "\n".join(rows) + "\n")
    monkeypatch.setenv("JAXDTI_DATA", str(tmp_path))
    dataset = load_data(DataConfig(dataset="davis", replicates="mean"), "regression")
    labels = {part: sorted(dataset.table.label[rows].tolist()) for part, rows in dataset.parts.items()}
    assert labels == {"train": [6.0, 6.0], "validation": [6.0], "test": [9.0]}
