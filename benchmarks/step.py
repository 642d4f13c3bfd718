"""Where the time of a DrugBAN training step goes: its share of the matmul ceiling, and the operations that take most.

python benchmarks/step.py --json results.json

On drugs of 40 atoms and proteins of 640 residues, without padding, as many steps a program call as in training. The
operations are those of JAX's profile, which on CPU leaves out what convolutions take.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
from harness import Row, matmul_ceiling, parse, peak_device_bytes, peak_host_bytes, show, write
from replicas import ATOMS, RESIDUES, drugban

from jaxdti.data.pairs.buckets import pair_cost
from jaxdti.training.step import chunk_steps, make_chunk

COLUMNS = (
    *("batch", "dtype", "milliseconds", "samples_per_second", "gflops", "percent_of_ceiling", "compile_seconds"),
    *("peak_host_mib", "peak_device_mib"),
)
OPERATION_COLUMNS = ("batch", "dtype", "milliseconds", "percent", "times", "operation")
CALLS = 5
MOST = 15  # operations shown


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    batches = (64,) if options.quick or jax.default_backend() == "cpu" else (64, 256, 1024)
    rows, operations = [], []
    for dtype in ("float32", "bfloat16"):
        ceiling = matmul_ceiling(dtype)
        for batch in batches:
            row, found = measure(batch, dtype, ceiling)
            rows.append(row)
            operations += found
    show(rows, COLUMNS)
    print()
    if operations:
        show(operations, OPERATION_COLUMNS)
    else:
        print("the profile names no operation")
    write(options.json, "step", rows, operations=operations)


def measure(batch: int, dtype: str, ceiling: float) -> tuple[Row, list[Row]]:
    """The fastest of ``CALLS`` program calls by the step, and the operations of one more."""
    steps = chunk_steps()
    step, init, batch_of = drugban(batch, dtype)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(batch_of, range(steps)))
    state = init(0)
    start = time.perf_counter()
    run = jax.jit(make_chunk(step), donate_argnums=0).lower(state, batches).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(1 + CALLS):  # the first one warms up
        start = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, batches))
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run(state, batches))
        spent = operation_seconds(Path(folder))
    each = min(seconds[1:]) / steps
    flops = 6e6 * float(pair_cost(ATOMS, RESIDUES)) * batch / each  # as in train_throughput.py
    host, device, total = peak_host_bytes(), peak_device_bytes(), sum(taken for taken, _ in spent.values())
    setting: Row = {"batch": batch, "dtype": dtype}
    row = setting | {
        "milliseconds": 1e3 * each,
        "samples_per_second": batch / each,
        "gflops": flops / 1e9,
        "percent_of_ceiling": 100 * flops / ceiling,
        "compile_seconds": compile_seconds,
        "peak_host_mib": host / 2**20 if host else None,
        "peak_device_mib": device / 2**20 if device else None,
    }
    most = sorted(spent.items(), key=lambda item: -item[1][0])[:MOST]
    return row, [
        setting
        | {
            "milliseconds": 1e3 * taken / steps,
            "percent": 100 * taken / total,
            "times": count / steps,
            "operation": name,
        }
        for name, (taken, count) in most
    ]


def operation_seconds(folder: Path) -> dict[str, tuple[float, int]]:
    """Seconds and number of calls of every compiled operation in the profile that JAX wrote to ``folder``.

    Of an accelerator its kernels, with their operation. On CPU convolutions run aside, and only their start is seen.

    Raises:
      FileNotFoundError: there is no profile.
    """
    profiles = sorted(folder.rglob("*.xplane.pb"))
    if not profiles:
        raise FileNotFoundError(f"{folder}: no profile")
    planes = list(jax.profiler.ProfileData.from_file(str(profiles[-1])).planes)
    device = [plane for plane in planes if "/device:" in plane.name and "CUSTOM" not in plane.name]
    spent, times = Counter(), Counter()
    for plane in device or planes:
        lines = list(plane.lines)
        # A GPU's plane shows the same kernels again by module and step.
        for line in [line for line in lines if line.name.startswith("Stream")] or lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is None:
                    continue
                name = str(operation) if event.name == operation else f"{operation}: {event.name[:60]}"
                spent[name] += event.duration_ns / 1e9
                times[name] += 1
    return {name: (seconds, times[name]) for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
