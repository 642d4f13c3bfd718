"""Deep CORAL against NumPy's covariance, float64."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.coral import coral

BOTH = jax.jit(jax.value_and_grad(coral, argnums=(0, 1)))


def reference(s, t):
    of = lambda x: np.atleast_2d(np.cov(x, rowvar=False))
    return np.sum((of(s) - of(t)) ** 2) / (4 * s.shape[1] ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width"), [((2, 2), 1), ((5, 3), 4), ((2, 9), 3)])
def test_value_and_gradients(central_differences, rows, width):
    rng = np.random.default_rng(0)
    s, t = (scale * rng.normal(size=(n + 2, width)) for n, scale in zip(rows, (1.0, 2.0), strict=True))
    masks = [np.arange(n + 2) < n for n in rows]
    kept = lambda x, i: x[: rows[i]]
    value, gradients = BOTH(np.float32(s), np.float32(t), *masks)
    np.testing.assert_allclose(value, reference(kept(s, 0), kept(t, 1)), rtol=1e-4)
    for got, slope in (
        (gradients[0], central_differences(lambda x: reference(kept(x, 0), kept(t, 1)), s)),
        (gradients[1], central_differences(lambda x: reference(kept(s, 0), kept(x, 1)), t)),
    ):
        np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-5)


def test_means_do_not_matter():
    s, t = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)
    mask = np.ones(6, bool)
    np.testing.assert_allclose(coral(s + 100, t, mask, mask), coral(s, t, mask, mask), rtol=1e-3)
    np.testing.assert_allclose(coral(s, s + 100, mask, mask), 0.0, atol=1e-8)


def test_one_row_has_no_covariance():
    s, t = np.random.default_rng(2).normal(size=(2, 6, 3)).astype(np.float32)
    one = np.arange(6) == 2
    for masks in ((one, ~one), (~one, one)):
        value, gradients = BOTH(s, t, *masks)
        assert value == 0
        np.testing.assert_array_equal(gradients, 0.0)
