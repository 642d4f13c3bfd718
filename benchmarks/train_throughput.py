"""Training speed of DrugBAN beside the published arithmetic in PyTorch, in the same run.

Every row is a process of its own, so that its memory is its own and the C allocator can be set.

    JAXDTI_DATA=path/to/data python benchmarks/train_throughput.py --json results.json
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from harness import (
    Row,
    default_backend,
    malloc_environment,
    malloc_setting,
    matmul_ceiling,
    parse,
    peak_device_bytes,
    peak_host_bytes,
    run_peer,
    show,
    torch_installed,
    write,
)

COLUMNS = (
    *("model", "malloc", "batch", "dtype", "buckets", "samples_per_second", "steps_per_second", "ratio_to_peer"),
    *("gflops", "percent_of_ceiling", "padding", "compile_seconds", "peak_host_mib", "peak_device_mib"),
)
DATASET = "human/random"


def main() -> None:
    options = parse(__doc__.splitlines()[0], _extra)
    if options.row:
        print(json.dumps(measure(**json.loads(options.row), profile=options.profile)))
        return
    if not options.no_peer and not torch_installed():
        raise SystemExit("the PyTorch peer needs torch: pip install -e '.[bench]', or give --no-peer")
    backend = default_backend()
    rows = [measured | {"model": "jaxdti"} for measured in _ours(options, backend)]
    if not options.no_peer:
        rows = _with_peers(rows, backend, options.quick)
    show(rows, COLUMNS)
    write(options.json, "train_throughput", rows, dataset=DATASET)


def _extra(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a trace of ten steps for XProf or Perfetto")
    parser.add_argument("--no-peer", action="store_true", help="leave out the PyTorch peer")
    parser.add_argument("--row", help=argparse.SUPPRESS)


def settings(backend: str, quick: bool) -> list[Row]:
    """What is measured: the first entry of each allocator setting stands beside the peer."""
    standard = {"batch": 64, "dtype": "float32", "buckets": 12, "samples": 512 if quick else 2048}
    if backend != "cpu":
        # The allocator of the host matters little there, and every bucket is a program that takes the device's time.
        rows = [{"batch": batch, "dtype": dtype} for dtype in ("float32", "bfloat16") for batch in (64, 256, 1024)]
        fixed = {"malloc": "default", "buckets": 4}
        return [standard | row | fixed | {"samples": 32 * row["batch"]} for row in rows[: 1 if quick else None]]
    both = [standard | {"malloc": malloc} for malloc in ("default", "tuned")]
    if quick:
        return both
    variants = ({"buckets": 6}, {"buckets": 6, "batch": 16}, {"buckets": 6, "dtype": "bfloat16"}, {"buckets": 1})
    return both + [standard | variant | {"malloc": "tuned"} for variant in variants]


def _ours(options: argparse.Namespace, backend: str) -> list[Row]:
    rows = []
    for setting in settings(backend, options.quick):
        environment = malloc_environment(setting.pop("malloc"))
        command = [sys.executable, __file__, "--row", json.dumps(setting)]
        if options.profile and not rows:
            command += ["--profile", str(options.profile)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows[-1]['samples_per_second']:.1f} samples/s: {setting}", file=sys.stderr)
    return rows


def _with_peers(rows: list[Row], backend: str, quick: bool) -> list[Row]:
    """The peers' rows after ours; ours get their ratio to the peer of the same allocator and published arithmetic."""
    device = "cuda" if backend == "gpu" else "cpu"
    peers, speed = [], {}
    for malloc in dict.fromkeys(row["malloc"] for row in rows):
        found = run_peer("train", rows=128 if quick else 256, malloc=malloc, batch=64, device=device)
        speed[malloc] = found["samples_per_second"]
        peers.append(_peer_row(found, "PyTorch, published arithmetic", "float32"))
    if device == "cuda":
        best = {"cached": True, "workers": 8, "compile": True, "dtype": "bfloat16", "device": device}
        found = run_peer("train", rows=4096, malloc="tuned", batch=64, **best)
        peers.append(_peer_row(found, "PyTorch, compiled, cached, autocast", "bfloat16"))
    return [row | {"ratio_to_peer": row["samples_per_second"] / speed[row["malloc"]]} for row in rows] + peers


def _peer_row(found: Row, name: str, dtype: str) -> Row:
    return {
        "model": name,
        "malloc": found["malloc"],
        "batch": 64,
        "dtype": dtype,
        "samples_per_second": found["samples_per_second"],
        "steps_per_second": found["samples_per_second"] / 64,
        "peak_host_mib": found["peak_host_bytes"] / 2**20,
    }


def measure(*, batch: int, dtype: str, buckets: int, samples: int, profile: Path | None = None) -> Row:
    """Trains on ``samples`` pairs of Human or more, in the order of an epoch, after compiling."""
    import jax

    from jaxdti.config import Config, DataConfig, ModelConfig, TrainingConfig
    from jaxdti.data.pairs.buckets import pair_cost
    from jaxdti.data.pairs.device import host_features
    from jaxdti.data.pairs.load import load_data
    from jaxdti.inference.scoring import buckets_for
    from jaxdti.memory import keep_freed_memory
    from jaxdti.studies.pairs import make_task
    from jaxdti.training.mesh import REPLICATED, STATES, make_mesh, put
    from jaxdti.training.optimizer import make_optimizer
    from jaxdti.training.progress import Reporter
    from jaxdti.training.state import init_replicas
    from jaxdti.training.streamed import chunk_programs
    from jaxdti.training.supervised import hyper_parameters, pair_trial

    keep_freed_memory()  # as the command line does
    config = Config(
        data=DataConfig(dataset=DATASET),
        model=ModelConfig(dtype=dtype),
        training=TrainingConfig(batch_size=batch, buckets=buckets),
    )
    dataset = load_data(config.data, config.task)
    table, store = dataset.table, dataset.store
    chosen = buckets_for(config.model, table, store, buckets, batch)
    compiled: list[float] = []
    report = Reporter(compiled=lambda name, seconds: compiled.append(seconds))
    tx = make_optimizer(config.training, 100)
    mesh = make_mesh(1, batch)
    features = put(host_features(store), mesh, REPLICATED)
    unscored = lambda network, rows: rows
    task = make_task(config, [pair_trial(config, table, dataset.parts)], table, features, chosen, unscored)
    run = chunk_programs(task, tx, mesh, report)
    state = put(init_replicas(task.init, tx, [0], [hyper_parameters(config)]), mesh, STATES)
    plans = (task.plan.epoch(epoch) for epoch in range(10**6))
    chunks = [chunk for chunk in next(plans)]
    while sum((chunk.rows >= 0).sum() for chunk in chunks) < samples:
        chunks += next(plans)
    warm = {chunk.bucket: chunk for chunk in chunks}
    for chunk in warm.values():
        state, metrics = run(state, chunk.bucket, task.plan.batch(chunk.rows))
    jax.block_until_ready(metrics)

    done = count = 0
    taken = []
    start = time.perf_counter()
    while done < samples:
        chunk = chunks[count]
        state, metrics = run(state, chunk.bucket, task.plan.batch(chunk.rows))
        done, count = done + int((chunk.rows >= 0).sum()), count + 1
        taken.append(chunk.rows[chunk.rows >= 0])
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - start
    with jax.profiler.trace(str(profile), create_perfetto_trace=True) if profile else contextlib.nullcontext():
        for chunk in chunks[:10] if profile else ():
            state, metrics = run(state, chunk.bucket, task.plan.batch(chunk.rows))
        jax.block_until_ready(metrics)

    rows = np.concatenate(taken)
    multiply_adds = (
        pair_cost(store.atom_counts[table.drug[rows]], store.residue_counts[table.protein[rows]]).sum() * 1e6
    )
    flops = 6 * multiply_adds / seconds  # two operations each, and the backward pass costs twice the forward pass
    device_bytes = peak_device_bytes()
    # Before the ceiling, whose matrices need memory too.
    host_bytes = peak_host_bytes()
    return {
        "malloc": malloc_setting(),
        "batch": batch,
        "dtype": dtype,
        "buckets": len(chosen.shapes),
        "samples": done,
        "seconds": seconds,
        "samples_per_second": done / seconds,
        "steps_per_second": count * chunks[0].rows.shape[1] / seconds,
        "gflops": flops / 1e9,
        "percent_of_ceiling": 100 * flops / matmul_ceiling(dtype),
        "padding": chosen.padding,
        "compile_seconds": sum(compiled),
        "programs": len(compiled),
        "peak_host_mib": host_bytes / 2**20 if host_bytes else None,
        "peak_device_mib": device_bytes / 2**20 if device_bytes else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


if __name__ == "__main__":
    main()
