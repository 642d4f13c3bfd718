"""Minimum class confusion against its equation in NumPy, float64."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.mcc import mcc


def predictions(logits, temperature):
    if logits.shape[-1] == 1:
        logits = np.concatenate([0 * logits, logits], -1)
    scores = np.exp(logits / temperature)
    return scores / scores.sum(-1, keepdims=True)


def reference(logits, detached, temperature):
    """The gradient goes through ``logits``; the weights come from ``detached``, which are the same."""
    g, fixed = predictions(logits, temperature), predictions(detached, temperature)
    importance = np.array([1 + np.exp(np.sum(p * np.log(p))) for p in fixed])
    importance *= len(g) / importance.sum()
    classes = g.shape[1]
    confusion = np.zeros((classes, classes))
    for weight, p in zip(importance, g, strict=True):
        confusion += weight * np.outer(p, p)
    confusion /= confusion.sum(1, keepdims=True)
    return (confusion.sum() - np.trace(confusion)) / classes


BOTH = jax.jit(jax.value_and_grad(mcc))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (6, 1), (5, 3), (7, 50)])
def test_value_and_gradient(batch, central_differences, rows, classes, temperature):
    _, logits, mask = batch(rows, 1, classes)
    logits, mask = logits[0], mask[0]
    value, gradient = BOTH(np.float32(logits), mask, np.float32(temperature))
    np.testing.assert_allclose(value, reference(logits[mask], logits[mask], temperature), rtol=1e-5)
    slope = central_differences(lambda x: reference(x[mask], logits[mask], temperature), logits)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_extremes():
    sure = 200 * np.eye(4, dtype=np.float32)
    at = lambda logits: BOTH(logits, np.ones(4, bool), np.float32(2.5))[0]
    np.testing.assert_allclose(at(sure), 0.0, atol=1e-6)
    np.testing.assert_allclose(at(0 * sure), 3 / 4, rtol=1e-6)
