"""Dense layers: plain, and with the weight normalised by one scalar gain."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def uniform_fan_in(fan_in: int):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the one DrugBAN's linear and convolution layers start from."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """``y = x W + b``; x [..., I] -> [..., features] in ``dtype``, parameters float32."""

    features: int
    use_bias: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.features, self.use_bias, self.dtype, kernel_init=init, bias_init=init, name="dense")(x)


class NormalisedWeights(nn.Module):
    """W and b of ``y = x W + b`` with ``W = g V / ||V||``: one Frobenius norm over V and a scalar g (arXiv:1602.07868).

    The number of inputs -> W [inputs, features] and b [features] in ``dtype``; parameters float32. g starts at ||V||.
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array]:
        init = uniform_fan_in(inputs)
        kernel = self.param("kernel", init, (inputs, self.features), jnp.float32)
        gain = self.param("gain", lambda key: jnp.linalg.norm(kernel.reshape(-1)))
        bias = self.param("bias", init, (self.features,), jnp.float32)
        weight = kernel * (gain / jnp.linalg.norm(kernel.reshape(-1)))
        return weight.astype(self.dtype), bias.astype(self.dtype)


@jax.custom_vjp
def product(x: Array, weight: Array) -> Array:
    """``x W``; x [..., I], W [I, O] -> [..., O].

    The gradient with respect to W is written with x first: as JAX writes it, XLA on CPU transposes the gradient of the
    result into a copy, here six times as large as x.
    """
    return x @ weight


def _save(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _gradients(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, weight = saved
    rows = tuple(range(x.ndim - 1))
    return g @ weight.T, jnp.tensordot(x, g, (rows, rows))


product.defvjp(_save, _gradients)
