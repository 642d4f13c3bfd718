"""Strict numerics for every test, a private feature cache, and the data that some tests need."""

import csv
import dataclasses
import gc
import itertools
import os
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

# LLVM's optimisation takes a tenth of the tests' time, and they compute little. XLA's own passes are as for users.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import flax.linen as nn
import jax
import jax._src.compiler as jax_compiler
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

import jaxdti  # noqa: F401  before any computation: it turns a faulty fusion of some JAX releases off
from jaxdti.config import Config, DataConfig, ModelConfig, OutputConfig, TrainingConfig
from jaxdti.layers.dropout import dropout
from jaxdti.layers.means import masked_mean
from jaxdti.training import compilation, resident
from jaxdti.training.compilation import forget_programs
from jaxdti.training.objective import binding_loss
from jaxdti.training.state import TrainState

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


# Two problems that train in seconds: DrugBAN at its smallest on sixty pairs, and a toy network in its place.

SMILES = (
    *("CCO", "CCN", "CC(=O)O", "c1ccccc1", "c1ccncc1"),
    *("CC(=O)Nc1ccc(O)cc1", "O=C(O)c1ccccc1O", "NCCc1ccc(O)cc1", "CCCCCCCC", "Clc1ccccc1"),
)
MODEL = ModelConfig(
    drug_features=8,
    drug_layers=1,
    protein_features=8,
    protein_kernels=(3,),
    joint_features=8,
    pool_size=1,
    decoder_features=(16,),
    dropout=0.1,
)
TRAINING = TrainingConfig(epochs=3, batch_size=8, learning_rate=3e-3, buckets=2, chunk_steps=1)
OUTPUT = OutputConfig(baselines=False, tensorboard=False, bootstrap=20)


@pytest.fixture(scope="session")
def steady_adam():
    """``with steady_adam():`` training is with an epsilon of 1e-3 in Adam, so that two programs can be compared.

    Where a unit is open at every atom, the BatchNorm behind it takes its bias away: that gradient is 0 but for rounding
    (up to 5e-7 in ``graph_layers_0``, biases of message and residual, of the network below), and its sign is the
    compiler's. With Adam's own epsilon of 1e-8 it becomes a step of the whole learning rate, and after a few steps
    scores differ in the third digit, by chance and by processor. All else that a training does shows as before.
    """

    @contextmanager
    def steady():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optax, "scale_by_adam", partial(optax.scale_by_adam, eps=1e-3))
            patch.setattr(compilation, "_kept", {})  # programs are not kept by this epsilon
            resident._programs.cache_clear()
            yield
        resident._programs.cache_clear()

    return steady


@pytest.fixture
def steady(steady_adam):
    """A whole test under ``steady_adam``."""
    with steady_adam():
        yield


def _pairs() -> list[tuple[str, str, int, float]]:
    """(SMILES, sequence, binary label, affinity) of all 80 pairs, shuffled."""
    rng = np.random.default_rng(5)
    lengths = (12, 15, 20, 25, 50, 55, 60, 64)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in lengths]
    rows = [
        (smiles, sequence, int(("N" in smiles) ^ (i % 2)), round(5 + ("N" in smiles) + i % 2 + rng.normal(0, 0.1), 3))
        for smiles, (i, sequence) in itertools.product(SMILES, enumerate(sequences))
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


def write_pairs(path, rows) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("SMILES", "Protein", "Y", "affinity"))
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """``tiny_config(task, model=..., data=..., output=..., **training)``: a run of seconds, fields replaced."""
    folder, rows = tmp_path_factory.mktemp("tables"), _pairs()
    cuts = {"train": rows[:44], "validation": rows[44:60], "test": rows[60:]}
    files = {part: write_pairs(folder / f"{part}.csv", chosen) for part, chosen in cuts.items()}

    def build(task="classification", *, model=None, data=None, output=None, **training) -> Config:
        label = "Y" if task == "classification" else "affinity"
        return Config(
            task=task,
            data=dataclasses.replace(DataConfig(**files, label_column=label), **(data or {})),
            model=dataclasses.replace(MODEL, **(model or {})),
            training=dataclasses.replace(TRAINING, **training),
            output=dataclasses.replace(OUTPUT, **(output or {})),
        )

    return build


@pytest.fixture(scope="session")
def toy():
    """A network that compiles in no time: one vector an entity, their product, dropout and a running statistic.

    Every call moves ``batch_stats``, filler rows or not, so that only the step can keep it still.
    """

    def objective(variables, batch, rng, hyper):
        params, stats = variables["params"], variables["batch_stats"]
        drug = dropout(params["drug"][batch.drug], hyper["dropout"], rng)
        logits = jnp.sum(drug * params["protein"][batch.protein], axis=-1, keepdims=True)
        loss = masked_mean(binding_loss(logits, batch.label, batch.row_mask), batch.row_mask)
        return loss, ({"mean": 0.9 * stats["mean"] + jnp.mean(drug), "calls": stats["calls"] + 1}, {"loss": loss})

    def init(tx, seed, rate=0.25):
        keys = jax.random.split(jax.random.PRNGKey(seed))
        params = {name: jax.random.normal(key, (12, 4)) for name, key in zip(("drug", "protein"), keys, strict=True)}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats={"mean": jnp.zeros(()), "calls": jnp.zeros((), jnp.int32)},
            opt_state=tx.init(params),
            rng=jax.random.PRNGKey(seed + 1),
            hyper={"dropout": jnp.asarray(rate, jnp.float32)},
            first_bad=jnp.full((), -1, jnp.int32),
        )

    return SimpleNamespace(objective=objective, init=init)
