"""`jaxdti sweep`."""

from pathlib import Path

import pytest

from jaxdti.config import load_config


@pytest.fixture
def sweeps(monkeypatch):
    """Replaces the two public functions by ones that write down how they were called."""
    from jaxdti.studies import sweep as sweeping

    row = {"setting": 0, "model.dropout": 0.1, "best_epoch": 2, "failed": None, "directory": "settings/0"}
    row |= {"validation_auroc": 0.75, "test_auroc": 0.625, "test_auprc": 0.5}
    other = row | {"setting": 1, "validation_auroc": 0.875, "directory": "settings/1"}
    found = sweeping.SweepResults(task="classification", keys=["model.dropout"], rows=[row, other], baselines={})
    made = []
    monkeypatch.setattr(sweeping, "sweep", lambda *args, **kwargs: made.append((args, kwargs)) or found)
    monkeypatch.setattr(sweeping, "resume_sweep", lambda *args: made.append(args) or found)
    return made


def test_sweep_passes_what_was_given_and_names_the_best(run_cli, sweeps):
    Path("mine.yaml").write_text("data: {dataset: planted}\n")
    grid = ("--grid", "model.dropout=0.1,0.2", "--grid", "training.seed=0,1")
    code, out, _ = run_cli("sweep", "mine.yaml", *grid, "--epochs", 3, "--output", "deep/found")
    assert code == 0
    config = load_config(Path("mine.yaml"), ["training.epochs=3", "output.directory=deep/found"])
    assert sweeps == [((config, ["model.dropout=0.1,0.2", "training.seed=0,1"], Path("deep/found")), {})]
    lines = out.splitlines()
    assert lines[1].split("  ")[0] == "setting" and [line.split()[0] for line in lines[2:4]] == ["1", "0"]
    assert lines[4] == "best by validation: setting 1, in deep/found/settings/1"
    assert lines[5] == "written to deep/found/results.csv"
    flags = ("--random", 2, "--random-seed", 3, "--together", 4)
    assert run_cli("sweep", "mine.yaml", *grid, *flags, "--output", "found")[0] == 0
    assert sweeps[1][1] == {"random": 2, "random_seed": 3, "together": 4}
    assert run_cli("sweep", "--resume", "found")[0] == 0
    assert sweeps[2] == (Path("found"),)


def test_sweep_refuses_what_does_not_belong_together(fails, sweeps):
    Path("mine.yaml").write_text("data: {dataset: planted}\n")
    grid, output = ("--grid", "model.dropout=0.1,0.2"), ("--output", "found")
    assert fails("sweep", *grid, *output).startswith("CONFIG is missing")
    assert fails("sweep", "mine.yaml", *grid) == "--output DIR is missing"
    assert fails("sweep", "mine.yaml", *output).startswith("--grid is missing")
    assert "did you mean model.dropout?" in fails("sweep", "mine.yaml", "--grid", "model.dropot=1", *output)
    assert fails("sweep", "mine.yaml", *grid, *output, "--random-seed", 1).startswith("--random-seed is that of")
    assert fails("sweep", "mine.yaml", *grid, *output, "--model.dropout", "0.3") == (
        "--model.dropout=0.3 and --grid both set the same key; leave out one"
    )
    for surplus in (["mine.yaml"], [*grid], [*output], ["--random", 2], ["--together", 2]):
        assert fails("sweep", "--resume", "found", *surplus).startswith("--resume DIR takes everything from the sweep")
    assert sweeps == []
