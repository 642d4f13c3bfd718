"""Protein sequences and the one-dimensional convolution over them."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.convolution import Convolution
from jaxdti.layers.norm import MaskedBatchNorm


class ProteinBatch(flax.struct.PyTreeNode):
    """B sequences, padded to L residues."""

    residues: Array  # uint8 [B, L]; 1 to 25 = letters, 0 = padding
    residue_count: Array  # int32 [B]

    @property
    def mask(self) -> Array:
        """bool [B, L], True for residues (unknown ones too: masks come from lengths)."""
        return jnp.arange(self.residues.shape[1])[None, :] < self.residue_count[:, None]


class ProteinsEndToEnd(flax.struct.PyTreeNode):
    """Sequences along one row of L positions, with so much padding between them that no convolution spans two."""

    residues: Array  # uint8 [1, L]; as in ``ProteinBatch``
    mask: Array  # bool [1, L]


class SequenceConvolution(nn.Module):
    """``y = BN(ReLU(conv(x)))``, stride 1; x [B, L, F], mask [B, L] -> [B, L', features];
    ``basis`` as in ``Convolution``.

    With ``padding="SAME"`` L' = L, position i of the result is centred on residue i (an even kernel reaches one
    further to the right), and masked positions leave as 0, so that the next convolution sees the end of a chain
    alike however far the batch is padded. The mask is bool, or float32 where a residue counts more than once in the
    statistics.
    """

    features: int
    kernel: int
    padding: str = "SAME"
    dtype: jax.typing.DTypeLike = jnp.float32
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array, basis: Array | None = None, *, train: bool) -> Array:
        y = Convolution(self.features, self.kernel, self.padding, dtype=self.dtype, name="conv")(x, basis)
        y = MaskedBatchNorm(unbiased=self.unbiased, name="norm")(nn.relu(y), mask, train=train)
        return y * (mask > 0)[..., None].astype(y.dtype)
