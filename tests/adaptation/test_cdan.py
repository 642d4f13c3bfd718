"""CDAN against its equation in NumPy, float64, and against one recorded step of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti.adaptation.cdan import cdan_loss, multilinear_map, random_matrices
from jaxdti.adaptation.discriminator import Discriminator
from jaxdti.adaptation.domains import Domains

OPTIONS = {}, {"conditioned": True}, {"conditioned": True, "reference": True}


def predictions(logits):
    if logits.shape[-1] == 1:
        p = 1 / (1 + np.exp(-logits))
        return np.concatenate([1 - p, p], -1)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def reference(features, logits, detached, mask, w, random, conditioned=False, reference=False):
    """The gradient goes through ``features`` and ``logits``; ``detached`` are the same logits."""
    total = 0.0
    for domain in (0, 1):
        f, p, g = features[domain][mask[domain]], *(predictions(x[domain][mask[domain]]) for x in (logits, detached))
        if random is None:
            joint = np.array([np.outer(p, f).ravel() for p, f in zip(g, f, strict=True)])
        else:
            joint = (f @ random[0]) * (g @ random[1]) / np.sqrt(random[0].shape[1])
        scores = np.tanh(joint @ w["A"]) @ w["B"]
        loss = np.log(np.exp(scores).sum(-1)) - scores[:, domain]
        importance = np.ones(len(f))
        if conditioned:
            entropy = -np.sum(p * np.log(p + 1e-5), 1) if reference else -np.sum(g * np.log(g), 1)
            importance = 1 + np.exp(-entropy)
        total += np.sum(importance * loss) / np.sum(importance)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize(("rows", "width", "classes"), [(4, 3, 1), (1, 1, 3), (3, 2, 50)])
def test_value_and_gradients(batch, weights, discriminator, central_differences, rows, width, classes, size):
    features, logits, mask = batch(rows, width, classes)
    random = None
    if size:
        random = tuple(np.random.default_rng(4).normal(size=(n, size)) for n in (width, max(classes, 2)))
    w = weights(size or width * max(classes, 2))

    def loss(f, x, w, options):
        domains = Domains(features=f, logits=x, mask=mask)
        return cdan_loss(domains, discriminator(w), 0.7, jax.tree.map(np.float32, random), **options)

    @jax.jit
    def all_options(f, x, w):
        return [jax.value_and_grad(loss, argnums=(0, 1, 2))(f, x, w, options) for options in OPTIONS]

    results = all_options(*jax.tree.map(np.float32, (features, logits, w)))
    for (value, (of_features, of_logits, of_weights)), options in zip(results, OPTIONS, strict=True):
        given = lambda f=features, x=logits, w=w, options=options: reference(f, x, logits, mask, w, random, **options)
        np.testing.assert_allclose(value, given(), rtol=1e-5)
        slope = central_differences(lambda f, given=given: given(f=f), features)
        np.testing.assert_allclose(of_features, -0.7 * slope, rtol=1e-4, atol=1e-6)
        slope = central_differences(lambda x, given=given: given(x=x), logits)
        np.testing.assert_allclose(of_logits, -0.7 * slope, rtol=1e-4, atol=1e-6)
        slope = central_differences(lambda b, given=given: given(w=w | {"B": b}), w["B"])
        np.testing.assert_allclose(of_weights["B"], slope, rtol=1e-4, atol=1e-6)


def test_random_matrices_are_standard_normal_and_follow_the_key():
    draw = jax.jit(lambda seed: random_matrices(jax.random.key(seed), 60, 50, 40))
    (features, classes), again, other = draw(0), draw(0), draw(1)
    assert features.shape == (60, 40) and classes.shape == (50, 40)
    assert features.dtype == classes.dtype == jnp.float32
    for matrix in (features, classes):
        assert abs(np.mean(matrix)) < 0.1 and abs(np.std(matrix) - 1) < 0.1
    assert abs(np.corrcoef(np.ravel(features[:50]), np.ravel(classes))[0, 1]) < 0.1
    np.testing.assert_array_equal(again[0], features)
    assert np.abs(other[0] - features).max() > 1


def test_the_randomised_map_keeps_inner_products():
    rng = np.random.default_rng(0)
    f, g = np.float32(rng.normal(size=(2, 3))), np.float32(rng.random((2, 2)))
    exact = multilinear_map(f, g, None)
    mapped = multilinear_map(f, g, random_matrices(jax.random.key(0), 3, 2, 40_000))
    assert exact.shape == (2, 6) and mapped.shape == (2, 40_000)
    np.testing.assert_allclose(exact @ exact.T, (f @ f.T) * (g @ g.T), rtol=1e-5)
    lengths = np.linalg.norm(exact, axis=1)
    assert np.max(np.abs(mapped @ mapped.T - exact @ exact.T) / np.outer(lengths, lengths)) < 0.15


# The recorded step of the published code, from the features and logits of each pass on.


@pytest.fixture(scope="module")
def recorded(reference_dir):
    state, step = (dict(np.load(reference_dir / f"drugban_cdan_{part}.npz")) for part in ("state", "step"))
    layer = lambda name: {"dense": {"kernel": state[f"disc.{name}.weight"].T, "bias": state[f"disc.{name}.bias"]}}
    norm = lambda name: {"scale": state[f"disc.{name}.weight"], "bias": state[f"disc.{name}.bias"]}
    params = {"hidden_0": layer("fc1"), "norm_0": norm("bn1"), "hidden_1": layer("fc2"), "norm_1": norm("bn2")}
    return params | {"output": layer("fc3")}, step


@pytest.mark.slow
@pytest.mark.parametrize(("case", "conditioned"), [("cdan", False), ("cdan_e", True)])
def test_the_published_step(recorded, case, conditioned):
    params, step = recorded
    features, logits = (
        np.stack([step[f"{d}_{part}"] for d in ("source", "target")]) for part in ("features", "logits")
    )
    random = step["random_matrix_features"], step["random_matrix_predictions"]

    def loss(logits, params):
        one_pass = lambda x, mask: Discriminator().apply({"params": params}, x, mask, mutable="batch_stats")[0]
        domains = Domains(features=features, logits=logits, mask=np.ones((2, 8), bool))
        return cdan_loss(domains, jax.vmap(one_pass), 1.0, random, conditioned=conditioned, reference=True)

    value, (of_logits, of_params) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(logits, params)
    np.testing.assert_allclose(value, step[f"{case}/da_loss"], rtol=0, atol=5e-5)

    norms = dict(zip(step["disc_param_names"], step[f"{case}/disc_grad_norm"], strict=True))
    torch_name = {"hidden_0": "fc1", "hidden_1": "fc2", "norm_0": "bn1", "norm_1": "bn2", "output": "fc3"}
    seen = set()
    for path, gradient in jax.tree_util.tree_leaves_with_path(of_params):
        part = {"kernel": "weight", "scale": "weight", "bias": "bias"}[path[-1].key]
        name = f"{torch_name[path[0].key]}.{part}"
        name = name if name in norms else f"disc.{name}"
        seen.add(name)
        if part == "bias" and path[0].key.startswith("hidden"):  # normalised away: only rounding is left of it
            assert np.linalg.norm(gradient) < 1e-6 and norms[name] < 1e-6
            continue
        np.testing.assert_allclose(np.linalg.norm(gradient), norms[name], rtol=5e-3, err_msg=name)
        full = step.get(f"{case}/grad/disc.{name.removeprefix('disc.')}")
        if full is not None:
            gradient = np.asarray(gradient).reshape(full.shape[::-1]).T
            assert np.linalg.norm(gradient - full) <= 2e-2 * np.linalg.norm(full), name
    assert seen == set(norms)

    # Both passes end in the classifier's last bias: what entropy conditioning sends back to the logits shows there.
    labels = np.int32(step["source_labels"])
    classify = lambda x: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, labels))
    model_loss, of_source = jax.value_and_grad(classify)(logits[0])
    np.testing.assert_allclose(model_loss, step[f"{case}/model_loss"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(model_loss + value, step[f"{case}/total_loss"], rtol=0, atol=1e-4)
    expected = step[f"{case}/grad/mlp_classifier.fc4.bias"]
    np.testing.assert_allclose(np.sum(of_source, 0) + np.sum(of_logits, (0, 1)), expected, rtol=5e-3)
    if conditioned:
        assert np.linalg.norm(np.sum(of_logits, (0, 1))) > 1e-2 * np.linalg.norm(expected)
