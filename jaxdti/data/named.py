"""The files of the published datasets on this machine: found, checked, and read as their settings say."""

import contextlib
import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxdti.config import DataConfig
from jaxdti.data.registry import DATASETS, EMBEDDED, NamedDataset, get_dataset
from jaxdti.errors import DataError
from jaxdti.files import user_cache_dir, write_json

RECORDS = "fetched.json"  # beside fetched files: name -> SHA-256 of the content as first seen


@dataclass(frozen=True, kw_only=True)
class Located:
    """Files of one dataset found on this machine."""

    name: str
    dataset: NamedDataset
    root: Path
    files: dict[str, Path]  # as ``NamedDataset.files``
    checked: bool  # False where no SHA-256 is known to compare with


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """What a reader needs: either ``parts`` (given split), or ``pairs``, ``drugs`` and ``proteins``."""

    name: str
    task: str
    label_column: str
    parts: dict[str, Path]  # part -> flat file; empty for relational sets
    pairs: Path | None = None
    drugs: Path | None = None
    proteins: Path | None = None
    part_column: str | None = None  # None for a relational set without published parts: split it
    part_of: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts in order, train first; without "validation" one has to be held out of train."""
        return tuple(self.parts) or tuple(dict.fromkeys(self.part_of.values()))


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """One line of `jaxdti data list`."""

    name: str
    task: str
    rows: str
    where: str


def data_roots() -> list[Path]:
    """Folders that are searched, in order: JAXDTI_DATA where it is set, then ``data`` in the user cache.

    Raises:
      DataError: JAXDTI_DATA is not a folder.
    """
    roots = [user_cache_dir() / "data"]
    if given := os.environ.get("JAXDTI_DATA"):
        if not Path(given).is_dir():
            raise DataError(f"JAXDTI_DATA={given}: not a folder; set it to the folder that holds the datasets")
        roots.insert(0, Path(given))
    return roots


def content_hash(path: Path) -> str:
    """SHA-256 of the content, decompressed where the name ends in .gz.

    Raises:
      DataError: the file cannot be read, or is not whole.
    """
    total = hashlib.sha256()
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end, damaged file? ({error})") from error
    return total.hexdigest()


def read_records(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 that ``fetch`` recorded in this folder; empty when nothing was fetched into it."""
    path = folder / RECORDS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: the record of fetched files is damaged ({error}); delete it and fetch again"
        ) from error


def _manifest(root: Path) -> dict[str, str]:
    """Path below ``root`` without .gz -> SHA-256 of the decompressed content."""
    path = root / "MANIFEST.csv"
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["path"].removesuffix(".gz"): row["sha256_uncompressed"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{path}: columns path and sha256_uncompressed expected ({error!r})") from error


def _known_hash(root: Path, path: Path, dataset: NamedDataset, manifest: Mapping[str, str]) -> str | None:
    """The SHA-256 the content should have: of the manifest, else as recorded when fetched, else the published one."""
    key = path.relative_to(root).as_posix().removesuffix(".gz")
    published = {file.target: file.sha256 for file in dataset.upstream}
    return manifest.get(key) or read_records(path.parent).get(path.name) or published.get(key)


def _check(path: Path, sha256: str) -> None:
    """Compares content and hash, once: a stamp in the user cache remembers size, time and hash of a checked file."""
    status = path.stat()
    content = [str(path.resolve()), status.st_size, status.st_mtime_ns, sha256]
    name = hashlib.sha256(content[0].encode()).hexdigest()[:24]
    stamp = user_cache_dir() / "verified" / f"{name}.json"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == json.dumps(content):
        return
    if (found := content_hash(path)) != sha256:
        raise DataError(f"{path}: wrong content, SHA-256 {found} found, {sha256} expected; replace the file")
    with contextlib.suppress(OSError):  # an unwritable cache only costs hashing again next time
        write_json(stamp, content)


def _present(root: Path, dataset: NamedDataset) -> dict[str, Path]:
    """Key -> the file below ``root``, compressed or not, for those that are there."""
    found: dict[str, Path] = {}
    for key, stem in dataset.files.items():
        candidates = [root / f"{stem}.csv.gz", root / f"{stem}.csv"]
        if paths := [path for path in candidates if path.is_file()]:
            found[key] = paths[0]
    return found


def _how_to_get(name: str, dataset: NamedDataset) -> str:
    if dataset.upstream:
        return f"`jaxdti data fetch {name}` downloads it from {dataset.source}"
    return (
        f"`jaxdti data fetch` cannot download it, it has no public file of this form; it is made from {dataset.source}"
    )


def find_dataset(name: str, roots: Sequence[Path] | None = None) -> Located:
    """Finds all files of a dataset below JAXDTI_DATA or in the user cache, and checks their SHA-256 once.

    Expected hashes are those of MANIFEST.csv in the folder, else those recorded by ``fetch``, else the published ones.

    Args:
      name: of the dataset.
      roots: data folders to search instead.

    Raises:
      DataError: unknown name, missing file (the message says which to put where), or wrong content.
    """
    dataset = get_dataset(name)
    roots = roots or data_roots()
    for root in roots:
        files = _present(root, dataset)
        if len(files) == len(dataset.files):
            manifest = _manifest(root)
            hashes = {key: _known_hash(root, path, dataset, manifest) for key, path in files.items()}
            for key, sha256 in hashes.items():
                if sha256:
                    _check(files[key], sha256)
            return Located(name=name, dataset=dataset, root=root, files=files, checked=all(hashes.values()))
    present = _present(roots[0], dataset)
    missing = [f"{roots[0] / stem}.csv.gz" for key, stem in dataset.files.items() if key not in present]
    raise DataError(
        f"dataset {name}: not found; put {', '.join(missing)} there (or .csv, not compressed); "
        f"{_how_to_get(name, dataset)}"
    )


def dataset_parts(name: str) -> DatasetFiles:
    """The files of a dataset in the form that a reader needs, found and checked by ``find_dataset``."""
    located = find_dataset(name)
    dataset = located.dataset
    relational = "pairs" in dataset.files
    return DatasetFiles(
        name=name,
        task=dataset.task,
        label_column=dataset.label_column,
        parts={} if relational else located.files,
        pairs=located.files.get("pairs"),
        drugs=located.files.get("drugs"),
        proteins=located.files.get("proteins"),
        part_column=dataset.part_column,
        part_of=dataset.part_of,
        note=dataset.note,
    )


def settings_to_read(files: DatasetFiles, data: DataConfig) -> DataConfig:
    """``data`` with the label column and the side tables of a dataset, which brings its own.

    Raises:
      DataError: ``data`` names others.
    """
    side = lambda path: None if path is None else str(path)
    own = {"label_column": files.label_column, "drugs": side(files.drugs), "proteins": side(files.proteins)}
    for name, value in own.items():
        if (given := getattr(data, name)) not in (None, value):
            raise DataError(
                f"data.{name}={given} is set, but dataset {files.name} brings its own ({value or 'none'}); leave it "
                "out, or give tables of your own instead of the dataset"
            )
    return replace(data, **own)


def part_of_rows(files: DatasetFiles, pairs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The part of each row of a relational dataset.

    Args:
      files: of a relational dataset.
      pairs: column name -> array [N] of the ``pairs`` table (a mapping such as a dict of arrays).

    Returns:
      str objects [N]: "train", "validation", "test" and the like, or "table" throughout where no split is published.

    Raises:
      DataError: the part column is missing or holds a value without a part.
    """
    if files.part_column is None:
        size = len(next(iter(pairs.values())))
        return np.full(size, "table", dtype=object)
    if files.part_column not in pairs:
        raise DataError(f"{files.pairs}: no column {files.part_column!r}; columns found: {', '.join(pairs)}")
    values, position = np.unique(np.asarray(pairs[files.part_column]).astype(str), return_inverse=True)
    if unknown := [value for value in values if value not in files.part_of]:
        raise DataError(
            f"{files.pairs}: column {files.part_column!r}: value {str(unknown[0])!r} found, one of "
            f"{', '.join(files.part_of)} expected"
        )
    return np.array([files.part_of[value] for value in values], dtype=object)[position]


def list_datasets() -> list[DatasetRow]:
    """One row for each named dataset: task, published rows by part, and where it is or how to get it."""
    rows = [DatasetRow(name=EMBEDDED, task="classification", rows="configurable", where="embedded, nothing to fetch")]
    roots = data_roots()
    for name, dataset in DATASETS.items():
        counts = " / ".join(
            f"{count:,}" if part == "table" else f"{part} {count:,}" for part, count in dataset.rows.items()
        )
        root = next((root for root in roots if len(_present(root, dataset)) == len(dataset.files)), None)
        where = f"in {root}" if root else f"missing; {_how_to_get(name, dataset)}"
        rows.append(DatasetRow(name=name, task=dataset.task, rows=counts, where=where))
    return rows
