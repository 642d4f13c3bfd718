"""The cache of compiled programs: on accelerators, in the user cache, unless the user says otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.training import compilation
from jaxdti.training.compilation import forget_programs, keep_programs, kept_program, told_jit

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


def test_every_compilation_is_told_once(capsys, monkeypatch):
    add = told_jit(
        lambda into, values: {"sum": into["sum"] + values}, lambda into, values: f"sum of {len(values)}", "a", "into"
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


@pytest.mark.slow
def test_a_program_of_the_same_key_and_shapes_is_compiled_once_in_a_process(capsys):
    def scaled(factor):
        return told_jit(lambda x: factor * x, lambda x: f"{len(x)} times {factor}", ("scaled", factor))

    x = np.arange(3, dtype=np.float32)
    for factor in (2.0, 3.0, 2.0):
        np.testing.assert_array_equal(scaled(factor)(x), factor * x)
    np.testing.assert_array_equal(scaled(2.0)(x[:2]), 2.0 * x[:2])
    with jax.default_matmul_precision("bfloat16"):  # another program, if it had a product
        scaled(2.0)(x)
    forget_programs()
    scaled(3.0)(x)
    told = [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    names = ["3 times 2.0", "3 times 3.0", "2 times 2.0", "3 times 2.0", "3 times 3.0"]
    assert told == [f"compiled {name}" for name in names]


def test_the_programs_used_last_are_kept(monkeypatch):
    forget_programs()
    monkeypatch.setattr(compilation, "_MOST_KEPT", 2)
    made = []
    for key in ("a", "b", "a", "c", "a", "b"):
        assert kept_program(key, lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b", "c", "b"]
    forget_programs()
