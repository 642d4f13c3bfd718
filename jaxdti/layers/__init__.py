"""Flax layers that heed masks, and the reversal of gradients."""

from typing import TYPE_CHECKING

from jaxdti.lazy import lazy

if TYPE_CHECKING:
    from jaxdti.layers.bilinear import BilinearAttention
    from jaxdti.layers.norm import MaskedBatchNorm
    from jaxdti.layers.reversal import reverse_gradient

__all__ = ["BilinearAttention", "MaskedBatchNorm", "reverse_gradient"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "jaxdti.layers.bilinear": ("BilinearAttention",),
        "jaxdti.layers.norm": ("MaskedBatchNorm",),
        "jaxdti.layers.reversal": ("reverse_gradient",),
    },
)
