"""The cache of compiled programs: on accelerators, in the user cache, unless the user says otherwise."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.compilation import keep_programs, release_compiler_memory, told_jit

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("backend, kept", [("cpu", False), ("gpu", True), ("tpu", True)])
def test_programs_are_kept_on_accelerators(monkeypatch, tmp_path, backend, kept):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == (str(tmp_path / "programs") if kept else None)


def test_a_directory_of_the_users_own_stays(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    release_compiler_memory()
    before = resident()
    blocks = [bytes(64 * 1024) for _ in range(2000)]  # 125 MiB in pieces that glibc keeps in its heap
    kept = blocks[-1]
    blocks.clear()
    release_compiler_memory()
    assert resident() - before < 30 * 2**20 and len(kept) == 64 * 1024


def test_every_compilation_is_told_once(capsys, monkeypatch):
    add = told_jit(
        lambda into, values: {"sum": into["sum"] + values}, lambda into, values: f"sum of {len(values)}", "into"
    )
    given = {"sum": jnp.zeros(3)}
    for values in (np.ones(3, np.float32), np.full(3, 2.0, np.float32)):
        given = add(given, values)
    np.testing.assert_array_equal(given["sum"], [3.0, 3.0, 3.0])
    donated = {"sum": jnp.zeros(2, jnp.int32)}
    add(donated, np.ones(2, np.int32))
    assert donated["sum"].is_deleted()
    add({"sum": jnp.zeros(2)}, np.ones(2, np.float32))
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" in ")[0] for line in told] == [f"compiled sum of {n}" for n in (3, 2, 2)]
    assert all(line.endswith(" s") for line in told)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    add({"sum": jnp.zeros(4)}, np.ones(4, np.float32))
    assert capsys.readouterr().err == ""
