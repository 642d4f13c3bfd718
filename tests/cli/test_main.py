"""The command line: help, unknown words, exit codes, signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdti import __version__
from jaxdti.cli import main, make_parsers
from jaxdti.config import Config, config_fields, load_config

ROOT = Path(__file__).resolve().parents[2]


def test_without_arguments_it_prints_help_and_exits_2(run_cli):
    code, out, err = run_cli()
    assert (code, out) == (2, "")
    assert all(word in err for word in ("train", "evaluate", "predict", "import", "baselines", "data"))
    code, _, err = run_cli("data")
    assert code == 2 and all(word in err for word in ("list", "fetch", "inspect", "split"))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"jaxdti {__version__}\n"


@pytest.mark.parametrize("words", [words for words in make_parsers() if words not in ("", "data")])
def test_every_command_teaches_itself(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert out.startswith(f"usage: jaxdti {words}")
    usage, description, *_ = out.split("\n\n")
    assert len(description.splitlines()) == 2
    assert f"jaxdti {words}" in out.partition("example:\n")[2]


def test_help_shows_every_key_with_type_default_and_alias(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
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
        main(["train", "--resume", "run"])


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "study, begins, arguments, resumption",
    [
        ("pairs", "resume", ("train", "--resume", "run"), "train --resume run"),
        ("vectors", "train_vectors", ("train", "--vectors.dataset", "digits", "--output", "run"), "train --resume run"),
        ("sweep", "resume_sweep", ("sweep", "--resume", "run"), "sweep --resume run"),
        ("response.run", "resume_response", ("response", "--resume", "run"), "response --resume run"),
        (
            "sizes",
            "resume_sizes",
            ("transfer", "--protocol", "sizes", "--resume", "run"),
            "transfer --protocol sizes --resume run",
        ),
    ],
)
def test_every_training_ends_alike(run_cli, monkeypatch, study, begins, arguments, resumption):
    from jaxdti.errors import Interrupted, NonFiniteLoss

    monkeypatch.setattr(f"jaxdti.studies.{study}.{begins}", _raise(Interrupted(signal.SIGTERM)))
    assert run_cli(*arguments) == (143, "", f"saved; continue with: jaxdti {resumption}\n")
    monkeypatch.setattr(f"jaxdti.studies.{study}.{begins}", _raise(NonFiniteLoss("the loss is nan")))
    assert run_cli(*arguments) == (3, "", "jaxdti: error: the loss is nan\n")
