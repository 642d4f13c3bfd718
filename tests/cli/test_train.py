"""`jaxdti train`: what it calls, and what it refuses."""

from pathlib import Path

import pytest

from jaxdti.config import load_config


def test_train_merges_defaults_file_and_flags(run_cli, calls):
    Path("mine.yaml").write_text("data: {dataset: planted}\ntraining: {epochs: 7, batch_size: 8}\n")
    code, _, _ = run_cli("train", "--epochs", "9", "mine.yaml", "--training.learning_rate=1e-3", "--seed", 4)
    assert code == 0
    ((name, (config, output), settings),) = calls
    assert name == "train" and output == Path("runs/mine") and settings == {"overwrite": False}
    expected = ["training.epochs=9", "training.learning_rate=1e-3", "training.seed=4"]
    assert config == load_config(Path("mine.yaml"), expected)
    assert (config.training.epochs, config.training.batch_size, config.training.seed) == (9, 8, 4)


@pytest.mark.parametrize("flag", ["--output", "--output.directory"])
def test_train_writes_where_it_is_told(run_cli, calls, flag):
    Path("mine.yaml").write_text("output: {directory: from_file}\n")
    assert run_cli("train", "mine.yaml")[0] == 0
    assert run_cli("train", "mine.yaml", flag, "elsewhere", "--overwrite")[0] == 0
    assert [(args[1], settings["overwrite"]) for _, args, settings in calls] == [
        (Path("from_file"), False),
        (Path("elsewhere"), True),
    ]


def test_train_without_a_file(run_cli, fails, calls):
    assert "CONFIG is missing" in fails("train", "--epochs", "3")
    assert "--output RUN is missing" in fails("train", "--data.dataset", "planted")
    assert run_cli("train", "--data.table", "t.csv", "--output", "run")[0] == 0
    assert calls[0][1][0] == load_config(None, ["data.table=t.csv", "output.directory=run"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "many"], "training.epochs='many': whole number expected"),
        (["--epochs", "0"], "mine.yaml with the overrides: training.epochs=0: must be at least 1"),
        (["--model.pool", "max"], "mine.yaml with the overrides: model.pool='max': choose from sum, mean, sqrt"),
    ],
)
def test_wrong_values_name_key_value_and_expectation(fails, calls, flags, message):
    Path("mine.yaml").write_text("data: {dataset: planted}\n")
    assert fails("train", "mine.yaml", *flags) == message
    assert calls == []


def test_resume_stands_alone(run_cli, fails, calls):
    assert run_cli("train", "--resume", "runs/old")[0] == 0
    assert calls == [("resume", (Path("runs/old"),), {})]
    for surplus in (["c.yaml"], ["--epochs", "3"], ["--overwrite"], ["--output", "x"]):
        assert fails("train", "--resume", "runs/old", *surplus).startswith("--resume RUN takes everything from the run")


def test_too_many_rejected_rows_are_listed_beside_the_run(fails, write_pairs):
    write_pairs("pairs.csv", bad=20)
    message = fails("train", "--data.table", "pairs.csv", "--output", "run")
    assert message.startswith("20 of 40 rows rejected (50.0%")
    assert message.endswith("all of them are listed in run.rejected.csv")
    assert len(Path("run.rejected.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize("output", [".", "../here"])
def test_the_folder_one_stands_in_may_be_the_run_directory(fails, monkeypatch, output, write_pairs):
    write_pairs("pairs.csv", bad=20)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    message = fails("train", "--data.table", "../pairs.csv", "--output", output)
    assert message.endswith("here.rejected.csv") and not list(Path().iterdir())
    assert Path("../here.rejected.csv").is_file()
