"""Splits of one table into train, validation and test, and the index files that keep them.

Every kind moves whole groups of rows, so that replicates of a pair are never separated.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from jaxdti.data.pairs.clusters import SOURCE, TARGET, ClusterDomains
from jaxdti.data.pairs.leaks import leak_report, pair_keys
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.files import write_json

PARTS = ("train", "validation", "test")
DOMAIN_PARTS = ("train", "validation", "target_train", "test")  # the last two are the target domain
_TARGET_PARTS = DOMAIN_PARTS[2:]
KINDS = ("random", "cold_drug", "cold_protein", "cold_both", "scaffold")
CLUSTER = "cluster"  # the kind of ``split_domains``
FORMAT = 1  # of the index file


def scaffold_groups(smiles: np.ndarray) -> np.ndarray:
    """int64 [D], equal for drugs with the same Bemis-Murcko scaffold (stereochemistry left out).

    An acyclic molecule has no scaffold: each one is a group of its own.
    """
    groups: dict[str, int] = {}
    result = np.empty(len(smiles), np.int64)
    for index, text in enumerate(smiles):
        scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(text))
        result[index] = groups.setdefault(scaffold or f"acyclic {index}", len(groups))
    return result


def _assign(groups: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assigns whole groups to parts: int64 [N] group ids -> int64 [N] part numbers.

    The groups come in random order, those too big for the smallest part first, and each goes to the part with most
    room left: the biggest thus stay in train, and the others fill what they leave.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    room = fractions * len(groups)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(sizes[order] <= room.min() / 2, kind="stable")]
    part = np.empty(len(sizes), np.int64)
    for index in order:
        part[index] = np.argmax(room)
        room[part[index]] -= sizes[index]
    return part[group]


def _assign_pairs(groups: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As ``_assign``, for the many small groups of a random split: a shuffled list of pairs is cut in three."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    part = np.empty(len(sizes), np.int64)
    part[order] = np.searchsorted(np.cumsum(fractions)[:-1] * len(groups), middle, side="right")
    return part[group]


def make_split(
    table: InteractionTable, kind: str, fractions: tuple[float, float, float], seed: int
) -> dict[str, np.ndarray]:
    """Splits the rows of a table; the same table, kind, fractions and seed give the same split.

    ``random`` keeps the pairs apart, ``cold_drug`` the drugs, ``cold_protein`` the proteins, ``cold_both`` drugs and
    proteins (rows that mix two parts belong to none, see ``dropped_rows``), ``scaffold`` the Bemis-Murcko scaffolds.

    Args:
      table: N interactions.
      kind: one of ``KINDS``.
      fractions: shares of the rows (of the kept rows with ``cold_both``) in train, validation and test; met
        approximately, as groups are never divided.
      seed: of the random order of the groups.

    Returns:
      "train", "validation" and "test" -> int64 row indices, ascending.

    Raises:
      DataError: a part would be empty.
      RuntimeError: the split leaks, an internal error.
    """
    if kind not in KINDS:
        raise DataError(f"split {kind!r}: choose from {', '.join(KINDS)}")
    rng = np.random.default_rng(seed)
    shares = np.asarray(fractions, np.float64)
    scaffolds = _row_scaffolds(table) if kind == "scaffold" else None
    if kind == "random":
        part = _assign_pairs(pair_keys(table), shares, rng)
    elif kind == "cold_drug":
        part = _assign(table.drug, shares, rng)
    elif kind == "cold_protein":
        part = _assign(table.protein, shares, rng)
    elif scaffolds is not None:
        part = _assign(scaffolds, shares, rng)
    else:
        # A row is kept when both its sides fall in one part: shares a and b on the sides keep a * b of the rows.
        sides = np.sqrt(shares) / np.sqrt(shares).sum()
        drug, protein = _assign(table.drug, sides, rng), _assign(table.protein, sides, rng)
        part = np.where(drug == protein, drug, -1)
    split = _filled_parts(table, part, PARTS, kind, f"in shares {', '.join(f'{share:g}' for share in shares)}")
    _verify(table, kind, split, scaffolds)
    return split


def _filled_parts(
    table: InteractionTable, part: np.ndarray, names: tuple[str, ...], kind: str, wanted: str
) -> dict[str, np.ndarray]:
    """Rows of each part from the part numbers of all rows, or a DataError where one is empty."""
    split = {name: np.flatnonzero(part == number) for number, name in enumerate(names)}
    if not all(len(rows) for rows in split.values()):
        found = ", ".join(f"{name} {len(rows)}" for name, rows in split.items())
        raise DataError(
            f"split {kind} of {len(table)} rows ({len(np.unique(table.drug))} drugs, "
            f"{len(np.unique(table.protein))} proteins) {wanted}: "
            f"a part is empty ({found}); more data or another split is needed"
        )
    return split


def split_domains(
    table: InteractionTable, domains: ClusterDomains, held_out: tuple[float, float], seed: int
) -> dict[str, np.ndarray]:
    """Splits by cluster: training on the source domain, testing on the target domain.

    Rows with both ends in source clusters are source, rows with both ends in target clusters are target; rows that
    mix the two belong to no part, see ``dropped_rows``. Within a domain the pairs are drawn at random.

    Args:
      table: N interactions.
      domains: of its drugs and proteins.
      held_out: share of the source rows for validation, and of the target rows for the test.
      seed: of these two draws.

    Returns:
      "train" and "validation" (source), "target_train" and "test" (target) -> int64 row indices, ascending.

    Raises:
      DataError: a part would be empty.
      RuntimeError: source and target share a cluster, an internal error.
    """
    rng, keys = np.random.default_rng(seed), pair_keys(table)
    drug, protein = domains.drug_domain[table.drug], domains.protein_domain[table.protein]
    part = np.full(len(table), -1)
    for domain, first, share in ((SOURCE, 0, held_out[0]), (TARGET, 2, held_out[1])):
        rows = (drug == domain) & (protein == domain)
        part[rows] = first + _assign_pairs(keys[rows], np.asarray([1 - share, share]), rng)
    wanted = (
        f"with {np.sum(domains.drug_domain == TARGET)} and {np.sum(domains.protein_domain == TARGET)} of them target"
    )
    split = _filled_parts(table, part, DOMAIN_PARTS, CLUSTER, wanted)
    _verify_domains(table, domains, split)
    return split


def _verify_domains(table: InteractionTable, domains: ClusterDomains, split: Mapping[str, np.ndarray]) -> None:
    """As ``_verify``; independent of how the rows were chosen."""
    source, target = (np.concatenate([split[name] for name in names]) for names in (DOMAIN_PARTS[:2], DOMAIN_PARTS[2:]))
    for clusters in (domains.drug_cluster[table.drug], domains.protein_cluster[table.protein]):
        if shared := len(np.intersect1d(clusters[source], clusters[target])):
            raise RuntimeError(f"internal error: source and target of the cluster split share {shared} clusters")
    rows, leaks = np.concatenate([source, target]), _leaks(table, CLUSTER, split)
    if len(np.unique(rows)) != len(rows) or leaks:
        raise RuntimeError(f"internal error: the cluster split repeats rows or leaks: {', '.join(leaks)}")


def describe_domains(table: InteractionTable, domains: ClusterDomains, split: Mapping[str, np.ndarray]) -> list[str]:
    """Clusters, sizes of the parts and what they share, and the rows that mix the domains, as lines to print."""
    lines = [*domains.lines(), *describe_split(table, split)]
    return [*lines, "train and validation are source; they share no drug and no protein cluster with the target parts"]


def _row_scaffolds(table: InteractionTable) -> np.ndarray:
    used, position = np.unique(table.drug, return_inverse=True)
    return scaffold_groups(table.drugs[used])[position]


def _verify(table: InteractionTable, kind: str, split: Mapping[str, np.ndarray], scaffolds: np.ndarray | None) -> None:
    """A split made here must not leak; if it does, the code is wrong, not the data."""
    rows = np.concatenate(list(split.values()))
    if len(np.unique(rows)) != len(rows) or (kind != "cold_both" and len(rows) != len(table)):
        raise RuntimeError(f"internal error: the {kind} split repeats or loses rows")
    if leaks := _leaks(table, kind, split, scaffolds):
        raise RuntimeError(f"internal error: the {kind} split leaks: {', '.join(leaks)}")


def _leaks(
    table: InteractionTable, kind: str, split: Mapping[str, np.ndarray], scaffolds: np.ndarray | None = None
) -> list[str]:
    """What parts share that this kind of split keeps apart, as text; empty where nothing is.

    Of a split by cluster, whose clusters are not known here, source and target may share no drug and no protein.
    """
    found = []
    for overlap in leak_report(table, split).overlaps:
        domains = kind == CLUSTER and (overlap.earlier in _TARGET_PARTS) != (overlap.later in _TARGET_PARTS)
        shared = {
            "pairs": overlap.pairs,
            "drugs": overlap.drugs if domains or kind in ("cold_drug", "cold_both", "scaffold") else 0,
            "proteins": overlap.proteins if domains or kind in ("cold_protein", "cold_both") else 0,
        }
        if scaffolds is not None:
            both = np.intersect1d(scaffolds[split[overlap.earlier]], scaffolds[split[overlap.later]])
            shared["scaffolds"] = len(both)
        counts = " and ".join(f"{count:,} {name}" for name, count in shared.items() if count)
        found += [f"{overlap.earlier} and {overlap.later} share {counts}"] if counts else []
    return found


def dropped_rows(table: InteractionTable, split: Mapping[str, np.ndarray]) -> int:
    """Number of rows that no part holds (only ``cold_both`` and ``split_domains`` leave any)."""
    return len(table) - sum(len(rows) for rows in split.values())


def describe_split(table: InteractionTable, split: Mapping[str, np.ndarray]) -> list[str]:
    """Sizes, shared entities and dropped rows as lines to print."""
    lines = leak_report(table, split).lines()
    if dropped := dropped_rows(table, split):
        lines.append(f"rows in no part, as their drug and protein belong to different ones: {dropped:,}")
    return lines


def hold_out(table: InteractionTable, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes a random share of the pairs out of ``rows``: for published splits that have no validation part.

    Args:
      table: the interactions.
      rows: int64 [R], row indices of the training part.
      fraction: share of ``rows`` to take.
      seed: of the draw.

    Returns:
      The rows that stay and the rows taken, both int64 and ascending; replicates of a pair stay together.

    Raises:
      DataError: one of the two would be empty.
    """
    rng = np.random.default_rng(seed)
    taken = _assign_pairs(pair_keys(table)[rows], np.asarray([1 - fraction, fraction]), rng) == 1
    if taken.all() or not taken.any():
        raise DataError(
            f"validation from {len(rows)} training rows, share {fraction:g}: a part is empty; give more rows"
        )
    return np.sort(rows[~taken]), np.sort(rows[taken])


def table_identity(table: InteractionTable) -> str:
    """SHA-256 over the canonical SMILES and the sequence of each row, in order; labels do not count."""

    def digests(texts: np.ndarray) -> np.ndarray:
        found = [hashlib.sha256(str(text).encode()).digest() for text in texts]
        return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)

    drugs, proteins = digests(table.drugs), digests(table.proteins)
    total = hashlib.sha256()
    for start in range(0, len(table), 65536):
        block = slice(start, start + 65536)
        total.update(np.hstack([drugs[table.drug[block]], proteins[table.protein[block]]]).tobytes())
    return total.hexdigest()


def write_split(
    path: str | os.PathLike, split: Mapping[str, np.ndarray], table: InteractionTable, kind: str, seed: int
) -> None:
    """Writes the row indices as JSON, bound to this table by ``table_identity``; the file appears whole or not at all.

    Raises:
      DataError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "kind": kind,
        "seed": seed,
        "rows": len(table),
        "dropped": dropped_rows(table, split),
        "identity": table_identity(table),
        "parts": {name: rows.tolist() for name, rows in split.items()},
    }
    try:
        write_json(Path(path), content)
    except OSError as error:
        raise DataError(f"{path}: the split file cannot be written ({error.strerror or error})") from error


def read_split(path: str | os.PathLike, table: InteractionTable) -> dict[str, np.ndarray]:
    """Reads what ``write_split`` wrote for this table.

    What a kind of split keeps apart has to be apart in the file, too; given parts and other kinds may share anything.

    Returns:
      "train", "validation", "target_train" (of a split by cluster) and "test" -> int64 row indices.

    Raises:
      DataError: no such file, not a split file, damaged, made for another table, or its parts leak.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the split file cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: not a split file, JSON expected ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("parts"), dict):
        raise DataError(f"{path}: not a split file of format {FORMAT}; write one with `jaxdti data split`")
    if content.get("rows") != len(table) or content.get("identity") != table_identity(table):
        raise DataError(
            f"{path}: written for another table: {content.get('rows')} rows there, {len(table)} valid rows here, "
            f"or other drugs and proteins in them; split this table anew"
        )
    names = DOMAIN_PARTS if "target_train" in content["parts"] else PARTS
    if sorted(content["parts"]) != sorted(names):
        raise DataError(f"{path}: parts {', '.join(sorted(content['parts']))} found, {', '.join(names)} expected")
    split = _checked_parts(path, {name: content["parts"][name] for name in names}, len(table))
    kind = content.get("kind")
    if kind in (*KINDS, CLUSTER):
        scaffolds = _row_scaffolds(table) if kind == "scaffold" else None
        if leaks := _leaks(table, kind, split, scaffolds):
            raise DataError(
                f"{path}: a {kind} split that leaks: {', '.join(leaks)}; the file was changed, split the table anew"
            )
    return split


def _checked_parts(path: str | os.PathLike, parts: dict[str, list], size: int) -> dict[str, np.ndarray]:
    split: dict[str, np.ndarray] = {}
    for name, values in parts.items():
        if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
            raise DataError(f"{path}: part {name}: a list of row numbers expected")
        split[name] = np.asarray(values, np.int64)
        if split[name].min() < 0 or split[name].max() >= size:
            raise DataError(f"{path}: part {name}: row numbers outside 0 to {size - 1}")
    rows = np.concatenate(list(split.values()))
    if len(np.unique(rows)) != len(rows):
        raise DataError(f"{path}: a row stands in two parts or twice in one")
    return split
