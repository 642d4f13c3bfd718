"""Classifiers on codes: frozen layers computed once, gradual unfreezing, folds, and replicas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import HeadConfig, PlantedExpressionConfig, PretrainingConfig, ResponseConfig
from jaxdti.data.expression.study import load_study
from jaxdti.models.autoencoders import Autoencoder
from jaxdti.models.response_head import Encoder, ResponseHead, as_input, encoder_output, frozen_activations
from jaxdti.studies.response import heads as response_heads
from jaxdti.studies.response.heads import _unfreeze, fit_heads, study_folds

PRETRAINING = PretrainingConfig(widths=(6, 5), latent=4)
HEADS = HeadConfig(widths=(8,), epochs=6, patience=3, batch_size=16, learning_rate=5e-3)
GENES = 220


@pytest.fixture(scope="module")
def study():
    planted = PlantedExpressionConfig(genes=GENES, source=90, target=60, drugs=2)
    return load_study(ResponseConfig(dataset="planted-expression", planted=planted))


def encoder(seed=0, method="ae"):
    model = Autoencoder(GENES, PRETRAINING.widths, PRETRAINING.latent, variational=method == "vae")
    params = model.init(jax.random.PRNGKey(seed), jnp.zeros((1, GENES)))["params"]
    return Encoder(method, seed, jax.device_get(params["encoder"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ae", "vae"])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_frozen_layers_and_unfrozen_ones_make_up_the_encoder(study, method, level):
    one, x = encoder(method=method), jnp.asarray(study.source[:7])
    variational, hidden = method == "vae", len(PRETRAINING.widths) + 1 - level
    model = ResponseHead((8,), PRETRAINING.widths[hidden:] if level else None, PRETRAINING.latent, variational)
    inputs = (
        frozen_activations(one.params, x, hidden) if level else as_input(encoder_output(one.params, x), variational)
    )
    variables = model.init(jax.random.PRNGKey(3), inputs, jnp.ones(7, bool), train=False)
    if level:
        variables = _unfreeze({"params": {"classifier": variables["params"]["classifier"]}}, [one], hidden, (1, 1, 1))
        variables = {
            "params": variables["params"] | {"encoder": jax.tree.map(lambda v: v[0], variables["params"]["encoder"])}
        }
    whole = Autoencoder(GENES, PRETRAINING.widths, PRETRAINING.latent, variational=variational)
    code = whole.apply({"params": {"encoder": one.params}}, x, method="encode")
    code = code if variational else code * PRETRAINING.latent**0.5
    head = ResponseHead((8,))
    expected = head.apply(
        {"params": {"classifier": variables["params"]["classifier"]}}, code, jnp.ones(7, bool), train=False
    )
    got = model.apply(variables, inputs, jnp.ones(7, bool), train=False)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_unfreezing_keeps_what_has_trained_and_adds_the_next_layer():
    one = encoder()
    repeated = lambda layer, delta: jax.tree.map(lambda x: np.stack([x + delta, x + 2 * delta]), layer)
    trained = {"classifier": {"w": np.arange(2)}, "encoder": {"output": repeated(one.params["output"], 1.0)}}
    params = _unfreeze({"params": trained}, [one], 1, (1, 2, 1))["params"]
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["output"], trained["encoder"]["output"])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["hidden_0"], repeated(one.params["hidden_1"], 0.0))
    assert params["classifier"] is trained["classifier"] and set(params["encoder"]) == {"hidden_0", "output"}
    params = _unfreeze({"params": params}, [one], 0, (1, 2, 1))["params"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, params["hidden_0"], repeated(one.params["hidden_0"], 0.0))
    jax.tree.map(np.testing.assert_array_equal, params["hidden_1"], repeated(one.params["hidden_1"], 0.0))
    jax.tree.map(np.testing.assert_array_equal, params["output"], trained["encoder"]["output"])


def test_every_fold_is_held_out_once_and_labels_follow_the_training_folds(study):
    fold, label = study_folds(study, 3, seed=4)
    assert fold.shape == (2, 90) and label.shape == (2, 3, 90)
    for drug in range(2):
        assert np.bincount(fold[drug]).tolist() == [30, 30, 30]
        response = study.source_response[:, drug]
        for held in range(3):
            median = np.median(response[fold[drug] != held])
            np.testing.assert_array_equal(label[drug, held], response < median)


@pytest.fixture(scope="module")
def fitted(study):
    encoders = [encoder(0), encoder(1)]
    return encoders, fit_heads(study, encoders, 3, dataclasses.replace(HEADS, unfreeze=2), PRETRAINING, lambda: None)


@pytest.mark.slow
def test_scores_of_all_encoders_drugs_and_folds(study, fitted):
    _, fit = fitted
    assert fit.source.shape == (2, 2, 3, 90) and fit.target.shape == (2, 2, 3, 60)
    assert np.all((fit.target > 0) & (fit.target < 1)) and not fit.failed.any()
    assert set(np.unique(fit.unfrozen)) <= {0, 1, 2} and np.all(fit.epochs >= 1)
    fold, label = study_folds(study, 3, 0)
    held = fold[0] == 1
    entropy = -np.mean(
        np.log(np.where(label[0, 1, held] == 1, fit.source[0, 0, 1, held], 1 - fit.source[0, 0, 1, held]))
    )
    np.testing.assert_allclose(fit.validation_loss[0, 0, 1], entropy, rtol=1e-3)


def test_unfreezing_never_ends_above_the_frozen_validation_loss(study, fitted):
    encoders, fit = fitted
    frozen = fit_heads(study, encoders, 3, HEADS, PRETRAINING, lambda: None)
    assert np.all(fit.validation_loss <= frozen.validation_loss + 1e-5) and np.all(frozen.unfrozen == 0)
    same = fit.unfrozen == 0
    np.testing.assert_allclose(fit.target[same], frozen.target[same], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_encoders_together_equal_one_by_one(study, fitted, monkeypatch):
    encoders, fit = fitted
    monkeypatch.setattr(response_heads, "_CPU_CLASSIFIERS", 1)  # groups of one encoder
    alone = fit_heads(study, encoders, 3, dataclasses.replace(HEADS, unfreeze=2), PRETRAINING, lambda: None)
    np.testing.assert_allclose(alone.target, fit.target, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_held_out_and_unlabelled_samples_do_not_train(study):
    """Other responses in the held-out fold leave the scores of a single epoch as they are."""
    config = dataclasses.replace(HEADS, epochs=1)
    fold, _ = study_folds(study, 3, 0)
    response = study.source_response.copy()
    held = fold[0] == 0
    order = np.argsort(response[held, 0])
    values = response[held, 0]
    values[order] = values[order][::-1]
    response[held, 0] = values
    moved = dataclasses.replace(study, source_response=response)
    moved_fold, _ = study_folds(moved, 3, 0)
    raw = [Encoder("mlp", 0, None)]
    one, other = (fit_heads(s, raw, 3, config, PRETRAINING, lambda: None) for s in (study, moved))
    np.testing.assert_array_equal(moved_fold[0] == 0, held)  # the division follows the ranks of all
    assert np.any(moved.source_response != study.source_response)
    np.testing.assert_allclose(one.target[0, 0, 0], other.target[0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(one.target[0, 1], other.target[0, 1], rtol=1e-5)


def test_what_look_raises_ends_the_training(study):
    def look():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_heads(study, [Encoder("mlp", 0, None)], 3, HEADS, PRETRAINING, look)


def test_equal_models_begin_by_one_function():
    """Or every group of encoders would compile it anew."""
    first, again = (response_heads._init(ResponseHead((8,)), width=5) for _ in range(2))
    assert first is again and first is not response_heads._init(ResponseHead((8,)), width=6)
