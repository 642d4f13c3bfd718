"""The optimiser against the published update rules, written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti.config import Config, TrainingConfig
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.supervised import hyper_parameters

EPOCHS, STEPS = 4, 5  # per epoch


def run(config: TrainingConfig, gradients: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The parameters after every step, [T, F]."""
    tx, hyper = make_optimizer(config, STEPS), hyper_parameters(Config(training=config))
    params = jnp.asarray(start)
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, params, hyper=hyper)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.array(path)


def adam(gradients, start, rates, decay=0.0, b1=0.9, b2=0.999, epsilon=1e-8, penalty=0.0):
    """Adam (arXiv:1412.6980), with decoupled decay (arXiv:1711.05101) or a squared penalty, in float64."""
    x, m, v, path = start.astype(np.float64), 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(gradients.astype(np.float64), rates, strict=True), 1):
        g = g + penalty * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        x = x - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon) + decay * x)
        path.append(x)
    return np.array(path)


def schedule(config: TrainingConfig, steps: int) -> np.ndarray:
    warmup = round(config.warmup_epochs * STEPS)
    t = np.arange(steps)
    after = np.ones(steps)
    if config.schedule == "cosine":
        after = 0.5 * (1 + np.cos(np.pi * (t - warmup) / (EPOCHS * STEPS - warmup)))
    return config.learning_rate * np.where(t < warmup, t / max(warmup, 1), after)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(EPOCHS * STEPS, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 1.6])
@pytest.mark.parametrize("optimizer, decay", [("adam", 0.0), ("adamw", 0.0), ("adam", 0.3), ("adamw", 0.3)])
def test_updates_follow_the_published_rules(problem, kind, warmup, optimizer, decay):
    config = TrainingConfig(
        epochs=EPOCHS, learning_rate=0.01, optimizer=optimizer, weight_decay=decay, schedule=kind, warmup_epochs=warmup
    )
    how = {"adam": "penalty", "adamw": "decay"}[optimizer]
    expected = adam(*problem, schedule(config, EPOCHS * STEPS), **{how: decay})
    np.testing.assert_allclose(run(config, *problem), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_gradients_are_cut_to_the_global_norm_before_the_moments(problem, decay):
    """And before the weights are added to them, as in PyTorch, where the optimiser adds them."""
    gradients, start = problem
    config = TrainingConfig(epochs=EPOCHS, learning_rate=0.01, clip_norm=1.5, weight_decay=decay)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    assert norms.min() < 1.5 < norms.max()
    cut = gradients * np.minimum(1.0, 1.5 / norms)
    expected = adam(cut, start, schedule(config, len(gradients)), penalty=decay)
    np.testing.assert_allclose(run(config, gradients, start), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("warmup", [4.0, 50.0])
def test_a_warm_up_longer_than_the_run_still_climbs_to_its_last_step(problem, warmup):
    config = TrainingConfig(epochs=EPOCHS, learning_rate=0.01, schedule="cosine", warmup_epochs=warmup)
    last = EPOCHS * STEPS - 1
    expected = adam(*problem, 0.01 * np.arange(EPOCHS * STEPS) / last)
    np.testing.assert_allclose(run(config, *problem), expected, rtol=2e-5, atol=1e-6)
