"""Compounds by the protein families they bind, and the sets of a transfer experiment: test, training, source."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from jaxdti.config import DataConfig
from jaxdti.data.named import dataset_parts, settings_to_read
from jaxdti.data.pairs.layouts import read_layout
from jaxdti.data.pairs.sequences import normalise_sequence
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.data.pairs.validation import load_interactions
from jaxdti.data.registry import get_dataset
from jaxdti.data.tables import TableFile, read_table
from jaxdti.errors import DataError

FAMILY_COLUMN = "family"
DATABASE_COLUMN = "source"  # of the pairs, where they come from; may be missing
EVERY = "all"  # the source of all other families together
NO_SOURCE = "none"
_LARGEST_GROUP = 0.1  # of the test set: a scaffold with more compounds stays on the training side


@dataclass(frozen=True, kw_only=True)
class FamilyCompounds:
    """D distinct compounds and what is known of them in F protein families."""

    smiles: np.ndarray  # str objects [D], canonical
    names: tuple[str, ...]  # [F]
    measured: np.ndarray  # bool [F, D]; paired with a protein of the family
    active: np.ndarray  # bool [F, D]; binds at least one of them
    lines: tuple[str, ...]  # what reading met
    databases: dict[str, np.ndarray] = field(default_factory=dict)  # name -> bool [D], has a pair from there

    def number(self, name: str) -> int:
        """The row of a family.

        Raises:
          DataError: no such family.
        """
        if name not in self.names:
            raise DataError(f"family {name!r}: choose from {', '.join(self.names)}")
        return self.names.index(name)

    def source(self, family: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Compounds int64 and their activity bool, of one family or of ``EVERY`` family but the target."""
        rows = [self.number(family)] if family != EVERY else [i for i, name in enumerate(self.names) if name != target]
        found = np.flatnonzero(np.any(self.measured[rows], axis=0))
        return found, np.any(self.active[rows], axis=0)[found]  # pyright: ignore[reportReturnType, reportIndexIssue]


@dataclass(frozen=True, kw_only=True)
class TargetSets:
    """The balanced sets of one target family; rows of ``FamilyCompounds.smiles``."""

    test: np.ndarray  # int64 [M], half of them active
    pool: dict[bool, np.ndarray]  # actives and inactives whose scaffolds the test set has not
    sizes: tuple[int, ...]  # of the training sets that the pool can give


def load_families(data: DataConfig) -> FamilyCompounds:
    """Reads pairs of drugs and proteins whose table of proteins has a column ``family``.

    Args:
      data: ``dataset`` names a relational set, or ``table``, ``drugs`` and ``proteins`` are given.

    Raises:
      DataError: the files are missing or unfit, there is no such column, a sequence has two families, or there are
        fewer than two families.
    """
    if data.dataset:
        if set(get_dataset(data.dataset).files) != {"pairs", "drugs", "proteins"}:
            raise DataError(f"dataset {data.dataset}: a table of pairs beside tables of drugs and proteins is needed")
        files = dataset_parts(data.dataset)
        data = replace(settings_to_read(files, data), table=None)
        pairs = Path(str(files.pairs))
    elif data.table and data.proteins:
        pairs = Path(data.table)
    else:
        raise DataError("name data.dataset, such as families/dti_six, or give data.table, data.drugs and data.proteins")
    family_of = _family_of_sequences(data)
    loaded = load_interactions(data, {"table": pairs}, "classification")
    found = compounds_by_family(loaded.table, family_of, loaded.report.lines())
    if DATABASE_COLUMN not in TableFile(pairs).columns:
        return found
    origin = np.asarray(read_table(pairs, [DATABASE_COLUMN])[DATABASE_COLUMN].to_pylist(), object)[loaded.table.row]
    return replace(found, databases=_databases(loaded.table, origin))


def _databases(table: InteractionTable, origin: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> bool [D]; a compound with pairs of several databases belongs to each. ``origin``: objects [N]."""
    found = {}
    for name in sorted({str(name) for name in origin if name is not None}):
        found[name] = np.zeros(len(table.drugs), bool)
        found[name][table.drug[origin == name]] = True
    return found


def compounds_by_family(
    table: InteractionTable, family_of: dict[str, str], lines: Sequence[str] = ()
) -> FamilyCompounds:
    """A compound is active in a family if it binds any protein of it; proteins without a family are left out.

    Raises:
      DataError: fewer than two families, or one named ``EVERY`` or ``NO_SOURCE``.
    """
    families = np.asarray([family_of.get(str(sequence), "") for sequence in table.proteins])
    names = tuple(sorted({str(name) for name in families} - {""}))
    if reserved := [name for name in (EVERY, NO_SOURCE) if name in names]:
        raise DataError(f"family {reserved[0]!r}: the name stands for something else here; give it another one")
    if len(names) < 2:
        raise DataError(f"{len(names)} protein families found ({', '.join(names)}); transfer needs two or more")
    measured, active = (np.zeros((len(names), len(table.drugs)), bool) for _ in range(2))
    for i, name in enumerate(names):
        rows = families[table.protein] == name
        measured[i, table.drug[rows]] = True
        active[i, table.drug[rows & (table.label == 1)]] = True
    return FamilyCompounds(smiles=table.drugs, names=names, measured=measured, active=active, lines=tuple(lines))


def draw_target(
    compounds: FamilyCompounds,
    target: str,
    scaffolds: np.ndarray,
    plain: np.ndarray,
    *,
    test: int,
    sizes: Sequence[int],
    seed: int,
) -> TargetSets:
    """A balanced test set of whole scaffolds apart from the training pool, and the sizes that the pool can give.

    Scaffolds go to the test side in random order until both classes are there; what a class has too many of on that
    side is left out. A scaffold of more than a tenth of the test set stays on the training side. Molecules without a
    scaffold may be on either side, so that stereoisomers of test compounds are left out of the pool too.

    Args:
      scaffolds: int [D], equal where the scaffold is.
      plain: str objects [D], as ``plain_smiles``.
      test: compounds of the test set.
      sizes: wished for; even numbers.

    Raises:
      DataError: too few compounds for the test set, or for any training set.
    """
    family = compounds.number(target)
    own = np.flatnonzero(compounds.measured[family])
    active = compounds.active[family]
    rng = np.random.default_rng((seed, family))
    group, count = np.unique(scaffolds[own], return_inverse=True)[1], len(own)
    sizes_of_groups = np.bincount(group)
    members = np.split(own[np.argsort(group, kind="stable")], np.cumsum(sizes_of_groups)[:-1])
    taken: list[int] = []
    have = {True: 0, False: 0}
    for i in rng.permutation(len(members)):
        if min(have.values()) >= test // 2:
            break
        lacking = any(have[bool(active[row])] < test // 2 for row in members[i])
        if sizes_of_groups[i] <= max(_LARGEST_GROUP * test, 1) and lacking:
            taken += members[i].tolist()
            for row in members[i]:
                have[bool(active[row])] += 1
    side = np.asarray(taken, np.int64)
    chosen = [rng.permutation(side[active[side] == which])[: test // 2] for which in (True, False)]
    rest = np.setdiff1d(own, side)
    rest = rest[without(rest, np.concatenate(chosen), plain)]
    pool = {which: rest[active[rest] == which] for which in (True, False)}
    fitting = tuple(size for size in sizes if size // 2 <= min(map(len, pool.values())))
    if min(map(len, chosen)) < test // 2 or not fitting:
        raise DataError(
            f"family {target}: {count} compounds, {int(active[own].sum())} of them active, are too few for a balanced "
            f"test set of {test} apart in scaffolds and a training set of {min(sizes)}"
        )
    return TargetSets(test=np.concatenate(chosen), pool=pool, sizes=fitting)


def draw_training(sets: TargetSets, size: int, repeat: int, seed: int) -> np.ndarray:
    """int64 [size], half active; within a repeat the smaller sets are parts of the larger ones."""
    parts = []
    for which, rows in sets.pool.items():
        parts.append(np.random.default_rng((seed, repeat, int(which))).permutation(rows)[: size // 2])
    return np.concatenate(parts)


def plain_smiles(smiles: np.ndarray) -> np.ndarray:
    """Canonical SMILES without stereochemistry and isotopes, which fingerprints cannot tell apart: str objects [D]."""
    with rdBase.BlockLogs():  # odd charges were met, and accepted, when the compounds were read
        texts = [Chem.MolToSmiles(Chem.MolFromSmiles(str(x)), isomericSmiles=False) for x in smiles]
    return np.asarray(texts, object)


def without(rows: np.ndarray, test: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """bool [N], False where a row of a source is a test compound, or differs from one in stereochemistry only."""
    return ~np.isin(plain[rows], plain[test])


def _family_of_sequences(data: DataConfig) -> dict[str, str]:
    side = read_layout(data).proteins
    assert side is not None
    path, text, columns = side.path, side.field, TableFile(side.path).columns
    if FAMILY_COLUMN not in columns:
        raise DataError(f"{path}: no column {FAMILY_COLUMN!r}; columns found: {', '.join(map(repr, columns))}")
    table = read_table(path, [text, FAMILY_COLUMN])
    found: dict[str, str] = {}
    for sequence, family in zip(table[text].to_pylist(), table[FAMILY_COLUMN].to_pylist(), strict=True):
        if not family or not sequence:
            continue
        try:
            sequence = normalise_sequence(str(sequence))[0]
        except ValueError:  # its pairs are rejected, and listed, when they are read
            continue
        if found.setdefault(sequence, family) != family:
            raise DataError(f"{path}: a sequence of {len(sequence)} residues has families {found[sequence]}, {family}")
    return found
