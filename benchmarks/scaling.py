"""How cost grows with pairs, atoms and residues, and memory with the size of the data set.

    python benchmarks/scaling.py [--json FILE] [--quick]

DrugBAN of the paper's sizes on made-up entities, all of one size, so that nothing but the size named changes. A row's
exponent is that of its seconds from the size before: 1 where cost is proportional, below 1 where there is a fixed part.

Features that are resident take memory of an accelerator. On a CPU, JAX reads the mapped file where it lies, so that
only the host's peak shows the data set, as far as its pages were touched: the system may take them back.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from harness import (
    Row,
    interleaved,
    matmul_ceiling,
    parse,
    peak_device_bytes,
    peak_host_bytes,
    show,
    write,
)

COST_COLUMNS = ("task", "axis", "size", "pairs", "seconds", "seconds_per_unit", "exponent", "percent_of_ceiling")
MEMORY_COLUMNS = (
    *("features", "entities", "feature_mib", "anonymous_mib", "peak_host_mib", "peak_device_mib"),
    "samples_per_second",
)
BASE = {"pairs": 32, "atoms": 40, "residues": 640}
AXES = {"pairs": (16, 32, 64, 128), "atoms": (20, 40, 80, 160), "residues": (320, 640, 1280)}
ENTITIES = (10_000, 100_000, 1_000_000)  # drugs, and as many proteins
QUICK_BASE = {"pairs": 8, "atoms": 24, "residues": 320}
QUICK_AXES = {"pairs": (8, 16), "residues": (320, 640)}
QUICK_ENTITIES = (10_000,)
STEPS = 10  # trained for a row of memory
USES = 8  # pairs that each entity is scored in
BATCH = 64  # of the scorer

# (what to time, the pairs and the floating-point operations of one call)
Work = tuple[Callable[[], object], int, float]


def main() -> None:
    options = parse(__doc__.splitlines()[0], lambda parser: parser.add_argument("--row", help=argparse.SUPPRESS))
    if options.row:
        print(json.dumps(measure_memory(**json.loads(options.row))))
        return
    base, axes = (QUICK_BASE, QUICK_AXES) if options.quick else (BASE, AXES)
    ceiling = matmul_ceiling("float32")
    cost = []
    for axis, sizes in axes.items():
        for task, make in (("training step", training_step), ("scoring", scoring)):
            works = {size: make(**base | {axis: size}) for size in sizes}
            cost += measure_cost(task, axis, works, ceiling, repeats=2 if options.quick else 5)
    show(cost, COST_COLUMNS)
    memory = memory_rows(QUICK_ENTITIES if options.quick else ENTITIES, base)
    show(memory, MEMORY_COLUMNS)
    write(options.json, "scaling", cost + memory, ceiling_gflops=ceiling / 1e9)


# Cost.


def measure_cost(task: str, axis: str, works: Mapping[int, Work], ceiling: float, repeats: int) -> list[Row]:
    """Rows of one task along one axis; ``works`` by size, measured in turns, so that noise meets them alike."""
    functions = {str(size): partial(_discard, run) for size, (run, _, _) in works.items()}
    interleaved(functions, 1)  # compiles
    seconds = {int(size): statistics.median(taken) for size, taken in interleaved(functions, repeats).items()}
    rows: list[Row] = []
    for size, (_, pairs, operations) in works.items():
        smaller = rows[-1] if rows else None
        units = pairs if axis == "pairs" else pairs * size
        rows.append(
            {
                "task": task,
                "axis": axis,
                "size": size,
                "pairs": pairs,
                "seconds": seconds[size],
                "seconds_per_unit": seconds[size] / units,  # a pair, or an atom or a residue of a pair
                "exponent": smaller and _exponent(size / smaller["size"], seconds[size] / smaller["seconds"]),
                "percent_of_ceiling": 100 * operations / seconds[size] / ceiling,
            }
        )
    return rows


def _exponent(size: float, seconds: float) -> float:
    return math.log(seconds) / math.log(size)


def _discard(run: Callable[[], object]) -> None:
    """Turns a call with a result into one without."""
    run()


@cache  # the base size is on every axis
def training_step(pairs: int, atoms: int, residues: int) -> Work:
    """(run one step, its pairs, its floating-point operations)."""
    import jax

    from jaxdti.data.pairs.buckets import pair_cost
    from jaxdti.data.pairs.device import device_features

    _, state = model()
    store, shape = made_up_store(pairs, atoms, residues)
    features, batch = device_features(store), made_up_batch(np.arange(pairs))
    compiled = jax.jit(step_of(shape)).lower(state, features, batch).compile()
    # Two operations for each multiply-add of the forward pass, and the backward pass is twice the forward pass.
    operations = 6e6 * pairs * float(pair_cost(atoms, residues))
    return lambda: jax.block_until_ready(compiled(state, features, batch)), pairs, operations


@cache
def scoring(pairs: int, atoms: int, residues: int) -> Work:
    """(score ``USES`` pairs of each of ``pairs`` drugs and proteins, how many pairs, their operations)."""
    from jaxdti.config import ModelConfig
    from jaxdti.data.pairs.buckets import one_bucket, pair_cost
    from jaxdti.data.pairs.device import device_features
    from jaxdti.data.pairs.table import InteractionTable
    from jaxdti.inference.scoring import make_scorer

    store, shape = made_up_store(pairs, atoms, residues)
    drug = np.repeat(np.arange(pairs), USES)
    protein = (drug + np.tile(np.arange(USES), pairs)) % pairs
    count = len(drug)
    table = InteractionTable(
        drugs=np.array([f"drug {i}" for i in range(pairs)], object),
        proteins=np.array([f"protein {i}" for i in range(pairs)], object),
        drug=drug.astype(np.int32),
        protein=protein.astype(np.int32),
        label=np.zeros(count, np.float32),
        part=np.full(count, "test", object),
        row=np.arange(count),
    )
    scorer = make_scorer(ModelConfig(), device_features(store), table, one_bucket(table, shape), BATCH)
    _, state = model()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    encoders = float(pair_cost(atoms, 0) + pair_cost(0, residues))
    # Of the pairwise form; the Gram form needs fewer where entities are used often.
    operations = 2e6 * (pairs * encoders + count * (float(pair_cost(atoms, residues)) - encoders))
    return lambda: scorer(variables, np.arange(count)), count, operations


# Memory.


def memory_rows(entities: Sequence[int], base: dict[str, int]) -> list[Row]:
    """Training from a store on disk, its features resident on the device or brought along with each batch."""
    rows = []
    for count in entities:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), count, base["atoms"], base["residues"])
            for streamed in (False, True):
                setting = {"folder": folder, "streamed": streamed, "batch": base["pairs"]}
                command = [sys.executable, __file__, "--row", json.dumps(setting)]  # its own memory
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def measure_memory(*, folder: str, streamed: bool, batch: int) -> Row:
    """Trains ``STEPS`` steps on pairs drawn from the whole store."""
    import jax

    from jaxdti.data.pairs.buckets import Shape
    from jaxdti.data.pairs.device import chunk_features, device_features, feature_bytes
    from jaxdti.data.pairs.table import FeatureStore

    arrays = {file.stem: np.load(file, mmap_mode="r") for file in Path(folder).glob("*.npy")}
    store = FeatureStore(**arrays)
    shape = Shape(*(int(counts[0]) for counts in (store.atom_counts, store.bond_counts, store.residue_counts)))
    _, state = model()
    program = jax.jit(step_of(shape), donate_argnums=0)
    state = jax.tree.map(jax.numpy.array, state)  # donated, so a copy
    resident = None if streamed else device_features(store)
    entities = len(store.atom_counts)
    rng = np.random.default_rng(0)
    start = 0.0
    for i in range(STEPS + 1):
        chosen = made_up_batch(rng.integers(0, entities, batch))
        features, chosen = (resident, chosen) if resident is not None else chunk_features(store, chosen, shape)
        state, metrics = program(state, features, chosen)
        jax.block_until_ready(metrics)
        if i == 0:
            start = time.perf_counter()  # the first one compiled
    seconds = time.perf_counter() - start
    return {
        "features": "streamed" if streamed else "resident",
        "entities": entities,
        "feature_mib": feature_bytes(store) / 2**20,
        "anonymous_mib": mib(anonymous_bytes()),
        "peak_host_mib": mib(peak_host_bytes()),
        "peak_device_mib": mib(peak_device_bytes()),
        "samples_per_second": STEPS * batch / seconds,
    }


def mib(size: int | None) -> float | None:
    return size / 2**20 if size is not None else None


def anonymous_bytes() -> int | None:
    """Resident memory of this process that is no file's: pages of a mapped store are the system's to take back."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("RssAnon:"))


# What is trained on.


@cache
def model():
    """The configuration of DrugBAN as published, and a state to begin with."""
    from jaxdti.config import Config
    from jaxdti.models.drugban import init_variables
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.state import init_state
    from jaxdti.training.supervised import hyper_parameters

    config = Config()
    init, tx = partial(init_variables, config.model), make_optimizer(config.training, 100)
    return config, init_state(init, tx, 0, hyper_parameters(config))


def step_of(shape):
    """``step(state, features, batch)`` at this shape."""
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.step import make_train_step
    from jaxdti.training.supervised import pair_objective

    config, _ = model()
    tx = make_optimizer(config.training, 100)

    def step(state, features, batch):
        return make_train_step(pair_objective(config.model, config.task, features, shape), tx)(state, batch)

    return step


def made_up_arrays(count: int, atoms: int, residues: int) -> dict[str, np.ndarray]:
    """The rows of ``count`` drugs and proteins of one size; the drugs are chains with a few rings."""
    rng = np.random.default_rng(0)
    bonds = atoms + atoms // 5
    chain = np.stack([np.arange(atoms - 1), np.arange(1, atoms)], axis=1)
    rings = np.stack([np.arange(bonds - atoms + 1), np.arange(bonds - atoms + 1) + 5], axis=1) % atoms
    return {
        "atoms": rng.integers(0, 2, (count * atoms, 8), dtype=np.int8),
        "bonds": np.tile(np.concatenate([chain, rings]).astype(np.int16), (count, 1)),
        "residues": rng.integers(1, 26, count * residues, dtype=np.uint8),
    }


def made_up_offsets(count: int, atoms: int, residues: int) -> dict[str, np.ndarray]:
    widths = {"atom_offsets": atoms, "bond_offsets": atoms + atoms // 5, "residue_offsets": residues}
    return {name: np.arange(count + 1) * width for name, width in widths.items()}


def made_up_store(count: int, atoms: int, residues: int):
    """(store, the shape that all of it has)."""
    from jaxdti.data.pairs.buckets import Shape
    from jaxdti.data.pairs.table import FeatureStore

    store = FeatureStore(**made_up_arrays(count, atoms, residues), **made_up_offsets(count, atoms, residues))
    return store, Shape(atoms, atoms + atoms // 5, residues)


def write_store(folder: Path, count: int, atoms: int, residues: int) -> None:
    """The same on disk, an array a file, a thousand entities at a time."""
    block = 1000
    assert count % block == 0
    rows = made_up_arrays(block, atoms, residues)
    for name, array in rows.items():
        shape = (count // block * len(array), *array.shape[1:])
        target = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=array.dtype, shape=shape)
        for start in range(0, len(target), len(array)):
            target[start : start + len(array)] = array
        target.flush()
    for name, array in made_up_offsets(count, atoms, residues).items():
        np.save(folder / f"{name}.npy", array)


def made_up_batch(entities: np.ndarray):
    """Pairs of drug i and protein i, every other one positive."""
    from jaxdti.data.pairs.buckets import PairBatch

    index = entities.astype(np.int32)
    label = (np.arange(len(index)) % 2).astype(np.float32)
    return PairBatch(drug=index, protein=index, label=label, row_mask=np.ones(len(index), bool))


if __name__ == "__main__":
    main()
