"""Features on the device, once: batches are gathered there by index, at the shape of their bucket."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdti.data.batches import Shape
from jaxdti.data.interactions import FeatureStore
from jaxdti.layers.graph import DrugBatch
from jaxdti.layers.sequence import ProteinBatch


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


def _ragged(offsets: Array, index: ArrayLike, width: int) -> tuple[Array, Array]:
    """Flat positions [B, width] (past the end: somebody else's, to be masked) and counts [B] of the entities."""
    start = offsets[index]
    return start[:, None] + jnp.arange(width)[None, :], offsets[index + 1] - start


def device_features(store: FeatureStore) -> DeviceFeatures:
    """Copies the store to the default device.

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

    def put(values: np.ndarray, dtype: type) -> Array:
        values = np.asarray(values, dtype)
        # A gather needs at least one row, also where no drug has a bond.
        return jax.device_put(values if len(values) else np.zeros((1, *values.shape[1:]), dtype))

    return DeviceFeatures(
        atoms=put(store.atoms, np.int8),
        atom_offsets=put(store.atom_offsets, np.int32),
        bonds=put(store.bonds, np.int16),
        bond_offsets=put(store.bond_offsets, np.int32),
        residues=put(store.residues, np.uint8),
        residue_offsets=put(store.residue_offsets, np.int32),
    )
