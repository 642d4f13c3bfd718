"""`jaxdti baselines`, on real functions."""

import json
import re
from pathlib import Path

import pytest

from jaxdti.cli import main
from jaxdti.errors import DataError


@pytest.mark.slow
def test_baselines_of_own_tables(run_cli, fails, write_pairs):
    write_pairs("pairs.csv")
    arguments = ["--data.table", "pairs.csv", "--data.split_fractions", "0.5,0.25,0.25", "--output", "b.json"]
    code, out, _ = run_cli("baselines", *arguments)
    assert code == 0
    results = json.loads(Path("b.json").read_text())
    assert set(results) == {"similarity", "drug_only", "protein_only", "random_forest", "logistic_regression"}
    assert re.search(rf"random_forest +{results['random_forest']['auroc']:.3f} ", out)
    both = "planted and --data.table both name the data; leave out one"
    assert fails("baselines", "planted", "--data.table", "x") == both
    assert fails("baselines", "planted", "--output", ".") == ".: is a folder; the name of a file is expected"
    assert "unknown option --training.epochs" in fails("baselines", "planted", "--training.epochs", "3")
    assert "no such name; did you mean human/random" in fails("baselines", "human/randm")


def test_baselines_of_a_name_take_its_task(monkeypatch):
    asked = []

    def stop(data, task):
        asked.append((data.table or data.dataset or (data.train, data.validation, data.test), task))
        raise DataError("enough")

    monkeypatch.setattr("jaxdti.data.pairs.load.load_data", stop)
    assert main(["baselines", "davis"]) == 2
    assert main(["baselines", "planted", "--data.planted.kind", "cold"]) == 2
    assert main(["baselines", "pairs.csv"]) == 2
    assert main(["baselines", "a.csv", "b.csv", "--task", "regression"]) == 2
    assert main(["baselines", "a.csv", "--output", "b.json", "b.csv", "c.csv"]) == 2
    assert asked == [
        ("davis", "regression"),
        ("planted", "classification"),
        ("pairs.csv", "classification"),
        (("a.csv", None, "b.csv"), "regression"),
        (("a.csv", "b.csv", "c.csv"), "classification"),
    ]


def test_baselines_of_tables_that_do_not_belong_together(fails):
    tables = ["a.csv", "b.csv", "c.csv"]
    assert fails("baselines", *tables, "d.csv").startswith("4 tables found; one to split, two (train, test) or three")
    assert fails("baselines", "a.csv", "davis") == "a.csv, davis: give the name of one dataset, or tables only"
    both = "a.csv and --data.validation both name the data; leave out one"
    assert fails("baselines", "a.csv", "c.csv", "--data.validation", "b.csv") == both
