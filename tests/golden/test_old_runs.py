"""Run directories of an earlier version are read, carried on and carried over as they always were."""

import shutil

import pytest

# What is only scored differs by rounding. What is trained on moves, by Adam, where a gradient is but rounding.
# Small batches, as in the protocol by sizes, make more of it.
SCORED, TRAINED, SMALL_BATCHES = {"scores": 1e-4}, {"scores": 1e-3}, {"scores": 0.01}


@pytest.fixture
def old(golden, inside):
    """A working directory with the old runs and their tables."""
    for run in (golden.here / "old_runs").iterdir():
        if run.is_dir():
            shutil.copytree(run, inside / run.name)
    return inside


@pytest.fixture
def compare(golden):
    """``compare(name, table, tolerances)``: a table of scores with the one that was written then."""
    return lambda name, table, tolerances: golden.check(
        golden.here / "old_runs" / f"{name}.json", golden.scores(table), tolerances
    )


def test_a_finished_run_predicts(golden, old, compare):
    assert golden.main(["predict", "pairs_finished", "tables/other_test.csv", "--output", "scores.parquet"]) == 0
    compare("pairs_predicted", old / "scores.parquet", SCORED)


@pytest.mark.slow
def test_a_finished_run_is_carried_to_other_pairs(golden, old, compare):
    parts = {"train": "other_train", "validation": "validation", "test": "other_test"}
    data = [f"--data.{part}=tables/{name}.csv" for part, name in parts.items()]
    model = ["drug_features=8", "drug_layers=1", "protein_features=8", "protein_kernels=3", "joint_features=8"]
    model += ["pool_size=1", "decoder_features=16", "dropout=0.1"]
    rest = ["--output.baselines=false", "--output.tensorboard=false", "--output.bootstrap=20", "--output", "carried"]
    flags = [*data, *(f"--model.{text}" for text in model), "--transfer.mode=shallow", *rest]
    assert golden.main(["transfer", "pairs_finished", *flags]) == 0
    compare("pairs_carried", old / "carried" / "predictions.parquet", SCORED)


@pytest.mark.slow
@pytest.mark.usefixtures("same_draws")
def test_an_interrupted_run_goes_on_from_its_checkpoint(golden, old, compare, capsys):
    run = old / "pairs_interrupted"
    begun = (run / "metrics.jsonl").read_bytes()
    assert golden.main(["train", "--resume", "pairs_interrupted"]) == 0
    shown = "".join(capsys.readouterr())
    assert "epoch 1/3" not in shown and "epoch 3/3" in shown
    assert (run / "metrics.jsonl").read_bytes().startswith(begun) and (run / "summary.json").is_file()
    compare("pairs_resumed", run / "predictions.parquet", TRAINED)


def test_networks_on_feature_vectors_predict(golden, old, compare):
    assert golden.main(["predict", "vectors_finished", "tables/vectors_test.csv", "--output", "scores.parquet"]) == 0
    compare("vectors_predicted", old / "scores.parquet", SCORED)


@pytest.mark.slow
@pytest.mark.usefixtures("same_draws")
def test_a_protocol_by_sizes_goes_on_from_its_sources(golden, old):
    run = old / "sizes_interrupted"
    kept = {name: (run / name).read_bytes() for name in ("sources.npz", "scores/a_from_none.npz")}
    assert golden.main(["transfer", "--protocol", "sizes", "--resume", "sizes_interrupted"]) == 0
    assert kept == {name: (run / name).read_bytes() for name in kept}
    found = golden.arrays(run, run / "scores" / "a_from_b.npz")
    golden.check(golden.here / "old_runs" / "sizes_resumed.json", found, SMALL_BATCHES)
