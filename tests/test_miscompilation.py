"""Detects XLA CPU releases that return wrong numbers for a vmapped matrix-vector product followed by a reduction.

The compiler turns the product and the reduction into one `__ynn_fusion`; with a shared [2, 3] or [3, 3] float32 matrix
and 32,769 to 49,151 rows, the rows from 32,768 on are wrong. jaxlib 0.10.2 fails for any reduction tried here
(github.com/jax-ml/jax/issues/39103). jaxlib 0.9.2, 0.10.0 and 0.10.1 fail for a plain sum, mean, max or min, and are
right when something element-wise stands between; 0.11.2 is right throughout. Importing jaxdti turns the fusion off on
0.10.0 and 0.10.1, so that every case has to pass on every supported release.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# (rows, matrix, one matrix per row?)
CASES = [
    (7, (3, 3), False),
    (32_769, (3, 3), False),
    (40_001, (1, 3), False),
    (40_001, (2, 3), False),
    (40_001, (3, 3), False),
    (40_001, (5, 7), False),
    (40_001, (1, 3), True),
    (40_001, (3, 3), True),
]
# name: (reduction of one product in JAX, the same over the last axis in NumPy)
REDUCTIONS = {
    "sum": (jnp.sum, lambda y: y.sum(-1)),
    "mean": (jnp.mean, lambda y: y.mean(-1)),
    "max": (jnp.max, lambda y: y.max(-1)),
    "min": (jnp.min, lambda y: y.min(-1)),
    "squares": (lambda y: jnp.sum(y**2), lambda y: (y**2).sum(-1)),
    "norm": (jnp.linalg.norm, lambda y: np.sqrt((y**2).sum(-1))),
    "relu": (lambda y: jnp.sum(jax.nn.relu(y)), lambda y: np.maximum(y, 0).sum(-1)),
}


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def _operands(rows: int, shape: tuple[int, int], per_row: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    matrix = rng.normal(size=(rows, *shape) if per_row else shape).astype(np.float32)
    return matrix, rng.normal(size=(rows, shape[1])).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("rows, shape, per_row", CASES, ids=str)
def test_vmapped_product_and_reduction_match_numpy(rows, per_row, shape, name):
    matrix, vectors = _operands(rows, shape, per_row)
    product = np.einsum("bmk,bk->bm" if per_row else "mk,bk->bm", matrix.astype(np.float64), vectors)
    reduce, expected = REDUCTIONS[name]
    run = jax.jit(jax.vmap(lambda m, v: reduce(m @ v), in_axes=(0 if per_row else None, 0)))
    np.testing.assert_allclose(run(matrix, vectors), expected(product), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_reduction_over_any_axis_matches_numpy(axis):
    matrix, vectors = _operands(40_001, (3, 3))
    run = jax.jit(lambda m, v: jnp.sum(jax.vmap(lambda row: (m @ row) ** 2)(v), axis))
    expected = ((vectors.astype(np.float64) @ matrix.astype(np.float64).T) ** 2).sum(axis)
    np.testing.assert_allclose(run(matrix, vectors), expected, rtol=1e-4)


def test_gradient_matches_numpy():
    matrix, vectors = _operands(40_001, (3, 3))

    def total(m, v):
        return jnp.sum(jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(v))

    wide, tall = matrix.astype(np.float64), vectors.astype(np.float64)
    by_matrix, by_vectors = jax.jit(jax.grad(total, argnums=(0, 1)))(matrix, vectors)
    np.testing.assert_allclose(by_matrix, 2 * wide @ tall.T @ tall, rtol=1e-4, atol=1.0)
    np.testing.assert_allclose(by_vectors, 2 * tall @ wide.T @ wide, rtol=1e-4, atol=1e-4)


# The models' own widths: 3 and 128 inputs, 25 letters, 74 atom features; rows are batch times atoms or residues.
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(128, 3), (25, 128), (128, 74), (3, 128)], ids=str)
@pytest.mark.parametrize("name", ["sum", "max"])
def test_the_widths_of_the_models_are_right(name, shape):
    matrix, vectors = _operands(40_001, shape)
    reduce, expected = REDUCTIONS[name]
    run = jax.jit(jax.vmap(lambda m, v: reduce(m @ v), in_axes=(None, 0)))
    product = vectors.astype(np.float64) @ matrix.astype(np.float64).T
    np.testing.assert_allclose(run(matrix, vectors), expected(product), rtol=1e-4, atol=1e-3)
