"""The sequence convolution against NumPy in float64, for odd and even kernels, shorter and longer than the chain."""

import jax
import numpy as np
import pytest

from jaxdti.layers.sequence import ProteinBatch, SequenceConvolution

LENGTH, IN, OUT = 5, 3, 4


def numpy_convolution(x, mask, kernel, conv_bias, scale, bias, padding):
    """ReLU of the convolution, normalised over the valid positions and masked; also for complex x."""
    size = len(kernel)
    left = (size - 1) // 2 if padding == "SAME" else 0
    length = x.shape[1] if padding == "SAME" else x.shape[1] - size + 1
    y = np.zeros((len(x), length, kernel.shape[2]), np.result_type(x, kernel)) + conv_bias
    for position in range(length):
        for tap in range(size):
            source = position + tap - left
            if 0 <= source < x.shape[1]:
                y[:, position] = y[:, position] + x[:, source] @ kernel[tap]
    y = np.where(y.real > 0, y, 0.0)
    mean = y[mask].mean(0)
    var = ((y[mask] - mean) ** 2).mean(0)
    return np.where(mask[..., None], scale * (y - mean) / np.sqrt(var + 1e-5) + bias, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "padding"), [(3, "SAME"), (4, "SAME"), (8, "SAME"), (4, "VALID")])
def test_values_and_gradients(complex_step, size, padding):
    rng = np.random.default_rng(size)
    lengths = np.array([5, 3]) if padding == "SAME" else np.array([2, 1])
    mask = np.arange(LENGTH if padding == "SAME" else LENGTH - size + 1)[None] < lengths[:, None]
    x = rng.normal(size=(2, LENGTH, IN))
    weights = (rng.normal(size=(size, IN, OUT)), *(rng.normal(size=OUT) for _ in range(3)))
    upstream = rng.normal(size=(*mask.shape, OUT))

    @jax.jit
    def run(x, weights):
        def loss(x, weights):
            kernel, conv_bias, scale, bias = weights
            params = {"conv": {"kernel": kernel, "bias": conv_bias}, "norm": {"scale": scale, "bias": bias}}
            stats = {"norm": {"mean": np.zeros(OUT, np.float32), "var": np.ones(OUT, np.float32)}}
            y, _ = SequenceConvolution(OUT, size, padding).apply(
                {"params": params, "batch_stats": stats}, x, mask, train=True, mutable="batch_stats"
            )
            return (y * np.float32(upstream)).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, weights)

    (_, y), (got_x, got) = run(np.float32(x), jax.tree.map(np.float32, weights))
    np.testing.assert_allclose(y, numpy_convolution(x, mask, *weights, padding), rtol=1e-4, atol=1e-4)

    def total(x, weights):
        return (numpy_convolution(x, mask, *weights, padding) * upstream).sum()

    np.testing.assert_allclose(got_x, complex_step(lambda v: total(v, weights), x), rtol=1e-3, atol=1e-3)
    for i in (0, 1):
        slope = complex_step(lambda v, i=i: total(x, (*weights[:i], v, *weights[i + 1 :])), weights[i])
        np.testing.assert_allclose(got[i], slope, rtol=1e-3, atol=1e-3, err_msg=f"weight {i}")


def test_mask_comes_from_lengths_and_keeps_unknown_residues():
    protein = ProteinBatch(residues=np.uint8([[1, 0, 3, 0], [0, 0, 9, 9]]), residue_count=np.int32([3, 0]))
    np.testing.assert_array_equal(protein.mask, [[True, True, True, False], [False] * 4])
