"""What the tests of the losses share: a batch of two domains, small discriminators, and numerical derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def central_differences():
    """``gradient(f, x)`` float64 of a real scalar function in NumPy; its error is far below that of float32."""

    def gradient(f, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
        slope = np.zeros(x.shape)
        for place in np.ndindex(*x.shape):
            moved = np.zeros(x.shape)
            moved[place] = step
            slope[place] = (f(x + moved) - f(x - moved)) / (2 * step)
        return slope

    return gradient


@pytest.fixture(scope="session")
def batch():
    """``batch(rows, features, classes, seed)``: float64 features and logits and a mask with rows in both domains."""

    def make(rows: int, features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        mask = rng.random((2, rows)) < 0.7
        mask[:, 0] = True
        return rng.normal(size=(2, rows, features)), 2 * rng.normal(size=(2, rows, classes)), mask

    return make


@pytest.fixture(scope="session")
def weights():
    """``weights(features, classes=None)``: of one discriminator ``tanh(x A) B``, or of ``classes`` stacked ones."""

    def make(features: int, classes: int | None = None, seed: int = 1) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        stack = () if classes is None else (classes,)
        return {"A": rng.normal(size=(*stack, features, 3)) / features**0.5, "B": rng.normal(size=(*stack, 3, 2))}

    return make


@pytest.fixture(scope="session")
def discriminator():
    """``discriminator(weights)``: what the losses call. Rows do not meet, so a mask cannot hide in it."""
    return lambda w: lambda x, mask: jnp.tanh(x @ w["A"]) @ w["B"]


@pytest.fixture(scope="session")
def classwise(discriminator):
    """``classwise(weights)``: x [K, 2, B, F] -> [K, 2, B, 2], each class on an input of its own."""
    return lambda w: lambda x, mask: jax.vmap(lambda w, x: discriminator(w)(x, mask))(w, x)


@pytest.fixture(scope="module", autouse=True)
def fast(compile_fast_and_once):
    """Every test here is mostly compilation."""
