"""Multi-kernel MMD against its equation in NumPy, float64."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.mmd import BANDWIDTHS, mmd

BOTH = jax.jit(jax.value_and_grad(mmd, argnums=(0, 1)))


def mean_distance(x):
    return np.mean([np.sum((a - b) ** 2) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])


def reference(s, t, width):
    kernel = lambda a, b: np.mean([np.exp(-np.sum((a - b) ** 2) / (scale * width)) for scale in BANDWIDTHS])
    mean = lambda x, y: np.mean([[kernel(a, b) for b in y] for a in x])
    return mean(s, s) + mean(t, t) - 2 * mean(s, t)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width"), [((1, 1), 1), ((4, 3), 3), ((2, 7), 2)])
def test_value_and_gradients(central_differences, rows, width):
    rng = np.random.default_rng(0)
    s, t = (rng.normal(size=(n + 2, width)) + shift for n, shift in zip(rows, (0.0, 0.8), strict=True))
    masks = [np.arange(n + 2) >= 2 for n in rows]
    h = mean_distance(np.concatenate([s[2:], t[2:]]))
    value, gradients = BOTH(np.float32(s), np.float32(t), *masks)
    np.testing.assert_allclose(value, reference(s[2:], t[2:], h), rtol=1e-4)
    for got, slope in (
        (gradients[0], central_differences(lambda x: reference(x[2:], t[2:], h), s)),
        (gradients[1], central_differences(lambda x: reference(s[2:], x[2:], h), t)),
    ):
        np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-5)


@pytest.fixture
def rows():
    x = np.random.default_rng(1).normal(size=(2, 8, 16)).astype(np.float32)
    return x, np.ones((2, 8), bool)


def test_far_from_the_origin_nothing_changes(rows):
    x, masks = rows
    x = np.round(x * 64) / 64  # so that the shift is exact
    value, gradients = BOTH(*x, *masks)
    moved, moved_gradients = BOTH(*(x + np.float32(4096.0)), *masks)
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_allclose(moved_gradients, gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1.0, 1e3])
def test_equal_rows_are_at_no_distance(rows, scale):
    x, masks = rows
    same = np.broadcast_to(np.float32(scale) * x[0, :1], (8, 16))
    value, gradients = BOTH(same, same, *masks)
    assert abs(value) < 1e-6
    np.testing.assert_array_equal(gradients, 0.0)


def test_same_rows_in_another_order_are_at_no_distance_and_others_are(rows):
    x, masks = rows
    of = lambda s, t: BOTH(s, t, *masks)[0]
    np.testing.assert_allclose(of(x[0], x[0][::-1]), 0.0, atol=1e-6)
    assert of(x[0], x[0] + 1) > 10 * of(x[0], x[0] + np.float32(0.1)) > 0
    np.testing.assert_allclose(of(*(np.float32(1e3) * x)), of(*x), rtol=1e-4)  # widths follow the distances
