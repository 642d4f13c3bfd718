"""Selection without target labels inside compiled programs, against NumPy and scikit-learn, and what it may not see."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression

from jaxdti.config import AdaptationConfig, TrainingConfig
from jaxdti.evaluation import selection
from jaxdti.evaluation.selection import deep_embedded_validation, importance_weights, prediction_information
from jaxdti.models.fnn import FNN
from jaxdti.studies.adapted_rows import fit_adapted, score_domains
from jaxdti.training import resident
from jaxdti.training.selection import masked_deep_embedded_validation, masked_importance_weights, masked_information
from jaxdti.training.task import Trial

RNG = np.random.default_rng(0)
TARGET_SELECTIONS = ("information", "importance")
MODEL = FNN((4,), outputs=3)
LABEL = RNG.integers(0, 3, 70).astype(np.float64)
X = RNG.normal(size=(70, 5)).astype(np.float32)
X[:, 0] += LABEL
X[40:] += 0.5
TRAINING = TrainingConfig(epochs=4, batch_size=16)


def filled(values, size):
    """Values in front of rows that must not count, and their mask."""
    rest = np.full((size - len(values), *values.shape[1:]), np.nan, np.float32)
    return jnp.asarray(np.concatenate([values, rest]), jnp.float32), jnp.arange(size) < len(values)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (37, 2), (200, 7)])
def test_information_is_that_of_numpy_and_scipy(rows, classes):
    p = softmax(3.0 * RNG.normal(size=(rows, classes)), -1)
    found = float(masked_information(*filled(p, 211)))
    assert found == pytest.approx(entropy(p.mean(0)) - entropy(p, axis=1).mean(), abs=1e-5)
    if classes == 2:
        assert found == pytest.approx(prediction_information(p[:, 1]), abs=1e-5)
    assert masked_information(jnp.eye(2), jnp.ones(2, bool)) == pytest.approx(np.log(2.0))


@pytest.mark.parametrize(("sources", "targets", "width"), [(40, 31, 3), (3, 500, 8), (300, 2, 8), (25, 20, 64)])
@pytest.mark.parametrize("shift", [0.3, 100.0])
def test_weights_are_those_of_scikit_learn(sources, targets, width, shift, monkeypatch):
    """Rectified features as of a network, one of them always 0, one always 5; far apart and near, many and few rows.

    By default scikit-learn stops early, with few rows of a domain 2 % away.
    """
    monkeypatch.setattr(selection, "LogisticRegression", partial(LogisticRegression, tol=1e-10))
    draw = lambda rows: np.maximum(RNG.normal(size=(rows, width)), 0.0).astype(np.float32)
    source, points = draw(sources), draw(13)
    target = draw(targets) + np.float32(shift) * (np.arange(width) % 2)
    for x in (source, target, points):
        x[:, 0], x[:, 1] = 0.0, 5.0
    expected = importance_weights(*(x.astype(np.float64) for x in (source, target, points)))
    given = (*filled(source, sources + 9), *filled(target, targets + 4), jnp.asarray(points))
    np.testing.assert_allclose(jax.jit(masked_importance_weights)(*given), expected, rtol=2e-4)


def test_weights_stay_finite_where_the_domains_are_apart():
    source, target = jnp.full((30, 2), -1e6), jnp.full((30, 2), 1e6)
    mask = jnp.ones(30, bool)
    assert jnp.isfinite(masked_importance_weights(source, mask, target, mask, jnp.concatenate([source, target]))).all()


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 4.0])
@pytest.mark.parametrize("rows", [1, 2, 57])
def test_the_risk_is_that_of_numpy(rows, spread):
    loss, weight = RNG.random(rows).astype(np.float32), np.exp(spread * RNG.normal(size=rows)).astype(np.float32)
    (losses, mask), (weights, _) = filled(loss, 64), filled(weight, 64)
    found = float(masked_deep_embedded_validation(losses, weights, mask))
    assert found == pytest.approx(deep_embedded_validation(loss, weight), rel=1e-3, abs=1e-3)


def trial(seed=0, label=LABEL, learning_rate=3e-2, **parts):
    rows = {"train": np.arange(28), "validation": np.arange(28, 40), "target_train": np.arange(40, 60)} | parts
    return Trial(rows=rows, label=label, seed=seed, hyper={"learning_rate": learning_rate})


REPLICAS = (
    trial(0),
    trial(1, target_train=np.arange(40, 47), train=np.arange(21), validation=np.arange(28, 33)),
)


def fit(method, select, replicas, training=TRAINING, features=X, **settings):
    adaptation = AdaptationConfig(method=method, discriminator_features=(6,), start=0.0, **settings)
    return fit_adapted(MODEL, features, replicas, adaptation, training, select=select), adaptation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "batchnorm", "select"),
    [
        ("none", "separate", "importance"),
        ("coral", "separate", "information"),
        ("coral", "separate", "importance"),
        ("coral", "joint", "importance"),
    ],
)
def test_the_value_is_that_of_the_network_that_is_kept(method, batchnorm, select):
    """Of replicas with differing rows, from features and predictions at test time, as a run on pairs computes it."""
    found, adaptation = fit(method, select, REPLICAS, batchnorm=batchnorm)
    for r, rows in enumerate(REPLICAS):
        assert found.best_value[r] == np.max(found.value[r]) and found.best_epoch[r] == 1 + np.argmax(found.value[r])
        assert len(set(found.value[r])) == TRAINING.epochs
        (source, _), (points, logits), (target, of_target) = (
            [x[r].astype(np.float64) for x in score_domains(MODEL, adaptation, found.variables, X, [own] * 2, part)]
            for part, own in (
                ("train", rows.rows["train"]),
                ("validation", rows.rows["validation"]),
                ("target_train", rows.rows["target_train"]),
            )
        )
        if select == "information":
            p = softmax(of_target, -1)
            expected = entropy(p.mean(0)) - entropy(p, axis=1).mean()
        else:
            loss = -np.log(softmax(logits, -1)[np.arange(len(logits)), LABEL[rows.rows["validation"]].astype(int)])
            expected = -deep_embedded_validation(loss, importance_weights(source, target, points))
        assert found.best_value[r] == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("select", TARGET_SELECTIONS)
def test_by_vmap_as_one_by_one(select, monkeypatch):
    found = []
    for one_by_one in (True, False):
        monkeypatch.setattr(resident, "runs_one_by_one", lambda *_, value=one_by_one: value)
        found.append(fit("none", select, REPLICAS)[0])
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(found[0].best_epoch, found[1].best_epoch)


@pytest.mark.slow
@pytest.mark.parametrize("select", TARGET_SELECTIONS)
@pytest.mark.parametrize("method", ["none", "coral"])
def test_target_labels_select_nothing_but_target_rows_do(method, select):
    found, spoiled = (
        fit(method, select, [trial(label=label)])[0] for label in (LABEL, np.where(np.arange(70) < 40, LABEL, np.nan))
    )
    np.testing.assert_array_equal(found.value, spoiled.value)
    jax.tree.map(np.testing.assert_array_equal, found.variables, spoiled.variables)
    moved = X.copy()
    moved[40:60] *= -2.0
    assert not np.array_equal(fit(method, select, [trial()], features=moved)[0].value, found.value)
    flipped = fit(method, select, [trial(label=np.where(np.arange(70) >= 28, 2 - LABEL, LABEL))])[0]
    assert np.array_equal(flipped.value, found.value) == (select == "information")  # labels of validation rows


def test_without_adaptation_targets_select_among_the_same_weights():
    replicas = [trial(), trial(target_train=np.arange(60, 70))]
    found, _ = fit("none", "information", replicas)
    np.testing.assert_array_equal(found.loss[0], found.loss[1])
    assert not np.array_equal(found.value[0], found.value[1])


def test_patience_counts_the_epochs_since_the_best_one():
    training = replace(TRAINING, epochs=40, patience=2)
    found, _ = fit("none", "importance", [trial(learning_rate=0.1)], training)
    trained = np.isfinite(found.loss[0]).sum()
    assert trained < 40 and found.best_epoch[0] == trained - 2


def test_selection_by_the_target_needs_target_rows():
    with pytest.raises(ValueError, match="trial 0: selection by selection_information needs target_train rows"):
        fit("none", "information", [trial(target_train=np.zeros(0, np.int64))])
    with pytest.raises(ValueError, match="choose from"):
        fit("none", "informed", [trial()])
