"""Time of N models trained together against N times one, for DrugBAN and for a plain network on fingerprints.

JAXDTI_DATA=path/to/data python benchmarks/replicas.py --json results.json
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Row, interleaved, median_ratio, parse, peak_device_bytes, peak_host_bytes, show, write

COLUMNS = (
    *("model", "batch", "replicas", "seconds_a_step", "samples_per_second", "ratio_to_separate", "ratio_to_one"),
    *("compile_seconds", "peak_host_mib", "peak_device_mib"),
)
LAYERS = (1024, 1200, 300, 1)  # a fingerprint in, one score out
CHUNK = 16  # steps of the plain network in a program call, together and apart


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    accelerator = jax.default_backend() != "cpu"
    counts = (1, 2, 8) if options.quick else (1, 2, 4, 8, 16, 32)
    rows = []
    for n in counts:
        rows.append(measure("MLP", 64, n, *mlp(64), repeats=10, steps=CHUNK, spread=over_axis))
    batches = {16: counts if accelerator else [n for n in counts if n <= 8]}
    if not options.quick:
        batches[64] = (1, 8)
    for batch, sizes in batches.items():
        for n in sizes:
            rows.append(measure("DrugBAN", batch, n, *drugban(batch), repeats=3 if n < 8 else 2))
    show(rows, COLUMNS)
    write(options.json, "replicas", rows)


def measure(
    name: str, batch: int, replicas: int, step, init, batch_of, *, repeats: int, steps: int = 1, spread=jax.vmap
) -> Row:
    """Seconds of one step of ``replicas`` models, together and one after the other, in turn.

    ``step`` takes ``steps`` steps; ``spread`` makes it one for states and batches stacked on axis 0.
    """
    states = [init(seed) for seed in range(replicas)]
    batches = [batch_of(seed) for seed in range(replicas)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together, stacked_batches, single = stack(states), stack(batches), init(0)
    start = time.perf_counter()
    many = jax.jit(spread(step), donate_argnums=0).lower(together, stacked_batches).compile()
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
    seconds = interleaved(functions, repeats)
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


def over_axis(step):
    """As training on feature vectors spreads replicas: in a loop of the program on CPU, by vmap elsewhere."""
    from jaxdti.training.vectors import map_replicas

    return map_replicas(step, (0, 0))


def first(result):
    """The state, of a step's (state, metrics)."""
    return result[0]


def mlp(batch: int):
    """A plain network, ``CHUNK`` steps a call: (step, init, batch_of)."""
    tx = optax.adam(1e-3)

    def init(seed: int):
        keys = jax.random.split(jax.random.PRNGKey(seed), len(LAYERS) - 1)
        shapes = zip(keys, LAYERS[:-1], LAYERS[1:], strict=True)
        params = [(jax.random.normal(key, (i, o)) * i**-0.5, jnp.zeros(o)) for key, i, o in shapes]
        return params, tx.init(params)

    def loss(params, batch):
        x, label = batch
        for weight, bias in params[:-1]:
            x = jax.nn.relu(x @ weight + bias[None])
        weight, bias = params[-1]
        return jnp.mean(optax.sigmoid_binary_cross_entropy((x @ weight + bias[None])[:, 0], label))

    def step(state, batch):
        params, moments = state
        updates, moments = tx.update(jax.grad(loss)(params, batch), moments, params)
        return (optax.apply_updates(params, updates), moments), {}

    def batch_of(seed: int):
        rng, shape = np.random.default_rng(seed), (CHUNK, batch)
        return rng.integers(0, 2, (*shape, LAYERS[0])).astype(np.float32), rng.integers(0, 2, shape).astype(np.float32)

    return lambda state, batches: jax.lax.scan(step, state, batches), init, batch_of


def drugban(batch: int):
    """DrugBAN of the paper's sizes on drugs of up to 40 atoms and proteins of up to 640 residues."""
    from jaxdti.config import Config
    from jaxdti.data.batches import PairBatch, Shape
    from jaxdti.training.features import DeviceFeatures
    from jaxdti.training.objectives import pair_objective
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.state import hyper_parameters, init_state, init_variables
    from jaxdti.training.step import make_train_step

    config, shape, count = Config(), Shape(40, 48, 640), 64
    rng = np.random.default_rng(0)
    features = DeviceFeatures(
        atoms=jnp.asarray(rng.integers(0, 2, (count * 40, 8)), jnp.int8),
        atom_offsets=jnp.arange(count + 1) * 40,
        bonds=jnp.asarray(rng.integers(0, 40, (count * 48, 2)), jnp.int16),
        bond_offsets=jnp.arange(count + 1) * 48,
        residues=jnp.asarray(rng.integers(1, 26, count * 640), jnp.uint8),
        residue_offsets=jnp.arange(count + 1) * 640,
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
