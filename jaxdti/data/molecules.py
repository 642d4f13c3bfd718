"""Molecules as compact integers: a SMILES string becomes eight small numbers per atom and a list of bonds.

Run as a script, this file serves one featurisation worker (see ``serve``).
"""

import pickle
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
# Number of one-hot positions of each column; 0 marks a number that is used as it is.
_WIDTHS = (len(ELEMENTS), 11, 7, 0, 0, len(HYBRIDISATIONS), 0, 5)
ATOM_FEATURES = sum(width or 1 for width in _WIDTHS)  # 74

_ELEMENT_INDEX = {Chem.GetPeriodicTable().GetAtomicNumber(symbol): i for i, symbol in enumerate(ELEMENTS)}
_HYBRIDISATION_INDEX = {kind: i for i, kind in enumerate(HYBRIDISATIONS)}
_MOST_ATOMS = np.iinfo(np.int16).max  # bonds are stored as int16


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
    """Reads one SMILES.

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
    with rdBase.BlockLogs():
        mol = _parse(smiles.strip())
        # Written before renumbering; isomericSmiles=False leaves out isotopes as well as stereochemistry.
        canonical = Chem.MolToSmiles(mol)
        flat = Chem.MolToSmiles(mol, isomericSmiles=False)
        ranks = [int(rank) for rank in Chem.CanonicalRankAtoms(mol)]
    rows = np.array([_atom_row(atom) for atom in mol.GetAtoms()])
    if np.abs(rows).max() > np.iinfo(np.int8).max:
        raise ValueError("an atom with more than 127 charges or radical electrons")
    atoms = rows.astype(np.int8)[ranks]
    place = np.argsort(ranks)
    ends = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()], np.int64).reshape(-1, 2)
    return Molecule(canonical, flat, atoms, place[ends].astype(np.int16))


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


def _atom_row(atom: Chem.Atom) -> tuple[int, ...]:
    degree, hydrogens = atom.GetDegree(), atom.GetTotalNumHs()
    implicit = atom.GetValence(Chem.ValenceType.IMPLICIT)
    return (
        _ELEMENT_INDEX.get(atom.GetAtomicNum(), -1),
        degree if degree <= 10 else -1,
        implicit if implicit <= 6 else -1,
        atom.GetFormalCharge(),
        atom.GetNumRadicalElectrons(),
        _HYBRIDISATION_INDEX.get(atom.GetHybridization(), -1),
        int(atom.GetIsAromatic()),
        hydrogens if hydrogens <= 4 else -1,
    )


def expand_atoms(atoms: np.ndarray) -> np.ndarray:
    """Atom categories int8 [n, 8] -> the 74 features float32 [n, 74], blocks in the order of ``ATOM_COLUMNS``."""
    blocks = []
    for column, width in zip(atoms.T, _WIDTHS, strict=True):
        blocks.append(column[:, None] == np.arange(width) if width else column[:, None])
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def featurize_batch(smiles: Sequence[str]) -> MoleculeBatch:
    """Featurises strings one after the other in this process; ``error`` has the reason where one is unreadable."""
    molecules, errors = [], []
    for text in smiles:
        try:
            molecules.append(read_molecule(text))
            errors.append("")
        except ValueError as error:
            molecules.append(_UNREADABLE)
            errors.append(" ".join(str(error).split()))
    return MoleculeBatch(
        canonical=[m.canonical for m in molecules],
        flat=[m.flat for m in molecules],
        error=errors,
        atom_counts=np.array([len(m.atoms) for m in molecules], np.int64),
        atoms=np.concatenate([_UNREADABLE.atoms, *(m.atoms for m in molecules)]),
        bond_counts=np.array([len(m.bonds) for m in molecules], np.int64),
        bonds=np.concatenate([_UNREADABLE.bonds, *(m.bonds for m in molecules)]),
    )


_UNREADABLE = Molecule("", "", np.zeros((0, len(ATOM_COLUMNS)), np.int8), np.zeros((0, 2), np.int16))


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answers pickled lists of SMILES with pickled tuples (the fields of ``MoleculeBatch``) until the input ends."""
    while True:
        try:
            smiles = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(tuple(featurize_batch(smiles)), replies)
        replies.flush()


if __name__ == "__main__":
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C reaches the whole process group; the parent reports it
