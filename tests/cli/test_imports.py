"""`jaxdti import`."""

from pathlib import Path

from jaxdti.cli.printing import UNCALIBRATED


def test_import(run_cli, fails, calls):
    assert run_cli("import", "weights.npz", "--output", "run")[:2] == (0, f"written to run\n{UNCALIBRATED}\n")
    assert calls == [("import_weights", (Path("weights.npz"), Path("run")), {})]
    assert "required: --output" in fails("import", "weights.npz")
