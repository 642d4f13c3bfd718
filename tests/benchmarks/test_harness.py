"""The shared parts of the benchmarks."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Clock:
    """A clock that moves on by the next of ``steps`` between two readings, over and over."""

    def __init__(self, *steps):
        self.steps, self.reading, self.now = steps, 0, 0.0

    def __call__(self):
        if self.reading % 2:
            self.now += self.steps[self.reading // 2 % len(self.steps)]
        self.reading += 1
        return self.now


# The machine.


def test_machine_is_plain_json_and_says_what_runs():
    got = json.loads(json.dumps(harness.machine(), allow_nan=False))
    assert got["jax"] == jax.__version__ and got["backend"] == jax.default_backend()
    assert got["devices"] == [device.device_kind for device in jax.devices()]
    assert got["matmul_precision"] == "highest"  # as tests/conftest.py sets it
    assert got["cpu"] and got["cores"] >= 1 and got["memory_gib"] > 0.1
    assert (got["torch"] is None) == (importlib.util.find_spec("torch") is None)


def test_commit_marks_changed_tracked_files_only(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "b.txt").write_text("untracked")
    assert harness.commit(tmp_path) == head
    (tmp_path / "a.txt").write_text("two")
    assert harness.commit(tmp_path) == f"{head}+changes"


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert harness.commit(tmp_path) is None


# Measuring.


@pytest.mark.slow
def test_ceiling_is_that_of_the_fastest_product(monkeypatch):
    # Per size two calls of 3 and 2 seconds: 2 n^3 / 2.
    monkeypatch.setattr(harness.time, "perf_counter", Clock(3.0, 2.0))
    assert harness.matmul_ceiling(jnp.float32, seconds=1.0, sizes=(16, 8)) == 16**3
    # One second in all, half a second a size: the four calls of 0.125 seconds that fill it.
    clock = Clock(0.125)
    monkeypatch.setattr(harness.time, "perf_counter", clock)
    assert harness.matmul_ceiling(jnp.bfloat16, seconds=1.0, sizes=(8, 4)) == 2 * 8**3 / 0.125
    assert clock.reading == 2 * 2 * 4


def test_functions_take_turns(monkeypatch):
    monkeypatch.setattr(harness.time, "perf_counter", Clock(1.0, 5.0, 2.0, 4.0))
    calls = []
    got = harness.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b", "a", "b"]
    assert got == {"a": [1.0, 2.0], "b": [5.0, 4.0]}


def test_ratio_is_the_median_of_rounds_not_of_times():
    assert harness.median_ratio([1.0, 8.0, 9.0], [2.0, 4.0, 3.0]) == 2.0
    with pytest.raises(ValueError):
        harness.median_ratio([1.0], [1.0, 2.0])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_peak_memory_is_this_processes_own_and_stays():
    slack = 2**20  # the kernel counts resident pages per processor and adds them up approximately
    block = np.ones(30_000_000)
    with_block = harness.peak_host_bytes()
    assert with_block >= block.nbytes
    del block
    assert harness.peak_host_bytes() >= with_block - slack
    # A child starts from its own peak, not from that of its parent.
    program = "import harness; print(harness.peak_host_bytes())"
    child = subprocess.run([sys.executable, "-c", program], cwd=harness.PEER.parent, capture_output=True, text=True)
    assert 1e6 < int(child.stdout) < 2e8 < with_block


def test_peak_device_memory_is_a_number_or_none():
    got = harness.peak_device_bytes()
    assert got is None if jax.default_backend() == "cpu" else got > 0


# The peer's process.


def test_malloc_environment_replaces_the_callers_own(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setenv("JAXDTI_KEPT", "yes")
    for malloc, expected in (("default", {}), ("tuned", harness.TUNED_MALLOC)):
        environment = harness.malloc_environment(malloc)
        assert {name: x for name, x in environment.items() if name.startswith(("MALLOC_", "GLIBC_"))} == expected
        assert environment["JAXDTI_KEPT"] == "yes"


def test_malloc_setting_needs_all_three(monkeypatch):
    for name, value in harness.TUNED_MALLOC.items():
        assert harness.malloc_setting() == "default"
        monkeypatch.setenv(name, value)
    assert harness.malloc_setting() == "tuned"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "1")
    assert harness.malloc_setting() == "default"


def peer_script(tmp_path, monkeypatch, text):
    monkeypatch.setattr(harness, "torch_installed", lambda: True)
    monkeypatch.setattr(harness, "PEER", tmp_path / "peer.py")
    harness.PEER.write_text(text)


def test_options_reach_the_process_and_its_answer_comes_back(tmp_path, monkeypatch):
    answer = "import json, os, sys; a = sys.argv[1:]; f = a[a.index('--json') + 1]; "
    answer += "json.dump({'arguments': a, 'top_pad': os.environ.get('MALLOC_TOP_PAD_')}, open(f, 'w'))"
    peer_script(tmp_path, monkeypatch, answer)
    got = harness.run_peer("train", rows=128, malloc="tuned", batch=64, cached=True, compile=False, dtype="bfloat16")
    assert got["top_pad"] == "268435456"
    arguments = got["arguments"]
    place = arguments.index("--json")
    del arguments[place : place + 2]
    expected = "--task train --rows 128 --batch 64 --cached --dtype bfloat16"
    assert arguments == expected.split()


def test_a_failed_process_says_why(tmp_path, monkeypatch):
    peer_script(tmp_path, monkeypatch, "import sys; sys.exit('no such thing')")
    with pytest.raises(RuntimeError, match="exit code 1: no such thing"):
        harness.run_peer("train", rows=1, malloc="default")


def test_without_torch_the_peer_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness, "torch_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r"pip install -e '\.\[bench\]'"):
        harness.run_peer("train", rows=1, malloc="default")


def test_unknown_malloc_is_refused():
    with pytest.raises(ValueError, match="malloc='fast': expected 'default' or 'tuned'"):
        harness.run_peer("train", rows=1, malloc="fast")


# Command line and results.


def test_arguments(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["name.py", "--json", str(tmp_path / "a.json"), "--rows", "7"])
    got = harness.parse("What it does.", lambda parser: parser.add_argument("--rows", type=int))
    assert got == argparse.Namespace(json=tmp_path / "a.json", quick=False, rows=7)
    monkeypatch.setattr(sys, "argv", ["name.py", "--quick"])
    assert harness.parse("What it does.") == argparse.Namespace(json=None, quick=True)


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results" / "training.json"
    rows = [{"case": "float32", "samples_per_second": 12.5, "ratio_to_peer": 3.0}]
    harness.write(path, "training", rows, settings={"batch": 64})
    written = json.loads(path.read_text())
    assert set(written) == {"benchmark", "machine", "rows", "settings"}
    assert written["benchmark"] == "training" and written["rows"] == rows and written["settings"] == {"batch": 64}
    assert written["machine"]["jax"] == jax.__version__
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write(path, "training", [{"samples_per_second": float("nan")}])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["training.json"]
    harness.write(None, "training", rows)  # no file was asked for


def test_table_is_aligned(capsys):
    rows = [
        {"case": "a", "rate": 12.3456, "rows": 1200, "other": "hidden"},
        {"case": "longer", "rate": 12345.6, "cached": True},
    ]
    harness.show(rows, ["case", "rate", "rows", "cached"])
    expected = [
        "case      rate   rows  cached",
        "a        12.35  1,200  -",
        "longer  12,346      -  True",
    ]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.slow
def test_a_benchmark_runs_without_data(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAXDTI_DATA"}
    command = [sys.executable, "benchmarks/featurise.py", "--quick", "--json", str(tmp_path / "featurise.json")]
    done = subprocess.run(command, cwd=harness.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "featurise.json").read_text())
    assert written["benchmark"] == "featurise" and written["dataset"] == "planted"
    assert [row["case"] for row in written["rows"]] == [
        "parse (RDKit)",
        "featurise",
        "featurise and cache",
        "read cache",
    ]
    for row in written["rows"]:
        assert row["molecules"] == 300 and row["case"] in done.stdout
        assert row["molecules_per_second"] == pytest.approx(300 / row["seconds"])
    assert written["rows"][0]["ratio_to_peer"] == 1.0 and written["rows"][1]["ratio_to_peer"] > 0
    assert written["rows"][2]["bytes_per_molecule"] > 8  # the eight numbers of one atom
