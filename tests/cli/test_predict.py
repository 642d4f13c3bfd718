"""`jaxdti predict`."""

import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from jaxdti.cli.printing import UNCALIBRATED
from jaxdti.config import Config
from jaxdti.data.tables import read_table


@pytest.mark.parametrize(
    "order", [("run", "pairs.csv", "--output", "s.csv"), ("run", "--output", "s.csv", "pairs.csv")]
)
def test_predict_writes_the_scores(run_cli, calls, order, trained):
    code, out, _ = run_cli("predict", *order, "--protein-column", "P")
    assert (code, out) == (0, "1 rows; written to s.csv\n")
    assert calls == [("predict", (trained, Path("pairs.csv")), {"protein_column": "P"})]
    assert read_table(Path("s.csv")).column_names == ["SMILES", "score", "probability", "error"]


def test_predict_refuses_a_bad_place_before_the_work(fails, calls, write_pairs):
    write_pairs("pairs.csv")
    assert "unknown extension" in fails("predict", "run", "pairs.csv", "--output", "scores.xls")
    assert "the folder absent does not exist" in fails("predict", "run", "pairs.csv", "--output", "absent/scores.csv")
    Path("there.csv").mkdir()
    assert "there.csv: is a folder" in fails("predict", "run", "pairs.csv", "--output", "there.csv")
    assert "SCORES would overwrite TABLE" in fails("predict", "run", "pairs.csv", "--output", "./pairs.csv")
    assert "predict needs TABLE and --output SCORES" in fails("predict", "run", "pairs.csv")
    assert calls == []


def test_predict_one_pair(run_cli, fails, calls, trained):
    code, out, _ = run_cli("predict", "run", "--smiles", "CCO", "--sequence", "MKT")
    assert (code, out) == (0, "score 1.25\nprobability 0.777\n")
    ((_, (run, pair), settings),) = calls
    assert run is trained and pair.to_pylist() == [{"SMILES": "CCO", "Protein": "MKT"}] and settings == {}
    assert fails("predict", "run", "--smiles", "CCO") == "one pair needs both --smiles and --sequence"
    surplus = ["pairs.csv", "--drug-column", "S"]
    assert "leave out TABLE, --drug-column" in fails("predict", "run", *surplus, "--smiles", "C", "--sequence", "M")


def test_predict_tells_the_spread_of_replicas_and_what_nothing_was_fitted_to(run_cli, calls, monkeypatch):
    scores = pa.table({"score": [1.25], "score_sd": [0.5], "probability": [0.777], "error": [""]})
    monkeypatch.setattr(sys.modules["jaxdti.inference.predict"], "predict", lambda *_, **__: scores)
    uncalibrated = types.SimpleNamespace(config=Config(), calibrated=False)
    monkeypatch.setattr("jaxdti.inference.trained.load_run", lambda run: uncalibrated)
    code, out, err = run_cli("predict", "run", "--smiles", "CCO", "--sequence", "MKT")
    assert (code, out) == (0, "score 1.25\nscore_sd 0.5\nprobability 0.777\n")
    assert err == f"{UNCALIBRATED}\n"
    assert run_cli("predict", "run", "pairs.csv", "--output", "s.csv")[2] == f"{UNCALIBRATED}\n"


def test_predict_one_invalid_pair_is_an_error(fails, calls, monkeypatch):
    invalid = pa.table({"score": pa.array([None], pa.float64()), "error": ["SMILES: cannot be read"]})
    monkeypatch.setattr(sys.modules["jaxdti.inference.predict"], "predict", lambda *_, **__: invalid)
    assert fails("predict", "run", "--smiles", "C1CC", "--sequence", "MKT") == "SMILES: cannot be read"
