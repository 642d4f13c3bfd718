"""What every loss between domains promises: masks, empty domains, replicas, precision, strength, wild inputs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdti.adaptation.cdan import cdan_loss
from jaxdti.adaptation.coral import coral
from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.domains import SOURCE, TARGET, Domains
from jaxdti.adaptation.mcc import mcc
from jaxdti.adaptation.mmd import mmd
from jaxdti.adaptation.pada import pada_loss
from jaxdti.adaptation.san import class_weights, san_loss, san_released_loss, target_entropy

ROWS, FEATURES, RANDOM = 7, 5, 4


class Case(NamedTuple):
    """A loss of (domains, what makes discriminators, weights, strength), and what it needs."""

    loss: Callable
    kind: str | None = "discriminator"  # the fixture; None without a discriminator
    width: Callable[[int], int] = lambda classes: FEATURES  # of what the discriminator sees
    target_only: bool = False


def matrices(classes):
    rng = np.random.default_rng(3)
    return np.float32(rng.normal(size=(FEATURES, RANDOM))), np.float32(rng.normal(size=(max(classes, 2), RANDOM)))


def cdan(randomised, **options):
    def loss(domains, make, w, strength):
        random = matrices(domains.logits.shape[-1]) if randomised else None
        return cdan_loss(domains, make(w), strength, random, **options)

    return Case(loss, width=lambda classes: RANDOM if randomised else FEATURES * classes)


def pada(domains, make, w, strength):
    importance = class_weights(domains.probabilities[TARGET], domains.mask[TARGET])
    return pada_loss(domains, make(w), strength, jnp.arange(domains.mask.shape[1]) % len(importance), importance)


def san(loss):
    def call(domains, make, w, strength):
        return loss(domains, make(w), strength, class_weights(domains.probabilities[TARGET], domains.mask[TARGET]))

    return call


def of_features(loss):
    return lambda domains, make, w, strength: loss(*domains.features, *domains.mask)


CASES = {
    "dann": Case(lambda domains, make, w, strength: dann_loss(domains, make(w), strength)),
    "cdan": cdan(randomised=False),
    "cdan randomised": cdan(randomised=True),
    "cdan conditioned": cdan(randomised=False, conditioned=True),
    "cdan as published": cdan(randomised=True, conditioned=True, reference=True),
    "san": Case(san(san_loss), "classwise"),
    "san as released": Case(san(san_released_loss), "classwise"),
    "pada": Case(pada),
    "target entropy": Case(lambda domains, make, w, strength: target_entropy(domains), None, target_only=True),
    "mcc": Case(
        lambda domains, make, w, strength: mcc(domains.logits[TARGET], domains.mask[TARGET]), None, target_only=True
    ),
    "mmd": Case(of_features(mmd), None),
    "coral": Case(of_features(coral), None),
}
ADVERSARIAL = [name for name, case in CASES.items() if case.kind]
OF_PREDICTIONS = [name for name in CASES if name not in ("dann", "mmd", "coral")]


@pytest.fixture(scope="module")
def run(request):
    """``run(name)``: the compiled (features, logits, weights, mask, strength) -> value, gradients of the first three.

    ``run(name, together=True)``: the same of replicas stacked on the first axis of everything.
    """

    @functools.cache
    def compiled(name, together=False):
        case = CASES[name]
        make = request.getfixturevalue(case.kind) if case.kind else None

        def value(features, logits, w, mask, strength):
            return case.loss(Domains(features=features, logits=logits, mask=mask), make, w, strength)

        both = jax.value_and_grad(value, argnums=(0, 1, 2))
        return jax.jit(jax.vmap(both) if together else both)

    return compiled


@pytest.fixture(scope="module")
def arguments(batch, weights):
    """``arguments(name)``: float32 features, logits, weights and a mask with 5 rows of each domain, 1 as strength."""

    def make(name, classes=2, seed=0):
        case = CASES[name]
        features, logits, _ = batch(ROWS, FEATURES, classes, seed)
        mask = np.ones((2, ROWS), bool)
        mask[SOURCE, [1, 4]] = mask[TARGET, [0, 6]] = False
        stacked = max(classes, 2) if case.kind == "classwise" else None
        w = weights(case.width(max(classes, 2)), stacked) if case.kind else {}
        return *jax.tree.map(np.float32, (features, logits, w)), mask, np.float32(1.0)

    return make


def assert_close(got, expected, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


def assert_finite(tree):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("filler", [np.nan, -np.inf, 3e4])
@pytest.mark.parametrize("name", CASES)
def test_masked_rows_reach_neither_value_nor_gradient(run, arguments, name, filler):
    features, logits, w, mask, strength = arguments(name)
    value, gradients = run(name)(features, logits, w, mask, strength)
    assert np.abs(value) > 1e-3
    fill = lambda x: np.where(mask[..., None], x, np.float32(filler))
    assert_close(run(name)(fill(features), fill(logits), w, mask, strength), (value, gradients))
    for gradient in gradients[:2]:
        np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0.0)


@pytest.mark.parametrize("empty", [SOURCE, TARGET, slice(None)])
@pytest.mark.parametrize("name", CASES)
def test_a_domain_without_rows_gives_zero(run, arguments, name, empty):
    features, logits, w, mask, strength = arguments(name)
    mask[empty] = False
    value, gradients = run(name)(features, logits, w, mask, strength)
    assert_finite((value, gradients))
    if CASES[name].target_only and empty == SOURCE:
        assert value > 0
    else:
        assert value == 0
        for gradient in jax.tree.leaves(gradients):
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_replicas_together_equal_one_by_one(run, arguments, name):
    each = [arguments(name, seed=seed) for seed in range(3)]
    each = [(f, x, w, np.roll(mask, i, 1), np.float32(0.5 * i)) for i, (f, x, w, mask, _) in enumerate(each)]
    together = run(name, together=True)(*jax.tree.map(lambda *x: np.stack(x), *each))
    assert_close(together, jax.tree.map(lambda *x: np.stack(x), *[run(name)(*one) for one in each]))


@pytest.mark.parametrize("name", OF_PREDICTIONS)
def test_one_logit_equals_two(run, arguments, name):
    features, logit, w, mask, strength = arguments(name, classes=1)
    two = np.concatenate([np.zeros_like(logit), logit], -1)
    value, (of_features, of_logit, of_weights) = run(name)(features, logit, w, mask, strength)
    expected, (of_features_two, of_two, of_weights_two) = run(name)(features, two, w, mask, strength)
    assert_close(
        (value, of_features, of_logit, of_weights), (expected, of_features_two, of_two[..., 1:], of_weights_two)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_half_precision_inputs_lose_nothing_more(run, arguments, name):
    features, logits, w, mask, strength = arguments(name)
    features, logits = jnp.asarray(features, jnp.float16), jnp.asarray(logits, jnp.bfloat16)
    value, gradients = run(name)(features, logits, w, mask, strength)
    assert value.dtype == jnp.float32
    assert gradients[0].dtype == jnp.float16 and gradients[1].dtype == jnp.bfloat16
    expected, exact = run(name)(np.float32(features), np.float32(logits), w, mask, strength)
    assert_close((value, gradients[2]), (expected, exact[2]))
    assert_close([np.float32(x) for x in gradients[:2]], list(exact[:2]), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_strength_scales_what_the_features_get_and_nothing_else(run, arguments, name):
    features, logits, w, mask, _ = arguments(name)
    at = lambda strength: run(name)(features, logits, w, mask, np.float32(strength))
    value, (of_features, of_logits, of_weights) = at(-1.0)
    assert np.abs(of_features).max() > 1e-3
    before = run(name)._cache_size()
    for strength in (0.0, 0.3, 2.0):
        again, (features_now, logits_now, weights_now) = at(strength)
        assert_close((again, weights_now), (value, of_weights))
        assert_close((features_now, logits_now), (-strength * of_features, -strength * of_logits))
    assert run(name)._cache_size() == before
    if name == "cdan as published":
        assert np.abs(of_logits).max() > 1e-3
    else:
        np.testing.assert_array_equal(of_logits, 0.0)  # predictions are detached


# Numbers as bad as a network may give: equal rows, ties, zeros, saturated predictions, features of any size.
wild = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e-8, 30.0, -88.0, 104.0, 1e4, -1e4]), st.floats(-1e4, 1e4, width=32)
)
wild_rows = lambda width: st.lists(
    st.one_of(wild.map(lambda x: [x] * width), st.lists(wild, min_size=width, max_size=width)), min_size=1, max_size=4
)


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("name", CASES)
def test_wild_inputs_stay_finite(run, arguments, name, data):
    features, logits, w, mask, strength = arguments(name)
    fill = lambda x: np.resize(np.array(data.draw(wild_rows(x.shape[-1])), np.float32), x.shape)  # rows repeat
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=2 * ROWS, max_size=2 * ROWS))).reshape(2, ROWS)
    assert_finite(run(name)(fill(features), fill(logits), w, mask, strength))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PREDICTIONS)
def test_fifty_classes_with_one_row_each(run, arguments, name):
    features, logits, w, mask, strength = arguments(name, classes=50)
    mask[:] = np.arange(ROWS) == 3
    result = run(name)(features, logits, w, mask, strength)
    assert_finite(result)
    assert result[0] != 0
