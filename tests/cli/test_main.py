"""The command line: what it calls with which arguments, what it prints, and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from jaxdti import __version__, cli
from jaxdti.cli.printing import UNCALIBRATED, print_table
from jaxdti.config import Config, config_fields, load_config
from jaxdti.data.named import DATASETS
from jaxdti.data.pairs.load import load_data
from jaxdti.data.tables import read_table
from jaxdti.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "GSHMENLYFQGAAAKLLPTRW", "MADEEKLPPGWEKRMSRSSGR", "MSTNPKPQRKTKRNTNRRPQD")
METRICS = {"auroc": 0.91234, "mcc": None, "auroc_ci": [0.85, 0.95], "pairs": 1234, "calibrated": False}
TRAINED = types.SimpleNamespace(config=Config(), calibrated=True)
SMILES = ("CCO", "c1ccccc1", "CC(=O)O", "CCN", "CCCl", "c1ccncc1", "CC(C)O", "CCCC", "OCCO", "CCBr")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXDTI_DATA", raising=False)


@pytest.fixture
def run_cli(capsys):
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(run_cli):
    """Runs a command that must end with 2 and one line; returns the message."""

    def run(*arguments):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("jaxdti: error: ") and err.count("\n") == 1
        return err.removeprefix("jaxdti: error: ").rstrip("\n")

    return run


@pytest.fixture
def calls(monkeypatch):
    """Replaces the public functions by ones that write down how they were called."""
    made = []

    def record(name, result=None):
        return lambda *args, **kwargs: made.append((name, args, kwargs)) or result

    scores = pa.table({"SMILES": ["CCO"], "score": [1.25], "probability": [0.777], "error": [""]})
    fakes = {
        "jaxdti.inference.predict": ("predict", scores),
        "jaxdti.inference.evaluate": ("evaluate", METRICS),
        "jaxdti.interop.importing": ("import_weights", None),
    }
    for module, (name, result) in fakes.items():
        fake = types.ModuleType(module)
        setattr(fake, name, record(name, result))
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr("jaxdti.inference.trained.load_run", lambda run: TRAINED)
    monkeypatch.setattr("jaxdti.studies.pairs.train", record("train", {}))
    monkeypatch.setattr("jaxdti.studies.pairs.resume", record("resume", {}))
    return made


def write_pairs(path, bad=0):
    rows = [f"{drug},{protein},{(i + j) % 2}" for i, drug in enumerate(SMILES) for j, protein in enumerate(SEQUENCES)]
    rows[:bad] = [f"C1CC,{SEQUENCES[0]},1"] * bad
    Path(path).write_text("\n".join(["SMILES,Protein,Y", *rows]) + "\n")


# Help, version, unknown words.


def test_without_arguments_it_prints_help_and_exits_2(run_cli):
    code, out, err = run_cli()
    assert (code, out) == (2, "")
    assert all(word in err for word in ("train", "evaluate", "predict", "import", "baselines", "data"))
    code, _, err = run_cli("data")
    assert code == 2 and all(word in err for word in ("list", "fetch", "inspect", "split"))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"jaxdti {__version__}\n"


@pytest.mark.parametrize("words", [words for words in cli.make_parsers() if words not in ("", "data")])
def test_every_command_teaches_itself(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*words.split(), "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert out.startswith(f"usage: jaxdti {words}")
    usage, description, *_ = out.split("\n\n")
    assert len(description.splitlines()) == 2
    assert f"jaxdti {words}" in out.partition("example:\n")[2]


def test_help_shows_every_key_with_type_default_and_alias(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 110
    out = " ".join(out.split())
    assert all((f"--{path}" in out) != path.startswith("response.") for path in config_fields())
    for alias in ("--epochs", "--batch-size", "--seed", "--learning-rate", "--output"):
        assert re.search(rf"--[a-z_.]+, {alias} ", out), alias
    assert "pairs a step (whole number; default 64)" in out
    assert "of test in the target (list of 3 numbers; default 0.7,0.1,0.2)" in out
    assert "resamples for the 95 % intervals" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "unknown command 'trian'; did you mean train? (see `jaxdti --help`)"),
        (["data", "lst"], "unknown command 'lst'; did you mean list? (see `jaxdti data --help`)"),
        (
            ["train", "c.yaml", "--training.epoch=3"],
            "unknown option --training.epoch; did you mean --training.epochs? (see `jaxdti train --help`)",
        ),
        (
            ["train", "c.yaml", "--lr", "3"],
            "unknown option --lr (see `jaxdti train --help`)",
        ),
        (
            ["predict", "RUN", "--smile", "C"],
            "unknown option --smile; did you mean --smiles? (see `jaxdti predict --help`)",
        ),
        (
            ["train", "--epochs"],
            "argument --training.epochs/--epochs: expected one argument (see `jaxdti train --help`)",
        ),
        (["evaluate", "RUN"], "the following arguments are required: TABLE (see `jaxdti evaluate --help`)"),
    ],
)
def test_wrong_words_and_options_are_one_line(fails, arguments, message):
    assert fails(*arguments) == message


def test_help_and_errors_come_without_heavy_imports():
    code = (
        "import sys; from jaxdti.cli import main; main(['train', 'absent.yaml']); "
        "print([name for name in ('jax', 'rdkit', 'sklearn', 'pyarrow', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


# train


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


def _raise(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_says_how_to_continue(run_cli, monkeypatch, number, code):
    from jaxdti.errors import Interrupted

    monkeypatch.setattr("jaxdti.studies.pairs.train", _raise(Interrupted(number)))
    found, _, err = run_cli("train", "--data.dataset", "planted", "--output", "run")
    assert (found, err) == (code, "saved; continue with: jaxdti train --resume run\n")


def test_a_non_finite_loss_is_one_line_and_exit_3(run_cli, monkeypatch):
    from jaxdti.errors import NonFiniteLoss

    monkeypatch.setattr("jaxdti.studies.pairs.resume", _raise(NonFiniteLoss("the loss is nan at step 7, batch 3")))
    code, _, err = run_cli("train", "--resume", "run")
    assert (code, err) == (3, "jaxdti: error: the loss is nan at step 7, batch 3\n")


def test_ctrl_c_gives_130_and_a_bug_its_traceback(run_cli, monkeypatch):
    monkeypatch.setattr("jaxdti.studies.pairs.resume", _raise(KeyboardInterrupt()))
    assert run_cli("train", "--resume", "run")[0] == 130
    monkeypatch.setattr("jaxdti.studies.pairs.resume", _raise(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train", "--resume", "run"])


def test_what_the_system_refuses_is_one_line_with_its_path(fails, monkeypatch):
    refused = PermissionError(13, "Permission denied", "closed/config.yaml")
    monkeypatch.setattr(Path, "is_file", _raise(refused))
    assert fails("train", "--resume", "closed") == "closed/config.yaml: Permission denied"
    monkeypatch.setattr(Path, "is_file", _raise(OSError("no reason given")))
    assert fails("train", "--resume", "closed") == "no reason given"


# Signals before the loop that listens to them: data are read, programs compiled.
STOPPED = """
import os, signal, sys
from jaxdti import cli
from jaxdti.studies import pairs as run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run.load_data = lambda *_: os.kill(os.getpid(), signal.{})
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name, code, word", [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_while_data_are_read_is_one_line_and_leaves_nothing(name, code, word):
    command = [sys.executable, "-c", STOPPED.format(name), "train", "--data.dataset", "planted", "--output", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout, found.stderr) == (code, "", f"jaxdti: {word}\n")
    assert not list(Path().iterdir())


def test_main_leaves_the_handlers_of_its_caller_alone(run_cli, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("jaxdti.studies.pairs.resume", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run_cli("train", "--resume", "run") == (143, "", "jaxdti: terminated\n")
    assert signal.getsignal(signal.SIGTERM) == before


# sweep


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


def test_too_many_rejected_rows_are_listed_beside_the_run(fails):
    write_pairs("pairs.csv", bad=20)
    message = fails("train", "--data.table", "pairs.csv", "--output", "run")
    assert message.startswith("20 of 40 rows rejected (50.0%")
    assert message.endswith("all of them are listed in run.rejected.csv")
    assert len(Path("run.rejected.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize("output", [".", "../here"])
def test_the_folder_one_stands_in_may_be_the_run_directory(fails, monkeypatch, output):
    write_pairs("pairs.csv", bad=20)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    message = fails("train", "--data.table", "../pairs.csv", "--output", output)
    assert message.endswith("here.rejected.csv") and not list(Path().iterdir())
    assert Path("../here.rejected.csv").is_file()


# evaluate, predict, import


def test_evaluate_warns_of_pairs_that_the_run_was_trained_on(run_cli, calls, monkeypatch):
    found = METRICS | {"rows_trained_on": 1001}
    monkeypatch.setattr(sys.modules["jaxdti.inference.evaluate"], "evaluate", lambda *_, **__: found)
    code, out, err = run_cli("evaluate", "run", "pairs.csv")
    assert code == 0 and re.search(r"rows trained on +1,001", out)
    assert err == "warning: 1,001 of 1,234 rows repeat a pair that the run was trained on\n"
    found = METRICS | {"rows_not_checked": "run does not record its training data"}
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


@pytest.mark.parametrize(
    "order", [("run", "pairs.csv", "--output", "s.csv"), ("run", "--output", "s.csv", "pairs.csv")]
)
def test_predict_writes_the_scores(run_cli, calls, order):
    code, out, _ = run_cli("predict", *order, "--protein-column", "P")
    assert (code, out) == (0, "1 rows; written to s.csv\n")
    assert calls == [("predict", (TRAINED, Path("pairs.csv")), {"protein_column": "P"})]
    assert read_table(Path("s.csv")).column_names == ["SMILES", "score", "probability", "error"]


def test_predict_refuses_a_bad_place_before_the_work(fails, calls):
    write_pairs("pairs.csv")
    assert "unknown extension" in fails("predict", "run", "pairs.csv", "--output", "scores.xls")
    assert "the folder absent does not exist" in fails("predict", "run", "pairs.csv", "--output", "absent/scores.csv")
    Path("there.csv").mkdir()
    assert "there.csv: is a folder" in fails("predict", "run", "pairs.csv", "--output", "there.csv")
    assert "SCORES would overwrite TABLE" in fails("predict", "run", "pairs.csv", "--output", "./pairs.csv")
    assert "predict needs TABLE and --output SCORES" in fails("predict", "run", "pairs.csv")
    assert calls == []


def test_predict_one_pair(run_cli, fails, calls):
    code, out, _ = run_cli("predict", "run", "--smiles", "CCO", "--sequence", "MKT")
    assert (code, out) == (0, "score 1.25\nprobability 0.777\n")
    ((_, (run, pair), settings),) = calls
    assert run is TRAINED and pair.to_pylist() == [{"SMILES": "CCO", "Protein": "MKT"}] and settings == {}
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


def test_import(run_cli, fails, calls):
    assert run_cli("import", "weights.npz", "--output", "run")[:2] == (0, f"written to run\n{UNCALIBRATED}\n")
    assert calls == [("import_weights", (Path("weights.npz"), Path("run")), {})]
    assert "required: --output" in fails("import", "weights.npz")


# baselines and data, on real functions


def test_baselines_of_own_tables(run_cli, fails):
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
    assert cli.main(["baselines", "davis"]) == 2
    assert cli.main(["baselines", "planted", "--data.planted.kind", "cold"]) == 2
    assert cli.main(["baselines", "pairs.csv"]) == 2
    assert cli.main(["baselines", "a.csv", "b.csv", "--task", "regression"]) == 2
    assert cli.main(["baselines", "a.csv", "--output", "b.json", "b.csv", "c.csv"]) == 2
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


def test_data_list_names_every_dataset(run_cli):
    code, out, _ = run_cli("data", "list")
    assert code == 0
    lines = out.splitlines()
    assert {line.split()[0] for line in lines[2:]} == {*DATASETS, "planted"}
    assert lines[1].split()[:2] == ["name", "task"]


def test_data_fetch_passes_name_and_place(run_cli, fails, monkeypatch):
    monkeypatch.setattr("jaxdti.data.fetch.fetch", lambda name, to, progress: [Path(to) / name / "train.csv"])
    assert run_cli("data", "fetch", "human/random", "--to", "here")[:2] == (
        0,
        "here/human/random/train.csv\nto use it: export JAXDTI_DATA=here\n",
    )
    monkeypatch.undo()
    assert "human/cluster/source_train.csv.gz, " in fails("data", "fetch", "human/cluster", "--to", "here")


def test_data_inspect_shows_sizes_leaks_and_rejected_rows(run_cli):
    write_pairs("train.csv", bad=3)
    write_pairs("test.csv")
    code, out, _ = run_cli("data", "inspect", "train.csv", "test.csv", "--rejected", "bad.csv")
    assert code == 0
    assert "train: 40 rows read, 37 kept" in out
    assert "rows rejected: 3 (3 SMILES cannot be read)" in out
    assert re.search(r"^test +40 +10 +4 +50.0%$", out, re.MULTILINE)
    assert re.search(r"^heavy atoms of a drug +3 ", out, re.MULTILINE)
    assert "test shares with train: 10 of 10 drugs, 4 of 4 proteins, 37 pairs" in out
    assert "warning: more than 5%" not in out
    lines = Path("bad.csv").read_text().splitlines()
    assert lines[0] == "file,row,field,value,reason" and len(lines) == 4


def test_data_inspect_reports_what_training_would_refuse(run_cli, fails):
    write_pairs("pairs.csv", bad=20)
    code, out, _ = run_cli("data", "inspect", "pairs.csv")
    assert code == 0 and "warning: more than 5% of the rows are rejected" in out
    Path("none.csv").write_text("SMILES,Protein,Y\nC1CC,MKT,1\n")
    assert fails("data", "inspect", "none.csv").endswith("all of them are listed in rejected.csv")
    assert Path("rejected.csv").read_text().splitlines()[1].startswith("none.csv,1,SMILES,C1CC,")


def test_data_inspect_of_affinities(run_cli):
    Path("kd.tsv").write_text("SMILES\tProtein\tpKd\nCCO\tMKTAYIAKQ\t5\nCCN\tMKTAYIAKQ\t7\n")
    code, out, _ = run_cli("data", "inspect", "kd.tsv", "--task", "regression")
    assert code == 0
    assert re.search(r"^kd +2 +2 +1 +5.000 +6.000 +6.000 +7.000 +1.000$", out, re.MULTILINE)


def test_data_split_is_used_by_training(run_cli, fails):
    write_pairs("pairs.csv")
    arguments = ["--kind", "cold_drug", "--fractions", "0.6", "0.2", "0.2", "--seed", "3", "--output", "split.json"]
    code, out, _ = run_cli("data", "split", "pairs.csv", *arguments)
    assert code == 0 and "test shares with train: 0 of 2 drugs" in out
    overrides = ["data.table=pairs.csv", "data.split_file=split.json"]
    data = load_data(load_config(None, overrides).data, "classification")
    assert {part: len(rows) for part, rows in data.parts.items()} == {"train": 24, "validation": 8, "test": 8}
    assert {part: rows.tolist() for part, rows in data.parts.items()} == json.loads(Path("split.json").read_text())[
        "parts"
    ]
    assert "has a published split (train, validation, test)" in fails("data", "split", "davis", "--output", "s.json")
    assert "makes its own parts" in fails("data", "split", "planted", "--output", "s.json")
    assert "three shares that sum to 1" in fails(
        "data", "split", "pairs.csv", "--fractions", "1", "1", "1", "--output", "s.json"
    )
    assert not Path("s.json").exists()


def test_data_split_by_cluster(run_cli, fails):
    write_pairs("pairs.csv")
    arguments = ["data", "split", "pairs.csv", "--kind", "cluster", "--output", "split.json"]
    # 10 drugs and 4 proteins, each a cluster at this threshold: 5 x 2 source and 5 x 2 target pairs.
    code, out, _ = run_cli(*arguments, "--threshold", "0.2", "--target-share", "0.5")
    assert code == 0 and "drug clusters: 10 of 10 drugs, the largest of 1; source 5, target 5" in out
    assert "use it with --data.table pairs.csv --data.split_file split.json" in out
    parts = json.loads(Path("split.json").read_text())["parts"]
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 9,
        "validation": 1,
        "target_train": 8,
        "test": 2,
    }
    data = load_data(load_config(None, ["data.table=pairs.csv", "data.split_file=split.json"]).data, "classification")
    assert {part: rows.tolist() for part, rows in data.parts.items()} == parts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs.csv", "--threshold", "0.2"], "--threshold: only with --kind cluster, found --kind random"),
        (["biosnap/random", "--kind", "scaffold", "--published"], "--published: only with --kind cluster"),
        (["pairs.csv", "--kind", "cluster", "--published"], "the name of a dataset is expected, found the table pairs"),
        (
            ["biosnap/random", "--kind", "cluster", "--published", "--target-share", "0"],
            "the published recipe settles this; leave --target-share out",
        ),
        (["human/random", "--kind", "cluster", "--published"], "known for biosnap/random, bindingdb/random"),
        (["pairs.csv", "--kind", "cluster", "--threshold", "2"], "2 found, a share between 0 and 1 expected"),
    ],
)
def test_data_split_by_cluster_refuses_what_does_not_belong_together(fails, arguments, message):
    write_pairs("pairs.csv")
    assert message in fails("data", "split", *arguments, "--output", "split.json")
    assert not Path("split.json").exists()


def test_data_split_lists_rejected_rows_beside_the_output(fails):
    write_pairs("pairs.csv", bad=20)
    Path("out").mkdir()
    assert fails("data", "split", "pairs.csv", "--output", "out/s.json").endswith("listed in out/rejected.csv")
    assert [path.name for path in Path("out").iterdir()] == ["rejected.csv"]


# Printing


def test_tables_are_drawn_on_a_terminal_only(capsys, monkeypatch):
    rows = [("name", "rows"), ("human [random]", "1")]
    print_table("title", rows)
    assert capsys.readouterr().out == "title\nname            rows\nhuman [random]  1\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("title", rows)
    drawn = capsys.readouterr().out
    assert "human [random]" in drawn and "━" in drawn


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "jaxdti.cli", "data", "list"]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (141, b"")


def test_the_default_configuration_needs_no_flag():
    assert load_config(None) == Config()


def test_data_inspect_of_a_named_dataset_shows_its_terms(run_cli, fails, data_dir, monkeypatch):
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    own = r"data.label_column=Kd_nM is set, but dataset davis brings its own \(pKd\)"
    assert re.match(own, fails("data", "inspect", "davis", "--label-column", "Kd_nM"))
    code, out, _ = run_cli("data", "inspect", "bindingdb/sample")
    assert code == 0
    assert "source: " in out and "licence: records of BindingDB" in out
