"""Time of an adapted training step against a plain one at the same batch shape, for each method between domains.

JAXDTI_DATA=path/to/data python benchmarks/adaptation.py --json results.json
"""

import time
from dataclasses import replace
from functools import partial

import jax
from harness import Row, interleaved, median_ratio, parse, peak_device_bytes, peak_host_bytes, show, write

COLUMNS = (
    *("method", "batchnorm", "batch", "seconds_a_step", "samples_per_second", "ratio_to_plain"),
    *("compile_seconds", "peak_host_mib", "peak_device_mib"),
)
DATASET = "human/cluster"
METHODS = ("dann", "cdan", "san", "pada", "mmd", "coral", "mcc")
BATCH = 32  # pairs of each domain, as published


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    cases = [("none", "separate"), *((method, "separate") for method in METHODS), ("cdan", "joint")]
    if options.quick:
        cases = [("none", "separate"), ("cdan", "separate")]
    rows = measure(cases, repeats=3 if options.quick else 10)
    show(rows, COLUMNS)
    write(options.json, "adaptation", rows)


def measure(cases: list[tuple[str, str]], repeats: int) -> list[Row]:
    """One step of each case in every round, in one bucket of Human's cluster split."""
    from jaxdti.config import AdaptationConfig, Config, DataConfig, TrainingConfig
    from jaxdti.data.pairs.device import host_features
    from jaxdti.data.pairs.load import load_data
    from jaxdti.inference.scoring import buckets_for
    from jaxdti.studies.pairs import make_task
    from jaxdti.training.mesh import REPLICATED, STATES, make_mesh, put
    from jaxdti.training.progress import Reporter
    from jaxdti.training.state import init_replicas
    from jaxdti.training.streamed import chunk_programs
    from jaxdti.training.supervised import hyper_parameters, pair_trial

    base = Config(data=DataConfig(dataset=DATASET), training=TrainingConfig(batch_size=BATCH, chunk_steps=1))
    dataset = load_data(base.data, base.task)
    buckets = buckets_for(base.model, dataset.table, dataset.store, 6, BATCH)
    mesh = make_mesh(1, BATCH)
    features = put(host_features(dataset.store), mesh, REPLICATED)
    bucket = max(range(len(buckets.shapes)), key=lambda i: int((buckets.of_row == i).sum()))
    steps, compiling = {}, {}
    for method, batchnorm in cases:
        config = replace(base, adaptation=AdaptationConfig(method=method, batchnorm=batchnorm, start=0))
        trials, unscored = [pair_trial(config, dataset.table, dataset.parts)], lambda network, rows: rows
        how = make_task(config, trials, dataset.table, features, buckets, unscored)
        tx = how.optimizer(config.training, 100)
        run = chunk_programs(how, tx, mesh, Reporter())
        chunk = next(chunk for chunk in how.plan.epoch(0) if chunk.bucket == bucket)
        state = [put(init_replicas(how.init, tx, [0], [hyper_parameters(config)]), mesh, STATES)]

        def step(run, state, chunk, how) -> None:
            state[0], metrics = run(state[0], chunk.bucket, how.plan.batch(chunk.rows))
            jax.block_until_ready((state[0], metrics))

        steps[method, batchnorm] = partial(step, run, state, chunk, how)
        start = time.perf_counter()
        steps[method, batchnorm]()
        compiling[method, batchnorm] = time.perf_counter() - start
    seconds = interleaved(steps, repeats)
    device, host = peak_device_bytes(), peak_host_bytes()
    plain = seconds[cases[0]]
    return [
        {
            "method": case[0],
            "batchnorm": case[1],
            "batch": BATCH,
            "seconds_a_step": sorted(seconds[case])[repeats // 2],
            "samples_per_second": BATCH / sorted(seconds[case])[repeats // 2],
            "ratio_to_plain": median_ratio(seconds[case], plain),
            "compile_seconds": compiling[case],
            "peak_host_mib": host / 2**20 if host else None,
            "peak_device_mib": device / 2**20 if device else None,
        }
        for case in cases
    ]


if __name__ == "__main__":
    main()
