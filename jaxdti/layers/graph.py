"""Molecular graphs: compact atoms to features, bonds to adjacency, and the graph convolution."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.linear import Linear
from jaxdti.layers.norm import MaskedBatchNorm

# Width of each part of the 74 atom features, in the order of the columns of ``DrugBatch.atoms``. A width of 1 is the
# number itself (formal charge, radical electrons, aromatic), the others are one-hot.
ATOM_FEATURE_WIDTHS = (43, 11, 7, 1, 1, 5, 1, 5)


class DrugBatch(flax.struct.PyTreeNode):
    """B molecules, padded to A atoms and E bonds."""

    atoms: Array  # int8 [B, A, 8]; the columns of ATOM_FEATURE_WIDTHS, -1 = not on the list
    bonds: Array  # int32 [B, E, 2]; each bond once, atom indices within the molecule
    atom_count: Array  # int32 [B]
    bond_count: Array  # int32 [B]

    @property
    def mask(self) -> Array:
        """bool [B, A], True for atoms."""
        return jnp.arange(self.atoms.shape[1])[None, :] < self.atom_count[:, None]


def atom_features(atoms: Array, dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
    """int8 [..., 8] -> [..., 74]: one-hot parts, -1 giving zeros, and plain numbers."""
    parts = []
    for column, width in enumerate(ATOM_FEATURE_WIDTHS):
        values = atoms[..., column]
        parts.append(values[..., None].astype(dtype) if width == 1 else jax.nn.one_hot(values, width, dtype=dtype))
    return jnp.concatenate(parts, axis=-1)


def adjacency(drug: DrugBatch, self_loops: Array) -> Array:
    """float32 [B, A, A]: 1 for each bond, both ways, and ``self_loops`` [B, A] on the diagonal."""
    batch, size = drug.atoms.shape[:2]
    present = jnp.arange(drug.bonds.shape[1])[None, :] < drug.bond_count[:, None]
    weight = present.astype(jnp.float32)
    rows = jnp.arange(batch)[:, None]
    begin, end = drug.bonds[..., 0], drug.bonds[..., 1]
    bonds = jnp.zeros((batch, size, size)).at[rows, begin, end].add(weight).at[rows, end, begin].add(weight)
    return bonds + self_loops[:, :, None] * jnp.eye(size)[None]


class GraphConvolution(nn.Module):
    """``h' = BN(ReLU(A h W + b) + ReLU(h R + r))`` with the plain adjacency A (arXiv:1609.02907, residual added).

    h [B, A, F], adjacency [B, A, A], mask bool [B, A] -> [B, A, features]; masked atoms leave as 0.
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    unbiased: bool = False

    @nn.compact
    def __call__(self, h: Array, neighbours: Array, mask: Array, *, train: bool) -> Array:
        message = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="message"
        )(jnp.einsum("bij,bjf->bif", neighbours.astype(self.dtype), h))
        residual = Linear(self.features, dtype=self.dtype, name="residual")(h)
        h = MaskedBatchNorm(unbiased=self.unbiased, name="norm")(
            nn.relu(message) + nn.relu(residual), mask, train=train
        )
        return h * mask[..., None].astype(h.dtype)
