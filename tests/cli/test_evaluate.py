"""`jaxdti evaluate`."""

import re
import sys
from pathlib import Path

import pytest

from jaxdti.cli.printing import UNCALIBRATED


def test_evaluate_warns_of_pairs_that_the_run_was_trained_on(run_cli, calls, monkeypatch, metrics):
    found = metrics | {"rows_trained_on": 1001}
    monkeypatch.setattr(sys.modules["jaxdti.inference.evaluate"], "evaluate", lambda *_, **__: found)
    code, out, err = run_cli("evaluate", "run", "pairs.csv")
    assert code == 0 and re.search(r"rows trained on +1,001", out)
    assert err == "warning: 1,001 of 1,234 rows repeat a pair that the run was trained on\n"
    found = metrics | {"rows_not_checked": "run does not record its training data"}
    code, out, err = run_cli("evaluate", "run", "pairs.csv")
    assert code == 0 and "not_checked" not in out
    assert err == "cannot check for rows seen in training: run does not record its training data\n"


def test_evaluate_passes_what_was_given_and_prints_the_metrics(run_cli, fails, calls):
    code, out, _ = run_cli("evaluate", "run", "pairs.csv")
    assert code == 0
    assert out.splitlines() == [
        "pairs.csv",
        "metric  value      95 % interval",
        "auroc   0.9123     0.8500 to 0.9500",
        "mcc     undefined",
        "pairs   1,234",
        UNCALIBRATED,
        "written to pairs_metrics.json and pairs_scores.csv",
    ]
    arguments = ["--output", "out", "--label-column", "pKd", "--drug-column", "S", "--max-rejected", "0.5"]
    assert run_cli("evaluate", "run", "pairs.csv", *arguments)[0] == 0
    given = {"label_column": "pKd", "drug_column": "S", "max_rejected": 0.5}
    assert calls == [
        ("evaluate", (Path("run"), Path("pairs.csv"), None), {"overwrite": False}),
        ("evaluate", (Path("run"), Path("pairs.csv"), Path("out")), given | {"overwrite": False}),
    ]
    assert run_cli("evaluate", "run", "pairs.csv", "--overwrite")[0] == 0
    assert calls[-1] == ("evaluate", (Path("run"), Path("pairs.csv"), None), {"overwrite": True})
    assert "2 found, a share between 0 and 1 expected" in fails("evaluate", "run", "pairs.csv", "--max-rejected", "2")
    assert "x found, a share between 0 and 1 expected" in fails("evaluate", "run", "pairs.csv", "--max-rejected", "x")


@pytest.mark.parametrize("kind", ["metrics.json", "scores.csv", "rejected.csv"])
@pytest.mark.parametrize("folder", [None, "results"])
def test_evaluate_replaces_no_file_of_another_table_by_itself(fails, kind, folder):
    earlier = Path(folder or "", f"test_{kind}")
    earlier.parent.mkdir(exist_ok=True)
    earlier.write_text("of human/random/test.csv.gz")
    given = ["--output", folder] if folder else []
    message = fails("evaluate", "run", "human/cold/test.csv.gz", *given)
    assert message == f"{earlier}: already exists; give another --output, or --overwrite"
    assert earlier.read_text() == "of human/random/test.csv.gz"
    assert fails("evaluate", "run", "human/cold/test.csv.gz", "--overwrite", *given).startswith("run: not a run")
