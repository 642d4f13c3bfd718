"""Atom features, adjacency and the graph convolution against NumPy in float64."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdti.layers.graph import ATOM_FEATURE_WIDTHS, DrugBatch, GraphConvolution, adjacency, atom_features

BATCH, ATOMS, WIDTH = 2, 4, 3


def naive_features(row):
    parts = []
    for value, width in zip(row, ATOM_FEATURE_WIDTHS, strict=True):
        parts += [float(value)] if width == 1 else [float(value == i) for i in range(width)]
    return parts


atom_rows = st.tuples(
    *(st.integers(-4, 4) if width == 1 else st.integers(-1, width - 1) for width in ATOM_FEATURE_WIDTHS)
)


@settings(max_examples=20)
@given(st.lists(atom_rows, min_size=6, max_size=6))
def test_atom_features_match_a_plain_loop(rows):
    atoms = np.array(rows, np.int8).reshape(2, 3, 8)
    got = np.asarray(jax.jit(atom_features)(atoms))
    assert got.shape == (2, 3, 74)
    np.testing.assert_array_equal(got.reshape(6, 74), np.array([naive_features(row) for row in rows]))


def drugs(bonds, bond_count, atom_count):
    return DrugBatch(
        atoms=np.zeros((len(atom_count), ATOMS, 8), np.int8),
        bonds=np.array(bonds, np.int32),
        atom_count=np.array(atom_count, np.int32),
        bond_count=np.array(bond_count, np.int32),
    )


def test_adjacency_counts_each_bond_both_ways_and_no_bond_past_the_end():
    # The padding holds a neighbour's bonds, even to atoms that this batch has no room for.
    drug = drugs([[[0, 1], [2, 1], [3, 3]], [[0, 3], [1, 2], [9, 40]]], [2, 1], [3, 4])
    got = np.asarray(jax.jit(adjacency)(drug, np.float32([[2, 2, 2, 1], [1, 1, 1, 0]])))
    expected = np.array(
        [
            [[2, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 0], [0, 0, 0, 1]],
            [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]],
        ]
    )
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(drug.mask, [[True, True, True, False], [True] * 4])


def relu(x):
    return np.where(x.real > 0, x, 0.0)


def numpy_convolution(h, neighbours, mask, message_w, message_b, residual_w, residual_b, scale, bias):
    y = relu(neighbours @ h @ message_w + message_b) + relu(h @ residual_w + residual_b)
    mean = y[mask].mean(0)
    var = ((y[mask] - mean) ** 2).mean(0)
    return np.where(mask[..., None], scale * (y - mean) / np.sqrt(var + 1e-5) + bias, 0.0)


def test_convolution_values_and_gradients(complex_step):
    rng = np.random.default_rng(0)
    mask = np.array([[True, True, True, False], [True, True, False, False]])
    h = rng.normal(size=(BATCH, ATOMS, WIDTH)) * mask[..., None]
    neighbours = rng.integers(0, 3, (BATCH, ATOMS, ATOMS)) * (mask[:, :, None] & mask[:, None, :])
    upstream = rng.normal(size=(BATCH, ATOMS, 5))
    wide, narrow = lambda: rng.normal(size=(WIDTH, 5)), lambda: rng.normal(size=5)
    weights = (wide(), narrow(), wide(), narrow(), narrow(), narrow())

    @jax.jit
    def run(h, weights):
        message_w, message_b, residual_w, residual_b, scale, bias = weights
        params = {
            "message": {"kernel": message_w, "bias": message_b},
            "residual": {"dense": {"kernel": residual_w, "bias": residual_b}},
            "norm": {"scale": scale, "bias": bias},
        }
        stats = {"norm": {"mean": np.zeros(5, np.float32), "var": np.ones(5, np.float32)}}
        variables = {"params": params, "batch_stats": stats}
        return GraphConvolution(5).apply(variables, h, np.float32(neighbours), mask, train=True, mutable="batch_stats")[
            0
        ]

    @jax.jit
    def run_and_slopes(h, weights):
        def loss(h, weights):
            y = run(h, weights)
            return (y * np.float32(upstream)).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h, weights)

    (_, y), (got_h, got) = run_and_slopes(np.float32(h), jax.tree.map(np.float32, weights))
    np.testing.assert_allclose(y, numpy_convolution(h, neighbours, mask, *weights), rtol=1e-4, atol=1e-5)

    def total(h, weights):
        return (numpy_convolution(h, neighbours, mask, *weights) * upstream).sum()

    slope = complex_step(lambda v: total(v, weights), h)
    np.testing.assert_allclose(np.asarray(got_h)[mask], slope[mask], rtol=1e-3, atol=1e-4)
    for i in range(len(weights)):
        slope = complex_step(lambda v, i=i: total(h, (*weights[:i], v, *weights[i + 1 :])), weights[i])
        np.testing.assert_allclose(got[i], slope, rtol=1e-3, atol=1e-4, err_msg=f"weight {i}")
