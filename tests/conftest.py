"""Strict numerics for every test, a private feature cache, and the data that some tests need."""

import gc
import os
from itertools import count
from pathlib import Path

# LLVM's optimisation takes a tenth of the tests' time, and they compute little. XLA's own passes are as for users.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import flax.linen as nn
import jax
import jax._src.compiler as jax_compiler
import numpy as np
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

import jaxdti  # noqa: F401  before any computation: it turns a faulty fusion of some JAX releases off
from jaxdti.compilation import forget_programs

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_traceback_in_locations_limit", 0)  # tests, which mostly trace, take 7 % less
gc.set_threshold(100_000, 50, 100)  # and 5 to 10 % less: tracing makes many objects and few cycles

# A first call compiles, so no deadline; in CI a failure must be repeatable and no example database may decide.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Keeps every test, and every process it starts, away from the user's feature cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDTI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The directory of the compiled programs, which the processes of one test run share."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "programs"
    folder.mkdir(exist_ok=True)
    return folder


PERTURB = os.environ.get("JAXDTI_TEST_PERTURB")  # a number, which seeds the noise


def pytest_collection_modifyitems(items):
    if PERTURB:
        skip = pytest.mark.skip(reason="compares bits, which JAXDTI_TEST_PERTURB changes")
        for item in items:
            if item.get_closest_marker("bitwise"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def perturbed_weights():
    """With JAXDTI_TEST_PERTURB=1 (2, 3, ...), every network starts from weights with a relative error of 1e-7 of their
    own: as much as the rounding of another processor. What a test says of two trainings has to hold with it too.
    """
    if not PERTURB:
        yield
        return
    draws, init = count(), nn.Module.init

    def noise(x):
        return (x * (1 + 1e-7 * np.random.default_rng((int(PERTURB), next(draws))).normal(size=x.shape))).astype(
            x.dtype
        )

    def perturb(x):
        # A callback, since programs are traced once and run by several trainings.
        return jax.pure_callback(noise, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")

    def noisy(self, *arguments, **settings):
        variables = dict(init(self, *arguments, **settings))
        return variables | {"params": jax.tree.map(perturb, variables["params"])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "init", noisy)
        yield


@pytest.fixture
def fresh_programs():
    """Compiles anew what runs keep for each other: for tests that change, or count, what is inside of a program."""
    forget_programs()
    jax.clear_caches()
    yield
    forget_programs()


@pytest.fixture(scope="module")
def compile_fast_and_once(programs):
    """Halves the compilation, and shares it: a run builds its programs anew, so the jit cache does not help."""
    settings = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings} | {"jax_disable_most_optimizations": False}
    settings["jax_disable_most_optimizations"] = True
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    flags = " ".join(
        [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={str(value).lower()}" for name, value in FAST_XLA.items())]
    )
    with pytest.MonkeyPatch.context() as patch:
        if FAST_XLA:
            patch.setattr(jax_compiler, "get_compile_options", _fast_compile_options)
        yield {name.upper(): str(value) for name, value in settings.items()} | {"XLA_FLAGS": flags}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# Halves again what XLA takes on CPU. XLA reads its flags once a process, so they go with each compilation: tests
# without the fixture keep the compiler that users have. jax 0.11 does not know the first one.
FAST_XLA = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ >= (0, 11):
    FAST_XLA = {}
_compile_options = jax_compiler.get_compile_options


def _fast_compile_options(*arguments, env_options_overrides=None, **settings):
    overrides = FAST_XLA | (env_options_overrides or {})
    return _compile_options(*arguments, env_options_overrides=overrides, **settings)


def _shared_directory(variable: str, name: str) -> Path:
    directory = Path(os.environ.get(variable, ROOT.parent / "shared" / name)).resolve()
    if not directory.is_dir():
        pytest.skip(f"{directory} does not exist; set {variable} to run this test")
    return directory


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of the public datasets (JAXDTI_DATA); skips where there is none."""
    return _shared_directory("JAXDTI_DATA", "data")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The directory of the published model's recorded cases (JAXDTI_REFERENCE); skips where there is none."""
    return _shared_directory("JAXDTI_REFERENCE", "reference")
