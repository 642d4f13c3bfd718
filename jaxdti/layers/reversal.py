"""Gradient reversal: one optimiser step serves both players of an adversarial game."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def reverse_gradient(x: Array, strength: float | Array) -> Array:
    """x as it is; its gradient comes back multiplied by ``-strength`` (Ganin et al., JMLR 2016).

    x float [...]; strength a scalar, may be traced, and gets no gradient.
    """
    return x


def _forward(x: Array, strength: float | Array) -> tuple[Array, Array]:
    return x, jnp.asarray(strength, x.dtype)


def _backward(strength: Array, g: Array) -> tuple[Array, None]:
    return -strength * g, None


reverse_gradient.defvjp(_forward, _backward)


def ramp(progress: float | Array) -> Array:
    """The usual schedule of the strength, ``2 / (1 + exp(-10 p)) - 1``: 0 at p = 0, nearly 1 at p = 1."""
    return 2.0 / (1.0 + jnp.exp(-10.0 * jnp.clip(progress, 0.0, 1.0))) - 1.0
