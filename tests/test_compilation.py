"""The cache of compiled programs: on accelerators, in the user cache, unless the user says otherwise."""

import jax
import pytest

from jaxdti.compilation import keep_programs

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
