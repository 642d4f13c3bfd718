"""Scores do not depend on how the pairs were grouped, padded or ordered."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdti.config import ModelConfig
from jaxdti.data.batches import Shape, one_bucket, pair_batch
from jaxdti.data.features import build_store, featurize_smiles
from jaxdti.data.interactions import InteractionTable
from jaxdti.inference import scoring
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.models.drugban import DrugBAN, score
from jaxdti.training.features import device_features
from jaxdti.training.state import init_variables

CONFIG = ModelConfig(
    drug_features=8,
    drug_layers=1,
    protein_features=8,
    protein_kernels=(3, 4),
    joint_features=8,
    pool_size=1,
    decoder_features=(16,),
)
SMILES = (
    "C",
    "CCO",
    "[Cl-].[Na+]",
    "c1ccncc1",
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "CCCCCCCCCCCCCCCCCC",
)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pairs():
    """(table, store): 30 rows over drugs of 1 to 18 atoms and proteins of 3 to 150 residues."""
    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in (3, 30, 34, 90, 150)]
    drug, protein = rng.integers(0, len(SMILES), 30), rng.integers(0, len(proteins), 30)
    table = InteractionTable(
        drugs=np.array(SMILES, object),
        proteins=np.array(proteins, object),
        drug=drug.astype(np.int32),
        protein=protein.astype(np.int32),
        label=np.full(30, np.nan, np.float32),
        part=np.full(30, "table", object),
        row=np.arange(30),
    )
    return table, build_store(table, featurize_smiles(table.drugs.tolist()), 1200)


@pytest.fixture(scope="module")
def variables():
    return init_variables(CONFIG, 3)


@pytest.fixture(scope="module")
def expected(pairs, variables):
    """The scores of all 30 rows from one direct call of the model."""
    table, store = pairs
    features, shape, batch = device_features(store), Shape(24, 24, 192), pair_batch(table, np.arange(30))
    drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
    logits = DrugBAN(CONFIG).apply(variables, drugs, proteins, batch.row_mask, train=False)
    values = np.asarray(score(logits))
    assert len(set(values.round(5).tolist())) > 15  # otherwise their order could not be told
    return values


@pytest.fixture(scope="module")
def scorers(pairs):
    table, store = pairs
    features, made = device_features(store), {}
    for count, batch in ((1, 64), (3, 4)):
        buckets = buckets_for(CONFIG, table, store, count, batch)
        assert len(buckets.shapes) == count
        made[count] = make_scorer(CONFIG, features, table, buckets, batch)
    return made


@pytest.mark.parametrize("count", [1, 3])
def test_scores_come_in_the_order_of_the_rows_and_do_not_depend_on_the_batches(scorers, variables, expected, count):
    order = np.random.default_rng(1).permutation(30)
    found = scorers[count](variables, order)
    assert found.dtype == np.float32 and found.shape == (30,)
    np.testing.assert_allclose(found, expected[order], atol=1e-5)
    some = np.array([29, 3, 11])
    np.testing.assert_allclose(scorers[count](variables, some), expected[some], atol=1e-5)


def test_a_row_may_be_asked_for_twice_and_none_at_all(scorers, variables, expected):
    rows = np.array([5, 0, 5, 7, 0, 5])
    np.testing.assert_allclose(scorers[3](variables, rows), expected[rows], atol=1e-5)
    assert scorers[3](variables, np.zeros(0, np.int64)).shape == (0,)


def test_one_program_a_bucket_whatever_is_scored(pairs, variables, monkeypatch):
    table, store = pairs
    traces = []

    def counted(logits):
        traces.append(logits.shape)
        return score(logits)

    monkeypatch.setattr(scoring, "score", counted)
    buckets = buckets_for(CONFIG, table, store, 2, 4)
    scorer = make_scorer(CONFIG, device_features(store), table, buckets, 4)
    for seed in range(3):
        fresh = init_variables(CONFIG, seed) if seed else variables
        scorer(fresh, np.random.default_rng(seed).permutation(30)[: 30 - 7 * seed])
    assert len(traces) == len(buckets.shapes) == 2


def test_the_reference_option_scores_at_the_published_shape(pairs):
    table, store = pairs
    config = dataclasses.replace(CONFIG, reference=True)
    buckets = buckets_for(config, table, store, 6, 64)
    assert buckets.shapes == (Shape(290, 24, 1200),) and not buckets.of_row.any()
    scorer = make_scorer(config, device_features(store), table, buckets, 2)
    published = init_variables(config, 0)
    rows = np.array([4, 1, 2])
    found = scorer(published, rows)
    assert np.isfinite(found).all() and len(set(found.tolist())) == 3
    np.testing.assert_allclose(scorer(published, rows[::-1]), found[::-1], rtol=1e-5)


def test_one_bucket_takes_every_row(pairs, variables, expected):
    table, store = pairs
    scorer = make_scorer(CONFIG, device_features(store), table, one_bucket(table, Shape(40, 48, 256)), 30)
    np.testing.assert_allclose(scorer(variables, np.arange(30)), expected, atol=1e-5)
