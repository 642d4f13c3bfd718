"""Bilinear attention: the collapse over heads in float64, and the layer against NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.layers.bilinear import BilinearAttention, pool_size, pooled_attention

BATCH, ATOMS, RESIDUES, HEADS, JOINT, POOL = 2, 3, 4, 3, 2, 3
RANK = JOINT * POOL


def per_head(v, q, head, bias):
    """The published form, one map a head: [B, K]; also for complex arguments."""
    score = np.einsum("hk,bak,blk->bhal", head, v, q) + bias[None, :, None, None]
    return np.einsum("bhal,bak,blk->bk", score, v, q)


@pytest.mark.parametrize("batch", [1, BATCH])  # one pair has a gradient of its own
def test_collapsed_form_equals_the_form_per_head_in_float64(complex_step, batch):
    rng = np.random.default_rng(0)
    arguments = {
        "v": rng.normal(size=(batch, ATOMS, RANK)),
        "q": rng.normal(size=(batch, RESIDUES, RANK)),
        "head": rng.normal(size=(HEADS, RANK)),
        "bias": rng.normal(size=HEADS),
    }
    upstream = rng.normal(size=(batch, RANK))

    @jax.jit
    def run(arguments):
        def loss(a):
            f = pooled_attention(a["v"], a["q"], a["head"].sum(0), a["bias"].sum())
            return (f * upstream).sum(), f

        return jax.value_and_grad(loss, has_aux=True)(arguments)

    with jax.enable_x64(True):
        (_, f), got = run(arguments)
    assert f.dtype == np.float64
    np.testing.assert_allclose(f, per_head(**arguments), rtol=1e-12, atol=1e-12)
    for name, value in arguments.items():
        slope = complex_step(lambda x, n=name: (per_head(**(arguments | {n: x})) * upstream).sum(), value)
        np.testing.assert_allclose(got[name], slope, rtol=1e-12, atol=1e-12, err_msg=name)


def test_all_pairs_at_once_build_no_array_as_large_as_two_maps_a_pair():
    pairs, atoms, residues, rank = 5, 7, 13, 3  # with so small a rank, maps are the largest arrays
    v, q, weight = np.ones((pairs, atoms, rank)), np.ones((pairs, residues, rank)), np.ones(rank)
    gradient = jax.grad(lambda *inputs: pooled_attention(*inputs).sum(), argnums=(0, 1, 2, 3))
    text = jax.jit(gradient).lower(*map(np.float32, (v, q, weight, 1.0))).compile().as_text()
    sizes = [np.prod([int(n) for n in size.split(",")]) for size in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert pairs * atoms * residues <= max(sizes) < 2 * pairs * atoms * residues


def test_pooled_attention_is_wide_where_its_inputs_are_narrow():
    rng = np.random.default_rng(0)
    v, q = (rng.random((BATCH, 40, RANK)).astype(jnp.bfloat16) for _ in range(2))
    weight, bias = np.float32(rng.random(RANK)), np.float32(0.5)
    f = jax.jit(pooled_attention)(v, q, weight, bias)
    assert f.dtype == jnp.float32
    expected = per_head(v.astype(float), q.astype(float), weight[None].astype(float), np.array([0.5]))
    np.testing.assert_allclose(f, expected, rtol=0.02)


def test_pool_sizes():
    drug, protein = np.array([[True, True, False], [False] * 3]), np.array([[True] * 8, [False] * 8])
    for pool, expected in (("sum", [1, 1]), ("mean", [16, 1]), ("sqrt", [4, 1])):
        np.testing.assert_allclose(pool_size(pool, drug, protein), np.array(expected, float), rtol=1e-6)


DRUG_MASK = np.array([[True, True, False], [True, False, False], [True, True, True], [False] * 3])
PROTEIN_MASK = np.array([[True] * 4, [True, True, False, False], [True, False, False, False], [False] * 4])
ROW_MASK = np.array([True, True, True, False])


@pytest.fixture(scope="module")
def layer():
    """Inputs, parameters and running statistics of the whole layer, float64."""
    rng = np.random.default_rng(1)
    projection = lambda width: {
        "kernel": rng.normal(size=(width, RANK)),
        "gain": np.array(3.0),
        "bias": rng.normal(size=RANK),  # relu(bias) is above 0 for some, so padding must be masked after it
    }
    params = {
        "drug_projection": projection(5),
        "protein_projection": projection(6),
        "head_kernel": rng.normal(size=(HEADS, RANK)),
        "head_gain": np.array(1.3),
        "head_bias": rng.normal(size=HEADS),
        "norm": {"scale": rng.normal(size=JOINT), "bias": rng.normal(size=JOINT)},
    }
    stats = {"norm": {"mean": rng.normal(size=JOINT), "var": rng.random(JOINT) + 0.5}}
    return rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 4, 6)), params, stats


def numpy_maps(layer):
    """V, Q and the maps per head [B, heads, A, L] without dropout."""
    drug, protein, params, _ = layer

    def project(x, name, mask):
        p = params[name]
        y = np.maximum(x @ (p["kernel"] * p["gain"] / np.linalg.norm(p["kernel"])) + p["bias"], 0.0)
        return np.where(mask[..., None], y, 0.0)

    v, q = project(drug, "drug_projection", DRUG_MASK), project(protein, "protein_projection", PROTEIN_MASK)
    head = params["head_kernel"] * params["head_gain"] / np.linalg.norm(params["head_kernel"])
    score = np.einsum("hk,bak,blk->bhal", head, v, q) + params["head_bias"][None, :, None, None]
    return v, q, score


def as_float32(tree):
    return jax.tree.map(np.float32, tree)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("pool", ["sum", "mean", "sqrt"])
def test_layer_in_training_matches_numpy(layer, pool, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # pair by pair, or all pairs at once
    drug, protein, params, stats = layer
    module = BilinearAttention(JOINT, POOL, HEADS, pool)

    @jax.jit
    def run(variables, drug, protein):
        return module.apply(
            variables, drug, protein, DRUG_MASK, PROTEIN_MASK, ROW_MASK, 0.0,
            train=True, mutable="batch_stats", rngs={"dropout": np.zeros(2, np.uint32)},
        )  # fmt: skip

    variables = {"params": params, "batch_stats": stats}
    joint, updates = run(*as_float32((variables, drug, protein)))

    v, q, score = numpy_maps(layer)
    f = np.einsum("bhal,bak,blk->bk", score, v, q)
    pairs = np.maximum(DRUG_MASK.sum(1) * PROTEIN_MASK.sum(1), 1)[:, None]
    f = f / {"sum": 1.0, "mean": pairs, "sqrt": np.sqrt(pairs)}[pool]
    summed = f.reshape(4, JOINT, POOL).sum(-1)
    mean, var = summed[ROW_MASK].mean(0), summed[ROW_MASK].var(0)
    expected = params["norm"]["scale"] * (summed - mean) / np.sqrt(var + 1e-5) + params["norm"]["bias"]
    np.testing.assert_allclose(np.asarray(joint)[ROW_MASK], expected[ROW_MASK], rtol=1e-4, atol=1e-4)
    assert np.isfinite(joint).all()
    after = updates["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(after, 0.9 * stats["norm"]["mean"] + 0.1 * mean, rtol=1e-4)


def test_attention_map_is_the_sum_over_heads_and_0_at_padding(layer):
    drug, protein, params, stats = layer
    module = BilinearAttention(JOINT, POOL, HEADS, "sum")

    @jax.jit
    def maps(variables, drug, protein):
        masks = (DRUG_MASK, PROTEIN_MASK)
        attend = lambda **options: module.apply(variables, drug, protein, *masks, method="attention", **options)
        return attend(), attend(per_head=True)

    summed, heads = maps(*as_float32(({"params": params, "batch_stats": stats}, drug, protein)))
    _, _, score = numpy_maps(layer)
    expected = np.where(DRUG_MASK[:, None, :, None] & PROTEIN_MASK[:, None, None, :], score, 0.0)
    assert summed.shape == (4, 3, 4) and heads.shape == (4, HEADS, 3, 4)
    np.testing.assert_allclose(heads, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(summed, expected.sum(1), rtol=1e-4, atol=1e-5)


def test_dropout_falls_on_the_inputs_of_both_projections(layer):
    drug, protein, params, stats = layer
    module = BilinearAttention(JOINT, POOL, HEADS, "sum")

    def project(module, drug, protein):
        return module.project_drug(drug, DRUG_MASK), module.project_protein(protein, PROTEIN_MASK)

    @jax.jit
    def run(variables, drug, protein, rate, key):
        after_dropout = lambda module, *inputs: project(module, *module.dropped(*inputs, rate))
        return (
            module.apply(variables, drug, protein, method=after_dropout, rngs={"dropout": key}),
            module.apply(variables, drug, protein, method=project),
        )

    arguments = as_float32(({"params": params, "batch_stats": stats}, drug, protein))
    first, still = run(*arguments, 0.5, np.uint32([0, 1]))
    second, _ = run(*arguments, 0.5, np.uint32([0, 2]))
    none, _ = run(*arguments, 0.0, np.uint32([0, 1]))
    v, q, _ = numpy_maps(layer)
    for one, other, zero_rate, at_rest, expected in zip(first, second, none, still, (v, q), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() > 0.1
        np.testing.assert_allclose(zero_rate, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(at_rest, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [False, True])
def test_gradients_pair_by_pair_are_those_of_all_pairs_at_once(layer, monkeypatch, replicas):
    drug, protein, params, stats = as_float32(layer)
    module = BilinearAttention(JOINT, POOL, HEADS, "mean")
    weight = np.random.default_rng(4).normal(size=(4, JOINT)).astype(np.float32)

    def loss(params, drug, protein):
        joint, _ = module.apply(
            {"params": params, "batch_stats": stats}, drug, protein, DRUG_MASK, PROTEIN_MASK, ROW_MASK, 0.0,
            train=True, mutable="batch_stats", rngs={"dropout": np.zeros(2, np.uint32)},
        )  # fmt: skip
        return jnp.sum(jnp.where(ROW_MASK[:, None], joint * weight, 0.0))

    def gradients(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        if not replicas:
            return jax.jit(gradient)(params, drug, protein)
        twice = jax.tree.map(lambda x: np.stack([x, 1.5 * x]), (params, drug, protein))
        return jax.jit(jax.vmap(gradient))(*twice)

    for one, other in zip(*map(jax.tree.leaves, map(gradients, ("cpu", "gpu"))), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
