"""Features of distinct molecules and sequences: computed once over all cores, kept in an on-disk cache.

A cache entry is one directory of ``.npy`` files named after a hash of everything its content depends on. It is written
under a temporary name and renamed, so that a reader sees all of it or nothing, whoever fills it at the same time.
"""

import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
import rdkit
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from jaxdti.data import molecules as molecules_module
from jaxdti.data.molecules import FEATURISER_VERSION, MoleculeBatch, featurize_batch
from jaxdti.data.pairs.sequences import encode_sequence
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.files import user_cache_dir

CHUNK = 256  # molecules handed to a worker at once
PARALLEL_FROM = 2000  # fewer molecules are done here before workers have started and done much

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Molecules:
    """Features of M distinct SMILES strings, memory-mapped where a cache is used; ragged as in ``FeatureStore``."""

    smiles: np.ndarray  # str objects [M], as given
    canonical: np.ndarray  # str objects [M], canonical isomeric SMILES; "" where unreadable
    flat: np.ndarray  # str objects [M], canonical SMILES without stereochemistry and isotopes
    error: np.ndarray  # str objects [M], why the string could not be read; "" where it could
    atom_offsets: np.ndarray  # int64 [M + 1]
    atoms: np.ndarray  # int8 [total atoms, 8], columns ``jaxdti.data.molecules.ATOM_COLUMNS``
    bond_offsets: np.ndarray  # int64 [M + 1]
    bonds: np.ndarray  # int16 [total bonds, 2]

    @property
    def atom_counts(self) -> np.ndarray:
        return np.diff(self.atom_offsets)


def featurize_smiles(smiles: Sequence[str], cache_dir: Path | None = None, workers: int | None = None) -> Molecules:
    """Features of distinct SMILES strings, in their order, from the cache or computed now.

    Args:
      smiles: distinct strings; unreadable ones get an ``error`` and no atoms.
      cache_dir: default ``user_cache_dir()``.
      workers: processes, this one included; default one a core, or only this one where there are few molecules.
    """
    if workers is None:
        workers = _cores() if len(smiles) >= PARALLEL_FROM else 1
    versions = f"molecules {FEATURISER_VERSION} rdkit {rdkit.__version__}"
    build = lambda: _molecule_arrays(smiles, workers)
    arrays = _cached("molecules", versions, smiles, build, cache_dir)
    texts = {name: _unpack(arrays[name], arrays[f"{name}_offsets"]) for name in ("canonical", "flat", "error")}
    numbers = {name: arrays[name] for name in ("atom_offsets", "atoms", "bond_offsets", "bonds")}
    return Molecules(smiles=_objects(smiles), **texts, **numbers)


def encode_sequences(sequences: Sequence[str], cache_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Residue codes of distinct normalised sequences, uncut: offsets int64 [P + 1] and codes uint8 [total residues]."""
    versions = f"residues {FEATURISER_VERSION}"
    arrays = _cached("residues", versions, sequences, lambda: _residue_arrays(sequences), cache_dir)
    return arrays["offsets"], arrays["residues"]


def build_store(
    table: InteractionTable, molecules: Molecules, max_residues: int, cache_dir: Path | None = None
) -> FeatureStore:
    """Features in the order of ``table.drugs`` and ``table.proteins``; proteins cut at ``max_residues``.

    Of several input strings for one drug the first gives the features.
    """
    first = {canonical: i for i, canonical in reversed(list(enumerate(molecules.canonical)))}
    index = np.array([first[canonical] for canonical in table.drugs], np.int64)
    atom_offsets, atoms = _take_ragged(molecules.atom_offsets, molecules.atoms, index)
    bond_offsets, bonds = _take_ragged(molecules.bond_offsets, molecules.bonds, index)
    residue_offsets, residues = encode_sequences(table.proteins.tolist(), cache_dir)
    residue_offsets, residues = _cut_ragged(residue_offsets, residues, max_residues)
    return FeatureStore(
        atom_offsets=atom_offsets,
        atoms=atoms,
        bond_offsets=bond_offsets,
        bonds=bonds,
        residue_offsets=residue_offsets,
        residues=residues,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Ragged arrays and strings.


def _objects(texts: Sequence[str]) -> np.ndarray:
    out = np.empty(len(texts), object)
    out[:] = texts
    return out


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _pack(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as UTF-8 bytes uint8 [total] and offsets int64 [n + 1]."""
    parts = [text.encode("utf-8", errors="surrogatepass") for text in texts]
    return np.frombuffer(b"".join(parts), np.uint8), _offsets(np.array([len(part) for part in parts], np.int64))


def _unpack(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    joined, ends = data.tobytes(), offsets.tolist()
    return _objects([joined[a:b].decode("utf-8", errors="surrogatepass") for a, b in zip(ends, ends[1:], strict=False)])


def _take_ragged(offsets: np.ndarray, values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.array_equal(index, np.arange(len(offsets) - 1)):
        return offsets, values  # stays memory-mapped
    return _gather(offsets[index], np.diff(offsets)[index], values)


def _cut_ragged(offsets: np.ndarray, values: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.diff(offsets)
    if counts.max(initial=0) <= longest:
        return offsets, values
    return _gather(offsets[:-1], np.minimum(counts, longest), values)


def _gather(starts: np.ndarray, counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offsets = _offsets(counts)
    rows = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    return offsets, values[rows]


# What goes into an entry.


def _residue_arrays(sequences: Sequence[str]) -> Arrays:
    codes = [encode_sequence(sequence) for sequence in sequences]
    lengths = np.array([len(code) for code in codes], np.int64)
    return {"offsets": _offsets(lengths), "residues": np.concatenate([np.zeros(0, np.uint8), *codes])}


def _molecule_arrays(smiles: Sequence[str], workers: int) -> Arrays:
    chunks = [list(smiles[i : i + CHUNK]) for i in range(0, len(smiles), CHUNK)] or [[]]
    done: list[MoleculeBatch | None] = [None] * len(chunks)
    with _progress(len(smiles)) as progress:
        task = progress.add_task("Featurising molecules", total=len(smiles))
        for i, batch in _featurize_chunks(chunks, workers):
            done[i] = batch
            progress.advance(task, len(chunks[i]))
    batches = [batch for batch in done if batch is not None]
    arrays: Arrays = {}
    for name in ("canonical", "flat", "error"):
        arrays[name], arrays[f"{name}_offsets"] = _pack([text for batch in batches for text in getattr(batch, name)])
    for name in ("atom", "bond"):
        arrays[f"{name}_offsets"] = _offsets(np.concatenate([getattr(batch, f"{name}_counts") for batch in batches]))
        arrays[f"{name}s"] = np.concatenate([getattr(batch, f"{name}s") for batch in batches])
    return arrays


def _progress(total: int) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=total < 2 * CHUNK)


def _featurize_chunks(chunks: list[list[str]], workers: int) -> Iterator[tuple[int, MoleculeBatch]]:
    """Numbered chunks as they are done, by this process and ``workers - 1`` others."""
    # Plain child processes rather than multiprocessing: forking is unsafe beside JAX's threads, and spawning would
    # run the user's main script again.
    command = [sys.executable, "-P", molecules_module.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    others = min(workers, len(chunks)) - 1
    # Ctrl-C goes to a whole process group, and is this process's to answer.
    start = functools.partial(subprocess.Popen, command, stdin=pipe, stdout=pipe, env=environment, process_group=0)
    processes = [start() for _ in range(others)]
    waiting: SimpleQueue[int] = SimpleQueue()
    for i in range(len(chunks)):
        waiting.put(i)
    done: SimpleQueue[tuple[int, MoleculeBatch] | Exception] = SimpleQueue()
    threads = [Thread(target=_ask, args=(process, chunks, waiting, done), daemon=True) for process in processes]
    for thread in threads:
        thread.start()
    count = 0
    try:
        while count < len(chunks):
            i = _next(waiting)
            if i is not None:
                yield i, featurize_batch(chunks[i])
                count += 1
            # Where nothing is left to begin, another process has the rest.
            while count < len(chunks) and (i is None or not done.empty()):
                result = done.get()
                if isinstance(result, Exception):
                    raise result
                yield result
                count += 1
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.communicate()


def _ask(process: subprocess.Popen, chunks: list[list[str]], waiting: SimpleQueue, done: SimpleQueue) -> None:
    """Has a worker featurise one waiting chunk after another; ``done`` gets the results, or the error that ends it."""
    assert process.stdin and process.stdout
    try:
        pickle.load(process.stdout)  # ready
        while (i := _next(waiting)) is not None:
            pickle.dump(chunks[i], process.stdin)
            process.stdin.flush()
            done.put((i, MoleculeBatch(*pickle.load(process.stdout))))
    except (EOFError, OSError, pickle.UnpicklingError):
        done.put(RuntimeError(f"a featurisation worker died with exit code {process.wait()}"))
    except Exception as error:  # the other side of the queue would wait for ever
        done.put(error)


def _next(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


# The cache.


def _cached(kind: str, versions: str, texts: Sequence[str], build: Callable[[], Arrays], root: Path | None) -> Arrays:
    """The arrays of an entry: read when it is there and whole, otherwise built, stored and memory-mapped."""
    root = (user_cache_dir() if root is None else Path(root).expanduser()) / "features"
    entry = root / f"{kind}-{_key(versions, texts)}"
    found = _read_entry(entry)
    if found is not None:
        return found
    arrays = build()
    try:
        _write_entry(entry, arrays)
    except OSError as error:
        _warn_once(f"warning: features are not cached, {root} cannot be written ({error.strerror or error})")
        return arrays
    return _read_entry(entry) or arrays


def _key(versions: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(versions.encode())
    data, offsets = _pack(texts)
    digest.update(offsets.tobytes())  # the lengths keep ["ab"] and ["a", "b"] apart
    digest.update(data.tobytes())
    return digest.hexdigest()


def _write_entry(entry: Path, arrays: Arrays) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{entry.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    temporary, discarded = entry.with_name(f"{unique}.tmp"), entry.with_name(f"{unique}.old")
    try:
        temporary.mkdir()
        sums = {}
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
            sums[name] = zlib.crc32(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        (temporary / "checksums.json").write_text(json.dumps(sums))
        try:
            temporary.rename(entry)
        except OSError:
            # Something is there: another process's entry, which is as good, or a damaged one, which has to go.
            if _read_entry(entry) is None:
                if entry.exists():
                    entry.rename(discarded)
                temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(discarded, ignore_errors=True)


def _read_entry(entry: Path) -> Arrays | None:
    """The memory-mapped arrays, or None when the entry is missing, incomplete or damaged."""
    try:
        sums = json.loads((entry / "checksums.json").read_text())
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in sums}
    except (OSError, ValueError, EOFError):
        return None
    for name, array in arrays.items():
        if zlib.crc32(np.ascontiguousarray(array).data.cast("B") if array.size else b"") != sums[name]:
            return None
    return arrays


@functools.cache
def _warn_once(message: str) -> None:
    print(message, file=sys.stderr)
