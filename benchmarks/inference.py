"""Scoring speed of DrugBAN: whole tables beside the published arithmetic in PyTorch, and the two forms of a pair.

Every row is a process of its own, so that its memory is its own and the C allocator can be set.

    JAXDTI_DATA=path/to/data python benchmarks/inference.py --json results.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from harness import (
    Row,
    default_backend,
    malloc_environment,
    malloc_setting,
    parse,
    peak_device_bytes,
    peak_host_bytes,
    run_peer,
    show,
    torch_installed,
    write,
)

COLUMNS = (
    *("task", "form", "chosen", "pairs", "drugs", "proteins", "malloc", "dtype", "encode_seconds", "score_seconds"),
    *("seconds", "pairs_per_second", "pairs_per_second_encoded", "ratio_to_peer", "compile_seconds", "programs"),
    *("peak_host_mib", "peak_device_mib"),
)
DATASET = "human/random"
BATCH, BUCKETS = 64, 6  # as ``jaxdti evaluate`` and ``jaxdti predict`` score


def main() -> None:
    options = parse(__doc__.splitlines()[0], _extra)
    if options.row:
        print(json.dumps(measure(**json.loads(options.row))))
        return
    if not options.no_peer and not torch_installed():
        raise SystemExit("the PyTorch peer needs torch: pip install -e '.[bench]', or give --no-peer")
    rows = []
    try:
        for more in _measured(options, default_backend()):
            rows += more
    finally:  # what is measured stays when the rest is stopped
        show(rows, COLUMNS)
        write(options.json, "inference", rows, dataset=DATASET)


def _measured(options: argparse.Namespace, backend: str) -> Iterator[list[Row]]:
    for malloc in ("default", "tuned") if backend == "cpu" else ("default",):
        ours = [_run(setting, malloc) for setting in table_settings(options.quick)]
        yield ours if options.no_peer else _with_peer(ours, malloc, backend, options.quick)
    if backend == "gpu" and not options.no_peer:
        best = {"cached": True, "workers": 8, "compile": True, "dtype": "bfloat16", "device": "cuda"}
        yield [_peer_row(run_peer("evaluate", rows=4096, malloc="tuned", batch=BATCH, **best), **best)]
    for setting in form_settings(backend, options.quick):
        yield [_run(setting, "tuned")]


def _extra(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-peer", action="store_true", help="leave out the PyTorch peer")
    parser.add_argument("--row", help=argparse.SUPPRESS)


def table_settings(quick: bool) -> list[Row]:
    """The rows that stand beside the peer."""
    standard = {"dtype": "float32", "repeats": 1 if quick else 3}
    return [standard | {"part": part} for part in (("test",) if quick else ("all", "test"))]


def form_settings(backend: str, quick: bool) -> list[Row]:
    """Both forms on the same pairs, and what only an accelerator has time for."""
    standard = {"dtype": "float32", "repeats": 1 if quick else 3}
    sizes = ((256, 1), (64, 32)) if quick else ((2000, 1), (400, 100))
    forms = ("pairwise", "gram")
    found = [standard | {"drugs": d, "proteins": p, "form": form} for d, p in sizes for form in forms]
    if backend == "cpu" or quick:
        return found
    large = standard | {"drugs": 2000, "proteins": 500}
    return [*found, *(large | {"form": form} for form in forms), standard | {"dtype": "bfloat16", "part": "all"}]


def _run(setting: Row, malloc: str) -> Row:
    command = [sys.executable, __file__, "--row", json.dumps(setting)]
    done = subprocess.run(command, env=malloc_environment(malloc), stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['pairs_per_second']:,.1f} pairs/s, malloc {malloc}: {setting}", file=sys.stderr)
    return row


def _with_peer(ours: list[Row], malloc: str, backend: str, quick: bool) -> list[Row]:
    """Our rows with their ratio to the peer, measured now with the same allocator, and the peer's row."""
    device = "cuda" if backend == "gpu" else "cpu"
    found = run_peer("evaluate", rows=128 if quick else 256, malloc=malloc, batch=BATCH, device=device)
    peer = _peer_row(found)
    print(f"{peer['pairs_per_second']:,.1f} pairs/s, malloc {malloc}: {peer['task']}", file=sys.stderr)
    speed = peer["pairs_per_second"]
    return [row | {"ratio_to_peer": row["pairs_per_second"] / speed} for row in ours] + [peer]


def _peer_row(found: Row, dtype: str = "float32", **best: Any) -> Row:
    name = "compiled, cached, autocast" if best else "published arithmetic"
    device_bytes = found["peak_device_bytes"]
    return {
        "task": f"PyTorch, {name}",
        "pairs": found["rows"],
        "malloc": found["malloc"],
        "dtype": dtype,
        "seconds": found["seconds"],
        "pairs_per_second": found["samples_per_second"],
        "peak_host_mib": found["peak_host_bytes"] / 2**20,
        "peak_device_mib": device_bytes / 2**20 if device_bytes else None,
    }


# One row, in its own process. JAX is imported where it is used: the process that starts the others needs none.


def measure(
    *,
    dtype: str,
    repeats: int,
    part: str | None = None,
    drugs: int = 0,
    proteins: int = 0,
    form: str | None = None,
) -> Row:
    """Scores pairs of Human with fresh weights: of ``part`` ("all" or one of the split), or all of drugs x proteins."""
    from jaxdti.config import DataConfig, ModelConfig
    from jaxdti.data.pairs.load import load_data
    from jaxdti.memory import keep_freed_memory

    keep_freed_memory()  # as the command line does
    dataset = load_data(DataConfig(dataset=DATASET), "classification")
    table, store = dataset.table, dataset.store
    if part is not None:
        rows = np.arange(len(table)) if part == "all" else dataset.parts[part]
        task = "Human, all pairs" if part == "all" else f"Human, {part} part"
    else:
        table = every_pair(table, *some_entities(store.atom_counts, store.residue_counts, drugs, proteins))
        rows = np.arange(len(table))
        task = f"{proteins} protein{'s' * (proteins > 1)} × {drugs} drugs"
    found = time_scoring(ModelConfig(dtype=dtype), table, store, rows, form=form, repeats=repeats)
    host_bytes, device_bytes = peak_host_bytes(), peak_device_bytes()
    return {
        "task": task,
        "malloc": malloc_setting(),
        "dtype": dtype,
        **found,
        "peak_host_mib": host_bytes / 2**20 if host_bytes else None,
        "peak_device_mib": device_bytes / 2**20 if device_bytes else None,
    }


def some_entities(atoms: np.ndarray, residues: np.ndarray, drugs: int, proteins: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the drugs, drawn at random, and of the proteins, likewise; a single one is that of median length.

    Raises:
      ValueError: there are fewer.
    """
    if drugs > len(atoms) or proteins > len(residues):
        raise ValueError(f"{drugs} drugs and {proteins} proteins of {len(atoms)} and {len(residues)}")
    rng = np.random.default_rng(0)
    drug = rng.choice(len(atoms), drugs, replace=False)
    if proteins == 1:
        return drug, np.argsort(residues, kind="stable")[len(residues) // 2 : len(residues) // 2 + 1]
    return drug, rng.choice(len(residues), proteins, replace=False)


def every_pair(table, drugs: np.ndarray, proteins: np.ndarray):
    """The ``InteractionTable`` of each of the drugs with each of the proteins, unlabelled."""
    drug, protein = (x.reshape(-1).astype(np.int32) for x in np.meshgrid(drugs, proteins, indexing="ij"))
    return replace(
        table,
        drug=drug,
        protein=protein,
        label=np.full(len(drug), np.nan, np.float32),
        part=np.full(len(drug), "table", object),
        row=np.arange(len(drug)),
    )


@dataclass
class Watch:
    """Stands between the scorer and its encoders and choice of form."""

    form: str | None  # what is used; None: what is chosen
    chosen: str = ""
    waiting: bool = False  # encoders wait for their states, and their seconds are counted
    encode_seconds: float = 0.0

    def encoder(self, make_encoder: Callable[..., Any]) -> Callable[..., Any]:
        import jax

        def make(*arguments):
            encode = make_encoder(*arguments)

            def watched(*arguments):
                if not self.waiting:
                    return encode(*arguments)
                start = time.perf_counter()
                states = jax.block_until_ready(encode(*arguments))
                self.encode_seconds += time.perf_counter() - start
                return states

            return watched

        return make

    def choice(self, choose_form: Callable[..., str]) -> Callable[..., str]:
        def choose(*arguments):
            self.chosen = choose_form(*arguments)
            return self.form or self.chosen

        return choose


def time_scoring(config, table, store, rows: np.ndarray, *, form: str | None, repeats: int) -> Row:
    """Seconds of one call of the scorer, features on the device and programs compiled.

    ``seconds`` is the median of ``repeats`` undisturbed calls. As many in turn with them, whose encoders wait for their
    states, are divided into ``encode_seconds`` and ``score_seconds``, so these need not add up to ``seconds``; building
    Gram states is encoding. ``compile_seconds`` is what the first call took longer, ``programs`` what it compiled.

    Raises:
      RuntimeError: a later call compiled too, so that its seconds mean nothing.
    """
    import jax

    from jaxdti.data.pairs.device import device_features
    from jaxdti.inference import scoring
    from jaxdti.models.drugban import init_variables

    batch = min(BATCH, len(table))
    variables = jax.block_until_ready(init_variables(config, 0))
    features = jax.block_until_ready(device_features(store))
    buckets = scoring.buckets_for(config, table, store, BUCKETS, batch)
    watch, compiled = Watch(form), []

    def listen(event: str, duration_secs: float, **ignored: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    def call(waiting: bool = False) -> tuple[float, float]:
        """Seconds of a call, and those of its encoders if they wait."""
        watch.waiting, watch.encode_seconds = waiting, 0.0
        start = time.perf_counter()
        scorer(variables, rows)  # a NumPy array, so it is there
        return time.perf_counter() - start, watch.encode_seconds

    encoder, choice = watch.encoder(scoring.make_encoder), watch.choice(scoring.choose_form)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with mock.patch.multiple(scoring, make_encoder=encoder, choose_form=choice):
            scorer = scoring.make_scorer(config, features, table, buckets, batch)
            (first, _), programs = call(), len(compiled)
            calls = [(call(), call(waiting=True)) for _ in range(repeats)]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if len(compiled) > programs:
        raise RuntimeError(f"{len(compiled) - programs} programs were compiled after the first call")
    seconds = statistics.median(whole for (whole, _), _ in calls)
    encode_seconds = statistics.median(encoding for _, (_, encoding) in calls)
    score_seconds = statistics.median(whole - encoding for _, (whole, encoding) in calls)
    return {
        "form": form or watch.chosen,
        "chosen": watch.chosen,
        "pairs": len(rows),
        "drugs": len(np.unique(table.drug[rows])),
        "proteins": len(np.unique(table.protein[rows])),
        "encode_seconds": encode_seconds,
        "score_seconds": score_seconds,
        "seconds": seconds,
        "pairs_per_second": len(rows) / seconds,
        "pairs_per_second_encoded": len(rows) / score_seconds,  # states at hand
        "compile_seconds": first - seconds,
        "programs": programs,
    }


if __name__ == "__main__":
    main()
