"""Adaptation on feature vectors: the step against its parts, what never counts, and the fault cases."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.adaptation.domains import Domains
from jaxdti.adaptation.methods import adaptation_loss
from jaxdti.adaptation.pada import source_weights
from jaxdti.config import ADAPTATION_METHODS, AdaptationConfig, TrainingConfig
from jaxdti.models.fnn import FNN
from jaxdti.studies.adapted_rows import fit_adapted, score_domains
from jaxdti.training import resident
from jaxdti.training.adapted import adapted_row_task, network_of
from jaxdti.training.plans import RowBatch
from jaxdti.training.task import Trial

INPUTS, ROWS, CLASSES = 5, 60, 3
MODEL = FNN((4,), outputs=CLASSES)  # small, as most of the time is compilation
DEEP = FNN((8, 4), outputs=CLASSES)
TRAINING = TrainingConfig(epochs=2, batch_size=16)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, INPUTS)).astype(np.float32)
LABEL = RNG.integers(0, CLASSES, ROWS).astype(np.float64)
SEEN = np.arange(30)


def config(method, **settings):
    return AdaptationConfig(method=method, discriminator_features=(6,), start=0.0, **settings)


def trial(seed=0, label=LABEL, learning_rate=1e-2, **parts):
    rows = {"train": np.arange(24), "validation": np.arange(24, 30), "target_train": np.arange(30, 50)} | parts
    return Trial(rows=rows, label=label, seed=seed, hyper={"learning_rate": learning_rate})


def fit(method, replicas, model=MODEL, training=TRAINING, features=X, **settings):
    return fit_adapted(model, features, replicas, config(method, **settings), training)


def finite(found):
    assert (found.first_bad == -1).all() and np.isfinite(found.loss).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.variables))


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["separate", "joint"])
def test_the_objective_is_the_sum_of_its_parts_in_numpy(batchnorm):
    """PADA, whose class loss is weighted too, with entropy: both domains normalised by hand."""
    adaptation = config("pada", batchnorm=batchnorm, target_entropy=0.3, schedule="constant")
    task = adapted_row_task(DEEP, X, [trial()], adaptation, 16, 2)
    variables = task.init(3)
    batch = RowBatch(
        row=jnp.arange(6),
        label=jnp.asarray(LABEL[:6]),
        row_mask=jnp.arange(6) < 5,
        target=jnp.asarray([40, 41, 42, 43, -1, -1]),
    )
    classes = jnp.asarray([0.2, 0.5, 0.3])
    hyper = {"dropout": 0.0, "strength": 0.7, "step": 4, "class_weights": jnp.ones(3), "target_classes": classes}
    hyper = jax.tree.map(jnp.asarray, hyper)
    objective = jax.jit(task.objective(jnp.asarray(X)))
    loss, (new, shown) = objective(variables, batch, jax.random.PRNGKey(0), hyper)

    network = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["network"])
    mask = np.zeros((2, 6), bool)
    mask[0, :5] = mask[1, :4] = True
    h = np.stack([X[:6], X[[40, 41, 42, 43, 0, 0]]]).astype(np.float64)
    for i in range(2):
        dense, norm = network[f"hidden_{i}"]["dense"], network[f"norm_{i}"]
        h = h @ dense["kernel"] + dense["bias"]
        groups = [mask & (np.arange(2) == d)[:, None] for d in (0, 1)] if batchnorm == "separate" else [mask]
        moments = [(h[g].mean(0), h[g].var(0)) for g in groups] * (3 - len(groups))
        h = np.stack([(h[d] - m) / np.sqrt(v + 1e-5) for d, (m, v) in enumerate(moments)])
        h = np.maximum(h * norm["scale"] + norm["bias"], 0)
    logits = h @ network["output"]["dense"]["kernel"] + network["output"]["dense"]["bias"]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = jnp.asarray(np.where(mask[0], LABEL[:6], 0), jnp.int32)
    weights = np.asarray(source_weights(labels, classes))
    task = np.mean([-np.log(p[0, i, labels[i]]) * weights[i] for i in range(5)])
    entropy = np.mean([-(p[1, i] * np.log(p[1, i])).sum() for i in range(4)])
    beside = {name: variables[name]["adaptation"] for name in variables}
    domains = Domains(jnp.asarray(h, jnp.float32), jnp.asarray(logits, jnp.float32), jnp.asarray(mask))
    between = adaptation_loss(adaptation, beside, domains, labels, jnp.asarray(0.7), classes)
    np.testing.assert_allclose(shown["loss"], task, rtol=1e-4)
    np.testing.assert_allclose(loss, task + float(between) + 0.3 * entropy, rtol=1e-4)
    assert shown["rows"] == 5
    assert new["network"]["norm_0"]["mean"].shape == ((2, 8) if batchnorm == "separate" else (8,))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(ADAPTATION_METHODS) - {"none", "san", "pada"}))  # those are below
def test_every_method_trains(method):
    """Two replicas, of which one has a target smaller than a batch."""
    found = fit(method, [trial(0), trial(1, target_train=np.arange(30, 35))])
    finite(found)
    hidden, logits = score_domains(MODEL, config(method), found.variables, X, np.stack([SEEN] * 2), "test")
    assert hidden.shape == (2, 30, 4) and logits.shape == (2, 30, CLASSES)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_together_equal_each_alone():
    replicas = [trial(0), trial(1, target_train=np.arange(30, 41), learning_rate=3e-3)]
    together, alone = fit("san", replicas), fit("san", replicas[1:])
    np.testing.assert_allclose(together.loss[1], alone.loss[0], rtol=1e-4)
    rows = np.stack([SEEN] * 2)
    scores = score_domains(MODEL, config("san"), together.variables, X, rows, "test")
    own = score_domains(MODEL, config("san"), alone.variables, X, rows[:1], "test")
    for both, one in zip(scores, own, strict=True):
        np.testing.assert_allclose(both[1], one[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_by_vmap_as_one_by_one(monkeypatch):
    found = []
    for one_by_one in (True, False):
        monkeypatch.setattr(resident, "runs_one_by_one", lambda *_, value=one_by_one: value)
        found.append(fit("san", [trial(0), trial(1)]))
    np.testing.assert_allclose(found[0].loss, found[1].loss, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.bitwise
def test_class_weights_are_refreshed_after_so_many_steps():
    """Two epochs of three steps: after every third step is once an epoch, which is the default; the batch's differ."""
    training = replace(TRAINING, batch_size=8)
    found = [fit("san", [trial()], training=training, refresh_steps=steps) for steps in (None, 3, 1)]
    np.testing.assert_array_equal(found[0].loss, found[1].loss)
    assert not np.array_equal(found[0].loss, found[2].loss)
    batch = fit("san", [trial()], training=training, class_weights="batch")
    finite(batch)
    assert not any(np.array_equal(batch.loss, other.loss) for other in found)


def test_refreshing_needs_the_whole_target():
    with pytest.raises(ValueError, match="adaptation.refresh_steps=5 needs adaptation.class_weights=target, found b"):
        config("san", class_weights="batch", refresh_steps=5)
    with pytest.raises(ValueError, match="adaptation.refresh_steps=0: must be at least 1"):
        config("san", refresh_steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["san", "pada"])
def test_target_labels_change_nothing(method):
    spoiled = np.where(np.arange(ROWS) < 30, LABEL, np.nan)
    assert equal(fit(method, [trial()]).variables, fit(method, [trial(label=spoiled)]).variables)
    flipped = np.where(np.arange(ROWS) < 24, 2 - LABEL, LABEL)  # of the source, for contrast
    assert not equal(fit(method, [trial()]).variables, fit(method, [trial(label=flipped)]).variables)


@pytest.mark.slow
def test_target_rows_do_change_the_network_and_none_ignores_them():
    other = X.copy()
    other[30:] += 1.0
    for method, differs in (("san", True), ("none", False)):
        same = equal(fit(method, [trial()]).variables, fit(method, [trial()], features=other).variables)
        assert same != differs


@pytest.mark.slow
def test_without_adaptation_equal_replicas_are_trained_once():
    found = fit("none", [trial(0), trial(1), trial(0, target_train=np.arange(40, 50))])
    network = lambda i: jax.tree.map(lambda x: x[i], found.variables)
    assert equal(network(0), network(2)) and not equal(network(0), network(1))
    assert found.loss.shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["san", "pada"])
def test_batches_of_one_class_and_a_target_of_one_row(method):
    finite(fit(method, [trial(label=np.zeros(ROWS)), trial(target_train=np.arange(30, 31))]))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 50])
def test_two_classes_and_fifty(classes):
    label = (np.arange(ROWS) % classes).astype(np.float64)
    model, adaptation = FNN((4,), outputs=classes), config("san")
    found = fit("san", [trial(label=label)], model)
    finite(found)
    assert score_domains(model, adaptation, found.variables, X, SEEN[None], "test")[1].shape == (1, 30, classes)


@pytest.mark.slow
def test_a_domain_is_scored_with_its_own_statistics():
    shifted = X.copy()
    shifted[30:] = 4.0 * shifted[30:] + 10.0
    adaptation = config("san")
    found = fit("san", [trial()], training=replace(TRAINING, epochs=30), features=shifted)
    first = found.variables["batch_stats"]["network"]["norm_0"]["mean"][0]
    means = [
        np.asarray(first[d] - network_of(found.variables, None)["params"]["hidden_0"]["dense"]["bias"][0])
        for d in (0, 1)
    ]
    kernel = np.asarray(found.variables["params"]["network"]["hidden_0"]["dense"]["kernel"][0])
    np.testing.assert_allclose(means[0], shifted[:24].mean(0) @ kernel, atol=0.5)
    np.testing.assert_allclose(means[1], shifted[30:50].mean(0) @ kernel, atol=2.0)
    by_source, by_target = (
        score_domains(MODEL, adaptation, found.variables, shifted, np.arange(30, 50)[None], part)[1]
        for part in ("validation", "test")
    )
    assert np.abs(by_source - by_target).max() > 0.1


@pytest.mark.slow
def test_the_class_weights_find_the_classes_that_the_target_has():
    """Three separable classes in the source, class 0 alone in the target."""
    rng = np.random.default_rng(1)
    label = np.concatenate([np.arange(60) % 3, np.zeros(40)])
    centres = 4.0 * np.eye(3)[label.astype(int)]
    features = (centres + rng.normal(scale=0.3, size=(100, 3))).astype(np.float32)
    adaptation = config("san", batchnorm="joint")
    one = trial(label=label, train=np.arange(60), target_train=np.arange(60, 100))
    found = fit_adapted(FNN((8,), outputs=3), features, [one], adaptation, replace(TRAINING, epochs=20))
    logits = score_domains(
        FNN((8,), outputs=3), adaptation, found.variables, features, np.arange(60, 100)[None], "test"
    )[1]
    assert (logits[0].argmax(-1) == 0).mean() > 0.9


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs target rows"):
        fit("san", [trial(target_train=np.zeros(0, np.int64))])
    with pytest.raises(ValueError, match="two or more classes"):
        fit("san", [trial()], FNN((8,), outputs=1))
