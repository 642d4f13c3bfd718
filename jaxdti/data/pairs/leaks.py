"""What the parts of a split share: drugs, proteins, pairs. Identity is the canonical SMILES and the sequence."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jaxdti.data.pairs.table import InteractionTable


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """How much one part holds."""

    rows: int
    drugs: int
    proteins: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two parts share; ``later`` is the one that would be scored after fitting on ``earlier``."""

    earlier: str
    later: str
    drugs: int  # distinct drugs in both
    proteins: int  # distinct proteins in both
    pairs: int  # distinct pairs in both
    rows: int  # rows of ``later`` whose pair also stands in ``earlier``
    conflicts: int  # shared pairs with more than one label; unlabelled rows do not count


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """Sizes of the parts, and an ``Overlap`` for each two of them, in the order in which the parts were given."""

    parts: dict[str, PartSize]
    overlaps: tuple[Overlap, ...]
    pairs_across: int  # distinct pairs that stand in more than one part

    def lines(self) -> list[str]:
        """The report as text, one fact a line, to print."""
        lines = [
            f"{name}: {part.rows:,} rows, {part.pairs:,} pairs, {part.drugs:,} drugs, {part.proteins:,} proteins"
            for name, part in self.parts.items()
        ]
        for overlap in self.overlaps:
            size = self.parts[overlap.later]
            lines.append(
                f"{overlap.later} shares with {overlap.earlier}: {overlap.drugs:,} of {size.drugs:,} drugs, "
                f"{overlap.proteins:,} of {size.proteins:,} proteins, {overlap.pairs:,} pairs "
                f"({overlap.rows:,} of {size.rows:,} rows repeat a pair, {overlap.conflicts:,} pairs with other labels)"
            )
        lines.append(f"pairs that stand in more than one part: {self.pairs_across:,}")
        return lines


def pair_keys(table: InteractionTable) -> np.ndarray:
    """int64 [N], equal for two rows exactly when drug and protein are equal."""
    return table.drug.astype(np.int64) * len(table.proteins) + table.protein


def seen_in_train(table: InteractionTable, train: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """bool [len(rows)], True where the pair of that row also stands in ``train``.

    Args:
      table: the interactions.
      train: int64 [T], row indices of the training part.
      rows: int64 [R], row indices to ask about.
    """
    keys = pair_keys(table)
    return np.isin(keys[rows], keys[train])


def known_pairs(table: InteractionTable, train: np.ndarray, other: InteractionTable) -> np.ndarray:
    """bool [len(other)], True where the pair of that row stands among the rows ``train`` of ``table``, too."""

    def places(names: np.ndarray, others: np.ndarray) -> np.ndarray:
        place = {name: i for i, name in enumerate(names)}
        return np.array([place.get(name, -1) for name in others], np.int64)

    drug = places(table.drugs, other.drugs)[other.drug]
    protein = places(table.proteins, other.proteins)[other.protein]
    keys = drug * len(table.proteins) + protein
    return (drug >= 0) & (protein >= 0) & np.isin(keys, pair_keys(table)[train])


def _conflicts(table: InteractionTable, rows: np.ndarray) -> int:
    """Number of distinct pairs among ``rows`` with more than one label."""
    rows = rows[~np.isnan(table.label[rows])]
    keys, group = np.unique(pair_keys(table)[rows], return_inverse=True)
    low, high = np.full(len(keys), np.inf), np.full(len(keys), -np.inf)
    np.minimum.at(low, group, table.label[rows])
    np.maximum.at(high, group, table.label[rows])
    return int(np.sum(low < high))


def _overlap(table: InteractionTable, names: tuple[str, str], earlier: np.ndarray, later: np.ndarray) -> Overlap:
    keys = pair_keys(table)
    pairs = np.intersect1d(keys[earlier], keys[later])
    both = np.concatenate([earlier, later])
    return Overlap(
        earlier=names[0],
        later=names[1],
        drugs=len(np.intersect1d(table.drug[earlier], table.drug[later])),
        proteins=len(np.intersect1d(table.protein[earlier], table.protein[later])),
        pairs=len(pairs),
        rows=int(np.isin(keys[later], pairs).sum()),
        conflicts=_conflicts(table, both[np.isin(keys[both], pairs)]),
    )


def leak_report(table: InteractionTable, parts: Mapping[str, np.ndarray]) -> LeakReport:
    """Counts what the parts share.

    Args:
      table: the interactions.
      parts: name of each part -> int64 row indices into ``table``; the order of the names gives earlier and later.
    """
    keys = pair_keys(table)
    sizes = {
        name: PartSize(
            rows=len(rows),
            drugs=len(np.unique(table.drug[rows])),
            proteins=len(np.unique(table.protein[rows])),
            pairs=len(np.unique(keys[rows])),
        )
        for name, rows in parts.items()
    }
    distinct = [np.unique(keys[rows]) for rows in parts.values()]
    counts = np.unique(np.concatenate(distinct), return_counts=True)[1] if distinct else np.zeros(0, np.int64)
    return LeakReport(
        parts=sizes,
        overlaps=tuple(_overlap(table, (a, b), parts[a], parts[b]) for a, b in combinations(parts, 2)),
        pairs_across=int(np.sum(counts > 1)),
    )
