"""A classifier of drug responses on the code of a pre-trained encoder."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdti.models.autoencoders import Perceptron, normalise


class ResponseHead(nn.Module):
    """The unfrozen layers of an encoder, if any, and the classifier; x [B, F] -> logits [B, 1].

    ``encoder`` holds the widths of the unfrozen hidden layers, None while all are frozen; x is then the code itself.
    Codes of length 1 are multiplied by sqrt(D), so that their entries have variance 1 as standardised genes do.
    """

    widths: tuple[int, ...]
    encoder: tuple[int, ...] | None = None
    latent: int = 0
    variational: bool = False

    @nn.compact
    def __call__(self, x: Array, row_mask: Array, rate: float | Array = 0.0, *, train: bool) -> Array:
        """``row_mask`` bool [B] is not needed: no layer mixes rows."""
        dropped = rate if train else None
        if self.encoder is not None:
            outputs = 2 * self.latent if self.variational else self.latent
            x = as_input(Perceptron(self.encoder, outputs, name="encoder")(x, dropped), self.variational)
        return Perceptron(self.widths, 1, name="classifier")(x, dropped)


def as_input(output: Array, variational: bool) -> Array:
    """What the classifier sees of an encoder's output: the mean, or the normalised code times sqrt(D)."""
    return jnp.split(output, 2, -1)[0] if variational else normalise(output) * output.shape[-1] ** 0.5


def frozen_activations(encoder: dict[str, Any], x: Array, hidden: int) -> Array:
    """x [N, G] behind the first ``hidden`` hidden layers of an encoder (its parameters), without dropout."""
    for i in range(hidden):
        layer = encoder[f"hidden_{i}"]["dense"]
        x = nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x


def encoder_output(encoder: dict[str, Any], x: Array) -> Array:
    """x [N, G] -> [N, outputs], without dropout."""
    layer = encoder["output"]["dense"]
    return frozen_activations(encoder, x, len(encoder) - 1) @ layer["kernel"] + layer["bias"][None]


@dataclass(frozen=True)
class Encoder:
    """A pre-trained encoder, or none: then the classifier sees the genes."""

    method: str
    seed: int  # of the pre-training, the folds and the classifiers
    params: dict[str, Any] | None  # {"hidden_0": ..., "output": ...}

    @property
    def variational(self) -> bool:
        return self.method == "vae"
