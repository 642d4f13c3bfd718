"""A run that was killed and resumed ends as the unbroken one, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxdti.config import load_config, save_config
from jaxdti.errors import DataError, Interrupted
from jaxdti.models.drugban import init_variables
from jaxdti.studies.pairs import resume, train
from jaxdti.training import supervised as method_module
from jaxdti.training.checkpoints import load_weights, open_checkpoints
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.state import init_replicas
from jaxdti.training.supervised import hyper_parameters

TIMES = ("seconds", "samples_per_second", "total_seconds")
EPOCH = 6  # chunks
ROOT = Path(__file__).resolve().parents[2]


def outcome(run: Path) -> dict:
    """Everything a run leaves that must not depend on interruptions."""
    config = load_config(run / "config.yaml")
    tx, hyper = make_optimizer(config.training, EPOCH), [hyper_parameters(config)]
    like = jax.eval_shape(lambda: init_replicas(partial(init_variables, config.model), tx, [0], hyper))
    stacked = {"params": like.params, "batch_stats": like.batch_stats}
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    with open_checkpoints(run / "checkpoints") as checkpoints:
        state, best, progress = checkpoints.restore(like, stacked)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    for timed in (progress, summary, *records, *progress["members"][0]["history"]):
        for name in TIMES:
            timed.pop(name, None)
    return {
        "state": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)],
        "best": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(best)],
        "weights": [np.asarray(x).tobytes() for x in jax.tree.leaves(load_weights(run / "weights", weights))],
        "progress": progress,
        "metrics": records,
        "summary": summary,
        "predictions": pq.read_table(run / "predictions.parquet").to_pydict(),
        "model": json.loads((run / "model.json").read_text()),
    }


def assert_same(run: Path, unbroken: dict) -> None:
    found = outcome(run)
    for name, expected in unbroken.items():
        assert found[name] == expected, name


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(buckets=1, output={"tensorboard": True})


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train(config, run)
    result = outcome(run)
    assert [record["step"] for record in result["metrics"]] == [EPOCH * (i + 1) for i in range(len(result["metrics"]))]
    return result


class Killed(BaseException):
    """Stands for kill -9: nothing of the program runs after it but the clean-up of contexts."""


@pytest.fixture
def at_chunk(monkeypatch):
    """``at_chunk(n, action)`` runs the action before the n-th chunk from now."""
    real, plan = method_module.pair_batch, {}

    def hooked(table, rows):
        plan["count"] -= 1
        if plan["count"] == -1:
            plan["action"]()
        return real(table, rows)

    monkeypatch.setattr(method_module, "pair_batch", hooked)
    return lambda count, action: plan.update(count=count, action=action)


def die():
    raise Killed


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_run_killed_again_and_again_ends_as_the_unbroken_one(config, unbroken, tmp_path, at_chunk):
    run = tmp_path / "run"
    at_chunk(3, die)  # before the first checkpoint
    with pytest.raises(Killed):
        train(config, run)
    with pytest.raises(
        DataError, match=f"{run}: already exists; give another --output, or --overwrite, or --resume {run}"
    ):
        train(config, run)
    at_chunk(2, lambda: os.kill(os.getpid(), signal.SIGINT))  # within the first epoch
    with pytest.raises(Interrupted, match="SIGINT"):
        resume(run)
    at_chunk(EPOCH + 1, die)  # within the second epoch, saved last at the end of the first
    with pytest.raises(Killed):
        resume(run)
    at_chunk(EPOCH - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the last chunk of the second
    with pytest.raises(Interrupted, match="SIGTERM"):
        resume(run)
    at_chunk(-1, die)
    resume(run)
    assert_same(run, unbroken)
    resume(run)  # of a finished run: evaluates again, changes nothing
    assert_same(run, unbroken)


SCRIPT = """
import os, signal, sys
import jax

jax.config.update("jax_default_matmul_precision", "highest")
from dataclasses import replace
from pathlib import Path
from jaxdti.training import streamed
from jaxdti.training import supervised as method_module
from jaxdti.cli import main

kind, chunk, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
real, seen = method_module.pair_batch, []

def dying_rename(*names, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def hooked(table, rows):
    seen.append(rows)
    if len(seen) == chunk and kind == "save":  # all files of the next checkpoint are written, its name is not
        os.rename = os.replace = dying_rename
    elif len(seen) == chunk:
        os.kill(os.getpid(), getattr(signal, kind))
    return real(table, rows)

method_module.pair_batch = hooked
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.bitwise
def test_processes_that_are_killed_during_a_save_or_terminated_lose_nothing(
    config, unbroken, tmp_path, compile_fast_and_once
):
    environment = os.environ | compile_fast_and_once | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run_and_kill(kind: str, chunk: int, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", SCRIPT, kind, str(chunk), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    save_config(config, tmp_path / "tiny.yaml")
    run = tmp_path / "run"
    first = run_and_kill("save", EPOCH + 2, "train", str(tmp_path / "tiny.yaml"), "--output", str(run))
    assert first.returncode == -signal.SIGKILL, first.stderr
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(left) == 2 and str(EPOCH) in left, left  # a whole checkpoint, and one without its name
    second = run_and_kill("SIGTERM", 3, "train", "--resume", str(run))
    assert second.returncode == 128 + signal.SIGTERM, second.stderr
    assert "Traceback" not in second.stderr
    assert f"saved; continue with: jaxdti train --resume {run}" in second.stderr
    resume(run)
    assert_same(run, unbroken)
    assert sorted(path.name for path in run.iterdir()) == sorted(
        ("checkpoints", "config.yaml", "data.json", "environment.json", "metrics.jsonl", "model.json")
        + ("predictions.parquet", "split.json", "summary.json", "tensorboard", "weights")
    )
    assert all(path.name.isdigit() for path in (run / "checkpoints").iterdir())


def test_a_run_is_not_resumed_on_other_data(config, tmp_path, at_chunk):
    tables = {}
    for part in ("train", "validation", "test"):
        tables[part] = tmp_path / f"{part}.csv"
        tables[part].write_text(Path(getattr(config.data, part)).read_text())
    data = {part: str(path) for part, path in tables.items()}
    run = tmp_path / "run"
    at_chunk(0, die)
    with pytest.raises(Killed):
        train(replace(config, data=replace(config.data, **data)), run)
    lines = tables["test"].read_text().splitlines()
    changed = lines[1].split(",")
    changed[2] = str(1 - int(changed[2]))
    tables["test"].write_text("\n".join([lines[0], ",".join(changed), *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"the data changed since the run began \(sha256 \w+, now \w+\)"):
        resume(run)
    tables["test"].unlink()
    with pytest.raises(DataError, match="test.csv"):
        resume(run)


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(DataError, match="nowhere: not a run that can be resumed"):
        resume(tmp_path / "nowhere")
