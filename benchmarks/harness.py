"""What the benchmarks share: the machine, timing side by side, memory, the PyTorch peer's process, and the results.

JAX is imported where it is used, so that the peer's process can import this file without it.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).resolve().with_name("peer.py")

# glibc returns every large block to the system at once, so that each step of a network faults its pages in again.
# These three make it keep them. glibc reads them when a process starts.
TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}
_CPU_SIZES = (2048, 4096)
_ACCELERATOR_SIZES = (4096, 8192, 16384)

Row = dict[str, Any]


# The machine.


def machine() -> Row:
    """What a figure depends on: processor, cores, memory, devices, versions, matmul precision and commit.

    ``torch`` is None where it is not installed; ``cores`` are those this process may use; ``memory_gib`` is the host's.
    """
    import jax

    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "torch": metadata.version("torch") if torch_installed() else None,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "matmul_precision": precision or "default",
        "commit": commit(),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_backend() -> str:
    """JAX's default backend, asked in a process of its own.

    Here JAX would take most of a GPU's memory, and keep it from the processes that measure.
    """
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(root: Path = ROOT) -> str | None:
    """The commit checked out at ``root``, with "+changes" where tracked files differ; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def malloc_setting() -> str:
    """ "tuned" where this process was started with all of ``TUNED_MALLOC``, else "default"."""
    return "tuned" if all(os.environ.get(name) == value for name, value in TUNED_MALLOC.items()) else "default"


# Measuring.


def matmul_ceiling(dtype: Any, seconds: float = 1.0, sizes: Sequence[int] | None = None) -> float:
    """FLOP/s of the fastest large square matrix product in JAX on the default device, at the matmul precision in force.

    Args:
      dtype: of both factors and of the product.
      seconds: spent about, over all sizes; every size runs at least twice, apart from its compilation.
      sizes: default 2,048 and 4,096 on a CPU, 4,096 to 16,384 on an accelerator.
    """
    import jax

    if sizes is None:
        sizes = _CPU_SIZES if jax.default_backend() == "cpu" else _ACCELERATOR_SIZES
    product = jax.jit(lambda a, b: a @ b)
    best = 0.0
    for size in sizes:
        a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        product(a, b).block_until_ready()
        spent: list[float] = []
        while len(spent) < 2 or sum(spent) < seconds / len(sizes):
            start = time.perf_counter()
            product(a, b).block_until_ready()
            spent.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / min(spent))
    return best


def interleaved(functions: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call: in every round all functions once, one after the other, so that noise meets them alike.

    Functions must wait for their own result (``block_until_ready``) and have compiled before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of the ratio of two functions' seconds in the same round, as ``interleaved`` gave them."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def peak_host_bytes() -> int | None:
    """Most resident memory this process has had so far; None where the system has no /proc.

    Not ``getrusage``, whose peak a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024


def peak_device_bytes() -> int | None:
    """Most memory JAX has had in use on the default device; None where the device does not tell, as CPUs."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


# The peer.


def run_peer(task: str, *, rows: int, malloc: str, **options: Any) -> Row:
    """Runs ``peer.py`` in a process of its own and returns what it measured.

    Args:
      task: "train" or "evaluate".
      rows: pairs to time, at least.
      malloc: "default", with no allocator settings in the environment, or "tuned", with ``TUNED_MALLOC``.
      options: further flags of ``peer.py``, such as ``batch=64, cached=True, dtype="bfloat16"``; False leaves one out.

    Raises:
      RuntimeError: torch is not installed, or the process failed; the message ends with what it said.
      ValueError: ``malloc`` is neither.
    """
    if malloc not in ("default", "tuned"):
        raise ValueError(f"malloc={malloc!r}: expected 'default' or 'tuned'")
    if not torch_installed():
        raise RuntimeError("the PyTorch peer needs torch: pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "peer.json"
        command = [sys.executable, str(PEER), "--task", task, "--rows", str(rows), "--json", str(result)]
        done = subprocess.run(
            command + _flags(options), env=malloc_environment(malloc), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"peer.py ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return json.loads(result.read_text())


def malloc_environment(malloc: str) -> dict[str, str]:
    """This process's environment with its allocator settings replaced by those of ``malloc``."""
    allocator = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(allocator)}
    return environment | (TUNED_MALLOC if malloc == "tuned" else {})


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return flags


# Command line and results.


def parse(description: str, extra: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """``json`` (Path or None) and ``quick`` (bool), which every benchmark takes, and what ``extra`` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="a smaller run, to see that it works")
    if extra is not None:
        extra(parser)
    return parser.parse_args()


def write(path: Path | None, benchmark: str, rows: Sequence[Row], **extra: Any) -> None:
    """Writes ``{"benchmark", "machine", "rows", **extra}`` as JSON, all of it or nothing; nothing where path is None.

    A row is flat; one that has a peer holds ``ratio_to_peer``, above 1 where jaxdti is the faster.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    if path is None:
        return
    text = json.dumps(
        {"benchmark": benchmark, "machine": machine(), "rows": list(rows)} | extra, indent=2, allow_nan=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def show(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Prints a table of these columns, numbers to the right; "-" where a row has none."""
    cells = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [any(_is_number(row.get(column)) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(aligned).rstrip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if _is_number(value) else str(value)
