"""A whole run on feature vectors from the command line, and what it refuses."""

import csv
import json
import os
import re
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxdti.cli.main import main
from jaxdti.config import config_from_dict
from jaxdti.errors import DataError
from jaxdti.inference.trained import load_run
from jaxdti.studies import vector_methods
from jaxdti.studies import vectors as vector_run


@pytest.fixture
def flags(tmp_path):
    """Two classes that the first column tells apart; the target is moved along the second."""
    rng = np.random.default_rng(0)
    for name, count, move in (("source", 60, 0.0), ("target", 30, 2.0), ("test", 30, 2.0)):
        label = np.arange(count) % 2
        x = np.stack([4.0 * label - 2.0, np.full(count, move)], 1) + rng.normal(scale=0.3, size=(count, 2))
        lines = [f"{a},{b},{'yes' if y else 'no'}" for (a, b), y in zip(x, label, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,label", *lines]))
    paths = [f"--vectors.{name}={tmp_path / name}.csv" for name in ("source", "target", "test")]
    sizes = ["--vectors.features=8", "--adaptation.discriminator_features=4", "--training.batch_size=16"]
    return [
        *paths,
        *sizes,
        "--epochs=12",
        "--learning-rate=0.02",
        "--training.replicas=2",
        "--output",
        str(tmp_path / "run"),
    ]


@pytest.mark.slow
def test_from_tables_to_results(flags, tmp_path, capsys):
    assert main(["train", "--vectors.methods=none,san", *flags]) == 0
    shown = capsys.readouterr().out
    assert "accuracy on target test rows, mean ± sd over 2 seeds" in shown and "san: above none on" in shown
    assert re.search(r"its mean differs by -?\d\.\d{3} \(95 % interval -?\d\.\d{3} to -?\d\.\d{3}\) from none", shown)
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = ("none", "san", "similarity", "random_forest", "logistic_regression")
    assert [(row["method"], row["seed"]) for row in rows] == [(name, seed) for name in methods for seed in "01"]
    assert all(float(row["source_accuracy"]) == 1.0 for row in rows)
    assert all(float(row["target_accuracy"]) > 0.9 for row in rows if row["method"] == "san")
    assert all(float(row["target_accuracy"]) == 1.0 for row in rows if row["method"] == "random_forest")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["results"]) == 2 * len(methods)
    assert [row["method"] for row in summary["differences"]] == list(methods[1:])
    assert (tmp_path / "run" / "domains" / "tables.png").read_bytes().startswith(b"\x89PNG")
    points = pq.read_table(tmp_path / "run" / "methods" / "san.parquet").to_pydict()
    assert set(points["network"]) == {"san"} and set(points["task"]) == {"tables"}
    assert [points["domain"].count(domain) for domain in ("source", "target")] == [12, 30]  # of the first seed
    assert main(["train", "--vectors.methods=none", *flags]) == 2
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(DataError, match="a run on feature vectors, not on pairs"):
        load_run(tmp_path / "run")


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_from_its_last_epoch(flags, tmp_path, capsys, monkeypatch):
    whole, run, seen = tmp_path / "run", tmp_path / "stopped", []
    flags = ["--vectors.methods=dann", "--output.baselines=false", *flags]
    assert main(["train", *flags]) == 0
    records = [json.loads(line) for line in (whole / "methods" / "dann" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["replica"]) for record in records] == [
        (e, i) for e in range(1, 13) for i in (0, 1)
    ]
    assert {"loss", "step", "seconds", "samples_per_second"} <= records[0].keys()
    fit = vector_methods.fit_adapted

    def stopping(*given, **settings):
        def stop(course):
            seen.append(course.epoch)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return fit(*given, **settings | {"progress": stop})

    monkeypatch.setattr(vector_methods, "fit_adapted", stopping)
    flags[-1] = str(run)
    assert main(["train", *flags]) == 128 + signal.SIGTERM
    assert (run / "methods" / "dann" / "checkpoints").is_dir()
    assert main(["train", "--resume", str(run)]) == 0
    assert seen == [10, 12] and "resuming after epoch 10" in capsys.readouterr().err
    assert (run / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert not list(run.rglob("checkpoints"))


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_the_methods_that_are_missing(flags, tmp_path, capsys, monkeypatch):
    whole, run, trained = tmp_path / "run", tmp_path / "stopped", []
    flags = ["--vectors.methods=none,dann,san", *flags]
    assert main(["train", *flags]) == 0
    flags[-1] = str(run)
    fit = vector_methods.fit_adapted

    def stopping(*given, **settings):
        trained.append(given[3].method)
        if trained == ["none", "dann"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(*given, **settings)

    monkeypatch.setattr(vector_methods, "fit_adapted", stopping)
    assert main(["train", *flags]) == 128 + signal.SIGTERM
    assert f"saved; continue with: jaxdti train --resume {run}" in capsys.readouterr().err
    assert {path.name for path in (run / "methods").iterdir() if path.is_file()} == {"none.json", "none.parquet"}
    assert not (run / "results.csv").exists() and not (run / "domains").exists()
    (run / "methods" / "dann.parquet").write_bytes(b"")  # as if it had ended before the rows were written
    assert main(["train", *flags]) == 2 and f"or --resume {run}" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0
    assert trained == ["none", "dann", "dann", "san"]
    for name in ("results.csv", "domains/tables.png"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert "san: above none on" in capsys.readouterr().out
    monkeypatch.setattr(vector_methods, "vector_baseline", None)
    assert main(["train", "--resume", str(run)]) == 0 and len(trained) == 4  # finished: nothing is trained
    with monkeypatch.context() as patch:  # killed before the data were recorded
        patch.setattr(vector_run.VectorsStudy, "run", lambda *_: {})
        killed = tmp_path / "killed"
        killed.mkdir()
        (killed / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
        vector_run.resume_vectors(killed)
    assert (killed / "data.json").read_bytes() == (run / "data.json").read_bytes()
    (tmp_path / "test.csv").write_text((tmp_path / "test.csv").read_text().replace("yes", "no", 1))
    assert main(["train", "--resume", str(run)]) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vectors", "rest", "message"),
    [
        ({"source": "a.csv"}, {}, "give vectors.source, vectors.target and vectors.test"),
        (
            {"source": "a.csv", "test": "b.csv", "methods": ["none"], "select": "information"},
            {},
            "vectors.source: name",
        ),
        ({"dataset": "digits", "fingerprint_bits": 64}, {}, "vectors.dataset=digits brings its own features"),
        ({"dataset": "digits", "methods": ["san"]}, {"transfer": {"mode": "full"}}, "vectors.methods=san: without"),
        (
            {"dataset": "digits", "methods": ["none"], "select": "importance"},
            {"transfer": {"mode": "full"}},
            "vectors.select=importance: transfer.mode=full takes last or source",
        ),
        ({"dataset": "digits", "source": "a.csv"}, {}, "name vectors.dataset, or"),
        ({"dataset": "letters"}, {}, "choose from digits, families, planted"),
        ({"methods": ["san", "san"]}, {}, "each only once"),
        ({"methods": ["sand"]}, {}, "choose from none, dann"),
        ({"dataset": "digits"}, {"adaptation": {"method": "san"}}, "vectors.methods names the methods"),
        ({"dataset": "digits"}, {"task": "regression"}, "the task is classification"),
        ({"select": "best"}, {}, "choose from last, source, information, importance"),
        ({"tasks": ["0", "0"]}, {}, "each only once"),
        ({"dataset": "digits"}, {"adaptation": {"start": 3}, "training": {"epochs": 3}}, r"start=3.0: .*epochs=3;"),
        (
            {"dataset": "digits"},
            {"training": {"frozen": ["decoder"], "patience": 2}, "data": {"table": "a.csv"}},
            "data.table=a.csv, training.frozen=decoder, training.patience=2: without effect on feature vectors",
        ),
        (
            {"dataset": "digits"},
            {"adaptation": {"selection": "information", "oracle": True}},
            "adaptation.oracle=True, adaptation.selection=information: .* chosen by vectors.select, found last",
        ),
    ],
)
def test_what_the_configuration_refuses(vectors, rest, message):
    with pytest.raises(DataError, match=message):
        config_from_dict({"vectors": vectors} | rest)


def test_what_acts_on_feature_vectors_is_accepted():
    digits = {"dataset": "digits", "select": "source"}
    config_from_dict({"vectors": digits, "training": {"patience": 2, "epochs": 3}, "adaptation": {"start": 2.5}})
    only = {"vectors": {"dataset": "digits", "methods": ["none"]}, "training": {"epochs": 1}}
    config_from_dict(only | {"adaptation": {"start": 3}})  # nothing is adapted


@pytest.mark.slow
@pytest.mark.parametrize("select", ["information", "importance"])
def test_target_rows_select_the_epoch_and_their_labels_do_not(flags, tmp_path, select, monkeypatch):
    fit, fits = vector_methods.fit_adapted, []
    monkeypatch.setattr(
        vector_methods, "fit_adapted", lambda *given, **how: fits.append(fit(*given, **how)) or fits[-1]
    )
    flags = [f"--vectors.select={select}", "--vectors.methods=none,coral", "--output.baselines=false", *flags]
    assert main(["train", *flags]) == 0
    target = tmp_path / "target.csv"
    target.write_text(target.read_text().replace("yes", "maybe").replace("no", "yes"))  # a label that no source row has
    flags[-1] = str(tmp_path / "other")
    assert main(["train", *flags]) == 0
    results = [(tmp_path / name / "results.csv").read_text() for name in ("run", "other")]
    assert results[0] == results[1] and len(fits) == 4
    for found in fits:  # an information lies between 0 and log 2, minus a risk is below 0
        assert np.all((found.best_value > 0) == (select == "information")) and np.all(found.best_value < np.log(2))
        np.testing.assert_array_equal(found.best_epoch, 1 + found.value.argmax(1))


def test_the_planted_vectors_are_a_dataset_whose_tasks_are_strengths():
    config = config_from_dict({"vectors": {"dataset": "planted", "tasks": ["0.25"]}})
    domains = vector_run.load_domains(config, (3, 4))
    assert list(domains.tasks) == ["0.25"] and len(domains.tasks["0.25"]) == 2


def test_given_tables_are_one_target(flags, capsys):
    assert main(["train", "--vectors.tasks=noise", *flags]) == 2
    assert "given tables are one target" in capsys.readouterr().err
