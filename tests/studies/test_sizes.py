"""The transfer protocol by sizes on two small families: what is trained on what, interrupts, and the command."""

import csv
import shutil

import jax
import numpy as np
import pytest

from jaxdti import cli
from jaxdti.config import Config, DataConfig, OutputConfig, SizesConfig, TrainingConfig, TransferConfig
from jaxdti.data.vectors.families import NO_SOURCE
from jaxdti.errors import DataError
from jaxdti.studies import run_directory
from jaxdti.studies import sizes as size_protocol
from jaxdti.studies.sizes import resume_sizes, run_sizes
from jaxdti.studies.transfer import vectors as vector_transfer

SIZES = SizesConfig(
    targets=("a",),
    compounds=(2, 20, 400),
    repeats=2,
    test_compounds=36,  # a third, as the families are small
    fingerprint_bits=32,
    features=(12, 6),
    batch_size=8,
    epochs=2,
    updates=4,
)
METHODS = ("logistic", "svm", "forest")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Chains with an amine bind both families; a few rings make scaffolds."""
    folder = tmp_path_factory.mktemp("tables")
    rings = ("", "C1CC1", "C1CCC1", "C1CCCC1", "C1CCCCC1")
    ends = {"N": 1, "O": 0, "S": 0, "CN": 1}
    drugs = [f"{'C' * n}{end}" for n in range(1, 16) for end in ends]
    drugs += [f"{ring}{'C' * n}{end}" for ring in rings[1:] for n in range(1, 3) for end in ends]
    bound = [int("N" in smiles) for smiles in drugs]

    def write(name, header, rows):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    write("drugs", ("drug", "SMILES"), enumerate(drugs))
    write("proteins", ("protein", "Protein", "family"), [("p", "MKTAYIAKQR", "a"), ("q", "MGSSHHHHHH", "b")])
    write("pairs", ("drug", "protein", "Y"), [(i, p, bound[i]) for p in "pq" for i in range(len(drugs))])
    return Config(
        data=DataConfig(
            **{
                name: str(folder / f"{file}.csv")
                for name, file in (("table", "pairs"), ("drugs", "drugs"), ("proteins", "proteins"))
            }
        ),
        training=TrainingConfig(epochs=6, batch_size=16, learning_rate=1e-2),
        transfer=TransferConfig(sizes=SIZES),
        output=OutputConfig(bootstrap=20),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("protocol") / "run"
    return run_sizes(config, output), output


@pytest.mark.slow
def test_every_method_size_and_repeat_is_scored(finished):
    table, output = finished
    found = {(row["source"], row["method"], row["size"]): row["repeats"] for row in table.rows}
    expected = {
        (NO_SOURCE, method, size): 2 for method in ("scratch", *(f"shallow_{m}" for m in METHODS)) for size in (2, 20)
    }
    expected |= {
        ("b", method, size): 2 for method in ("mode1", "mode2", *(f"mode3_{m}" for m in METHODS)) for size in (2, 20)
    }
    assert found == expected | {("b", "source", 0): 1}
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.yaml", "environment.json", "results.csv", "results.json", "sizes.png"}
    # The families have the same rule, so that the source's network knows it.
    assert next(row["auroc"] for row in table.rows if row["method"] == "source") > 0.9


@pytest.mark.slow
@pytest.mark.bitwise
def test_it_is_deterministic_and_goes_on_after_an_interrupt(config, finished, tmp_path, monkeypatch):
    output = tmp_path / "run"

    class Stop(Exception):
        pass

    save, saved = size_protocol.save_arrays, []

    def stop_after_two(path, arrays, **more):
        save(path, arrays, **more)
        saved.append(path.name)
        if len(saved) == 2:
            raise Stop

    monkeypatch.setattr(size_protocol, "save_arrays", stop_after_two)
    with pytest.raises(Stop):
        run_sizes(config, output)
    assert saved == ["sources.npz", "a_from_none.npz"]
    monkeypatch.setattr(size_protocol, "save_arrays", save)
    monkeypatch.setattr(size_protocol, "_without_source", None)  # would be called again for the finished pair
    table = resume_sizes(output)
    assert (output / "results.csv").read_bytes() == (finished[1] / "results.csv").read_bytes()
    assert len(table.rows) == len(finished[0].rows)


def test_a_signal_ends_it_between_two_program_calls(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "stop_signals", stopped_by(15))
    with pytest.raises(size_protocol.Interrupted) as stop:
        run_sizes(config, tmp_path / "run")
    assert stop.value.signal == 15
    assert not list((tmp_path / "run").glob("scores/*"))


def stopped_by(number):
    import contextlib

    return lambda: contextlib.nullcontext([number])


def test_frozen_layers_use_stored_statistics_and_do_not_move(config, monkeypatch):
    experiment = size_protocol._prepare(config)
    models = size_protocol._source_models(experiment, _Nowhere(), lambda *_: None)
    seen = {}
    fit, inputs = vector_transfer.fit, experiment.fingerprints.shape

    def spy(task, trials, training, **settings):
        result = fit(task, trials, training, **settings)
        if task.inputs.shape != inputs:
            seen.setdefault("names", set(result.variables["params"]))
            seen.setdefault("features", np.asarray(task.inputs))
        return result

    monkeypatch.setattr(vector_transfer, "fit", spy)
    size_protocol._with_source(experiment, "a", models["b"], lambda *_: None)
    assert seen["names"] == {"hidden_1", "norm_1", "output"}  # no parameter, moment or gradient of the frozen layer
    tree = jax.tree.map(np.float64, models["b"])
    dense, norm = tree["params"]["hidden_0"]["dense"], tree["params"]["norm_0"]
    stats, x = tree["batch_stats"]["norm_0"], np.asarray(experiment.fingerprints, np.float64)
    hidden = (x @ dense["kernel"] + dense["bias"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    hidden = np.maximum(hidden * norm["scale"] + norm["bias"], 0)
    used = np.any(seen["features"] != 0, axis=1)
    assert used[experiment.sets["a"].test].all()
    np.testing.assert_allclose(seen["features"][used], hidden[used], rtol=1e-4, atol=1e-5)


def test_no_source_row_is_a_test_compound(config, monkeypatch):
    experiment = size_protocol._prepare(config)
    given = []

    def spy(task, trials, training, **settings):
        given.extend(trials)
        raise InterruptedError

    monkeypatch.setattr(vector_transfer, "fit", spy)
    with pytest.raises(InterruptedError):
        size_protocol._source_models(experiment, _Nowhere(), lambda *_: None)
    assert len(given) == 1
    rows = np.concatenate([given[0].rows["train"], given[0].rows["validation"]])
    assert len(np.unique(rows)) == len(rows) == len(experiment.plain) - len(experiment.sets["a"].test)
    assert not np.intersect1d(rows, experiment.sets["a"].test).size


class _Nowhere:
    """A path where nothing is and nothing is kept."""

    name = "nowhere"

    def exists(self):
        return False

    @property
    def parent(self):
        raise InterruptedError


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, request):
    save = size_protocol.save_arrays
    keep = lambda path, arrays, **more: None if isinstance(path, _Nowhere) else save(path, arrays, **more)
    monkeypatch.setattr(size_protocol, "save_arrays", keep)


def test_what_cannot_be_run_is_refused(config, finished, tmp_path):
    with pytest.raises(DataError, match="already exists; give another --output, or --resume"):
        run_sizes(config, finished[1])
    with pytest.raises(DataError, match="not a transfer protocol that can be resumed"):
        resume_sizes(tmp_path)
    changed = tmp_path / "changed"
    shutil.copytree(finished[1], changed)
    (changed / "data.json").write_text('{"sha256": "0"}')
    with pytest.raises(DataError, match="the data changed"):
        resume_sizes(changed)


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_as_the_others_do(config, finished, tmp_path, capsys, monkeypatch):
    run = lambda *words: cli.main(["transfer", "--protocol", "sizes", *map(str, words)])
    assert run("--resume", finished[1]) == 0
    out = capsys.readouterr().out
    assert "mean test AUROC" in out and "scratch" in out and "mode2, source each, against scratch:" in out
    monkeypatch.setattr(run_directory, "stop_signals", stopped_by(15))
    folder = tmp_path / "stopped"
    flags = [f"--data.{name}={getattr(config.data, name)}" for name in ("table", "drugs", "proteins")]
    flags += [
        f"--transfer.sizes.{name}={value}"
        for name, value in (("features", "12,6"), ("fingerprint_bits", 32), ("test_compounds", 36), ("compounds", 2))
    ]
    assert run(*flags, "--output", folder) == 128 + 15
    assert f"jaxdti transfer --protocol sizes --resume {folder}" in capsys.readouterr().err
    for words in (("transfer", "--resume"), ("train", "--resume")):
        assert cli.main([*words, str(folder)]) == 2
        assert f"continue with `jaxdti transfer --protocol sizes --resume {folder}`" in capsys.readouterr().err
    for words, message in (
        ((), "CONFIG is missing"),
        (("--data.dataset", "families/dti_six"), "--output DIR is missing"),
        (("--resume", folder, "--seed", 1), "takes everything from there"),
        (("--data.dataset", "families/dti_sx", "--output", tmp_path / "x"), "no such name"),
    ):
        assert run(*words) == 2
        assert message in capsys.readouterr().err
