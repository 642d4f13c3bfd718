"""The warning about miscompiling JAX versions, and an import that stays light."""

import importlib
import os
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import jaxdti
from jaxdti.versions import avoid_faulty_fusion, check_jax_version

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("jax, jaxlib, bad", [("0.10.2", "0.10.1", ["jax"]), ("0.11.0", "0.10.2", ["jaxlib"])])
def test_known_bad_version_warns(monkeypatch, jax, jaxlib, bad):
    monkeypatch.setattr(metadata, "version", {"jax": jax, "jaxlib": jaxlib}.__getitem__)
    with pytest.warns(RuntimeWarning) as caught:
        check_jax_version()
    assert [str(warning.message).split(" returns wrong numbers")[0] for warning in caught] == [f"{bad[0]} 0.10.2"]
    assert "jax>=0.11.2,<0.12" in str(caught[0].message)


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.11.2"])
def test_good_version_is_silent(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda package: version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_jax_version()


@pytest.mark.parametrize(
    "jaxlib, before, after",
    [
        ("0.10.1", "", "--xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.10.0", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.10.0", "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.11.2", "--a=1", "--a=1"),
    ],
)
def test_faulty_fusion_is_turned_off_where_it_is(monkeypatch, jaxlib, before, after):
    monkeypatch.setattr(metadata, "version", lambda package: jaxlib)
    monkeypatch.setenv("XLA_FLAGS", before)
    avoid_faulty_fusion()
    assert os.environ["XLA_FLAGS"] == after


def test_warning_at_import(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"jax": "0.11.0", "jaxlib": "0.10.2"}.__getitem__)
    with pytest.warns(RuntimeWarning, match="jaxlib 0.10.2 returns wrong numbers"):
        importlib.reload(jaxdti)


def test_import_loads_no_heavy_package():
    heavy = ("jax", "flax", "rdkit", "sklearn", "scipy", "numpy", "matplotlib")
    code = f"import sys, jaxdti; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_every_jax_range_excludes_the_miscompiling_release(python):
    extras = PROJECT["optional-dependencies"]
    for extra, lines in {"": PROJECT["dependencies"], **extras}.items():
        found = [Requirement(line) for line in lines if Requirement(line).name == "jax"]
        active = [item for item in found if item.marker is None or item.marker.evaluate({"python_version": python})]
        assert len(active) == 1, f"extra {extra!r} on Python {python}: {len(active)} requirements on jax"
        assert "0.10.2" not in active[0].specifier, f"extra {extra!r} on Python {python} admits jax 0.10.2"


def test_version_is_that_of_the_metadata():
    assert jaxdti.__version__ == PROJECT["version"]
