"""Sweeps: which settings there are, which train together, and that each ends as the single run it stands for."""

import csv
import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxdti import cli
from jaxdti.config import DataConfig, load_config, save_config
from jaxdti.data.pairs.load import load_data
from jaxdti.data.pairs.splits import write_split
from jaxdti.data.tables import read_table
from jaxdti.errors import DataError
from jaxdti.studies import sweep as sweeping
from jaxdti.studies.grid import Range, combinations, draw, parse_grid, setting_config
from jaxdti.studies.pairs import train
from jaxdti.studies.report import pairs as results
from jaxdti.studies.sweep import (
    equal_parts,
    group_settings,
    replicas_that_fit,
    replicas_within,
    resume_sweep,
    sweep,
    sweep_table,
)
from jaxdti.training import supervised as method_module

RATES = ("training.learning_rate=3e-3,1e-3", "model.dropout=0.1,0.4")


def rows_of(output) -> list[dict[str, str]]:
    with open(output / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions(run) -> dict[str, list]:
    return pq.read_table(run / "predictions.parquet").to_pydict()


def assert_same_run(folder, alone) -> None:
    """Two run directories of one configuration: same weights behind the scores, same metrics, to float rounding."""
    assert load_config(folder / "config.yaml") == load_config(alone / "config.yaml")
    a, b = predictions(folder), predictions(alone)
    assert a["split"] == b["split"] and a["drug"] == b["drug"] and a["label"] == b["label"]
    np.testing.assert_allclose(a["score"], b["score"], rtol=1e-3, atol=1e-4)
    a, b = (json.loads((run / "summary.json").read_text()) for run in (folder, alone))
    assert (a["best_epoch"], a["epochs"]) == (b["best_epoch"], b["epochs"])


# the settings


@pytest.mark.parametrize(
    "text, path, values",
    [
        ("training.learning_rate=1e-4, 5e-5", "training.learning_rate", (1e-4, 5e-5)),
        ("training.epochs=3,4", "training.epochs", (3, 4)),
        ("training.patience=null,3", "training.patience", (None, 3)),
        ("training.class_weight=true,false", "training.class_weight", (True, False)),
        ("model.pool=sum,mean", "model.pool", ("sum", "mean")),
        ("data.table=../a..b.csv,c.csv", "data.table", ("../a..b.csv", "c.csv")),
        ("model.protein_kernels=[3,6,9], [3]", "model.protein_kernels", ((3, 6, 9), (3,))),
        ("training.learning_rate=1e-5..1e-3", "training.learning_rate", Range(1e-5, 1e-3, False)),
        ("training.clip_norm=0.5...75", "training.clip_norm", Range(0.5, 0.75, False)),
        ("training.epochs=2..9", "training.epochs", Range(2, 9, True)),
    ],
)
def test_values_and_ranges_are_read_as_their_key_wants_them(text, path, values):
    assert parse_grid([text]) == {path: values}


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], "--grid is missing: name at least one key"),
        (
            ["training.learning_rat=1"],
            r"unknown key training.learning_rat in --grid; did you mean training.learning_rate",
        ),
        (["training=1"], "--grid training=1: KEY=V1,V2,... is expected"),
        (["training.epochs"], "--grid training.epochs: KEY=V1,V2,... is expected"),
        (["training.epochs=1", "training.epochs=2"], "--grid training.epochs is given twice"),
        (["training.epochs="], "--grid training.epochs=: a value is missing"),
        (["training.patience=1,,2"], "a value is missing"),
        (["model.protein_kernels="], "a value is missing"),
        (["model.protein_kernels=3,6,9"], r"lists in brackets are expected, such as model.protein_kernels=\[3,6,9\],"),
        (["training.learning_rate=1e-4,0.0001"], "0.0001 stands there twice"),
        (["training.epochs=2,many"], "training.epochs='many': whole number expected"),
        (["training.epochs=2..4.5"], "training.epochs=4.5: whole number expected"),
        (["model.dropout=0.5..0.1"], "--grid model.dropout=0.5..0.1: LOW..HIGH is expected with LOW below HIGH"),
        (["training.replicas=1,2"], "--grid training.replicas: every setting is one model; sweep training.seed"),
        (["task=classification,regression"], "--grid task: scores of different tasks cannot be compared"),
        (["output.bootstrap=0,1"], "--grid output.bootstrap: changes nothing about the model"),
        (["transfer.layer_decay=0.5,1"], "--grid transfer.layer_decay: changes nothing about a sweep"),
        (["vectors.dropout=0,0.5"], "--grid vectors.dropout: changes nothing"),
        (["response.seed=0,1"], "--grid response.seed: changes nothing"),
    ],
)
def test_mistakes_in_a_grid_are_named(texts, message):
    with pytest.raises(DataError, match=message):
        parse_grid(texts)


def test_a_grid_is_all_combinations():
    grid = parse_grid(["training.epochs=2,3", "model.dropout=0,0.1,0.2"])
    found = [tuple(setting.values()) for setting in combinations(grid)]
    assert found == [(e, d) for e in (2, 3) for d in (0, 0.1, 0.2)]
    with pytest.raises(DataError, match="--grid model.dropout: a range needs --random N"):
        combinations(parse_grid(["model.dropout=0..0.5"]))


def test_draws_are_repeatable_distinct_and_of_the_promised_distributions():
    grid = parse_grid(["training.learning_rate=1e-5..1e-1", "model.dropout=0..0.5", "training.epochs=2..4"])
    found = draw(grid, 400, 7)
    assert found == draw(grid, 400, 7) != draw(grid, 400, 8)
    assert found[:20] == draw(grid, 20, 7)
    rate, dropout, epochs = (np.array([setting[path] for setting in found]) for path in grid)
    # Quartiles of 400 draws: standard error about 0.02 of the range.
    np.testing.assert_allclose(np.quantile(np.log10(rate), (0.25, 0.5, 0.75)), (-4, -3, -2), atol=0.4)
    np.testing.assert_allclose(np.quantile(dropout, (0.25, 0.5, 0.75)), (0.125, 0.25, 0.375), atol=0.05)
    assert set(epochs) == {2, 3, 4} and all(type(setting["training.epochs"]) is int for setting in found)
    assert rate.min() >= 1e-5 and rate.max() <= 1e-1 and dropout.min() >= 0 and dropout.max() <= 0.5
    # A narrow range is uniform: the mean in the logarithm would lie lower.
    narrow = draw(parse_grid(["training.learning_rate=1..9"]), 400, 0)
    assert np.mean([setting["training.learning_rate"] for setting in narrow]) == pytest.approx(5, abs=0.4)


def test_no_setting_is_drawn_twice():
    grid = parse_grid(["training.epochs=2..4", "model.pool=sum,mean"])
    drawn = draw(grid, 6, 0)
    assert sorted(tuple(setting.values()) for setting in drawn) == [(e, p) for e in (2, 3, 4) for p in ("mean", "sum")]
    with pytest.raises(DataError, match="--random 7: the grid has only 6 different settings"):
        draw(grid, 7, 0)
    with pytest.raises(DataError, match="--random 0 --random-seed 0: at least 1"):
        draw(grid, 0, 0)


def test_a_refused_value_names_its_setting(tiny_config):
    with pytest.raises(DataError, match="the setting model.dropout=2: model.dropout=2.0: must be between 0.0 and 0.95"):
        setting_config(tiny_config(), {"model.dropout": 2.0})
    config = setting_config(tiny_config(output={"directory": "elsewhere"}), {"model.protein_kernels": [3, 5]})
    assert config.model.protein_kernels == (3, 5) and config.output.directory is None


# what trains together


@pytest.fixture(scope="module")
def one_table(tiny_config, tmp_path_factory):
    """``one_table(**data)``: fields of the section data for a table that is split here."""
    files = [getattr(tiny_config().data, part) for part in ("train", "validation", "test")]
    lines = [Path(file).read_text().splitlines() for file in files]
    path = tmp_path_factory.mktemp("whole") / "pairs.csv"
    path.write_text("\n".join([lines[0][0], *(line for part in lines for line in part[1:])]) + "\n")
    given = {"train": None, "validation": None, "test": None, "table": str(path)}
    return lambda **data: given | {"split_fractions": (0.5, 0.25, 0.25)} | data


def grouped(config, *texts):
    configs = [setting_config(config, setting) for setting in combinations(parse_grid(texts))]
    datasets, of_setting = sweeping._load(configs)
    return group_settings(configs, datasets, of_setting), datasets


def test_settings_that_differ_in_traced_values_are_one_group(tiny_config, one_table):
    config = tiny_config(optimizer="adamw", data=one_table())
    groups, datasets = grouped(
        config,
        *("training.seed=1,2", "training.learning_rate=0,1e-3", "training.weight_decay=0,0.1", "model.dropout=0,0.2"),
        *("training.class_weight=true,false", "data.split_seed=3,4"),
    )
    assert groups == [list(range(64))]
    assert len(datasets) == 2 and datasets[0].table is datasets[1].table and datasets[0].store is datasets[1].store
    assert not np.array_equal(datasets[0].parts["test"], datasets[1].parts["test"])


def test_other_settings_are_groups_of_their_own(tiny_config, one_table):
    groups, _ = grouped(tiny_config(), "training.epochs=2,3", "model.dropout=0,0.2", "model.protein_kernels=[3],[5]")
    assert groups == [[0, 2], [1, 3], [4, 6], [5, 7]]
    # Proteins cut elsewhere: the same pairs, other features.
    groups, datasets = grouped(tiny_config(data=one_table()), "data.max_residues=20,1200", "data.split_seed=0,1")
    assert groups == [[0, 1], [2, 3]] and len(datasets) == 4 and datasets[0].store is not datasets[2].store


def test_a_schedule_of_another_length_is_another_group(tiny_config, one_table):
    # Whole proteins are held out, so how many pairs of short and of long ones there are depends on the draw.
    data = one_table(split="cold_protein", split_fractions=(0.5, 0.25, 0.25))
    text = "data.split_seed=0,1,2,3,4,5"
    groups, datasets = grouped(tiny_config(data=data, batch_size=16), text)
    assert groups == [list(range(6))]
    steps = []
    for dataset in datasets:
        length = dataset.store.residue_counts[dataset.table.protein[dataset.parts["train"]]]
        steps.append(math.ceil(np.sum(length <= 32) / 16) + math.ceil(np.sum(length > 32) / 16))
    assert len(set(steps)) > 1
    groups, _ = grouped(tiny_config(data=data, batch_size=16, schedule="cosine"), text)
    assert groups == [[i for i in range(6) if steps[i] == size] for size in dict.fromkeys(steps)]


def test_a_seed_that_changes_no_split_is_refused(tiny_config):
    with pytest.raises(DataError, match="data.split_seed=1 is set, but data.train .* come split already"):
        grouped(tiny_config(), "data.split_seed=0,1")


def test_groups_are_cut_into_equal_parts():
    assert equal_parts(list(range(8)), 5) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert equal_parts([1, 3, 5], 2) == [[1, 3], [5]]
    assert equal_parts([1, 3], 9) == [[1, 3]]


@pytest.mark.slow
def test_the_replicas_that_fit_are_extrapolated_from_two_programs(tiny_config, monkeypatch):
    assert [replicas_within(100, 150, budget) for budget in (10, 149, 150, 224, 225, 400)] == [1, 1, 2, 2, 3, 5]
    assert [replicas_within(100, 230, budget) for budget in (229, 230, 359, 360)] == [1, 2, 2, 3]
    config = tiny_config(buckets=2)
    dataset = load_data(config.data, config.task)
    measured = {}
    real = sweeping._program_bytes

    def recorded(method, config, features, shape, replicas):
        assert shape.residues == 64  # the larger bucket's
        measured[replicas] = real(method, config, features, shape, replicas), method, features, shape
        return measured[replicas][0]

    monkeypatch.setattr(sweeping, "_program_bytes", recorded)
    monkeypatch.setattr(sweeping, "_memory_budget", lambda: 1_000_000)
    fitting = replicas_that_fit(config, dataset)
    _, method, features, shape = measured[1]
    budget = 1_000_000 - sum(x.nbytes for x in jax.tree.leaves(features))
    # As many do fit, and not many more would.
    assert fitting > 2 and real(method, config, features, shape, fitting) == pytest.approx(budget, rel=0.2)


def test_half_of_the_memory_may_be_taken_on_cpu():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert sweeping._memory_budget() == pytest.approx(total / 2, rel=0.05)


# whole sweeps


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """(configuration, directory, results) of four settings in two groups, with one baseline."""
    output = tmp_path_factory.mktemp("sweeps") / "grid"
    config = tiny_config(epochs=2, buckets=1, output={"baselines": True})
    with pytest.MonkeyPatch.context() as patch:  # the baselines are tested elsewhere; the forest takes seconds
        real = results.evaluate_baselines
        patch.setattr(results, "evaluate_baselines", lambda *a, **k: real(*a, **k, names=("similarity",)))
        found = sweep(config, RATES, output, together=3)
    return config, output, found


@pytest.mark.slow
def test_every_setting_is_a_run_directory_and_a_row(finished):
    config, output, found = finished
    names = {"config.yaml", "weights", "model.json", "predictions.parquet", "summary.json"}
    rows = rows_of(output)
    assert [row["setting"] for row in rows] == ["0", "1", "2", "3"]
    for i, (rate, dropout) in enumerate([(3e-3, 0.1), (3e-3, 0.4), (1e-3, 0.1), (1e-3, 0.4)]):
        run = output / rows[i]["directory"]
        assert {path.name for path in run.iterdir()} == names
        alone = load_config(run / "config.yaml")
        assert (alone.training.learning_rate, alone.model.dropout) == (rate, dropout)
        assert (float(rows[i]["training.learning_rate"]), float(rows[i]["model.dropout"])) == (rate, dropout)
        summary = json.loads((run / "summary.json").read_text())
        for part, metric in (("validation", "auroc"), ("validation", "auprc"), ("test", "auroc"), ("test", "auprc")):
            assert float(rows[i][f"{part}_{metric}"]) == summary[part][metric] == found.rows[i][f"{part}_{metric}"]
        assert (rows[i]["seed"], rows[i]["epochs"], rows[i]["failed"]) == ("0", "2", "")
        assert int(rows[i]["best_epoch"]) == summary["best_epoch"] in (1, 2)
    left = {path.name for path in output.iterdir()}
    assert left == {"sweep.yaml", "environment.json", "results.csv", "settings", "groups", "data"}
    assert {path.name for path in (output / "groups").iterdir()} == {"0", "1"}
    assert [path.name for path in (output / "groups" / "0").iterdir()] == ["metrics.jsonl"]  # no checkpoints any more
    assert {path.name for path in (output / "data" / "0").iterdir()} == {"data.json", "split.json", "baselines.json"}


def test_the_table_ranks_by_validation_with_the_baselines_below(finished):
    _, _, found = finished
    header, *rows = sweep_table(found)
    assert header[:4] == ("setting", "training.learning_rate", "model.dropout", "best epoch")
    assert header[4:] == ("validation auroc", "test auroc", "test auprc")
    assert [len(row) for row in rows] == [7] * 5 and rows[-1][0] == "similarity" and rows[-1][1:5] == ("",) * 4
    scores = [float(row[4]) for row in rows[:4]]
    assert scores == sorted(scores, reverse=True) and {row[0] for row in rows[:4]} == {"0", "1", "2", "3"}


def test_a_test_score_never_selects_and_failures_come_last():
    row = lambda i, validation, test, failed=None: {
        **{"setting": i, "best_epoch": 1, "failed": failed, "validation_auroc": validation},
        **{"test_auroc": test, "test_auprc": test, "a": 1.0},
    }
    rows = [row(0, None, None, "step 3"), row(1, None, 1.0), row(2, 0.5, 0.9), row(3, 0.0, 0.95), row(4, 0.7, 0.1)]
    found = sweeping.SweepResults(task="classification", keys=["a"], rows=rows, baselines={})
    assert [row["setting"] for row in found.ranked()] == [4, 2, 3, 1, 0]
    assert [row[2] for row in sweep_table(found)[1:]] == ["1", "1", "1", "1", "failed"]


@pytest.mark.slow
def test_predict_and_evaluate_take_a_setting(finished, tmp_path, capsys):
    config, output, _ = finished
    run, table = output / "settings" / "3", config.data.test
    assert cli.main(["predict", str(run), table, "--output", str(tmp_path / "scores.csv")]) == 0
    found = read_table(tmp_path / "scores.csv")["score"].cast("double").to_numpy()
    stored = predictions(run)
    test = np.array(stored["split"]) == "test"
    np.testing.assert_allclose(found, np.array(stored["score"])[test], atol=1e-5)
    assert cli.main(["evaluate", str(run), table, "--label-column", "Y", "--output", str(tmp_path)]) == 0
    assert "auroc" in capsys.readouterr().out


@pytest.fixture
def stop_at_chunk(monkeypatch):
    """``stop_at_chunk(n)`` sends SIGTERM before the n-th chunk from now; returns the list of chunks begun since."""
    real, plan = method_module.pair_batch, {"at": -1}
    begun: list[int] = []

    def hooked(table, rows):
        begun.append(rows.shape[0])
        if len(begun) == plan["at"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(table, rows)

    monkeypatch.setattr(method_module, "pair_batch", hooked)

    def stop(at: int) -> list[int]:
        plan["at"] = at
        begun.clear()
        return begun

    return stop


@pytest.mark.slow
@pytest.mark.bitwise
def test_an_interrupted_sweep_ends_as_the_unbroken_one(finished, tmp_path, stop_at_chunk, capfd):
    config, unbroken, _ = finished
    output = tmp_path / "grid"
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, baselines=False))
    save_config(config, tmp_path / "tiny.yaml")
    flags = [flag for text in RATES for flag in ("--grid", text)]
    begun = stop_at_chunk(15)  # 6 chunks an epoch, 2 epochs a group: in the first epoch of the second group
    code = cli.main(["sweep", str(tmp_path / "tiny.yaml"), *flags, "--together", "3", "--output", str(output)])
    assert code == 128 + signal.SIGTERM and begun == [2] * 15
    assert f"saved; continue with: jaxdti sweep --resume {output}\n" in capfd.readouterr().err
    assert [row["setting"] for row in rows_of(output)] == ["0", "1"]
    weights = (output / "settings/0/weights").stat().st_mtime_ns
    begun = stop_at_chunk(-1)
    found = resume_sweep(output)
    assert begun == [2] * (24 - 15) and (output / "settings/0/weights").stat().st_mtime_ns == weights
    for i in range(4):
        a, b = (predictions(folder / "settings" / str(i)) for folder in (output, unbroken))
        assert a == b
    assert (output / "results.csv").read_text() == (unbroken / "results.csv").read_text()
    begun = stop_at_chunk(-1)
    assert resume_sweep(output) == found and begun == []  # a finished sweep is only shown again


def test_a_sweep_is_not_resumed_on_other_data_or_from_nothing(finished, tmp_path, monkeypatch):
    _, output, _ = finished
    with pytest.raises(DataError, match="nowhere: not a sweep that can be resumed; expected a directory with"):
        resume_sweep(tmp_path / "nowhere")
    (tmp_path / "sweep.yaml").write_text("grid: []\n")
    with pytest.raises(DataError, match=r"sweep.yaml: damaged \(KeyError: 'config'\)"):
        resume_sweep(tmp_path)
    monkeypatch.setattr(sweeping, "describe_data", lambda dataset: {"sha256": "0"})
    with pytest.raises(DataError, match=r"grid: the data changed since the sweep began \(sha256 \w{64}, now 0\)"):
        resume_sweep(output)


def test_what_cannot_be_swept_is_refused_before_anything_is_written(tiny_config, finished, tmp_path):
    _, there, _ = finished
    output = tmp_path / "new"
    with pytest.raises(DataError, match=f"{there}: already exists; give another --output, or --resume {there}"):
        sweep(tiny_config(), RATES, there)
    with pytest.raises(DataError, match="training.replicas=2: every setting of a sweep is one model"):
        sweep(tiny_config(replicas=2), RATES, output)
    with pytest.raises(DataError, match="--together 0: at least 1 is expected"):
        sweep(tiny_config(), RATES, output, together=0)
    with pytest.raises(DataError, match="must be between 0.0 and 0.95"):
        sweep(tiny_config(), ["model.dropout=0.1,0.99"], output)
    with pytest.raises(DataError, match="absent.csv"):
        sweep(tiny_config(data={"test": "absent.csv"}), RATES, output)
    assert not output.exists()


@pytest.mark.slow
def test_settings_that_fail_leave_the_others_alone(tiny_config, tmp_path):
    config = tiny_config("regression", epochs=1, buckets=1)
    output = tmp_path / "some"
    found = sweep(config, ["training.learning_rate=1e30,1e31,3e-3,1e29"], output, together=2)
    assert [bool(row["failed"]) for row in found.rows] == [True, True, False, True]
    # Nothing is left of the first group; the sweep goes on.
    reason = "all 2 settings of its group failed; of the last: step 1 (epoch 1): the loss"
    assert all(row["failed"].startswith(reason) for row in found.rows[:2])
    assert found.rows[3]["failed"].startswith("step 1 (epoch 1): the loss")
    assert found.ranked()[0]["setting"] == 2 and found.rows[2]["test_concordance_index"] is not None
    assert [path.name for path in sorted((output / "settings/3").iterdir())] == ["config.yaml", "summary.json"]
    assert [row["failed"] for row in rows_of(output)] == [row["failed"] or "" for row in found.rows]
    assert resume_sweep(output) == found


def test_a_sweep_of_which_nothing_is_left_ends_with_3(tiny_config, tmp_path, capfd):
    save_config(tiny_config("regression", epochs=1, buckets=1), tmp_path / "tiny.yaml")
    flags = ["--grid", "training.learning_rate=1e30,1e31", "--together", "2", "--output", str(tmp_path / "none")]
    assert cli.main(["sweep", str(tmp_path / "tiny.yaml"), *flags]) == 3
    out, err = capfd.readouterr()
    assert err.splitlines()[-1].startswith("jaxdti: error: every setting failed; the reasons are in ")
    assert out.count("failed") == 2


@pytest.mark.slow
def test_split_seeds_are_replicas_with_other_rows(tiny_config, one_table, tmp_path, monkeypatch, steady_adam):
    config = tiny_config(epochs=1, buckets=1, class_weight=True, data=one_table(), output={"baselines": True})
    real = results.evaluate_baselines
    monkeypatch.setattr(results, "evaluate_baselines", lambda *a, **k: real(*a, **k, names=("similarity",)))
    with steady_adam():
        found = sweep(config, ["data.split_seed=3,4"], tmp_path / "sweep", together=2)
        alone = setting_config(config, {"data.split_seed": 4})
        train(alone, tmp_path / "alone")
    assert_same_run(tmp_path / "sweep/settings/1", tmp_path / "alone")
    baselines = json.loads((tmp_path / "sweep/data/1/baselines.json").read_text())
    single = json.loads((tmp_path / "alone/baselines.json").read_text())
    del single["consensus"]  # that of one network; a sweep's baselines stand beside many
    assert baselines == single == found.baselines[1]
    assert (tmp_path / "sweep/data/1/split.json").read_text() == (tmp_path / "alone/split.json").read_text()
    names = [row[0] for row in sweep_table(found)[-2:]]
    assert names == ["similarity (data of setting 0)", "similarity (data of setting 1)"]


@pytest.mark.slow
def test_folds_of_one_table_are_replicas_too(tiny_config, one_table, tmp_path, steady_adam):
    config = tiny_config(epochs=1, buckets=1, data=one_table(split_fractions=DataConfig.split_fractions))
    files = []
    for seed in (3, 4):
        data = load_data(tiny_config(data=one_table(split="cold_drug", split_seed=seed)).data, config.task)
        files.append(str(tmp_path / f"fold{seed}.json"))
        write_split(Path(files[-1]), data.parts, data.table, "cold_drug", seed)
    with steady_adam():
        found = sweep(config, [f"data.split_file={','.join(files)}"], tmp_path / "sweep", together=2)
        train(setting_config(config, {"data.split_file": files[1]}), tmp_path / "alone")
    assert json.loads((tmp_path / "sweep/groups/0/metrics.jsonl").read_text().splitlines()[1])["replica"] == 1
    assert_same_run(tmp_path / "sweep/settings/1", tmp_path / "alone")
    assert len(found.rows) == 2 and found.rows[0]["test_auroc"] != found.rows[1]["test_auroc"]
    with pytest.raises(DataError, match=r"data.split_seed=1 and data.split_file=\S+fold4.json are both set"):
        grouped(setting_config(config, {"data.split_file": files[1]}), "data.split_seed=0,1")


@pytest.mark.slow
def test_a_setting_ends_as_the_single_run_of_its_configuration(tiny_config, tmp_path, steady_adam):
    config = tiny_config(epochs=1, buckets=1)
    grid = ["training.learning_rate=1e-4..1e-2", "model.dropout=0.1..0.5", "training.seed=0..9"]
    output = tmp_path / "sweep"
    drawn = draw(parse_grid(grid), 2, 5)
    with steady_adam():
        found = sweep(config, grid, output, random=2, random_seed=5, together=2)
        train(setting_config(config, drawn[1]), tmp_path / "alone")
    assert [{key: row[key] for key in found.keys} for row in found.rows] == drawn
    assert [{key: float(row[key]) for key in found.keys} for row in rows_of(output)] == drawn
    assert len({value for setting in drawn for value in setting.values()}) == 6
    assert resume_sweep(output) == found
    assert_same_run(output / "settings/1", tmp_path / "alone")
