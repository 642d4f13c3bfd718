"""An exact derivative for the NumPy references of the layers."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def complex_step():
    """``gradient(f, x)`` float64 of a real scalar function, written in NumPy so that it accepts complex x.

    f(x + ih) = f(x) + ih f'(x) + O(h^2) has no cancellation, so h may be tiny and the result is exact to rounding.
    A ReLU must decide on the real part.
    """

    def gradient(f, x: np.ndarray, step: float = 1e-30) -> np.ndarray:
        slope = np.zeros(x.shape)
        for place in np.ndindex(*x.shape):
            moved = x.astype(complex)
            moved[place] += 1j * step
            slope[place] = np.imag(f(moved)) / step
        return slope

    return gradient
