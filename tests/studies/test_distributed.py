"""Two processes on this machine train as one does, stop together and resume."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdti.config import save_config
from jaxdti.studies.pairs import train

ROOT = Path(__file__).resolve().parents[2]

# The second process gets SIGTERM before its third chunk; both look at the device after every second one.
SCRIPT = """
import os, signal, sys
import jax
jax.config.update("jax_default_matmul_precision", "highest")
from jaxdti.training import streamed
from jaxdti.training import supervised as method_module
from jaxdti.cli import main

real, seen, streamed._CONTACT_CHUNKS = method_module.pair_batch, [], 2

def hooked(table, rows):
    seen.append(rows)
    if len(seen) == 3 and sys.argv[1] == "stop" and os.environ["JAX_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(table, rows)

method_module.pair_batch = hooked
sys.exit(main(sys.argv[2:]))
"""


def free_port() -> int:
    try:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no sockets here: {error}")


def run_two(environment: dict[str, str], *arguments: str) -> list[subprocess.CompletedProcess]:
    """Runs the script as two processes with one device each; [process 0, process 1]."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | environment | shared | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        spoken = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *both)
        for process, both in zip(started, spoken, strict=True)
    ]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def own_words(text: str) -> str:
    """What XLA's own libraries print is left out."""
    return "\n".join(line for line in text.splitlines() if not line.startswith(("[Gloo]", "E0", "W0", "I0")))


@pytest.mark.slow
def test_two_processes_train_as_one_stop_together_and_resume(tiny_config, tmp_path, compile_fast_and_once):
    config = tiny_config(epochs=2, buckets=1, learning_rate=1e-5, replicas=1)
    train(config, tmp_path / "one")
    save_config(config, tmp_path / "tiny.yaml")
    environment = compile_fast_and_once | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    flags = ("--training.distributed", "true", "--output", str(tmp_path / "two"))
    stopped = run_two(environment, "stop", "train", str(tmp_path / "tiny.yaml"), *flags)
    assert [each.returncode for each in stopped] == [128 + signal.SIGTERM] * 2, [each.stderr for each in stopped]
    assert "saved; continue with" in stopped[0].stderr and "Traceback" not in stopped[0].stderr
    assert own_words(stopped[1].stdout + stopped[1].stderr) == ""
    assert losses(tmp_path / "two") == []
    resumed = run_two(environment, "go", "train", "--resume", str(tmp_path / "two"))
    assert [each.returncode for each in resumed] == [0, 0], [each.stderr for each in resumed]
    assert "resuming after epoch 0, chunk 4" in resumed[0].stderr
    assert own_words(resumed[1].stdout + resumed[1].stderr) == ""
    # Not closer: Adam makes whole steps, here of 1e-5, of gradients that are rounding alone.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
