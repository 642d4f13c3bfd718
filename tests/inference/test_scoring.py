"""Scores do not depend on how the pairs were grouped, padded, tiled or ordered, nor on the form they took."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import ModelConfig
from jaxdti.data.pairs.buckets import Shape, one_bucket, pair_batch
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.featurise import build_store, featurize_smiles
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.inference import encode, scoring
from jaxdti.inference import pairs as pairs_module
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.models.drugban import DrugBAN, init_variables, score

CONFIG = ModelConfig(
    drug_features=8,
    drug_layers=1,
    protein_features=8,
    protein_kernels=(3, 4),
    joint_features=4,
    pool_size=2,
    decoder_features=(16,),
)
RANK = 8
SMILES = (
    "C",
    "CCO",
    "[Cl-].[Na+]",
    "c1ccncc1",
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "CCCCCCCCCCCCCCCCCC",
)
STATE = 4 * RANK * 24  # bytes of the largest drug; a protein takes up to seven times as much
FORMS = ("pairwise", "gram")


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setattr(scoring, "choose_form", lambda *_: request.param)
    return request.param


@pytest.fixture(scope="module")
def pairs():
    """(table, store): 30 rows over drugs of 1 to 18 atoms and proteins of 3 to 150 residues; some pairs twice."""
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
    assert len(set(zip(drug.tolist(), protein.tolist(), strict=True))) < 30
    return table, build_store(table, featurize_smiles(table.drugs.tolist()), 1200)


def random_variables(config, seed):
    """Fresh variables whose stored statistics, biases and gains matter."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("mean", "bias"):
            return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
        return leaf * 3.0 if name in ("gain", "head_gain") else leaf

    return jax.tree_util.tree_map_with_path(draw, init_variables(config, seed))


@pytest.fixture(scope="module")
def variables():
    return random_variables(CONFIG, 3)


def whole_model(config, variables, pairs, shape):
    """The scores of all 30 rows from one direct call of the model."""
    table, store = pairs
    features, batch = device_features(store), pair_batch(table, np.arange(30))
    drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
    logits = jax.jit(lambda v, *x: DrugBAN(config).apply(v, *x, train=False))(
        variables, drugs, proteins, batch.row_mask
    )
    values = np.asarray(score(logits))
    assert len(set(values.round(5).tolist())) > 15  # otherwise their order could not be told
    return values


@pytest.fixture(scope="module")
def expected(pairs, variables):
    return whole_model(CONFIG, variables, pairs, Shape(24, 24, 192))


def scorer_of(pairs, count=3, batch=4, config=CONFIG, **options):
    table, store = pairs
    buckets = buckets_for(config, table, store, count, batch)
    return make_scorer(config, device_features(store), table, buckets, batch, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(1, 64), (3, 4), (3, 1)])
def test_scores_come_in_the_order_of_the_rows_and_do_not_depend_on_the_batches(
    form, pairs, variables, expected, count, batch
):
    scorer = scorer_of(pairs, count, batch)
    order = np.random.default_rng(1).permutation(30)
    found = scorer(variables, order)
    assert found.dtype == np.float32 and found.shape == (30,)
    np.testing.assert_allclose(found, expected[order], atol=1e-5)
    for some in ([29, 3, 11], [7], [5, 0, 5, 7, 0, 5]):
        np.testing.assert_allclose(scorer(variables, np.array(some)), expected[some], atol=1e-5)
    assert scorer(variables, np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("memory", [1, 40 * STATE], ids=["one", "some"])
def test_little_memory_gives_the_same_scores(form, pairs, variables, expected, memory):
    np.testing.assert_allclose(scorer_of(pairs, memory=memory)(variables, np.arange(30)), expected, atol=1e-5)


@pytest.mark.slow
def test_features_on_the_host_give_the_same_scores_and_come_batch_by_batch(
    form, pairs, variables, monkeypatch, fresh_programs
):
    table, store = pairs
    buckets, sizes = buckets_for(CONFIG, table, store, 3, 4), []
    expected = make_scorer(CONFIG, device_features(store), table, buckets, 4, memory=40 * STATE)
    scorer = make_scorer(CONFIG, store, table, buckets, 4, memory=40 * STATE)
    rows = encode.encoded_rows

    def watched(model, method, entities, bucket, variables, features, index, start):
        sizes.append((entities.kind, entities.shapes[bucket], len(index), features))
        return rows(model, method, entities, bucket, variables, features, index, start)

    monkeypatch.setattr(encode, "encoded_rows", watched)
    found = scorer(variables, np.arange(30))
    assert {kind for kind, *_ in sizes} == {"drug", "protein"}
    for kind, shape, count, features in sizes:  # of one block of entities at its size, and of one kind
        held = {name: len(getattr(features, name)) for name in ("atoms", "bonds", "residues")}
        assert (held["residues"] == 0) == (kind == "drug")
        if kind == "drug":
            assert max(held.values()) == count * max(shape.atoms, shape.bonds)
        else:
            assert held["atoms"] == held["bonds"] == 0 and shape.residues <= held["residues"] < shape.residues + count
    np.testing.assert_array_equal(found, expected(variables, np.arange(30)))
    some = np.array([5, 0, 5, 7])
    np.testing.assert_array_equal(scorer(variables, some), expected(variables, some))


@pytest.fixture
def encoded(monkeypatch, fresh_programs):
    """Lengths of the drugs and proteins that really pass the encoders, in two lists."""
    seen = {"drug": [], "protein": []}

    def spy(kind, original):
        def method(self, batch, row_mask, **options):
            jax.debug.callback(partial(note, kind), batch.mask & row_mask[:, None])
            return original(self, batch, row_mask, **options)

        return method

    def note(kind, mask):
        for row in np.asarray(mask):  # proteins follow one another in a row
            ends = np.flatnonzero(np.diff(row.astype(int), prepend=0, append=0))
            seen[kind].extend((ends[1::2] - ends[::2]).tolist())

    for kind in seen:
        monkeypatch.setattr(DrugBAN, f"encode_{kind}", spy(kind, getattr(DrugBAN, f"encode_{kind}")))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1 << 20, 4 * STATE], ids=["much", "little"])
def test_every_entity_is_encoded_once(form, pairs, variables, encoded, memory, monkeypatch):
    table, store = pairs
    monkeypatch.setattr(encode, "_positions", lambda: 160)
    rows = np.concatenate([np.arange(25), np.arange(20)])
    drugs, proteins = np.unique(table.drug[rows]), np.unique(table.protein[rows])
    scorer_of(pairs, memory=memory)(variables, rows)
    jax.effects_barrier()
    assert sorted(encoded["protein"]) == sorted(store.residue_counts[proteins].tolist())
    if memory == 1 << 20:
        assert sorted(encoded["drug"]) == sorted(store.atom_counts[drugs].tolist())
    else:  # both take several tiles
        assert len(encoded["drug"]) > len(drugs)
        assert set(encoded["drug"]) == set(store.atom_counts[drugs].tolist())


@pytest.mark.slow
def test_programs_are_few_and_told_and_do_not_depend_on_what_is_scored(pairs, monkeypatch, capsys, fresh_programs):
    monkeypatch.setattr(scoring, "choose_form", lambda *_: "pairwise")
    scorer = scorer_of(pairs, count=4)
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(30)[: 30 - 7 * seed]
        scorer(init_variables(CONFIG, seed), rows)
    told = [line.rpartition(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert len(told) == len(set(told)) and {line.split()[0] for line in told} == {"compiled"}
    # Two lengths of drugs: with one program a bucket in training, as many as two a bucket.
    assert Counter(line.split()[1] for line in told) == {"encoder": 3, "attention": 1}
    monkeypatch.setattr(scoring, "choose_form", lambda *_: "gram")
    scorer(init_variables(CONFIG, 0), np.arange(30))
    kinds = Counter(line.split()[1] for line in capsys.readouterr().err.splitlines())
    assert kinds == {"encoder": 3, "scores": 1}


def test_accelerators_give_the_same_scores(pairs, variables, expected, monkeypatch, capsys, fresh_programs):
    """There all groups of one size are computed at once."""
    monkeypatch.setattr(scoring, "choose_form", lambda *_: "pairwise")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(scorer_of(pairs)(variables, np.arange(30)), expected, atol=1e-5)
    told = [line for line in capsys.readouterr().err.splitlines() if "attention" in line]
    assert len(told) > 3 and all(" atoms, " in line for line in told)


def test_the_cheaper_form_is_taken(pairs, variables, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(scoring, "choose_form", lambda *a: chosen.append(pairs_module.choose_form(*a)) or chosen[-1])
    scorer = scorer_of(pairs)
    for rows in (np.arange(30), np.arange(3)):
        np.testing.assert_allclose(scorer(variables, rows), expected[rows], atol=1e-5)
    assert chosen == ["gram", "pairwise"]


@pytest.mark.slow
def test_pooling_knows_how_much_it_pools(form, pairs):
    config = dataclasses.replace(CONFIG, pool="sqrt")  # the mean is the default, the sum that of the reference
    variables = random_variables(config, 3)
    expected = whole_model(config, variables, pairs, Shape(24, 24, 192))
    found = scorer_of(pairs, config=config)(variables, np.arange(30))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_and_two_logits(form, pairs):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", logits=2)
    variables = random_variables(config, 3)
    expected = whole_model(dataclasses.replace(config, dtype="float32"), variables, pairs, Shape(24, 24, 192))
    found = scorer_of(pairs, config=config)(variables, np.arange(30))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected))


@pytest.mark.slow
def test_the_reference_option_scores_at_the_published_shape(form, pairs):
    table, store = pairs
    config = dataclasses.replace(CONFIG, reference=True)
    buckets = buckets_for(config, table, store, 6, 64)
    assert buckets.shapes == (Shape(290, 24, 1200),) and not buckets.of_row.any()
    published = random_variables(config, 0)
    expected = whole_model(config, published, pairs, buckets.shapes[0])
    rows = np.array([4, 1, 2, 4])
    found = make_scorer(config, device_features(store), table, buckets, 2)(published, rows)
    np.testing.assert_allclose(found, expected[rows], rtol=1e-4, atol=1e-4)


def test_the_reference_option_refuses_what_its_shape_cannot_hold(pairs, monkeypatch):
    monkeypatch.setattr("jaxdti.inference.encode.REFERENCE_ATOMS", 17)
    with pytest.raises(ValueError, match="pads to 17 atoms, and an entity has 18; lower data.max_atoms"):
        scorer_of(pairs, config=dataclasses.replace(CONFIG, reference=True))


def test_one_bucket_takes_every_row(form, pairs, variables, expected):
    table, store = pairs
    scorer = make_scorer(CONFIG, device_features(store), table, one_bucket(table, Shape(40, 48, 256)), 30)
    np.testing.assert_allclose(scorer(variables, np.arange(30)), expected, atol=1e-5)
