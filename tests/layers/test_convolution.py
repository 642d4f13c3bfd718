"""The convolution against NumPy and PyTorch's definition: values, gradients, and replicas under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.convolution import Convolution, convolve


def numpy_convolve(x: np.ndarray, kernel: np.ndarray, padding: str) -> np.ndarray:
    width = len(kernel)
    if padding == "SAME":
        x = np.pad(x, ((0, 0), ((width - 1) // 2, width // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, width, axis=1)  # [B, L', I, W]
    return np.einsum("blic,cio->blo", windows, kernel)


def arrays(width: int, *lead: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    shapes = ((*lead, 3, 17, 5), (*lead, width, 5, 4), (*lead, 3, 17, 4))
    x, kernel, g = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, kernel, g


def value_and_gradients(x, kernel, g, padding):
    y, back = jax.vjp(lambda x, kernel: convolve(x, kernel, padding), x, kernel)
    return y, *back(g[:, : y.shape[1]])


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("width", [1, 2, 3, 6, 9])
def test_values_and_gradients_are_those_of_the_definition(width, padding):
    x, kernel, g = arrays(width)
    y, to_x, to_kernel = value_and_gradients(x, kernel, g, padding)
    np.testing.assert_allclose(y, numpy_convolve(x, kernel, padding), rtol=1e-4, atol=1e-5)
    # The form is linear in both arguments, so its gradients follow from values: <g, f(dx, k)> = <df/dx, dx>.
    rng = np.random.default_rng(1)
    g = g[:, : y.shape[1]]
    for gradient, direction, moved in (
        (to_x, dx := rng.normal(size=x.shape), numpy_convolve(dx, kernel, padding)),
        (to_kernel, dk := rng.normal(size=kernel.shape), numpy_convolve(x, dk, padding)),
    ):
        np.testing.assert_allclose(np.sum(gradient * direction), np.sum(g * moved), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_replicas_under_vmap_equal_one_by_one(axes):
    x, kernel, g = arrays(3, 4)
    chosen = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]
    together = jax.jit(jax.vmap(lambda *a: value_and_gradients(*a, "SAME"), in_axes=(*axes, 0)))(*chosen, g)
    alone = [value_and_gradients(x[i * (axes[0] == 0)], kernel[i * (axes[1] == 0)], g[i], "SAME") for i in range(4)]
    for a, b in zip(together, map(jnp.stack, zip(*alone, strict=True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_replicas_do_not_become_a_grouped_convolution():
    x, kernel, g = arrays(3, 4)
    plain = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    ours, grouped = (
        jax.jit(jax.vmap(f)).lower(x, kernel).as_text().replace(" ", "")
        for f in (lambda x, k: convolve(x, k, "SAME"), plain)
    )
    assert "feature_group_count=4" in grouped
    assert "feature_group_count=4" not in ours and ours.count("feature_group_count=1") == 4


def test_the_layer_computes_in_its_dtype_and_keeps_float32_parameters():
    x, _, _ = arrays(3)
    layer = Convolution(4, 3, "SAME", dtype=jnp.bfloat16)
    variables = layer.init(jax.random.PRNGKey(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    y = layer.apply(variables, x)
    assert y.dtype == jnp.bfloat16 and y.shape == (3, 17, 4)
    wide = Convolution(4, 3, "SAME").apply(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=0.05, atol=0.05)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    np.testing.assert_allclose(wide, numpy_convolve(x, np.asarray(kernel), "SAME") + np.asarray(bias), atol=1e-5)
