"""Molecules as compact integers: a SMILES string becomes eight small numbers per atom and a list of bonds.

Run as a script, this file serves one featurisation worker (see ``serve``).
"""

import pickle
import re
import sys
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np
from rdkit import Chem, rdBase

FEATURISER_VERSION = 1  # part of the cache key: raise it whenever any number below changes

ELEMENTS = (
    "C N O S F Si P Cl Br Mg Na Ca Fe As Al I B V K Tl Yb Sb Sn Ag Pd Co Se Ti Zn H Li Ge Cu Au Ni Cd In Mn Zr Cr "
    "Pt Hg Pb"
).split()
HYBRIDISATIONS = (
    Chem.HybridizationType.SP,
    Chem.HybridizationType.SP2,
    Chem.HybridizationType.SP3,
    Chem.HybridizationType.SP3D,
    Chem.HybridizationType.SP3D2,
)
ATOM_COLUMNS = (
    "element",  # index into ELEMENTS
    "degree",  # 0 to 10
    "implicit_valence",  # 0 to 6
    "formal_charge",  # a number
    "radical_electrons",  # a number
    "hybridisation",  # index into HYBRIDISATIONS
    "aromatic",  # 0 or 1
    "hydrogens",  # 0 to 4, implicit and explicit
)

_MOST_ATOMS = np.iinfo(np.int16).max  # bonds are stored as int16
_MOST_CHARGES = np.iinfo(np.int8).max

# Integers of an atom from which the columns are made; the degree comes from the bonds.
_ATOM_GETTERS = (
    Chem.Atom.GetAtomicNum,
    Chem.Atom.GetNumImplicitHs,
    Chem.Atom.GetFormalCharge,
    Chem.Atom.GetNumRadicalElectrons,
    Chem.Atom.GetHybridization,
    Chem.Atom.GetIsAromatic,
    Chem.Atom.GetTotalNumHs,
)
# Organic symbols, brackets, bonds, charges and rings only: no stereochemistry, isotope, atom map or extension.
_PLAIN = re.compile(r"(?:[A-Za-z0-9()=#.%+\-\]]|\[(?!\d))*").fullmatch


def _positions(kinds: Sequence[int], size: int) -> np.ndarray:
    """int8 [size]: the position of each number in ``kinds``, -1 where it is not there."""
    column = np.full(size, -1, np.int8)
    column[list(kinds)] = np.arange(len(kinds))
    return column


_ELEMENT_COLUMN = _positions([Chem.GetPeriodicTable().GetAtomicNumber(symbol) for symbol in ELEMENTS], 128)
_HYBRIDISATION_COLUMN = _positions(HYBRIDISATIONS, 1 + max(Chem.HybridizationType.values))


class Molecule(NamedTuple):
    """One featurised molecule of n atoms and m bonds."""

    canonical: str  # canonical isomeric SMILES: the identity of the drug
    flat: str  # the same without stereochemistry and isotopes, which the features cannot see
    atoms: np.ndarray  # int8 [n, 8], columns ATOM_COLUMNS; -1 = off the list
    bonds: np.ndarray  # int16 [m, 2], each bond once


class MoleculeBatch(NamedTuple):
    """The features of several SMILES one after the other; a string that could not be read has no atoms."""

    canonical: list[str]
    flat: list[str]
    error: list[str]  # "" where the SMILES was read
    atom_counts: np.ndarray  # int64 [number of strings]
    atoms: np.ndarray  # int8 [total atoms, 8]
    bond_counts: np.ndarray  # int64 [number of strings]
    bonds: np.ndarray  # int16 [total bonds, 2]


def featurize_molecule(smiles: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Reads one SMILES; many are read faster by ``featurize_batch``.

    Atoms are in the published model's order: canonical ranks used as if they were an order, so that new atom ``i`` is
    the input's atom ``rank[i]``. Predictions do not depend on it. Hydrogens are not added; isotopes are ignored.

    Returns:
      The canonical isomeric SMILES, atoms int8 [n, 8] with the columns ``ATOM_COLUMNS`` (-1 = off the list), and
      bonds int16 [m, 2], each bond once.

    Raises:
      ValueError: RDKit cannot read it, or it has no atom.
    """
    molecule = read_molecule(smiles)
    return molecule.canonical, molecule.atoms, molecule.bonds


def read_molecule(smiles: str) -> Molecule:
    """As ``featurize_molecule``, with the stereo-free SMILES too."""
    batch = featurize_batch([smiles])
    if batch.error[0]:
        raise ValueError(batch.error[0])
    return Molecule(batch.canonical[0], batch.flat[0], batch.atoms, batch.bonds)


def _parse(smiles: str) -> Chem.Mol:
    words = smiles.split(maxsplit=1)
    if not words:
        raise ValueError("empty SMILES")
    # RDKit would take whatever follows the first white space as a name and read only what stands before it.
    if len(words) == 2 and not words[1].startswith("|"):
        raise ValueError("white space inside the SMILES")
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise ValueError(_fault(smiles))
    if mol.GetNumAtoms() == 0:
        raise ValueError("SMILES without atoms")
    if mol.GetNumAtoms() > _MOST_ATOMS:
        raise ValueError(f"more than {_MOST_ATOMS} atoms")
    return mol


def _fault(smiles: str) -> str:
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        return "not a valid SMILES"
    problems = Chem.DetectChemistryProblems(mol)
    return f"not a valid molecule: {problems[0].Message().strip()}" if problems else "not a valid molecule"


def featurize_batch(smiles: Sequence[str]) -> MoleculeBatch:
    """Featurises strings one after the other in this process; ``error`` has the reason where one is unreadable."""
    texts: list[tuple[str, str]] = []
    errors: list[str] = []
    counts: list[tuple[int, int]] = []
    ranks: list[int] = []
    values: list[list[int]] = [[] for _ in _ATOM_GETTERS]
    ends: list[list[int]] = [[], []]
    with rdBase.BlockLogs():
        for text in map(str.strip, smiles):
            try:
                mol = _parse(text)
                # A list each, and calls through map, because these calls are most of what is not RDKit's own work.
                atoms = [mol.GetAtomWithIdx(i) for i in range(mol.GetNumAtoms())]
                columns = [list(map(getter, atoms)) for getter in _ATOM_GETTERS]
                _check_range(columns)
            except ValueError as error:
                texts.append(("", ""))
                errors.append(" ".join(str(error).split()))
                counts.append((0, 0))
                continue
            bonds = [mol.GetBondWithIdx(i) for i in range(mol.GetNumBonds())]
            texts.append(_write(mol, text))
            errors.append("")
            counts.append((len(atoms), len(bonds)))
            ranks += Chem.CanonicalRankAtoms(mol)
            for column, more in zip(values, columns, strict=True):
                column += more
            ends[0] += map(Chem.Bond.GetBeginAtomIdx, bonds)
            ends[1] += map(Chem.Bond.GetEndAtomIdx, bonds)
    atom_counts, bond_counts = (np.array([pair[i] for pair in counts], np.int64) for i in range(2))
    atoms, bonds = _renumber(atom_counts, bond_counts, ranks, values, np.array(ends, np.int64).T)
    return MoleculeBatch(
        canonical=[canonical for canonical, _ in texts],
        flat=[flat for _, flat in texts],
        error=errors,
        atom_counts=atom_counts,
        atoms=atoms,
        bond_counts=bond_counts,
        bonds=bonds,
    )


def _check_range(columns: list[list[int]]) -> None:
    charges, radicals = columns[2], columns[3]
    if max(charges) > _MOST_CHARGES or min(charges) < -_MOST_CHARGES or max(radicals) > _MOST_CHARGES:
        raise ValueError(f"an atom with more than {_MOST_CHARGES} charges or radical electrons")


def _write(mol: Chem.Mol, smiles: str) -> tuple[str, str]:
    """Canonical SMILES with and without stereochemistry and isotopes."""
    canonical = Chem.MolToSmiles(mol)
    # Writing again takes as long as the first time, and gives the same where there is nothing to leave out.
    if _PLAIN(smiles) and _PLAIN(canonical):
        return canonical, canonical
    return canonical, Chem.MolToSmiles(mol, isomericSmiles=False)


def _renumber(
    atom_counts: np.ndarray, bond_counts: np.ndarray, ranks: list[int], values: list[list[int]], ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Columns and bond ends [m, 2] as RDKit numbers the atoms of each molecule -> atoms and bonds in the order kept."""
    starts = np.cumsum(atom_counts) - atom_counts
    order = np.array(ranks, np.int64) + np.repeat(starts, atom_counts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first = np.repeat(starts, bond_counts)[:, None]
    ends = ends + first
    number, implicit, charge, radicals, hybridisation, aromatic, hydrogens = np.array(values, np.int64)
    degree = np.bincount(ends.ravel(), minlength=len(order))
    columns = (
        _ELEMENT_COLUMN[number],
        np.where(degree <= 10, degree, -1),
        np.where(implicit <= 6, implicit, -1),
        charge,
        radicals,
        _HYBRIDISATION_COLUMN[hybridisation],
        aromatic,
        np.where(hydrogens <= 4, hydrogens, -1),
    )
    atoms = np.stack(columns, axis=1).astype(np.int8)[order]
    return atoms, (place[ends] - first).astype(np.int16, order="C")


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Sends True, then answers pickled lists of SMILES with pickled tuples (the fields of ``MoleculeBatch``)."""
    pickle.dump(True, replies)  # whoever asks does the work itself until the imports above are done
    replies.flush()
    while True:
        try:
            smiles = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(tuple(featurize_batch(smiles)), replies)
        replies.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
