"""Time of an epoch above a frozen part, whose outputs are computed once, against that of training all weights.

JAXDTI_DATA=path/to/data python benchmarks/transfer.py --json results.json
"""

import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from harness import Row, interleaved, parse, peak_host_bytes, show, write

COLUMNS = (
    *("model", "frozen", "batch", "pairs", "seconds_an_epoch", "samples_per_second", "ratio_to_full"),
    *("scoring_seconds", "once_seconds", "compile_seconds", "peak_host_mib"),
)
DATASET = "human/random"
BATCH = 64
BLOCKS = 8  # an epoch is timed in so many pieces, of all cases in turn


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    rows = fnn_rows(options.quick) + drugban_rows(options.quick)
    show(rows, COLUMNS)
    write(options.json, "transfer", rows)


def drugban_rows(quick: bool) -> list[Row]:
    """DrugBAN on Human: all weights trained, encoders frozen, all before the decoder frozen.

    ``once_seconds`` is what the outputs of the frozen part take before the first epoch, compilation included;
    ``scoring_seconds`` what the validation part takes after each. ``quick`` takes 512 pairs of one length bucket.
    """
    from jaxdti.config import Config, DataConfig, TrainingConfig, TransferConfig
    from jaxdti.data.pairs.device import device_features
    from jaxdti.data.pairs.load import load_data
    from jaxdti.inference.scoring import buckets_for, make_scorer
    from jaxdti.inference.trained import Weights
    from jaxdti.models.drugban import init_variables
    from jaxdti.studies.transfer.frozen import transferred
    from jaxdti.training.mesh import REPLICATED, STATES, make_mesh, put, take_replica
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.progress import Reporter
    from jaxdti.training.state import init_replicas
    from jaxdti.training.step import chunk_steps
    from jaxdti.training.streamed import chunk_programs
    from jaxdti.training.supervised import hyper_parameters, pair_task, pair_trial

    base = Config(data=DataConfig(dataset=DATASET), training=TrainingConfig(batch_size=BATCH, buckets=6))
    dataset = load_data(base.data, base.task)
    table, scale = dataset.table, (0.0, 1.0)
    buckets = buckets_for(base.model, table, dataset.store, 6, BATCH)
    parts = dataset.parts
    if quick:
        common = np.bincount(buckets.of_row).argmax()
        parts = {part: rows[buckets.of_row[rows] == common][: BLOCKS * BATCH] for part, rows in parts.items()}
    features, mesh = device_features(dataset.store), make_mesh(1, BATCH)
    source = Weights(init_variables(base.model, 0), scale)  # the speed is that of any weights
    modes = {
        "nothing": TransferConfig(mode="full"),
        "encoders": TransferConfig(mode="feature", frozen=("encoders",)),
        "pooling": TransferConfig(mode="feature", frozen=("pooling",)),
    }
    epochs, rows = {}, {}
    for frozen, mode in modes.items():
        config = replace(base, transfer=mode)
        start = time.perf_counter()
        trials, full = [pair_trial(config, table, parts)], make_scorer(base.model, features, table, buckets, BATCH)
        plain = pair_task(config, trials, table, features, buckets, full, chunk_steps())
        task = transferred(config, [source], plain, trials, table, features)
        once = time.perf_counter() - start
        compiled: list[float] = []
        report = Reporter(compiled=lambda name, seconds, compiled=compiled: compiled.append(seconds))
        task = replace(task, inputs=put(task.inputs, mesh, REPLICATED))
        tx = make_optimizer(base.training, 100)
        state = put(init_replicas(task.init, tx, [0], [hyper_parameters(config)]), mesh, STATES)
        epochs[frozen] = Epoch(task, chunk_programs(task, tx, mesh, report), state)
        epochs[frozen].compile()
        scorer = task.selector.scorer
        network = take_replica(epochs[frozen].state.variables, 0, mesh)
        scorer(network, parts["validation"])
        start = time.perf_counter()
        scorer(network, parts["validation"])
        rows[frozen] = {
            "model": "DrugBAN",
            "frozen": frozen,
            "batch": BATCH,
            "scoring_seconds": time.perf_counter() - start,
            "once_seconds": once if mode.frozen else None,
            "compile_seconds": sum(compiled),
        }
    pieces = {frozen: epoch.train_piece for frozen, epoch in epochs.items()}
    seconds = {frozen: sum(spent) for frozen, spent in interleaved(pieces, BLOCKS).items()}
    host = peak_host_bytes()
    return [
        row
        | {
            "pairs": len(parts["train"]),
            "seconds_an_epoch": seconds[frozen],
            "samples_per_second": len(parts["train"]) / seconds[frozen],
            "ratio_to_full": seconds["nothing"] / seconds[frozen],
            "peak_host_mib": host / 2**20 if host else None,
        }
        for frozen, row in rows.items()
    ]


def fnn_rows(quick: bool) -> list[Row]:
    """The paper's feed-forward network on random 2,048-bit fingerprints: all weights trained, first layer frozen."""
    from functools import partial

    import jax.numpy as jnp

    from jaxdti.config import TrainingConfig
    from jaxdti.models.fnn import FNN, init_fnn, split, take_layers
    from jaxdti.training.fit import fit
    from jaxdti.training.replicas import predict_vectors
    from jaxdti.training.supervised import row_task
    from jaxdti.training.task import Trial

    bits, compounds, model, rng = 2048, 512 if quick else 4096, FNN(), np.random.default_rng(0)
    fingerprints = jnp.asarray(rng.random((compounds, bits)) < 0.03, jnp.uint8)
    label = rng.integers(0, 2, compounds).astype(np.float32)
    trials = [Trial(rows={"train": np.arange(compounds)}, label=label, hyper={"dropout": 0.1})]
    config = TrainingConfig(epochs=1, batch_size=BATCH)
    init = partial(init_fnn, model, bits)
    variables = jax.tree.map(lambda leaf: leaf[None], init(0))
    lower, upper = split(model, 1)
    frozen = lambda: predict_vectors(lower, take_layers(variables, lower), fingerprints)[0]
    frozen()  # compiles
    start = time.perf_counter()
    hidden = jnp.asarray(frozen())
    once = time.perf_counter() - start
    cases = {"nothing": (model, fingerprints, variables), "layer 1": (upper, hidden, take_layers(variables, upper))}
    epochs = {
        name: lambda part=part, x=x, begin=begin: fit(
            row_task(part, init, x, trials, BATCH), trials, config, start=begin
        )
        for name, (part, x, begin) in cases.items()
    }
    compiling = {name: spent[0] for name, spent in interleaved(epochs, 1).items()}
    seconds = {name: float(np.median(spent)) for name, spent in interleaved(epochs, 3 if quick else 7).items()}
    host = peak_host_bytes()
    return [
        {
            "model": "FNN",
            "frozen": name,
            "batch": BATCH,
            "pairs": compounds,
            "seconds_an_epoch": seconds[name],
            "samples_per_second": compounds / seconds[name],
            "ratio_to_full": seconds["nothing"] / seconds[name],
            "once_seconds": once if name != "nothing" else None,
            "compile_seconds": compiling[name] - seconds[name],
            "peak_host_mib": host / 2**20 if host else None,
        }
        for name in epochs
    ]


class Epoch:
    """One epoch of training in ``BLOCKS`` pieces."""

    def __init__(self, task: Any, run: Any, state: Any):
        self.plan, self.run, self.state = task.plan, run, state
        self.chunks = self.plan.epoch(0)
        self.done = 0

    def compile(self) -> None:
        """The first chunk of every program."""
        programs = {(chunk.bucket, self.plan.distinct(chunk)): chunk for chunk in reversed(self.chunks)}
        self._train(list(programs.values()))

    def train_piece(self) -> None:
        self._train(self.chunks[self.done % BLOCKS :: BLOCKS])
        self.done += 1

    def _train(self, chunks: list[Any]) -> None:
        for chunk in chunks:
            batches = self.plan.batch(chunk.rows)
            self.state, metrics = self.run(self.state, chunk.bucket, batches, self.plan.distinct(chunk))
        jax.block_until_ready((self.state, metrics))


if __name__ == "__main__":
    main()
