"""Commands in an empty folder, and stand-ins for the public functions that they call."""

import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from jaxdti.cli import main
from jaxdti.config import Config

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "GSHMENLYFQGAAAKLLPTRW", "MADEEKLPPGWEKRMSRSSGR", "MSTNPKPQRKTKRNTNRRPQD")
SMILES = ("CCO", "c1ccccc1", "CC(=O)O", "CCN", "CCCl", "c1ccncc1", "CC(C)O", "CCCC", "OCCO", "CCBr")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXDTI_DATA", raising=False)


@pytest.fixture
def run_cli(capsys):
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
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
def trained():
    """What ``load_run`` gives with ``calls``."""
    return types.SimpleNamespace(config=Config(), calibrated=True)


@pytest.fixture
def metrics():
    """What ``evaluate`` gives with ``calls``."""
    return {"auroc": 0.91234, "mcc": None, "auroc_ci": [0.85, 0.95], "pairs": 1234, "calibrated": False}


@pytest.fixture
def calls(monkeypatch, metrics, trained):
    """Replaces the public functions by ones that write down how they were called."""
    made = []

    def record(name, result=None):
        return lambda *args, **kwargs: made.append((name, args, kwargs)) or result

    scores = pa.table({"SMILES": ["CCO"], "score": [1.25], "probability": [0.777], "error": [""]})
    fakes = {
        "jaxdti.inference.predict": ("predict", scores),
        "jaxdti.inference.evaluate": ("evaluate", metrics),
        "jaxdti.interop.importing": ("import_weights", None),
    }
    for module, (name, result) in fakes.items():
        fake = types.ModuleType(module)
        setattr(fake, name, record(name, result))
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr("jaxdti.inference.trained.load_run", lambda run: trained)
    monkeypatch.setattr("jaxdti.studies.pairs.train", record("train", {}))
    monkeypatch.setattr("jaxdti.studies.pairs.resume", record("resume", {}))
    return made


@pytest.fixture
def write_pairs():
    """Writes a table of 40 pairs, the first ``bad`` of them with a molecule that cannot be read."""

    def write(path, bad=0):
        rows = [
            f"{drug},{protein},{(i + j) % 2}" for i, drug in enumerate(SMILES) for j, protein in enumerate(SEQUENCES)
        ]
        rows[:bad] = [f"C1CC,{SEQUENCES[0]},1"] * bad
        Path(path).write_text("\n".join(["SMILES,Protein,Y", *rows]) + "\n")

    return write
