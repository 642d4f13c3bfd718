"""The one-dimensional convolution, in a form that stays fast when replicas are trained together."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from jaxdti.layers.linear import uniform_fan_in

_LAYOUT = ("NWC", "WIO", "NWC")


class Convolution(nn.Module):
    """``y_i = sum_j x_{i+j} W_j + b``, stride 1; x [B, L, I] -> [B, L', features] in ``dtype``, parameters float32.

    With ``basis`` [letters, I], x is [B, L, letters] and stands for x @ basis: folded into the kernel, that costs
    letters / I of the multiplications.
    """

    features: int
    width: int
    padding: str
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, basis: Array | None = None) -> Array:
        inputs = x.shape[-1] if basis is None else basis.shape[-1]
        init = uniform_fan_in(inputs * self.width)
        kernel = self.param("kernel", init, (self.width, inputs, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        if basis is not None:
            kernel = jnp.einsum("ai,wif->waf", basis, kernel)
        y: Any = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.padding)
        return y + bias.astype(self.dtype)[None, None]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, padding: str) -> Array:
    """x [B, L, I], kernel [W, I, O], padding "SAME" or "VALID" -> [B, L', O].

    Under ``vmap`` over kernels XLA would make one grouped convolution of it, which took 1.6 times as long on CPU as
    one after the other (4 replicas, 16 x 640 x 128, width 9, with gradients); here each replica keeps its own.
    """
    return _each(partial(_forward, padding))(x, kernel)


def _forward(padding: str, x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1,), padding, dimension_numbers=_LAYOUT)


def _save(x: Array, kernel: Array, padding: str) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, padding), (x, kernel)


def _gradients(padding: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def to_input(g: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: _forward(padding, x, kernel), x_shape)(g)[0]

    def to_kernel(g: Array, x: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _forward(padding, x, kernel), kernel_shape)(g)[0]

    x_shape, kernel_shape = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
    return _each(to_input)(g, kernel), _each(to_kernel)(g, x)


convolve.defvjp(_save, _gradients)


def _each(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """``function`` of two arrays; under vmap it is applied to one replica after the other, in one program."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def one_by_one(size: int, batched: tuple[bool, bool], a: Array, b: Array) -> tuple[Array, bool]:
        pick = lambda x, is_batched, i: x[i] if is_batched else x
        return jnp.stack([mapped(pick(a, batched[0], i), pick(b, batched[1], i)) for i in range(size)]), True

    return mapped
