"""SAN against its equations in NumPy, float64: the paper's loss, the released code's, class weights, target entropy."""

import jax
import numpy as np
import pytest

from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.san import class_weights, san_loss, san_released_loss, target_entropy

SIZES = [(4, 3, 2), (1, 1, 3), (5, 2, 1), (3, 2, 50)]  # rows, features, logits


def predictions(logits):
    if logits.shape[-1] == 1:
        p = 1 / (1 + np.exp(-logits))
        return np.concatenate([1 - p, p], -1)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def cross_entropy(w, k, x, domain):
    """Of one row x [F] by the discriminator of class k."""
    logits = np.tanh(x @ w["A"][k]) @ w["B"][k]
    return np.log(np.exp(logits).sum()) - logits[domain]


def pairs(mask):
    return [(domain, row) for domain in (0, 1) for row in np.flatnonzero(mask[domain])]


def reference(features, g, mask, w, class_weight):
    terms = [
        class_weight[k] * g[d, i, k] * cross_entropy(w, k, features[d, i], d)
        for k in range(g.shape[-1])
        for d, i in pairs(mask)
    ]
    return np.sum(terms) / mask.sum()


def released(features, g, mask, w, k):
    """The part of class k."""
    return np.mean([cross_entropy(w, k, g[d, i, k] * features[d, i], d) for d, i in pairs(mask)])


@pytest.fixture
def problem(batch, weights):
    def make(rows, width, classes):
        features, logits, mask = batch(rows, width, classes)
        class_weight = np.random.default_rng(2).dirichlet(np.ones(max(classes, 2)))
        return features, logits, mask, weights(width, max(classes, 2)), class_weight

    return make


def differentiate(loss, classwise, features, logits, mask, w, class_weight):
    """Value and gradients with respect to features, logits, discriminators and class weights; strength 0.7."""

    @jax.jit
    def both(*arguments):
        of = lambda f, x, w, c: loss(Domains(features=f, logits=x, mask=mask), classwise(w), 0.7, c)
        return jax.value_and_grad(of, argnums=(0, 1, 2, 3))(*arguments)

    return both(*jax.tree.map(np.float32, (features, logits, w, class_weight)))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "classes"), SIZES)
def test_value_and_gradients(problem, classwise, central_differences, rows, width, classes):
    features, logits, mask, w, class_weight = problem(rows, width, classes)
    value, gradients = differentiate(san_loss, classwise, features, logits, mask, w, class_weight)
    g = predictions(logits)
    np.testing.assert_allclose(value, reference(features, g, mask, w, class_weight), rtol=1e-5)
    slope = central_differences(lambda x: reference(x, g, mask, w, class_weight), features)
    np.testing.assert_allclose(gradients[0], -0.7 * slope, rtol=1e-4, atol=1e-7)
    slope = central_differences(lambda b: reference(features, g, mask, w | {"B": b}, class_weight), w["B"])
    np.testing.assert_allclose(gradients[2]["B"], slope, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[3], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "classes"), SIZES)
def test_the_released_code(problem, classwise, central_differences, rows, width, classes):
    features, logits, mask, w, class_weight = problem(rows, width, classes)
    value, gradients = differentiate(san_released_loss, classwise, features, logits, mask, w, class_weight)
    g = predictions(logits)
    each = range(g.shape[-1])
    np.testing.assert_allclose(value, sum(released(features, g, mask, w, k) for k in each), rtol=1e-5)
    share = class_weight / class_weight.max()
    reversed_ = lambda x: sum(-0.7 * share[k] * released(x, g, mask, w, k) for k in each)
    np.testing.assert_allclose(gradients[0], central_differences(reversed_, features), rtol=1e-4, atol=1e-6)
    plain = lambda b: sum(released(features, g, mask, w | {"B": b}, k) for k in each)
    np.testing.assert_allclose(gradients[2]["B"], central_differences(plain, w["B"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[3], 0.0)


def test_a_class_that_the_target_lacks_has_no_say(problem, classwise):
    """Neither the features nor its own discriminator learn from a class of weight 0; as released, the latter does."""
    features, logits, mask, w, _ = problem(5, 3, 3)
    logits[..., 2] = 30.0  # all rows are predicted as that class
    class_weight = np.array([0.6, 0.4, 0.0])
    value, gradients = differentiate(san_loss, classwise, features, logits, mask, w, class_weight)
    assert value < 1e-6
    np.testing.assert_array_equal(gradients[2]["B"][2], 0.0)
    assert np.abs(gradients[0]).max() < 1e-6
    _, gradients = differentiate(san_released_loss, classwise, features, logits, mask, w, class_weight)
    assert np.abs(gradients[0]).max() < 1e-6
    assert np.abs(gradients[2]["B"][2]).max() > 1e-3


@pytest.mark.parametrize("classes", [1, 2, 50])
def test_class_weights_are_the_mean_target_prediction(problem, classes):
    _, logits, mask, *_ = problem(7, 2, classes)
    g = np.float32(predictions(logits))
    expected = g[TARGET][mask[TARGET]].astype(float).mean(0)
    g[TARGET][~mask[TARGET]] = np.nan
    got = class_weights(g[TARGET], mask[TARGET])
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(np.sum(got), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(class_weights(g[TARGET], np.zeros(7, bool)), np.zeros(g.shape[-1]))
    np.testing.assert_array_equal(jax.jacobian(class_weights)(g[TARGET], mask[TARGET]), 0.0)


@pytest.mark.parametrize("classes", [1, 3, 50])
def test_target_entropy(problem, central_differences, classes):
    features, logits, mask, *_ = problem(5, 2, classes)

    def reference(logits):
        g = predictions(logits[TARGET][mask[TARGET]])
        return np.mean(-np.sum(g * np.log(g), 1))

    of = lambda x: target_entropy(Domains(features=features, logits=x, mask=mask))
    value, gradient = jax.jit(jax.value_and_grad(of))(np.float32(logits))
    np.testing.assert_allclose(value, reference(logits), rtol=1e-5)
    np.testing.assert_allclose(gradient, central_differences(reference, logits), rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(gradient)[SOURCE] == 0)
