"""Two problems that train in seconds: DrugBAN at its smallest on sixty pairs, and a toy network in its place."""

import csv
import dataclasses
import itertools
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti import compilation
from jaxdti.config import Config, DataConfig, ModelConfig, OutputConfig, TrainingConfig
from jaxdti.layers.dropout import dropout
from jaxdti.training import vectors
from jaxdti.training.objectives import binding_loss, masked_mean
from jaxdti.training.state import TrainState

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


@pytest.fixture(scope="module", autouse=True)
def fast(compile_fast_and_once):
    """Every test here is mostly compilation."""


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
            vectors._programs.cache_clear()
            yield
        vectors._programs.cache_clear()

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
