"""Download of the named datasets that have public files: resumable, checked by SHA-256, never half there."""

import csv
import fcntl
import io
import json
import math
import os
import pickle
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdti.data.named import RECORDS, content_hash, find_dataset, read_records
from jaxdti.data.registry import Upstream, get_dataset
from jaxdti.errors import DataError
from jaxdti.files import atomic, user_cache_dir, write_json

BASE_URL = "https://raw.githubusercontent.com"
LARGE_FILE_URL = "https://media.githubusercontent.com/media"
POINTER = b"version https://git-lfs.github.com/spec/v1\n"  # first line of a file that the repository keeps elsewhere
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubles each time
TIMEOUT = 60.0  # seconds without any byte

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all when known


def fetch(
    name: str,
    destination: str | os.PathLike | None = None,
    *,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Downloads a named dataset to where ``find_dataset`` looks for it.

    A file that is there with the right content is left alone, whoever put it there; a partial download is continued.
    Files whose SHA-256 is not published are recorded when they are first there, and must not change afterwards.

    Args:
      name: of the dataset.
      destination: data folder; default ``data`` in the user cache.
      base_url: a mirror that holds owner/repository/commit/path, and below ``media`` the large files.
      progress: called with file name, bytes so far and bytes in all (None when unknown).

    Returns:
      The files of the dataset.

    Raises:
      DataError: nothing to download under that name (the message says which files to put where), no network, HTTP
        error, wrong content, or no place to write.
    """
    dataset = get_dataset(name)
    if not dataset.upstream:
        return list(find_dataset(name, [Path(destination)] if destination is not None else None).files.values())
    root = Path(destination) if destination is not None else user_cache_dir() / "data"
    try:
        paths = upstream = [_fetch_file(file, root, base_url, progress) for file in dataset.upstream]
        if "pairs" in dataset.files:
            paths = _convert_deepdta(root / name, {path.name: path for path in upstream}, dataset.label_column)
        for file, path in zip(dataset.upstream, upstream, strict=True):
            if not file.sha256:
                _record(path)
        return paths
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror or error})") from error


def _fetch_file(file: Upstream, root: Path, base_url: str | None, progress: Progress | None) -> Path:
    target = root / file.target
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = file.sha256 or read_records(target.parent).get(target.name)
    found = content_hash(target) if target.exists() and expected else None
    if target.exists() and found == expected:
        return target
    partial = target.with_name(f"{target.name}.part")
    with open(partial, "ab") as held:
        _lock(held, partial)
        try:
            _fill(file, partial, target, base_url, expected, progress)
        except DataError as error:
            if not found:
                raise
            raise DataError(f"{target}: wrong content, SHA-256 {found} found, {expected} expected; {error}") from error
        finally:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
    return target


def _record(path: Path) -> None:
    """Keeps the SHA-256 of a file that was put there by hand, now that it has proved fit."""
    records = read_records(path.parent)
    if path.name not in records:
        write_json(path.parent / RECORDS, {**records, path.name: content_hash(path)})


def _fill(
    file: Upstream, partial: Path, target: Path, base_url: str | None, expected: str | None, progress: Progress | None
) -> None:
    """Downloads into ``partial``, compares the content, and only then gives it its name."""
    mirror = base_url.rstrip("/") if base_url else None
    url = f"{mirror or BASE_URL}/{file.source}"
    _download(url, partial, target, progress)
    pointer = _pointed_hash(partial)
    if pointer:
        partial.write_bytes(b"")
        url = f"{f'{mirror}/media' if mirror else LARGE_FILE_URL}/{file.source}"
        _download(url, partial, target, progress)
    with open(partial, "rb") as content:
        if content.read(1) == b"<":  # of a proxy or a login page; no data file begins so
            partial.unlink()
            raise DataError(f"{url}: a web page came instead of the file; nothing was kept")
    found = content_hash(partial)
    for wanted in (expected, pointer):
        if wanted and found != wanted:
            partial.unlink()
            raise DataError(f"{url}: wrong content, SHA-256 {found} found, {wanted} expected; nothing was kept")
    write_json(target.parent / RECORDS, {**read_records(target.parent), target.name: found})
    os.replace(partial, target)


def _lock(held: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{partial}: another process is downloading this file; wait for it") from error


def _pointed_hash(path: Path) -> str | None:
    """The SHA-256 that a Git LFS pointer names, None for any other file."""
    with open(path, "rb") as file:
        if file.read(len(POINTER)) != POINTER:
            return None
        fields = dict(
            line.split(" ", 1) for line in file.read(1024).decode(errors="replace").splitlines() if " " in line
        )
    return fields.get("oid", "").removeprefix("sha256:") or None


def _download(url: str, partial: Path, target: Path, progress: Progress | None) -> None:
    """Fills ``partial`` from ``url``, continuing what it holds; a cut connection is tried again."""
    reason: object = "no attempt"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            total = _transfer(url, partial, target.name, progress)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                raise DataError(f"{url}: {reason}; get the file elsewhere and put it at {target}") from error
        except urllib.error.URLError as error:
            reason = error.reason
        except (HTTPException, ConnectionError, TimeoutError) as error:
            reason = error
        else:
            size = partial.stat().st_size
            if total is None or size == total:
                return
            reason = f"{size} of {total} bytes received"
            if size > total:
                partial.write_bytes(b"")
    raise DataError(
        f"{url}: not downloaded after {ATTEMPTS} attempts ({reason}); check the network and repeat the command, which "
        f"goes on where it stopped, or put the file at {target}"
    )


def _transfer(url: str, partial: Path, name: str, progress: Progress | None) -> int | None:
    """One connection; appends to ``partial`` and returns the size of the whole file when the server tells it."""
    start = partial.stat().st_size
    headers = {"User-Agent": "jaxdti", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what is there: either it is whole, or it is not a beginning of this file.
        error.close()
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if size != str(start):
            partial.write_bytes(b"")
            raise ConnectionError("the server refused to continue the download") from error
        return start
    with response:
        length = response.headers.get("Content-Length")
        continued = response.status == 206
        if continued and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise ConnectionError("the server continued at another place")
        start = start if continued else 0
        total = start + int(length) if length else None
        with open(partial, "ab") as file:
            file.truncate(start)
            while block := _read(response):
                start += file.write(block)
                if progress:
                    progress(name, start, total)
    return total


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(1 << 16)
    except OSError as error:  # told apart from a failing disk
        raise ConnectionError(f"connection cut: {error}") from error


class _PickledArray:
    """Stands for numpy.ndarray in a pickle: only keeps what the pickle says, so that nothing in it is run."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _PickledDtype:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *_: object):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled array of numbers; any other global in the pickle is refused."""

    allowed = {
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not part of an array")
        return self.allowed[module_name, global_name]


def read_pickled_matrix(path: Path) -> np.ndarray:
    """Reads one pickled float array, as NumPy writes it, without running anything in the pickle.

    Returns:
      float64 [rows, columns].

    Raises:
      DataError: not such a file; a pickle that asks for anything but an array is refused.
    """
    try:
        with open(path, "rb") as file:
            array = _ArrayUnpickler(file, encoding="latin1").load()
        _, shape, dtype, fortran, raw = array.state
        if dtype.code not in ("f8", "f4") or len(shape) != 2:
            raise ValueError(f"type {dtype.code} and shape {shape} found")
        values = np.frombuffer(
            raw.encode("latin1") if isinstance(raw, str) else raw, dtype=f"{dtype.order}{dtype.code}"
        )
        return values.reshape(shape, order="F" if fortran else "C").astype(np.float64)
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: not read, a pickled matrix of floats and nothing else expected ({error})") from error


def _convert_deepdta(folder: Path, upstream: dict[str, Path], label_column: str) -> list[Path]:
    """Writes pairs, drugs and proteins tables from the files of the DeepDTA repository (its setting 1)."""
    drugs = _read_object(upstream["ligands_iso.txt"], dict)
    flat = _read_object(upstream["ligands_can.txt"], dict)
    proteins = _read_object(upstream["proteins.txt"], dict)
    train = _read_object(upstream["train_fold_setting1.txt"], list)
    test = _read_object(upstream["test_fold_setting1.txt"], list)
    matrix = read_pickled_matrix(upstream["Y"])
    if matrix.shape != (len(drugs), len(proteins)) or set(flat) != set(drugs):
        raise DataError(
            f"{upstream['Y']}: matrix {matrix.shape[0]} x {matrix.shape[1]} found, {len(drugs)} drugs x "
            f"{len(proteins)} proteins expected; the upstream files do not belong together"
        )
    drug, protein = np.nonzero(~np.isnan(matrix))  # the folds number the measured pairs in this order
    fold = _fold_names({**{f"train{number}": rows for number, rows in enumerate(train)}, "test": test}, len(drug))
    values = matrix[drug, protein].tolist()
    if label_column == "pKd":
        header = ("drug", "protein", "Kd_nM", "pKd", "fold")
        labels = [(value, round(9 - math.log10(value), 6)) for value in values]
    else:
        header = ("drug", "protein", label_column, "fold")
        labels = [(value,) for value in values]
    tables = {
        "drugs.csv": [("drug", "source_id", "SMILES", "SMILES_flat")]
        + [(number, key, smiles, flat[key]) for number, (key, smiles) in enumerate(drugs.items())],
        "proteins.csv": [("protein", "source_id", "Protein")]
        + [(number, key, sequence) for number, (key, sequence) in enumerate(proteins.items())],
        "affinity.csv": [header]
        + [(*pair, *label, name) for *pair, label, name in zip(drug, protein, labels, fold, strict=True)],
    }
    return [_write_table(folder / name, rows) for name, rows in tables.items()]


def _read_object(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: JSON expected ({error})") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: JSON {kind.__name__} expected, {type(content).__name__} found")
    return content


def _fold_names(folds: dict[str, list[int]], size: int) -> list[str]:
    """The fold of each of ``size`` measured pairs; each pair must be in exactly one."""
    names = {row: name for name, rows in folds.items() for row in rows}
    listed = sum(len(rows) for rows in folds.values())
    if listed != size or names.keys() != set(range(size)):
        raise DataError(f"folds: {listed} row numbers found, each of 0 to {size - 1} once expected; damaged fold files")
    return [names[row] for row in range(size)]


def _write_table(path: Path, rows: list[tuple]) -> Path:
    """Writes a CSV that appears whole or not at all, and records its SHA-256 for ``find_dataset``."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
        write_json(path.parent / RECORDS, {**read_records(path.parent), path.name: content_hash(temporary)})
    return path
