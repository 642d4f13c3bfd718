"""Autoencoders of expression profiles: plain, denoising and variational, with their losses.

Each turns profiles [B, G] into codes [B, D] and back: ``encode``, ``decode``, ``reconstruct``, ``sample`` (codes from
the prior), ``generate`` (profiles from the prior). A denoising autoencoder is a plain one that sees ``corrupt(x)`` and
is compared with x. Dropout rates are arguments, so that replicas may differ in them.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.dropout import dropout
from jaxdti.layers.linear import Linear

TINY_NORM = 1e-6  # a shorter vector has no direction


def normalise(x: Array) -> Array:
    """``x / |x|`` over the last axis, float [..., D]; 0, with gradient 0, where ``|x|`` is at most 1e-6."""
    square = jnp.sum(x * x, -1, keepdims=True)
    known = square > TINY_NORM**2
    return jnp.where(known, x * jax.lax.rsqrt(jnp.where(known, square, 1.0)), 0.0)


class Perceptron(nn.Module):
    """Linear, ReLU and dropout for each of ``widths``, then linear to ``outputs``; x [..., F] -> [..., outputs].

    Weights and biases start from U(-1/sqrt(F), 1/sqrt(F)), F being the inputs of the layer (``layers.linear``).
    """

    widths: Sequence[int]
    outputs: int

    @nn.compact
    def __call__(self, x: Array, rate: float | Array | None = None) -> Array:
        """``rate`` of the dropout, drawn from the stream "dropout"; None for none."""
        for i, width in enumerate(self.widths):
            x = nn.relu(Linear(width, name=f"hidden_{i}")(x))
            if rate is not None:
                x = dropout(x, rate, self.make_rng("dropout"))
        return Linear(self.outputs, name="output")(x)


class Autoencoder(nn.Module):
    """Encoder ``genes - widths - latent`` and its mirror image.

    ``variational``: the encoder gives mean and log variance of a Gaussian, the prior is the standard Gaussian, and
    ``encode`` gives the mean (Kingma & Welling, arXiv:1312.6114). Otherwise codes are normalised to length 1, and the
    prior is uniform on the sphere.
    """

    genes: int
    widths: Sequence[int] = (512, 256)
    latent: int = 128
    variational: bool = False

    def setup(self):
        self.encoder = Perceptron(self.widths, self.latent * (2 if self.variational else 1))
        self.decoder = Perceptron(tuple(reversed(self.widths)), self.genes)

    def __call__(self, x: Array) -> Array:
        return self.reconstruct(x)

    def posterior(self, x: Array, rate: float | Array | None = None) -> tuple[Array, Array]:
        """Mean and log variance [B, D] each, of a variational autoencoder."""
        mean, log_variance = jnp.split(self.encoder(x, rate), 2, axis=-1)
        return mean, log_variance

    def encode(self, x: Array, rate: float | Array | None = None) -> Array:
        """x [B, G] -> codes [B, D]."""
        return self.posterior(x, rate)[0] if self.variational else normalise(self.encoder(x, rate))

    def decode(self, code: Array, rate: float | Array | None = None) -> Array:
        """Codes [B, D] -> profiles [B, G]."""
        return self.decoder(code, rate)

    def reconstruct(self, x: Array, rate: float | Array | None = None) -> Array:
        """x [B, G] -> [B, G]."""
        return self.decode(self.encode(x, rate), rate)

    def sample(self, count: int) -> Array:
        """``count`` codes [count, D] from the prior, drawn from the stream "sample"."""
        code = jax.random.normal(self.make_rng("sample"), (count, self.latent))
        return code if self.variational else normalise(code)

    def generate(self, count: int) -> Array:
        """``count`` profiles [count, G] from the prior."""
        return self.decode(self.sample(count))


def corrupt(x: Array, share: float | Array, key: Array) -> Array:
    """x with a random ``share`` of its entries set to 0, a standardised gene's mean (Vincent et al., ICML 2008)."""
    return jnp.where(jax.random.uniform(key, x.shape) < share, 0.0, x)


def draw_code(mean: Array, log_variance: Array, key: Array) -> Array:
    """``mean + exp(log_variance / 2) e`` with standard normal e: a draw that gradients pass through; all [B, D]."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


# Losses: one value a row, [B, G] or [B, D] -> [B]. The caller reduces, with ``masked_mean``.


def squared_error(x: Array, y: Array) -> Array:
    """Mean over genes of ``(x - y)^2``."""
    return jnp.mean((x - y) ** 2, -1)


def absolute_error(x: Array, y: Array) -> Array:
    """Mean over genes of ``|x - y|``."""
    return jnp.mean(jnp.abs(x - y), -1)


def euclidean_error(x: Array, y: Array) -> Array:
    """``|x - y|_2``, with gradient 0 where x = y."""
    square = jnp.sum((x - y) ** 2, -1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def elastic_error(x: Array, y: Array) -> Array:
    """The mean of ``squared_error`` and ``absolute_error``."""
    return 0.5 * (squared_error(x, y) + absolute_error(x, y))


RECONSTRUCTION = {
    "squared": squared_error,
    "absolute": absolute_error,
    "euclidean": euclidean_error,
    "elastic": elastic_error,
}


def gaussian_divergence(mean: Array, log_variance: Array) -> Array:
    """KL divergence from N(mean, exp(log_variance)) to N(0, 1): ``-1/2 sum(1 + log_variance - mean^2 - variance)``."""
    return -0.5 * jnp.sum(1.0 + log_variance - mean**2 - jnp.exp(log_variance), -1)
