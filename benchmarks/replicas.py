"""Time of N models trained together against N times one, for DrugBAN and for a plain network on fingerprints.

JAXDTI_DATA=path/to/data python benchmarks/replicas.py --json results.json
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, interleaved, median_ratio, parse, peak_device_bytes, peak_host_bytes, show, write

COLUMNS = (
    *("model", "batch", "replicas", "seconds_a_step", "samples_per_second", "ratio_to_separate", "ratio_to_one"),
    *("compile_seconds", "peak_host_mib", "peak_device_mib"),
)
FINGERPRINT = 1024  # inputs of the plain network, whose hidden layers have 1,200 and 300 units
STEPS = 64  # of the plain network in a measurement
ATOMS, RESIDUES = 40, 640  # of every drug and protein that DrugBAN is timed on


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    accelerator = jax.default_backend() != "cpu"
    counts = (1, 2, 8) if options.quick else (1, 2, 4, 8, 16, 32)
    rows = []
    for n in counts:
        rows.append(measure_vectors(64, n, repeats=5))
    batches = {16: counts if accelerator else [n for n in counts if n <= 8]}
    if not options.quick:
        batches[64] = (1, 8)
    for batch, sizes in batches.items():
        for n in sizes:
            rows.append(measure("DrugBAN", batch, n, *drugban(batch), repeats=3 if n < 8 else 2))
    show(rows, COLUMNS)
    write(options.json, "replicas", rows)


def measure(name: str, batch: int, replicas: int, step, init, batch_of, *, repeats: int) -> Row:
    """Seconds of one step of ``replicas`` models, together and one after the other, in turn."""
    states = [init(seed) for seed in range(replicas)]
    batches = [batch_of(seed) for seed in range(replicas)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together, stacked_batches, single = stack(states), stack(batches), init(0)
    start = time.perf_counter()
    many = jax.jit(jax.vmap(step), donate_argnums=0).lower(together, stacked_batches).compile()
    compile_seconds = time.perf_counter() - start
    one = jax.jit(step, donate_argnums=0)
    kept = {"together": together, "separate": states, "one": single}

    def run(name: str, advance) -> None:
        kept[name] = jax.block_until_ready(advance(kept[name]))

    # As in training, a state is given up for the next one.
    functions = {
        "together": lambda: run("together", lambda state: first(many(state, stacked_batches))),
        "separate": lambda: run("separate", lambda old: [first(one(*x)) for x in zip(old, batches, strict=True)]),
        "one": lambda: run("one", lambda state: first(one(state, batches[0]))),
    }
    interleaved(functions, 1)
    return row(name, batch, replicas, interleaved(functions, repeats), 1, compile_seconds)


def measure_vectors(batch: int, replicas: int, *, repeats: int) -> Row:
    """As ``measure``, for whole trainings of a plain network on feature vectors, ``STEPS`` steps each."""
    from jaxdti.config import TrainingConfig
    from jaxdti.models.fnn import FNN, init_fnn
    from jaxdti.training.fit import fit
    from jaxdti.training.supervised import row_task
    from jaxdti.training.task import Trial

    rng, model = np.random.default_rng(0), FNN()
    features = jnp.asarray(rng.random((STEPS * batch // 4, FINGERPRINT)) < 0.05, jnp.uint8)
    label = rng.integers(0, 2, len(features)).astype(np.float32)
    rows = {"train": np.arange(len(features))}
    members = [Trial(rows=rows, label=label, seed=seed) for seed in range(replicas)]
    config = TrainingConfig(epochs=4, batch_size=batch)
    init = partial(init_fnn, model, FINGERPRINT)
    train = lambda trials: fit(row_task(model, init, features, trials, batch), trials, config)  # waits for the losses
    functions = {
        "together": lambda: train(members),
        "separate": lambda: [train([one]) for one in members],
        "one": lambda: train(members[:1]),
    }
    start = time.perf_counter()
    functions["together"]()
    first_seconds = time.perf_counter() - start
    interleaved(functions, 1)
    seconds = interleaved(functions, repeats)
    return row("MLP", batch, replicas, seconds, STEPS, max(first_seconds - min(seconds["together"]), 0.0))


def row(name: str, batch: int, replicas: int, seconds, steps: int, compile_seconds: float) -> Row:
    """What is reported of measurements of ``steps`` steps each."""
    median = float(np.median(seconds["together"])) / steps
    host, device = peak_host_bytes(), peak_device_bytes()
    return {
        "model": name,
        "batch": batch,
        "replicas": replicas,
        "seconds_a_step": median,
        "samples_per_second": replicas * batch / median,
        "ratio_to_separate": median_ratio(seconds["together"], seconds["separate"]),
        "ratio_to_one": median_ratio(seconds["together"], seconds["one"]),
        # How much faster than separate runs: above 1 where training together pays.
        "ratio_to_peer": median_ratio(seconds["separate"], seconds["together"]),
        "compile_seconds": compile_seconds,
        "peak_host_mib": host / 2**20 if host else None,
        "peak_device_mib": device / 2**20 if device else None,
    }


def first(result):
    """The state, of a step's (state, metrics)."""
    return result[0]


def drugban(batch: int, dtype: str = "float32"):
    """A step of DrugBAN of the paper's sizes, fresh states, and batches of pairs with ``ATOMS`` and ``RESIDUES``."""
    from jaxdti.config import Config, ModelConfig
    from jaxdti.data.pairs.buckets import PairBatch, Shape
    from jaxdti.data.pairs.device import DeviceFeatures
    from jaxdti.models.drugban import init_variables
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.state import init_state
    from jaxdti.training.step import make_train_step
    from jaxdti.training.supervised import hyper_parameters, pair_objective

    config, shape, count = Config(model=ModelConfig(dtype=dtype)), Shape(ATOMS, 48, RESIDUES), 64
    rng = np.random.default_rng(0)
    features = DeviceFeatures(
        atoms=jnp.asarray(rng.integers(0, 2, (count * ATOMS, 8)), jnp.int8),
        atom_offsets=jnp.arange(count + 1) * ATOMS,
        bonds=jnp.asarray(rng.integers(0, ATOMS, (count * 48, 2)), jnp.int16),
        bond_offsets=jnp.arange(count + 1) * 48,
        residues=jnp.asarray(rng.integers(1, 26, count * RESIDUES), jnp.uint8),
        residue_offsets=jnp.arange(count + 1) * RESIDUES,
    )
    tx = make_optimizer(config.training, 100)
    step = make_train_step(pair_objective(config.model, config.task, features, shape), tx)

    def batch_of(seed: int) -> PairBatch:
        rng = np.random.default_rng(seed)
        drug, protein = (rng.integers(0, count, batch).astype(np.int32) for _ in range(2))
        label = rng.integers(0, 2, batch).astype(np.float32)
        return PairBatch(drug=drug, protein=protein, label=label, row_mask=np.ones(batch, bool))

    fresh = partial(init_variables, config.model)
    init = lambda seed: init_state(fresh, tx, seed, hyper_parameters(config))
    return step, init, batch_of


if __name__ == "__main__":
    main()
