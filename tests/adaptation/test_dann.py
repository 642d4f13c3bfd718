"""DANN against its equation in NumPy, float64."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.domains import Domains


def cross_entropy(w, x, domain):
    """Of the rows x [n, F] against their domain, by the discriminator tanh(x A) B."""
    logits = np.tanh(x @ w["A"]) @ w["B"]
    return np.log(np.exp(logits).sum(-1)) - logits[:, domain]


def reference(features, mask, w):
    return sum(np.mean(cross_entropy(w, features[d][mask[d]], d)) for d in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 3), (8, 2)])
def test_value_and_gradients(batch, weights, discriminator, central_differences, rows, width):
    features, logits, mask = batch(rows, width, 2)
    w = weights(width)
    loss = lambda f, w: dann_loss(Domains(features=f, logits=logits, mask=mask), discriminator(w), 0.7)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (of_features, of_weights) = both(*jax.tree.map(np.float32, (features, w)))
    np.testing.assert_allclose(value, reference(features, mask, w), rtol=1e-5)
    slope = central_differences(lambda x: reference(x, mask, w), features)
    np.testing.assert_allclose(of_features, -0.7 * slope, rtol=1e-4, atol=1e-6)
    for name in w:
        slope = central_differences(lambda x, name=name: reference(features, mask, w | {name: x}), w[name])
        np.testing.assert_allclose(of_weights[name], slope, rtol=1e-4, atol=1e-6)


def test_a_blind_discriminator_costs_one_bit_a_domain(batch):
    features, logits, mask = batch(6, 4, 2)
    loss = dann_loss(
        Domains(features=features, logits=logits, mask=mask), lambda x, mask: np.zeros((2, 6, 2), np.float32), 1.0
    )
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
