"""The network that tells source from target."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET
from jaxdti.layers.linear import Linear
from jaxdti.layers.norm import MaskedBatchNorm


class Discriminator(nn.Module):
    """Linear, batch normalisation, ReLU for each of ``features``, then logits of (source, target).

    x [..., F], mask bool [...] -> float32 [..., 2]. Its running statistics are never used: it only ever trains.
    """

    features: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        x = x.astype(jnp.float32)
        for i, width in enumerate(self.features):
            x = Linear(width, name=f"hidden_{i}")(x)
            x = nn.relu(MaskedBatchNorm(name=f"norm_{i}")(x, mask, train=True))
        return Linear(2, name="output")(x)


class ClasswiseDiscriminators(nn.Module):
    """``classes`` discriminators with weights of their own, as one stacked network.

    x [classes, ..., F], mask bool [...] -> float32 [classes, ..., 2].
    """

    classes: int
    features: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        stacked = nn.vmap(
            Discriminator,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(0, None),  # pyright: ignore[reportArgumentType]
            axis_size=self.classes,
        )
        return stacked(self.features, name="each")(x, mask)


def domain_cross_entropy(logits: Array) -> Array:
    """Cross-entropy of each row against its domain: float [..., 2, B, 2], axis -3 (source, target) -> [..., 2, B]."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.stack([log_probability[..., SOURCE, :, SOURCE], log_probability[..., TARGET, :, TARGET]], -2)
