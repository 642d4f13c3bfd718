"""The decoder of DrugBAN."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.linear import Linear
from jaxdti.layers.norm import MaskedBatchNorm


class Decoder(nn.Module):
    """Linear, ReLU, batch normalisation for each of ``features``, then a linear layer to ``outputs``.

    x [B, F], row_mask bool [B] -> float32 [B, outputs].
    """

    features: Sequence[int]
    outputs: int
    dtype: jax.typing.DTypeLike = jnp.float32
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: Array, row_mask: Array, *, train: bool) -> Array:
        for i, width in enumerate(self.features):
            x = nn.relu(Linear(width, dtype=self.dtype, name=f"hidden_{i}")(x))
            x = MaskedBatchNorm(unbiased=self.unbiased, name=f"norm_{i}")(x, row_mask, train=train)
        return Linear(self.outputs, name="output")(x.astype(jnp.float32))
