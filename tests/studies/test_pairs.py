"""Whole runs of the smallest DrugBAN: what they write, what they refuse, and what they learn."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from jaxdti import cli
from jaxdti.config import load_config
from jaxdti.data.pairs.load import load_data
from jaxdti.data.pairs.splits import read_split
from jaxdti.errors import DataError, NonFiniteLoss
from jaxdti.evaluation.calibration import Calibration
from jaxdti.evaluation.metrics import concordance_index
from jaxdti.inference.evaluate import evaluate, training_data
from jaxdti.inference.trained import TrainedRun, load_run, write_model_card
from jaxdti.studies import pairs as run_module
from jaxdti.studies.pairs import PairsStudy, resume, train
from jaxdti.studies.report import pairs as results
from jaxdti.training import supervised as method_module
from jaxdti.training.compilation import forget_programs

FILES = (
    *("baselines.json", "checkpoints", "config.yaml", "data.json", "environment.json", "metrics.jsonl", "model.json"),
    *("predictions.parquet", "split.json", "summary.json", "tensorboard", "weights"),
)

EPOCHS = 50  # until every seed knows its training pairs by heart
ENSEMBLE_RATE = 3e-4  # at 3e-3, 18 steps enlarge the rounding of weights to 0.15 % of a score, whatever Adam's epsilon


def strict_json(text: str):
    """As JSON.parse of a browser reads it: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(path: str, new: Path, change) -> str:
    """Copies a table with ``change(rows)`` applied to its rows (dictionaries)."""
    rows = change(rows_of(path))
    with open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(new)


def with_a_bad_row(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    bad = {"SMILES": "C1CC", "Protein": "MKTAYIAKQRQISFVKSHFSRQ", "Y": "1", "affinity": "5"}
    return [*rows, bad]


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """(configuration, run directory, returned summary) of a classification run, validated on the pairs it trains on."""
    run = tmp_path_factory.mktemp("runs") / "deep" / "run"
    output, data = {"tensorboard": True, "baselines": True}, {"validation": tiny_config().data.train}
    model = {"drug_features": 16, "protein_features": 16, "joint_features": 16, "dropout": 0.0}
    config = tiny_config(epochs=EPOCHS, buckets=1, class_weight=True, output=output, data=data, model=model)
    with pytest.MonkeyPatch.context() as patch:  # the baselines are tested elsewhere; the forest takes seconds
        real = results.evaluate_baselines
        patch.setattr(results, "evaluate_baselines", lambda *a, **k: real(*a, **k, names=("similarity",)))
        summary = train(config, run)
    return config, run, summary


@pytest.mark.slow
def test_the_run_directory_holds_what_it_should(finished):
    config, run, _ = finished
    assert sorted(path.name for path in run.iterdir()) == sorted(FILES)
    assert load_config(run / "config.yaml") == config
    for path in run.glob("*.json"):
        strict_json(path.read_text())
    environment = strict_json((run / "environment.json").read_text())
    assert environment["matmul_precision"] == "highest" and environment["backend"] == "cpu"
    assert {"jax", "flax", "optax", "numpy", "python", "devices", "cores"} <= environment.keys()
    data = strict_json((run / "data.json").read_text())
    assert data["parts"] == {"train": 44, "validation": 44, "test": 20} and len(data["sha256"]) == 64
    dataset = load_data(config.data, config.task)
    for part, rows in read_split(run / "split.json", dataset.table).items():
        np.testing.assert_array_equal(rows, dataset.parts[part])
    assert any(path.name.startswith("events") for path in (run / "tensorboard").iterdir())


def test_the_summary_holds_the_results(finished):
    _, run, summary = finished
    assert strict_json((run / "summary.json").read_text()) == summary
    test = summary["test"]
    assert test["auroc_ci"][0] <= test["auroc"] <= test["auroc_ci"][1] and len(test["auprc_ci"]) == 2
    assert {"accuracy", "f1", "sensitivity", "specificity", "precision", "mcc", "brier", "ece", "auprc"} <= test.keys()
    assert test["pairs"] == 20 and summary["validation"]["pairs"] == 44
    assert summary["epochs"] == EPOCHS and 1 <= summary["best_epoch"] <= EPOCHS
    assert summary["total_seconds"] >= summary["seconds"] > 0
    assert summary["samples_per_second"] == pytest.approx(EPOCHS * 44 / summary["seconds"], rel=0.05)
    assert summary["baselines"] == strict_json((run / "baselines.json").read_text())
    assert 0 <= summary["baselines"]["similarity"]["auroc"] <= 1


def test_metrics_and_best_epoch_agree(finished):
    _, run, summary = finished
    records = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    assert [record["step"] for record in records] == [6 * epoch for epoch in range(1, EPOCHS + 1)]
    scores = [record["validation_auroc"] for record in records]
    assert summary["best_epoch"] == 1 + int(np.argmax(scores))
    assert summary["validation"]["auroc"] == pytest.approx(max(scores))


def test_predictions_are_those_of_the_stored_weights(finished):
    config, run, summary = finished
    table = pq.read_table(run / "predictions.parquet")
    assert table.column_names == ["drug", "protein", "label", "score", "probability", "split"]
    found = table.to_pydict()
    files = [row for part in ("validation", "test") for row in rows_of(getattr(config.data, part))]
    assert found["split"] == ["validation"] * 44 + ["test"] * 20
    assert found["protein"] == [row["Protein"] for row in files]
    assert found["label"] == [float(row["Y"]) for row in files]
    test = np.array(found["split"]) == "test"
    label, score = np.array(found["label"]), np.array(found["score"])
    assert summary["test"]["auroc"] == pytest.approx(roc_auc_score(label[test], score[test]))
    trained = load_run(run)
    dataset = load_data(config.data, config.task)
    again = trained.score(dataset.table, dataset.store)
    rows = np.concatenate([dataset.parts[part] for part in ("validation", "test")])
    np.testing.assert_allclose(again[rows], score, atol=1e-5)
    probability = trained.calibration.probability(score)
    np.testing.assert_allclose(found["probability"], probability)
    called = probability[test] >= trained.calibration.threshold
    assert summary["test"]["accuracy"] == pytest.approx(np.mean(called == (label[test] == 1)))


def test_a_tiny_network_learns_its_training_pairs_by_heart(finished):
    """With any seed: of eight, after 30 epochs one was at an AUROC of 0.979, after 50 all were at 1.0 and
    the loss at no more than 0.27 of the first."""
    _, run, summary = finished
    losses = [strict_json(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert summary["validation"]["auroc"] > 0.99 and summary["validation"]["accuracy"] > 0.95
    assert min(losses) < 0.5 * losses[0]


def test_class_weights_are_undone_in_the_calibration(finished):
    config, run, _ = finished
    positive = np.mean([float(row["Y"]) for row in rows_of(config.data.train)])
    calibration = strict_json((run / "model.json").read_text())["calibration"]
    # Weights (0.5 / (1 - p), 0.5 / p) shift the logit by log((1 - p) / p).
    assert calibration["logit_offset"] == pytest.approx(np.log((1 - positive) / positive), rel=1e-5)
    assert abs(calibration["logit_offset"]) > 0.01


def test_a_directory_in_use_is_refused_and_only_a_run_is_overwritten(tiny_config, tmp_path, finished, monkeypatch):
    config, run, summary = finished
    with pytest.raises(DataError, match="run: already exists; give another --output, or --overwrite, or --resume"):
        train(config, run)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for overwrite, fault in ((False, "already exists"), (True, r"is not a run directory \(no config.yaml\)")):
        with pytest.raises(DataError, match=f"foreign: {fault}"):
            train(config, foreign, overwrite=overwrite)
    (foreign / "config.yaml").write_text("title: thesis")
    with pytest.raises(DataError, match=r"foreign: is not a run directory \(no data.json or model.json\)"):
        train(config, foreign, overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "years of work"
    # Data that are unfit must not cost the earlier run.
    with pytest.raises(DataError, match="nowhere.csv"):
        train(replace(config, data=replace(config.data, test="nowhere.csv")), run, overwrite=True)
    assert strict_json((run / "summary.json").read_text()) == summary
    # What is overwritten is gone as a whole.
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.yaml", "data.json", "left.over"):
        (old / name).write_text("")
    (old / "weights").mkdir()
    monkeypatch.setattr(PairsStudy, "run", lambda self, config, data, folder: {"files": sorted(folder.iterdir())})
    files = train(config, old, overwrite=True)["files"]
    assert [path.name for path in files] == ["config.yaml", "data.json", "environment.json", "split.json"]


def test_an_empty_directory_stays_as_it_may_be_a_link(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    (tmp_path / "run").symlink_to("volume")
    monkeypatch.setattr(PairsStudy, "run", lambda *_: {"done": True})
    for overwrite in (False, True):
        assert train(tiny_config(), tmp_path / "run", overwrite=overwrite) == {"done": True}
        assert (tmp_path / "volume" / "data.json").is_file() and (tmp_path / "run").is_symlink()


def test_a_beginning_that_is_interrupted_leaves_no_directory(tiny_config, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "write_split", stopped)
        train(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(PairsStudy, "run", lambda *_: {"done": True})
    assert train(tiny_config(), tmp_path / "run") == {"done": True}


@pytest.mark.parametrize("written", [("split.json", "rejected.csv"), ()])
def test_a_run_killed_before_its_data_are_recorded_is_resumed(written, tiny_config, tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    monkeypatch.setattr(PairsStudy, "run", lambda self, config, *_: {"config": config})
    config = tiny_config(data={"train": rewrite(tiny_config().data.train, tmp_path / "train.csv", with_a_bad_row)})
    train(config, whole)
    run.mkdir()
    for name in ("config.yaml", *written):
        shutil.copy(whole / name, run)
    (run / "data.json.123.tmp").write_text("{")
    assert resume(run)["config"] == config
    for name in ("data.json", "split.json", "rejected.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    # From now on the data are those.
    rewrite(tiny_config().data.train, tmp_path / "train.csv", lambda rows: rows[1:])
    with pytest.raises(DataError, match="the data changed since the run began"):
        resume(run)


def test_what_is_no_beginning_of_a_run_is_not_resumed(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(PairsStudy, "run", lambda *_: {})
    run = tmp_path / "run"
    train(tiny_config(), run)
    (run / "data.json").unlink()
    write_model_card(run, "classification", (0.0, 1.0), Calibration(), calibrated=False)  # imported weights, a replica
    for folder in (run, tmp_path):
        with pytest.raises(DataError, match="not a run that can be resumed; expected a directory with config.yaml and"):
            resume(folder)
    assert not (run / "data.json").exists()


def test_rows_that_the_run_was_trained_on_are_known_where_its_data_are_still_the_same(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(PairsStudy, "run", lambda *_: {})
    test, run = tmp_path / "test.csv", tmp_path / "run"
    test.write_text(Path(tiny_config().data.test).read_text())
    config = tiny_config(data={"test": str(test)})
    train(config, run)
    train_rows = load_data(config.data, config.task).parts["train"]
    (tmp_path / "sweep" / "data").mkdir(parents=True)
    (tmp_path / "sweep" / "data" / "0").symlink_to(run)
    # A replica and a setting of a sweep leave that record to the whole.
    for folder in (run, run / "replicas" / "0", tmp_path / "sweep" / "settings" / "3"):
        np.testing.assert_array_equal(training_data(folder, config).parts["train"], train_rows)
    for folder in (tmp_path, tmp_path / "replicas" / "0"):  # imported weights
        with pytest.raises(DataError, match="does not record its training data"):
            training_data(folder, config)
    test.write_text("\n".join(test.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match="run have changed since it was trained"):
        training_data(run, config)
    (run / "data.json").write_text("{")
    for ask in (lambda: resume(run), lambda: training_data(run, config)):
        with pytest.raises(DataError, match="data.json: damaged .JSONDecodeError"):
            ask()
    test.unlink()
    with pytest.raises(DataError, match=r"cannot be read from this folder \(.*test.csv: no such file\)"):
        training_data(run, config)


@pytest.mark.parametrize("kind, repeated", [("repeats", 6), ("cold", 0)])
def test_evaluate_measures_a_table_as_training_does_its_test_part(kind, repeated, tiny_config, tmp_path, monkeypatch):
    """Affinities, where training pairs stand in the table again, or none of its drugs stands in training."""
    plain, run = tiny_config("regression").data, tmp_path / "run"
    changes = {
        "repeats": lambda rows: rows + rows_of(plain.train)[:6],
        "cold": lambda rows: [row | {"SMILES": f"{row['SMILES']}C"} for row in rows],
    }
    test = rewrite(plain.test, tmp_path / "test.csv", changes[kind])
    config = tiny_config("regression", data={"test": test})
    monkeypatch.setattr(PairsStudy, "run", lambda *_: {})
    train(config, run)
    sizes = lambda names: np.array([len(name) for name in names], float)
    by_size = lambda self, table, store: sizes(table.drugs)[table.drug] + sizes(table.proteins)[table.protein]
    monkeypatch.setattr(TrainedRun, "score", by_size)
    trained = TrainedRun(config=config, members=(), calibration=Calibration(), calibrated=False)
    monkeypatch.setattr("jaxdti.inference.evaluate.load_run", lambda run: trained)

    found = evaluate(run, Path(test), tmp_path, label_column="affinity")
    dataset = load_data(config.data, config.task)
    score = trained.score(dataset.table, dataset.store)
    scores = {part: score[dataset.parts[part]] for part in results.SCORED_PARTS}
    wanted = results.evaluate_parts(config, dataset, dataset.parts, scores, Calibration())["test"]
    assert found == wanted | {"rows_trained_on": repeated} == strict_json((tmp_path / "test_metrics.json").read_text())
    assert ("unseen_pairs_mse" in found) == (kind == "repeats")
    # Without the training data nothing is known of pairs, drugs and proteins.
    (run / "data.json").unlink()
    alone = evaluate(run, Path(test), tmp_path, label_column="affinity", overwrite=True)
    assert "does not record its training data" in alone["rows_not_checked"]
    assert alone["mse"] == found["mse"] and "unseen_pairs_mse" not in alone
    assert (alone["mse_ci"] == found["mse_ci"]) == (kind == "repeats")


@pytest.mark.slow
def test_evaluate_from_the_command_line(finished, tmp_path, monkeypatch, capfd):
    config, run, summary = finished
    monkeypatch.chdir(tmp_path)
    rewrite(config.data.test, Path("pairs.csv"), lambda rows: with_a_bad_row([*rows, rows[0]]))
    assert cli.main(["evaluate", str(run), "pairs.csv", "--label-column", "Y"]) == 0
    out, err = capfd.readouterr()
    for line in (
        "table: 22 rows read, 20 kept",
        "rows rejected: 1 (1 SMILES cannot be read)",
        "duplicate rows dropped: 1",
        "rejected rows are listed in pairs_rejected.csv",
    ):
        assert line in err.splitlines()
    assert out.splitlines()[0] == "pairs.csv" and ["pairs", "20"] in [line.split() for line in out.splitlines()]
    assert out.endswith("written to pairs_metrics.json and pairs_scores.csv\n")
    metrics = strict_json(Path("pairs_metrics.json").read_text())
    assert metrics["rows_trained_on"] == 0
    for name in ("pairs", "auroc", "auroc_ci", "brier", "accuracy"):  # of the test part, whose valid rows these are
        assert metrics[name] == pytest.approx(summary["test"][name], abs=1e-5), name
    scores, given = rows_of("pairs_scores.csv"), rows_of(config.data.test)
    assert list(scores[0]) == ["row", "SMILES", "Protein", "label", "score", "probability"]
    assert [row["row"] for row in scores] == [str(i) for i in range(1, 21)]
    assert [row["Protein"] for row in scores] == [row["Protein"] for row in given]
    assert [float(row["label"]) for row in scores] == [float(row["Y"]) for row in given]
    predicted = pq.read_table(run / "predictions.parquet").to_pylist()
    expected = [row["score"] for row in predicted if row["split"] == "test"]
    np.testing.assert_allclose([float(row["score"]) for row in scores], expected, atol=1e-5)
    (rejected,) = rows_of("pairs_rejected.csv")
    assert [rejected[name] for name in ("file", "row", "field", "value")] == ["pairs.csv", "22", "SMILES", "C1CC"]
    # Again: refused, and on request replaced as a whole.
    assert cli.main(["evaluate", str(run), "pairs.csv", "--label-column", "Y"]) == 2
    assert "pairs_metrics.json: already exists; give another --output, or --overwrite" in capfd.readouterr().err
    rewrite(config.data.test, Path("pairs.csv"), list)
    assert cli.main(["evaluate", str(run), "pairs.csv", "--label-column", "Y", "--overwrite"]) == 0
    assert not Path("pairs_rejected.csv").exists()


def test_predict_from_the_command_line(finished, tmp_path, monkeypatch, capfd):
    config, run, _ = finished
    monkeypatch.chdir(tmp_path)
    bad_between = lambda rows: [*with_a_bad_row([rows[1]]), rows[0]]
    noted = lambda rows: [row | {"note": f"row, {i}"} for i, row in enumerate(bad_between(rows))]
    rewrite(config.data.test, Path("pairs.csv"), noted)
    assert cli.main(["predict", str(run), "pairs.csv", "--output", "scores.csv"]) == 0
    out, err = capfd.readouterr()
    assert out == "3 rows, 1 without a score (see the column error); written to scores.csv\n"
    assert "rows rejected: 1 (1 SMILES cannot be read)" in err.splitlines()
    given, found = rows_of("pairs.csv"), rows_of("scores.csv")
    assert list(found[0]) == [*given[0], "score", "probability", "error"]
    assert [{name: row[name] for name in given[0]} for row in found] == given
    predicted = pq.read_table(run / "predictions.parquet").to_pylist()
    expected = [row["score"] for row in predicted if row["split"] == "test"]
    np.testing.assert_allclose([float(found[i]["score"]) for i in (0, 2)], [expected[1], expected[0]], atol=1e-5)
    assert [bool(row["error"]) for row in found] == [False, True, False]
    assert (found[1]["score"], found[1]["probability"]) == ("", "") and found[1]["error"].startswith("SMILES: ")


def test_places_that_cannot_be_a_run_directory_are_refused(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    places = {
        "file": "already exists",
        "file/run": "cannot create the run directory",
        "n" * 300: "cannot be the run directory",
    }
    for place, fault in places.items():
        with pytest.raises(DataError, match=fault) as error:
            train(tiny_config(), tmp_path / place)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.slow
def test_a_regression_run_from_table_to_metrics(tiny_config, tmp_path):
    config = tiny_config("regression")
    seen = rows_of(config.data.train)[:6]  # six training pairs stand in the test part again
    test = rewrite(config.data.test, tmp_path / "test.csv", lambda rows: rows + seen)
    data = {"test": test}
    run = tmp_path / "run"
    summary = train(tiny_config("regression", data=data, epochs=2, buckets=1), run)
    found = pq.read_table(run / "predictions.parquet").to_pydict()
    assert list(found) == ["drug", "protein", "label", "score", "split"]
    chosen = np.array(found["split"]) == "test"
    label, score = np.array(found["label"])[chosen], np.array(found["score"])[chosen]
    assert abs(score.mean() - 6) < 1.5  # in the unit of the labels, not standardised
    result = summary["test"]
    assert result["mse"] == pytest.approx(np.mean((label - score) ** 2))
    assert result["concordance_index"] == pytest.approx(concordance_index(label, score))
    assert result["pairs"] == 26 and result["pairs_seen_in_train"] == 6
    assert result["unseen_pairs_mse"] == pytest.approx(np.mean((label[:20] - score[:20]) ** 2))
    assert result["mse_ci"][0] <= result["mse"] <= result["mse_ci"][1] and "concordance_index_ci" in result
    card = strict_json((run / "model.json").read_text())
    training = np.array([float(row["affinity"]) for row in rows_of(config.data.train)])
    assert card["task"] == "regression" and card["label_scale"] == pytest.approx([training.mean(), training.std()])
    records = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[1]["validation_concordance_index"] == pytest.approx(
        summary["validation"]["concordance_index"]
    ) or records[0]["validation_concordance_index"] == pytest.approx(summary["validation"]["concordance_index"])


@pytest.mark.slow
def test_validation_with_one_class_keeps_the_last_epoch_and_says_so(tiny_config, tmp_path, capfd):
    change = lambda rows: [row | {"Y": "1"} for row in rows]
    validation = rewrite(tiny_config().data.validation, tmp_path / "validation.csv", change)
    run = tmp_path / "run"
    config = tiny_config(data={"validation": validation}, output={"tensorboard": True}, buckets=1, patience=1)
    summary = train(config, run)
    assert summary["best_epoch"] == summary["epochs"] == 3 and summary["validation"]["auroc"] is None
    assert "all validation labels are equal: no epoch can be chosen" in capfd.readouterr().err
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert strict_json(line)["validation_auroc"] is None
    assert strict_json((run / "model.json").read_text())["calibration"]["temperature"] == 1.0
    assert resume(run)["test"] == summary["test"]


def test_a_run_that_diverges_stops_with_its_last_checkpoint_intact(tiny_config, tmp_path):
    run = tmp_path / "run"
    config = tiny_config("regression", buckets=1, optimizer="adam", learning_rate=1e30)
    with pytest.raises(
        NonFiniteLoss, match=r"step 1 \(epoch 1\): the loss or its gradient is not finite; its batch of"
    ):
        train(config, run)
    assert not (run / "weights").exists() and not (run / "summary.json").exists()
    assert list((run / "checkpoints").iterdir()) == []
    with pytest.raises(DataError, match="training has not finished"):
        load_run(run)


def test_a_bad_label_late_in_a_run_leaves_the_checkpoint_of_the_last_good_epoch(tiny_config, tmp_path, monkeypatch):
    real, seen = method_module.pair_batch, []

    def poisoned(table, rows):
        seen.append(rows)
        batch = real(table, rows)
        return batch.replace(label=np.full_like(batch.label, np.inf)) if len(seen) == 9 else batch

    monkeypatch.setattr(method_module, "pair_batch", poisoned)
    config, run = tiny_config(buckets=1), tmp_path / "run"
    with pytest.raises(NonFiniteLoss, match=r"^step 8 \(epoch 2\)"):
        train(config, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["6"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert resume(run)["epochs"] == 3  # the label is good again


@pytest.mark.slow
def test_encoding_each_protein_once_changes_no_result_without_dropout(
    tiny_config, tmp_path, monkeypatch, capfd, steady_adam
):
    """40 pairs a batch of 8 proteins."""
    config = tiny_config(batch_size=40, buckets=1, learning_rate=1e-4, model={"dropout": 0.0})
    with steady_adam():
        train(config, tmp_path / "once")
    assert "64 residues, 16 proteins in" in capfd.readouterr().err
    monkeypatch.setattr(method_module, "shared_proteins", lambda table, chunks: {})
    with steady_adam():
        train(config, tmp_path / "each")
    assert "residues, 16 proteins in" not in capfd.readouterr().err
    once, each = (
        [strict_json(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("once", "each")
    )
    for name in ("loss", "validation_auroc"):
        np.testing.assert_allclose([r[name] for r in once], [r[name] for r in each], rtol=1e-3)


@pytest.fixture(scope="module")
def ensemble(tiny_config, tmp_path_factory, steady_adam):
    run = tmp_path_factory.mktemp("runs") / "ensemble"
    config = tiny_config(replicas=3, seed=4, buckets=1, learning_rate=ENSEMBLE_RATE, output={"tensorboard": True})
    with steady_adam():
        return config, run, train(config, run)


@pytest.mark.slow
def test_replicas_leave_a_run_each_and_the_mean_of_their_scores(ensemble):
    config, run, summary = ensemble
    members = [pq.read_table(run / "replicas" / str(i) / "predictions.parquet").to_pydict() for i in range(3)]
    found = pq.read_table(run / "predictions.parquet").to_pydict()
    scores = np.array([member["score"] for member in members])
    assert np.ptp(scores, axis=0).min() > 0
    np.testing.assert_allclose(found["score"], scores.mean(0))
    np.testing.assert_allclose(found["score_sd"], scores.std(0))
    assert found["split"] == members[0]["split"] and found["drug"] == members[0]["drug"]
    test = np.array(found["split"]) == "test"
    label = np.array(found["label"])[test]
    single = [roc_auc_score(label, score[test]) for score in scores]
    assert [row["test"]["auroc"] for row in summary["replicas"]] == pytest.approx(single)
    assert summary["replicas_mean"]["test"]["auroc"] == pytest.approx([np.mean(single), np.std(single, ddof=1)])
    assert summary["test"]["auroc"] == pytest.approx(roc_auc_score(label, scores.mean(0)[test]))
    assert [row["seed"] for row in summary["replicas"]] == [4, 5, 6]
    assert strict_json((run / "summary.json").read_text()) == summary
    records = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["replica"]) for record in records] == [(e, i) for e in (1, 2, 3) for i in range(3)]
    assert {path.name for path in (run / "tensorboard").iterdir()} == {"replica_0", "replica_1", "replica_2"}


@pytest.mark.slow
def test_a_replica_is_the_run_of_its_seed(ensemble, tiny_config, tmp_path, steady_adam):
    _, run, _ = ensemble
    with steady_adam():
        config = tiny_config(seed=5, buckets=1, learning_rate=ENSEMBLE_RATE, output={"tensorboard": True})
        train(config, tmp_path / "alone")
    alone, member = (
        pq.read_table(folder / "predictions.parquet").to_pydict() for folder in (tmp_path / "alone", run / "replicas/1")
    )
    np.testing.assert_allclose(member["score"], alone["score"], rtol=1e-3, atol=1e-4)
    assert load_config(run / "replicas/1/config.yaml") == load_config(tmp_path / "alone/config.yaml")


def test_an_ensemble_scores_as_its_predictions_and_its_members_as_theirs(ensemble):
    config, run, _ = ensemble
    dataset = load_data(config.data, config.task)
    rows = np.concatenate([dataset.parts[part] for part in ("validation", "test")])
    found = pq.read_table(run / "predictions.parquet").to_pydict()
    trained = load_run(run)
    scores = trained.score_members(dataset.table, dataset.store)[:, rows]
    assert scores.shape == (3, len(rows))
    np.testing.assert_allclose(scores.mean(0), found["score"], atol=1e-5)
    np.testing.assert_allclose(trained.score(dataset.table, dataset.store)[rows], found["score"], atol=1e-5)
    np.testing.assert_allclose(
        load_run(run / "replicas/2").score(dataset.table, dataset.store)[rows], scores[2], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_run_of_a_known_network_compiles_nothing_again(tiny_config, tmp_path, capfd, fresh_programs):
    def compiled(name, config) -> list[str]:
        train(config, tmp_path / name)
        return [line.split()[1] for line in capfd.readouterr().err.splitlines() if line.startswith("compiled ")]

    first = compiled("first", tiny_config(epochs=1, buckets=1))
    assert {"1", "encoder"} < set(first)  # steps of training, and scoring
    traced = {"seed": 4, "learning_rate": 1e-4, "class_weight": True}
    config = tiny_config(model={"dropout": 0.3}, output={"bootstrap": 10}, epochs=1, buckets=1, **traced)
    assert compiled("second", config) == []
    # The schedule is another one; scoring is as before.
    assert set(compiled("longer", tiny_config(epochs=2, buckets=1, schedule="cosine"))) == {"1"}
    forget_programs()
    assert compiled("alone", config) == first
    weights = [load_run(tmp_path / name).members[0].variables for name in ("second", "alone")]
    jax.tree.map(np.testing.assert_array_equal, *weights)
