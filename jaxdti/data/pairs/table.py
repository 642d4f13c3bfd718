"""The two data structures that everything downstream of the tables works on, and the error for bad input."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class InteractionTable:
    """N validated drug-protein pairs as indices into the distinct drugs and the distinct proteins.

    Identity is the canonical isomeric SMILES and the upper-case sequence (before any cut at ``max_residues``).
    """

    drugs: np.ndarray  # str objects [D], distinct canonical SMILES
    proteins: np.ndarray  # str objects [P], distinct upper-case sequences
    drug: np.ndarray  # int32 [N], index into ``drugs``
    protein: np.ndarray  # int32 [N], index into ``proteins``
    label: np.ndarray  # float32 [N]; 0 or 1, or an affinity such as pKd = -log10(Kd in mol/L); NaN = unlabelled
    part: np.ndarray  # str objects [N]; the file's part ("train", "validation", "test" or "table")
    row: np.ndarray  # int64 [N], zero-based data row in the file of that part

    def __len__(self) -> int:
        return len(self.drug)

    def rows(self, index: np.ndarray) -> "InteractionTable":
        """The table with only the rows of ``index`` (integers or a mask); drugs and proteins stay."""
        names = ("drug", "protein", "label", "part", "row")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """Compact, ragged integer features of D drugs and P proteins, in the order of an ``InteractionTable``.

    Entity ``i`` owns ``atoms[atom_offsets[i]:atom_offsets[i + 1]]``, and likewise for bonds and residues.
    """

    atom_offsets: np.ndarray  # int64 [D + 1]
    atoms: np.ndarray  # int8 [total atoms, 8]; columns: see ``jaxdti.data.molecules.ATOM_COLUMNS``
    bond_offsets: np.ndarray  # int64 [D + 1]
    bonds: np.ndarray  # int16 [total bonds, 2]; each bond once, atom indices within the drug
    residue_offsets: np.ndarray  # int64 [P + 1]
    residues: np.ndarray  # uint8 [total residues]; letters 1 to 25, 0 = unknown; cut at ``max_residues``

    @property
    def atom_counts(self) -> np.ndarray:
        return np.diff(self.atom_offsets)

    @property
    def bond_counts(self) -> np.ndarray:
        return np.diff(self.bond_offsets)

    @property
    def residue_counts(self) -> np.ndarray:
        return np.diff(self.residue_offsets)
