"""`jaxdti data`, on real functions."""

import json
import re
from pathlib import Path

import pytest

from jaxdti.config import load_config
from jaxdti.data.pairs.load import load_data
from jaxdti.data.registry import DATASETS


def test_data_list_names_every_dataset(run_cli):
    code, out, _ = run_cli("data", "list")
    assert code == 0
    lines = out.splitlines()
    assert {line.split()[0] for line in lines[2:]} == {*DATASETS, "planted"}
    assert lines[1].split()[:2] == ["name", "task"]


def test_data_fetch_passes_name_and_place(run_cli, fails, monkeypatch):
    monkeypatch.setattr("jaxdti.data.fetch.fetch", lambda name, to, progress: [Path(to) / name / "train.csv"])
    assert run_cli("data", "fetch", "human/random", "--to", "here")[:2] == (
        0,
        "here/human/random/train.csv\nto use it: export JAXDTI_DATA=here\n",
    )
    monkeypatch.undo()
    assert "human/cluster/source_train.csv.gz, " in fails("data", "fetch", "human/cluster", "--to", "here")


def test_data_inspect_shows_sizes_leaks_and_rejected_rows(run_cli, write_pairs):
    write_pairs("train.csv", bad=3)
    write_pairs("test.csv")
    code, out, _ = run_cli("data", "inspect", "train.csv", "test.csv", "--rejected", "bad.csv")
    assert code == 0
    assert "train: 40 rows read, 37 kept" in out
    assert "rows rejected: 3 (3 SMILES cannot be read)" in out
    assert re.search(r"^test +40 +10 +4 +50.0%$", out, re.MULTILINE)
    assert re.search(r"^heavy atoms of a drug +3 ", out, re.MULTILINE)
    assert "test shares with train: 10 of 10 drugs, 4 of 4 proteins, 37 pairs" in out
    assert "warning: more than 5%" not in out
    lines = Path("bad.csv").read_text().splitlines()
    assert lines[0] == "file,row,field,value,reason" and len(lines) == 4


def test_data_inspect_reports_what_training_would_refuse(run_cli, fails, write_pairs):
    write_pairs("pairs.csv", bad=20)
    code, out, _ = run_cli("data", "inspect", "pairs.csv")
    assert code == 0 and "warning: more than 5% of the rows are rejected" in out
    Path("none.csv").write_text("SMILES,Protein,Y\nC1CC,MKT,1\n")
    assert fails("data", "inspect", "none.csv").endswith("all of them are listed in rejected.csv")
    assert Path("rejected.csv").read_text().splitlines()[1].startswith("none.csv,1,SMILES,C1CC,")


def test_data_inspect_of_affinities(run_cli):
    Path("kd.tsv").write_text("SMILES\tProtein\tpKd\nCCO\tMKTAYIAKQ\t5\nCCN\tMKTAYIAKQ\t7\n")
    code, out, _ = run_cli("data", "inspect", "kd.tsv", "--task", "regression")
    assert code == 0
    assert re.search(r"^kd +2 +2 +1 +5.000 +6.000 +6.000 +7.000 +1.000$", out, re.MULTILINE)


def test_data_split_is_used_by_training(run_cli, fails, write_pairs):
    write_pairs("pairs.csv")
    arguments = ["--kind", "cold_drug", "--fractions", "0.6", "0.2", "0.2", "--seed", "3", "--output", "split.json"]
    code, out, _ = run_cli("data", "split", "pairs.csv", *arguments)
    assert code == 0 and "test shares with train: 0 of 2 drugs" in out
    overrides = ["data.table=pairs.csv", "data.split_file=split.json"]
    data = load_data(load_config(None, overrides).data, "classification")
    assert {part: len(rows) for part, rows in data.parts.items()} == {"train": 24, "validation": 8, "test": 8}
    assert {part: rows.tolist() for part, rows in data.parts.items()} == json.loads(Path("split.json").read_text())[
        "parts"
    ]
    assert "has a published split (train, validation, test)" in fails("data", "split", "davis", "--output", "s.json")
    assert "makes its own parts" in fails("data", "split", "planted", "--output", "s.json")
    assert "three shares that sum to 1" in fails(
        "data", "split", "pairs.csv", "--fractions", "1", "1", "1", "--output", "s.json"
    )
    assert not Path("s.json").exists()


def test_data_split_by_cluster(run_cli, fails, write_pairs):
    write_pairs("pairs.csv")
    arguments = ["data", "split", "pairs.csv", "--kind", "cluster", "--output", "split.json"]
    # 10 drugs and 4 proteins, each a cluster at this threshold: 5 x 2 source and 5 x 2 target pairs.
    code, out, _ = run_cli(*arguments, "--threshold", "0.2", "--target-share", "0.5")
    assert code == 0 and "drug clusters: 10 of 10 drugs, the largest of 1; source 5, target 5" in out
    assert "use it with --data.table pairs.csv --data.split_file split.json" in out
    parts = json.loads(Path("split.json").read_text())["parts"]
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 9,
        "validation": 1,
        "target_train": 8,
        "test": 2,
    }
    data = load_data(load_config(None, ["data.table=pairs.csv", "data.split_file=split.json"]).data, "classification")
    assert {part: rows.tolist() for part, rows in data.parts.items()} == parts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs.csv", "--threshold", "0.2"], "--threshold: only with --kind cluster, found --kind random"),
        (["biosnap/random", "--kind", "scaffold", "--published"], "--published: only with --kind cluster"),
        (["pairs.csv", "--kind", "cluster", "--published"], "the name of a dataset is expected, found the table pairs"),
        (
            ["biosnap/random", "--kind", "cluster", "--published", "--target-share", "0"],
            "the published recipe settles this; leave --target-share out",
        ),
        (["human/random", "--kind", "cluster", "--published"], "known for biosnap/random, bindingdb/random"),
        (["pairs.csv", "--kind", "cluster", "--threshold", "2"], "2 found, a share between 0 and 1 expected"),
    ],
)
def test_data_split_by_cluster_refuses_what_does_not_belong_together(fails, arguments, message, write_pairs):
    write_pairs("pairs.csv")
    assert message in fails("data", "split", *arguments, "--output", "split.json")
    assert not Path("split.json").exists()


def test_data_split_lists_rejected_rows_beside_the_output(fails, write_pairs):
    write_pairs("pairs.csv", bad=20)
    Path("out").mkdir()
    assert fails("data", "split", "pairs.csv", "--output", "out/s.json").endswith("listed in out/rejected.csv")
    assert [path.name for path in Path("out").iterdir()] == ["rejected.csv"]


def test_data_inspect_of_a_named_dataset_shows_its_terms(run_cli, fails, data_dir, monkeypatch):
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    own = r"data.label_column=Kd_nM is set, but dataset davis brings its own \(pKd\)"
    assert re.match(own, fails("data", "inspect", "davis", "--label-column", "Kd_nM"))
    code, out, _ = run_cli("data", "inspect", "bindingdb/sample")
    assert code == 0
    assert "source: " in out and "licence: records of BindingDB" in out
