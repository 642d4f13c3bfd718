"""Features on the device, once, or part by part: batches are gathered there by index, at their bucket's shape."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdti.data.pairs.buckets import PairBatch, Shape
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.layers.graph import DrugBatch
from jaxdti.layers.sequence import ProteinBatch, ProteinsEndToEnd


class DeviceFeatures(flax.struct.PyTreeNode):
    """The ragged arrays of a ``FeatureStore`` on the device; offsets are int32."""

    atoms: Array  # int8 [total atoms, 8]
    atom_offsets: Array  # int32 [D + 1]
    bonds: Array  # int16 [total bonds, 2]
    bond_offsets: Array  # int32 [D + 1]
    residues: Array  # uint8 [total residues]
    residue_offsets: Array  # int32 [P + 1]

    def drugs(self, index: ArrayLike, shape: Shape) -> DrugBatch:
        """Drugs int32 [B] padded to the bucket's atoms and bonds."""
        atom_rows, atom_count = _ragged(self.atom_offsets, index, shape.atoms)
        bond_rows, bond_count = _ragged(self.bond_offsets, index, shape.bonds)
        return DrugBatch(
            atoms=self.atoms.at[atom_rows].get(mode="clip"),
            bonds=self.bonds.at[bond_rows].get(mode="clip").astype(jnp.int32),
            atom_count=atom_count,
            bond_count=bond_count,
        )

    def proteins(self, index: ArrayLike, shape: Shape) -> ProteinBatch:
        """Proteins int32 [B] padded to the bucket's residues."""
        rows, count = _ragged(self.residue_offsets, index, shape.residues)
        valid = jnp.arange(shape.residues)[None, :] < count[:, None]
        residues = jnp.where(valid, self.residues.at[rows].get(mode="clip"), jnp.uint8(0))
        return ProteinBatch(residues=residues, residue_count=count)

    def proteins_end_to_end(self, index: ArrayLike, start: ArrayLike, length: int) -> ProteinsEndToEnd:
        """Proteins int32 [B] along ``length`` positions, each from ``start`` int32 [B] (ascending) on, but for -1."""
        index, start, position = jnp.asarray(index), jnp.asarray(start), jnp.arange(length)
        place = jnp.maximum(jnp.searchsorted(start, position, side="right") - 1, 0)
        protein, within = index[place], position - start[place]
        first, count = self.residue_offsets[protein], self.residue_offsets[protein + 1] - self.residue_offsets[protein]
        mask = (protein >= 0) & (within >= 0) & (within < count)
        letters = self.residues.at[first + within].get(mode="clip")
        return ProteinsEndToEnd(residues=jnp.where(mask, letters, jnp.uint8(0))[None], mask=mask[None])


def _ragged(offsets: Array, index: ArrayLike, width: int) -> tuple[Array, Array]:
    """Flat positions [B, width] (past the end: somebody else's, to be masked) and counts [B] of the entities."""
    start = offsets[index]
    return start[:, None] + jnp.arange(width)[None, :], offsets[index + 1] - start


def host_features(store: FeatureStore) -> DeviceFeatures:
    """The store in the layout of the device, still on the host.

    Raises:
      ValueError: more than 2^31 - 1 atoms, bonds or residues, which int32 offsets cannot address.
    """
    for name, offsets in (
        ("atoms", store.atom_offsets),
        ("bonds", store.bond_offsets),
        ("residues", store.residue_offsets),
    ):
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"{offsets[-1]:,} {name}: int32 offsets address at most 2^31 - 1; split the table")

    def narrow(values: np.ndarray, dtype: type) -> Any:
        values = np.asarray(values, dtype)
        # A gather needs at least one row, also where no drug has a bond.
        return values if len(values) else np.zeros((1, *values.shape[1:]), dtype)

    return DeviceFeatures(
        atoms=narrow(store.atoms, np.int8),
        atom_offsets=narrow(store.atom_offsets, np.int32),
        bonds=narrow(store.bonds, np.int16),
        bond_offsets=narrow(store.bond_offsets, np.int32),
        residues=narrow(store.residues, np.uint8),
        residue_offsets=narrow(store.residue_offsets, np.int32),
    )


def device_features(store: FeatureStore) -> DeviceFeatures:
    """Copies the store to the default device; errors as ``host_features``."""
    return jax.device_put(host_features(store))


def feature_bytes(store: FeatureStore) -> int:
    """What ``device_features`` takes."""
    rows = 8 * len(store.atoms) + 4 * len(store.bonds) + len(store.residues)
    return rows + 4 * (len(store.atom_offsets) + len(store.bond_offsets) + len(store.residue_offsets))


def features_within(store: FeatureStore, gib: float) -> DeviceFeatures | FeatureStore:
    """``device_features`` where they take at most ``gib`` GiB, otherwise the store itself."""
    return device_features(store) if feature_bytes(store) <= gib * 2**30 else store


def chunk_features(store: FeatureStore, batch: PairBatch, shape: Shape) -> tuple[DeviceFeatures, PairBatch]:
    """The features of one batch or stack of batches alone, for stores that are larger than the device, on the host.

    Args:
      batch: arrays [...]; no valid pair is larger than ``shape``.

    Returns:
      Features of as many drugs and proteins as ``batch`` has pairs, at most, each once; their arrays have one size for
      every batch of that form and shape. And the batch with indices into them, filler at an entity that is there.
    """
    drugs, drug = _distinct(batch.drug, batch.row_mask)
    proteins, protein = _distinct(batch.protein, batch.row_mask)
    return chosen_features(store, drugs, proteins, batch.drug.size, shape), batch.replace(drug=drug, protein=protein)


def chosen_features(
    store: FeatureStore, drugs: np.ndarray, proteins: np.ndarray, count: int, shape: Shape
) -> DeviceFeatures:
    """The features of these entities alone, numbered in their order, on the host; their arrays have one size always.

    Args:
      drugs, proteins: int [at most ``count``] each, none of them larger than ``shape``; of one kind there may be none.
    """
    atoms, atom_offsets = _chosen(store.atoms, store.atom_offsets, drugs, count, shape.atoms)
    bonds, bond_offsets = _chosen(store.bonds, store.bond_offsets, drugs, count, shape.bonds)
    residues, residue_offsets = _chosen(store.residues, store.residue_offsets, proteins, count, shape.residues)
    return DeviceFeatures(
        atoms=atoms.astype(np.int8, copy=False),
        atom_offsets=atom_offsets,
        bonds=bonds.astype(np.int16, copy=False),
        bond_offsets=bond_offsets,
        residues=residues.astype(np.uint8, copy=False),
        residue_offsets=residue_offsets,
    )


def _distinct(index: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct entities of the valid places, and int32 positions in them of the shape of ``index``, 0 elsewhere."""
    entities, position = np.unique(index[valid], return_inverse=True)
    positions = np.zeros(index.shape, np.int32)
    positions[valid] = position
    return entities, positions


def _chosen(values: np.ndarray, offsets: np.ndarray, entities: np.ndarray, count: int, width: int) -> tuple[Any, Any]:
    """Rows of the entities, filled up to ``count * width``, and int32 offsets [count + 1]."""
    start, lengths = offsets[entities], offsets[entities + 1] - offsets[entities]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    rows = np.arange(total) + np.repeat(start - (ends - lengths), lengths)
    chosen = np.zeros((count * width, *values.shape[1:]), values.dtype)
    chosen[:total] = values[rows]
    placed = np.full(count + 1, total, np.int32)
    placed[0], placed[1 : len(ends) + 1] = 0, ends
    return chosen, placed
