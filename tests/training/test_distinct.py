"""Encoding each distinct protein of a batch once gives the values, gradients and statistics of one a pair."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import Config, ModelConfig
from jaxdti.data.pairs.buckets import PairBatch, Shape
from jaxdti.data.pairs.device import DeviceFeatures
from jaxdti.models.drugban import init_variables, share_proteins
from jaxdti.training.supervised import hyper_parameters, pair_objective

MODEL = ModelConfig(
    drug_features=8,
    drug_layers=2,
    protein_features=8,
    protein_kernels=(3, 4),
    joint_features=6,
    pool_size=2,
    decoder_features=(16, 8),
    dropout=0.0,
)
PAIRS = 12


def features() -> DeviceFeatures:
    rng = np.random.default_rng(0)
    atoms, bonds, residues = np.array([3, 9, 5, 7]), np.array([2, 8, 4, 6]), np.array([20, 31, 12])
    starts = lambda sizes: jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32)
    return DeviceFeatures(
        atoms=jnp.asarray(rng.integers(0, 2, (atoms.sum(), 8)), jnp.int8),
        atom_offsets=starts(atoms),
        bonds=jnp.concatenate([jnp.stack([jnp.arange(n), jnp.arange(n) + 1], 1) for n in bonds]).astype(jnp.int16),
        bond_offsets=starts(bonds),
        residues=jnp.asarray(rng.integers(1, 26, residues.sum()), jnp.uint8),
        residue_offsets=starts(residues),
    )


def batch(seed: int, valid: int = PAIRS) -> PairBatch:
    rng = np.random.default_rng(seed)
    mask = np.arange(PAIRS) < valid
    drug, protein = (np.where(mask, rng.integers(1, n, PAIRS), 0).astype(np.int32) for n in (4, 3))
    return PairBatch(drug=drug, protein=protein, label=rng.integers(0, 2, PAIRS).astype(np.float32), row_mask=mask)


@partial(jax.jit, static_argnums=0)
def run(proteins, batch, variables, dropout=0.0):
    """(loss, batch statistics, gradients)"""
    objective = pair_objective(MODEL, "classification", features(), Shape(9, 8, 32), proteins)
    hyper = hyper_parameters(Config(model=MODEL)) | {"dropout": jnp.float32(dropout)}

    def loss(params):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        value, (stats, _) = objective(variables_now, batch, jax.random.PRNGKey(0), hyper)
        return value, stats

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, stats, gradients


def assert_close(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("proteins", [3, 9])
@pytest.mark.parametrize("valid", [PAIRS, 7, 1])
def test_values_gradients_and_statistics_are_those_of_one_protein_a_pair(proteins, valid):
    variables = init_variables(MODEL, 0)
    pairs = batch(1, valid)
    assert_close(run(proteins, pairs, variables), run(None, pairs, variables))


def test_uneven_uses_matter():
    """Statistics that counted each protein once would differ: the weights are at work."""
    variables = init_variables(MODEL, 0)
    pairs = batch(1)
    _, stats, _ = run(3, pairs, variables)
    once = pairs.replace(row_mask=np.isin(np.arange(PAIRS), np.unique(pairs.protein, return_index=True)[1]))
    _, other, _ = run(3, once, variables)
    mean = lambda s: s["sequence_layers_0"]["norm"]["mean"]
    assert np.abs(mean(stats) - mean(other)).max() > 1e-4


@pytest.mark.slow
def test_replicas_under_vmap_equal_one_by_one():
    each = [init_variables(MODEL, seed) for seed in range(2)]
    pairs = [batch(1), batch(2, 9)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    together = jax.jit(jax.vmap(lambda b, v: run(3, b, v)))(stack(pairs), stack(each))
    alone = stack([run(3, *one) for one in zip(pairs, each, strict=True)])
    assert_close(together, alone)


def test_distinct_proteins_and_their_uses():
    values, found = share_proteins(jnp.array([5, 2, 5, 9, 0]), jnp.array([True, True, True, True, False]), 6)
    assert values[found.rows].tolist() == [5, 2, 5, 9, 0]
    uses = {int(v): float(u) for v, u in zip(values, found.uses, strict=True) if u}
    assert uses == {5: 2.0, 2: 1.0, 9: 1.0} and found.uses.sum() == 4
