"""PADA against its equation in NumPy, float64."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.pada import pada_loss, source_weights


def cross_entropy(w, x, domain):
    logits = np.tanh(x @ w["A"]) @ w["B"]
    return np.log(np.exp(logits).sum(-1)) - logits[:, domain]


def reference(features, mask, w, labels, class_weight):
    importance = class_weight[labels[mask[SOURCE]]] / class_weight.max()
    source = np.mean(importance * cross_entropy(w, features[SOURCE][mask[SOURCE]], SOURCE))
    return source + np.mean(cross_entropy(w, features[TARGET][mask[TARGET]], TARGET))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "classes"), [(1, 1, 2), (6, 3, 2), (7, 2, 50)])
def test_value_and_gradients(batch, weights, discriminator, central_differences, rows, width, classes):
    features, logits, mask = batch(rows, width, classes)
    rng = np.random.default_rng(5)
    labels, class_weight = rng.integers(classes, size=rows), rng.dirichlet(np.ones(classes))
    w = weights(width)

    @jax.jit
    def both(*arguments):
        domains = lambda f: Domains(features=f, logits=logits, mask=mask)
        of = lambda f, w, c: pada_loss(domains(f), discriminator(w), 0.7, labels, c)
        return jax.value_and_grad(of, argnums=(0, 1, 2))(*arguments)

    value, gradients = both(*jax.tree.map(np.float32, (features, w, class_weight)))
    np.testing.assert_allclose(value, reference(features, mask, w, labels, class_weight), rtol=1e-5)
    slope = central_differences(lambda x: reference(x, mask, w, labels, class_weight), features)
    np.testing.assert_allclose(gradients[0], -0.7 * slope, rtol=1e-4, atol=1e-6)
    slope = central_differences(lambda b: reference(features, mask, w | {"B": b}, labels, class_weight), w["B"])
    np.testing.assert_allclose(gradients[1]["B"], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradients[2], 0.0)


def test_source_weights():
    got = source_weights(np.array([2, 0, 0, 1]), np.float32([0.25, 0.0, 0.5]))
    np.testing.assert_allclose(got, [1.0, 0.5, 0.5, 0.0])
    np.testing.assert_array_equal(source_weights(np.array([0, 1]), np.zeros(2, np.float32)), 0.0)


def test_labels_of_masked_rows_do_not_matter(batch, weights, discriminator):
    features, logits, mask = jax.tree.map(lambda x: x if x.dtype == bool else np.float32(x), batch(6, 3, 3))
    mask[SOURCE, 2:4] = False
    domains = Domains(features=features, logits=logits, mask=mask)
    labels = np.array([0, 1, 2, 0, 1, 2])
    of = lambda labels: pada_loss(domains, discriminator(weights(3)), 1.0, labels, np.float32([0.1, 0.6, 0.3]))
    np.testing.assert_array_equal(of(labels), of(np.where(mask[SOURCE], labels, 1)))
    assert abs(of(labels) - of((labels + 1) % 3)) > 1e-3
