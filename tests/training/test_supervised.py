"""Losses against NumPy in float64, with unlabelled rows; and the objective on pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdti.training.supervised
from jaxdti.config import Config, ModelConfig
from jaxdti.data.pairs.buckets import PairBatch, Shape
from jaxdti.layers.means import masked_mean
from jaxdti.training.objective import affinity_loss, binding_loss
from jaxdti.training.supervised import hyper_parameters, pair_objective

ROWS = 7
MASK = np.array([True, True, False, True, False, True, True])


def labels_with_nan(values):
    return np.where(MASK, values, np.nan).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(loss, outputs, labels, mask):
    def total(outputs):
        each = loss(outputs, labels, mask)
        return each.sum(), each

    (_, each), gradient = jax.value_and_grad(total, has_aux=True)(outputs)
    return each, gradient


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_binding_loss(width, scale):
    rng = np.random.default_rng(width)
    logits = (scale * rng.normal(size=(ROWS, width))).astype(np.float32)
    labels = rng.integers(0, 2, ROWS)
    wide = logits.astype(np.float64)
    margin = wide[:, 0] if width == 1 else wide[:, 1] - wide[:, 0]
    expected = np.where(MASK, np.logaddexp(0.0, np.where(labels == 1, -margin, margin)), 0.0)
    slope = np.where(MASK, np.exp(-np.logaddexp(0.0, -margin)) - labels, 0.0)
    expected_gradient = slope[:, None] if width == 1 else np.stack([-slope, slope], 1)

    each, gradient = value_and_gradient(binding_loss, logits, labels_with_nan(labels), MASK)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert (np.asarray(each)[~MASK] == 0.0).all() and (np.asarray(gradient)[~MASK] == 0.0).all()


def test_affinity_loss():
    rng = np.random.default_rng(0)
    prediction, labels = rng.normal(size=(ROWS, 1)).astype(np.float32), rng.normal(size=ROWS).astype(np.float32)
    each, gradient = value_and_gradient(affinity_loss, prediction, labels_with_nan(labels), MASK)
    error = prediction[:, 0].astype(np.float64) - labels
    np.testing.assert_allclose(each, np.where(MASK, error**2, 0.0), rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], np.where(MASK, 2 * error, 0.0), rtol=1e-5)


def test_losses_are_float32_for_bfloat16_outputs():
    for loss in (binding_loss, affinity_loss):
        each = jax.eval_shape(loss, jax.ShapeDtypeStruct((ROWS, 1), jnp.bfloat16), np.zeros(ROWS, np.float32), MASK)
        assert each.dtype == jnp.float32 and each.shape == (ROWS,)


def test_masked_mean():
    x = np.float32([1.0, np.nan, 3.0, np.inf])
    mean = jax.jit(jax.value_and_grad(masked_mean))
    value, gradient = mean(x, np.array([True, False, True, False]))
    assert value == 2.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5, 0.0])
    value, gradient = mean(x, np.zeros(4, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4))


class OneLogitARow:
    """In DrugBAN's place: the parameters are the logits, the statistic counts its calls."""

    def __init__(self, config):
        pass

    def apply(self, variables, drugs, proteins, row_mask, rate, *, train, shared, rngs, mutable):
        assert train and shared is None and mutable == ["batch_stats"] and set(rngs) == {"dropout"}
        return variables["params"] * (1.0 - rate), {"batch_stats": variables["batch_stats"] + 1}


class NoFeatures:
    def drugs(self, index, shape):
        return index

    proteins = drugs


def run_objective(monkeypatch, task, logits, labels, **traced):
    """Loss, gradient with respect to the logits, statistics and metrics."""
    monkeypatch.setattr(jaxdti.training.supervised, "DrugBAN", OneLogitARow)
    features: object = NoFeatures()
    objective = pair_objective(ModelConfig(), task, features, Shape(1, 1, 1))  # pyright: ignore
    batch = PairBatch(drug=np.zeros(ROWS, np.int32), protein=np.zeros(ROWS, np.int32), label=labels, row_mask=MASK)

    hyper = hyper_parameters(Config(model=ModelConfig(dropout=0.25)), **traced)

    def loss(params):
        variables = {"params": params, "batch_stats": 0}
        return objective(variables, batch, np.zeros(2, np.uint32), hyper)

    (value, (stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    assert stats == 1
    assert set(metrics) == {"loss"} and metrics["loss"] == value
    return value, gradient


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 3.0)])
def test_classification_objective_weights_the_classes(monkeypatch, weights):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(ROWS, 1)).astype(np.float32), rng.integers(0, 2, ROWS)
    loss, gradient = run_objective(
        monkeypatch, "classification", logits, labels_with_nan(labels), class_weights=weights
    )
    z = 0.75 * logits[:, 0].astype(np.float64)  # the rate in the hyper-parameters reaches the network
    factor = np.where(labels == 1, weights[1], weights[0]) / MASK.sum()
    each = factor * np.logaddexp(0.0, np.where(labels == 1, -z, z))
    np.testing.assert_allclose(loss, each[MASK].sum(), rtol=1e-5)
    slope = 0.75 * factor * (1 / (1 + np.exp(-z)) - labels)
    np.testing.assert_allclose(gradient[:, 0], np.where(MASK, slope, 0.0), rtol=1e-4, atol=1e-7)


def test_regression_objective_standardises_the_labels(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(ROWS, 1)).astype(np.float32), (7 + rng.normal(size=ROWS)).astype(np.float32)
    loss, gradient = run_objective(monkeypatch, "regression", logits, labels_with_nan(labels), label_scale=(6.5, 2.0))
    error = 0.75 * logits[:, 0].astype(np.float64) - (labels - 6.5) / 2.0
    np.testing.assert_allclose(loss, (error[MASK] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], np.where(MASK, 2 * 0.75 * error / MASK.sum(), 0.0), rtol=1e-4)
