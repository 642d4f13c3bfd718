import csv
import gzip
import hashlib
from collections import Counter

import numpy as np
import pytest

from jaxdti.data import named, registry
from jaxdti.data.named import dataset_parts, find_dataset, list_datasets, part_of_rows
from jaxdti.data.registry import DATASETS, get_dataset
from jaxdti.errors import DataError

PARTS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder with human/cold in it and a manifest, and an empty cache."""
    folder = tmp_path / "data"
    (folder / "human" / "cold").mkdir(parents=True)
    rows = []
    for part in PARTS:
        content = f"SMILES,Protein,Y\nCCO,MK{part.upper()},1\n".encode()
        (folder / "human" / "cold" / f"{part}.csv.gz").write_bytes(gzip.compress(content))
        rows.append((f"human/cold/{part}.csv.gz", hashlib.sha256(content).hexdigest()))
    with open(folder / "MANIFEST.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "sha256_uncompressed"), *rows])
    monkeypatch.setenv("JAXDTI_DATA", str(folder))
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path / "cache"))
    return folder


def forbid(monkeypatch, name):
    def called(*_):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(named, name, called)


def test_found_and_hashed_once(root, monkeypatch):
    found = find_dataset("human/cold")
    assert found.root == root and found.checked
    assert found.files["validation"] == root / "human" / "cold" / "val.csv.gz"
    forbid(monkeypatch, "content_hash")
    assert find_dataset("human/cold").files == found.files
    (root / "human" / "cold" / "val.csv.gz").touch()  # a new time: hash again
    with pytest.raises(AssertionError, match="content_hash was called"):
        find_dataset("human/cold")


def test_not_compressed_is_as_good(root):
    for part in PARTS:
        path = root / "human" / "cold" / f"{part}.csv.gz"
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert find_dataset("human/cold").files["test"] == root / "human" / "cold" / "test.csv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"SMILES,Protein,Y\nCCO,MK,0\n"),
            r"test.csv.gz: wrong content, SHA-256 \w{64} found, \w{64} expec",
        ),
        (gzip.compress(b"SMILES,Protein,Y\n" * 99)[:-9], "test.csv.gz: cannot be read to its end, damaged file"),
        (b"SMILES,Protein,Y\n", "test.csv.gz: cannot be read to its end, damaged file"),
    ],
    ids=["other", "cut", "plain"],  # bytes as names hold the time, which differs between test processes
)
def test_wrong_content(root, content, message):
    find_dataset("human/cold")
    (root / "human" / "cold" / "test.csv.gz").write_bytes(content)
    for _ in range(2):  # no stamp is left for a wrong file
        with pytest.raises(DataError, match=message) as caught:
            find_dataset("human/cold")
        assert "\n" not in str(caught.value)


def test_unwritable_cache_is_fine(root, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path / "file"))
    assert find_dataset("human/cold").checked


def test_without_a_manifest_published_hashes_count(root):
    (root / "MANIFEST.csv").unlink()
    with pytest.raises(DataError, match="wrong content"):
        find_dataset("human/cold")
    for stem in DATASETS["human/cluster"].files.values():
        (root / stem).parent.mkdir(exist_ok=True)
        (root / f"{stem}.csv").write_text("SMILES,Protein,Y\n")
    assert not find_dataset("human/cluster").checked  # nothing is published to compare with


def test_user_cache_is_the_second_place(root, tmp_path):
    cached = tmp_path / "cache" / "data" / "human" / "cluster"
    cached.mkdir(parents=True)
    for stem in DATASETS["human/cluster"].files.values():
        (cached.parent.parent / f"{stem}.csv").write_text("SMILES,Protein,Y\n")
    assert find_dataset("human/cluster").root == tmp_path / "cache" / "data"
    (root / "human" / "cluster").mkdir()
    for path in cached.iterdir():
        path.rename(root / "human" / "cluster" / path.name)
    assert find_dataset("human/cluster").root == root


def test_missing_files_are_named(root):
    (root / "human" / "cold" / "val.csv.gz").unlink()
    with pytest.raises(DataError) as caught:
        find_dataset("human/cold")
    message = str(caught.value)
    assert f"put {root}/human/cold/val.csv.gz there" in message and "train.csv.gz" not in message
    assert "`jaxdti data fetch human/cold` downloads it" in message and "\n" not in message
    with pytest.raises(DataError, match="biosnap/cold/train.csv.gz.*cannot download it.*MlanDTI"):
        find_dataset("biosnap/cold")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("human/randm", "no such name; did you mean human/random"),
        ("kinase", "did you mean families/kinase"),
        ("DAVIS!", "choose from human/random"),
        ("", "choose from human/random"),
        ("planted", "embedded dataset"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(DataError, match=message):
        get_dataset(name)


def test_data_folder_that_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDTI_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="JAXDTI_DATA=.*none: not a folder"):
        find_dataset("davis")


def test_damaged_manifest(root):
    (root / "MANIFEST.csv").write_text("file,hash\na,b\n")
    with pytest.raises(DataError, match="MANIFEST.csv: columns path and sha256_uncompressed expected"):
        find_dataset("human/cold")


def test_list_says_where(root, monkeypatch):
    forbid(monkeypatch, "content_hash")
    rows = {row.name: row for row in list_datasets()}
    assert rows["planted"].where.startswith("embedded")
    assert rows["human/cold"].where == f"in {root}"
    assert rows["human/cold"].rows == "train 3,453 / validation 155 / test 311"
    assert "`jaxdti data fetch davis`" in rows["davis"].where and rows["davis"].task == "regression"
    assert "cannot download" in rows["families/dude"].where
    assert rows.keys() == DATASETS.keys() | {"planted"}


@pytest.fixture
def given_data(data_dir, monkeypatch):
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    return data_dir


def read_manifest(folder):
    with open(folder / "MANIFEST.csv", newline="") as file:
        return {row["path"].removesuffix(".csv.gz"): row for row in csv.DictReader(file)}


def test_catalogue_agrees_with_the_manifest(given_data):
    manifest = read_manifest(given_data)
    for stem, sha256 in registry._PUBLISHED.items():
        assert manifest[stem]["sha256_uncompressed"] == sha256
    for name, dataset in DATASETS.items():
        if name == "bindingdb/random_drugban":  # only its validation file is stored there
            continue
        if "pairs" in dataset.files:
            assert int(manifest[dataset.files["pairs"]]["rows"]) == sum(dataset.rows.values()), name
        else:
            assert {part: int(manifest[stem]["rows"]) for part, stem in dataset.files.items()} == dataset.rows, name


@pytest.mark.parametrize("name", ["davis", "families/gpcr", "families/bindingdb_kd", "families/moa_activation"])
def test_parts_of_relational_rows(given_data, name):
    files = dataset_parts(name)
    assert files.pairs is not None and not files.parts
    with gzip.open(files.pairs, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert files.label_column in rows[0]
    columns = {column: np.array([row[column] for row in rows]) for column in rows[0]}
    parts = part_of_rows(files, columns)
    assert Counter(parts.tolist()) == DATASETS[name].rows
    if files.part_column:
        assert files.part_names[0] == "train"
        with pytest.raises(DataError, match=f"no column '{files.part_column}'"):
            part_of_rows(files, {"drug": columns["drug"]})
        with pytest.raises(DataError, match="value 'other' found, one of"):
            part_of_rows(files, {files.part_column: np.array(["train", "other"])})


def test_flat_parts(given_data):
    files = dataset_parts("human/random")
    assert files.part_names == ("train", "validation", "test") and files.pairs is None
    assert files.task == "classification" and files.label_column == "Y"
    assert dataset_parts("biosnap/cluster").part_names == ("train", "target_train", "test")
