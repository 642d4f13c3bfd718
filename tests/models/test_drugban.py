"""What DrugBAN promises, gradients included, on a network and molecules of a few numbers."""

import functools
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdti.models.drugban
from jaxdti.config import Config, ModelConfig
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, one_bucket
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.inference.encode import protein_entities
from jaxdti.inference.scoring import make_scorer
from jaxdti.layers.bilinear import BilinearAttention, pool_size
from jaxdti.layers.graph import ATOM_FEATURE_WIDTHS, DrugBatch
from jaxdti.layers.sequence import ProteinBatch
from jaxdti.models.drugban import DrugBAN, init_variables, score
from jaxdti.training.supervised import hyper_parameters, pair_objective

TINY = ModelConfig(
    drug_features=8,
    drug_layers=2,
    protein_features=8,
    protein_kernels=(3, 4),
    joint_features=5,
    pool_size=3,
    heads=8,
    decoder_features=(8,),
    dropout=0.0,
)
ROWS = 5
ATOM_COUNTS = (7, 1, 4, 6)
RESIDUE_COUNTS = (13, 2, 9)
SNUG = Shape(7, 8, 13)  # coprime, so that the size of an array tells what its axes are
ROOMY = Shape(16, 16, 32)
RECEPTIVE = (2, 3)  # residues that two convolutions of 3 and 4 see to the left and to the right: 1 + 1, 1 + 2


def random_variables(config, seed=0):
    """All parameters and statistics away from their initial 0 and 1, so that every one of them matters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_variables(config, 0))

    def draw(path, leaf):
        if path[-1].key in ("gain", "head_gain"):
            return np.float32(2.0 + rng.random())  # far enough from 0 that atoms and residues matter
        values = rng.random(leaf.shape) + 0.5 if path[-1].key == "var" else rng.normal(size=leaf.shape)
        return np.float32(0.6 * values)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_store(seed=0):
    rng = np.random.default_rng(seed)
    atoms, bonds = [], []
    for count in ATOM_COUNTS:
        columns = [rng.integers(-1 if width > 1 else 0, max(width, 2), count) for width in ATOM_FEATURE_WIDTHS]
        atoms.append(np.stack(columns, 1).astype(np.int8))
        tree = [(i, rng.integers(0, i)) for i in range(1, count)]
        bonds.append(np.array(tree + [(0, count - 1)] * (count > 2), np.int16).reshape(-1, 2))
    residues = [rng.integers(1, 26, count).astype(np.uint8) for count in RESIDUE_COUNTS]
    residues[0][4] = 0  # an unknown letter inside a chain
    offsets = lambda parts: np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return FeatureStore(
        atom_offsets=offsets(atoms),
        atoms=np.concatenate(atoms),
        bond_offsets=offsets(bonds),
        bonds=np.concatenate(bonds),
        residue_offsets=offsets(residues),
        residues=np.concatenate(residues),
    )


def random_batch():
    return PairBatch(
        drug=np.int32([0, 1, 2, 3, 0]),
        protein=np.int32([0, 1, 2, 1, 2]),
        label=np.float32([1, 0, 1, 0, 0]),
        row_mask=np.ones(ROWS, bool),
    )


def train_view(config, shape, variables, features, batch):
    """Loss, its gradient, logits and running statistics of one training step."""
    objective = pair_objective(config, "classification", features, shape)
    rng, hyper = np.zeros(2, np.uint32), hyper_parameters(Config(model=replace(config, dropout=0.0)))

    def loss_fn(params):
        return objective(variables | {"params": params}, batch, rng, hyper)

    (loss, (stats, _)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
    model = DrugBAN(config)
    logits, _ = model.apply(
        variables, drugs, proteins, batch.row_mask, train=True, mutable="batch_stats", rngs={"dropout": rng}
    )
    return {"loss": loss, "gradient": gradient, "logits": logits, "stats": stats}


@functools.cache
def program(config, shape, rows):
    """The compiled ``train_view`` of batches of so many rows."""
    variables, batch = random_variables(config), random_batch()
    batch = jax.tree.map(lambda x: np.resize(x, rows), batch)
    view = functools.partial(train_view, config, shape)
    return jax.jit(view).lower(variables, device_features(random_store()), batch).compile()


@pytest.fixture(scope="module")
def base():
    """The plain case, to which the others are compared."""
    case = SimpleNamespace(variables=random_variables(TINY), store=random_store(), batch=random_batch())
    case.features = device_features(case.store)
    case.view = jax.device_get(program(TINY, SNUG, ROWS)(case.variables, case.features, case.batch))
    return case


def assert_same_view(got, expected):
    """Every array within 1e-4 of its largest expected entry; rounding was seen to reach 7e-6."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, want), have in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        assert have.dtype == want.dtype and have.shape == want.shape, path
        atol = 1e-4 * max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(have, want, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_every_parameter_gets_a_gradient_and_the_unknown_letter_none(base):
    for path, leaf in jax.tree_util.tree_leaves_with_path(base.view["gradient"]):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
    assert (base.view["gradient"]["embedding"]["embedding"][0] == 0.0).all()


def relabelled(store, seed=1):
    """The same molecules with their atoms renumbered, their bonds shuffled and turned round; and the new numbers."""
    rng = np.random.default_rng(seed)
    atoms, bonds, places = store.atoms.copy(), store.bonds.copy(), []
    for i, count in enumerate(ATOM_COUNTS):
        a, b = slice(*store.atom_offsets[i : i + 2]), slice(*store.bond_offsets[i : i + 2])
        place = rng.permutation(count)
        atoms[a][place] = store.atoms[a]
        turned = np.where(rng.random((len(bonds[b]), 1)) < 0.5, bonds[b][:, ::-1], bonds[b])
        bonds[b] = rng.permutation(place[turned])
        places.append(place)
    return FeatureStore(**(vars(store) | {"atoms": atoms, "bonds": bonds})), places


def test_the_numbering_of_atoms_does_not_matter(base):
    other, _ = relabelled(base.store)
    assert (other.atoms != base.store.atoms).any()
    got = program(TINY, SNUG, ROWS)(base.variables, device_features(other), base.batch)
    assert_same_view(jax.device_get(got), base.view)


@pytest.mark.slow
def test_padding_and_filler_rows_change_nothing(base):
    run = program(TINY, ROOMY, ROWS + 2)
    order = np.array([0, -1, 1, 2, -1, 3, 4])
    valid = order >= 0

    def view(drug, protein, label):
        take = lambda name, filler: np.where(valid, getattr(base.batch, name)[order], filler)
        batch = PairBatch(
            drug=take("drug", np.int32(drug)),
            protein=take("protein", np.int32(protein)),
            label=take("label", np.float32(label)),
            row_mask=valid,
        )
        got = jax.device_get(run(base.variables, base.features, batch))
        return got | {"logits": got["logits"][valid]}

    plain = view(0, 0, np.nan)
    assert_same_view(plain, base.view)
    jax.tree.map(np.testing.assert_array_equal, view(2, 1, 1.0), plain)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [(3, 4), (3, 6, 9), (2, 5)])
def test_proteins_end_to_end_do_not_touch(base, kernels):
    """The gap is as wide as it has to be, and no wider."""
    config = replace(TINY, protein_kernels=kernels)
    variables, index = random_variables(config), np.int32([2, 0, 1])
    encode = jax.jit(
        lambda proteins, rows: DrugBAN(config).apply(variables, proteins, rows, method="encode_protein")[0]
    )
    padded = np.asarray(encode(base.features.proteins(index, SNUG), np.ones(3, bool)))
    gap = protein_entities(config, base.features, 3).gap

    def error(gap):
        lengths = np.array(RESIDUE_COUNTS)[index]
        start = np.int32(np.cumsum(lengths + gap) - lengths - gap)
        rows = np.asarray(encode(base.features.proteins_end_to_end(index, start, 40), np.ones(1, bool)))[0]
        parts = zip(padded, start, lengths, strict=True)
        return max(np.abs(rows[first : first + n] - state[:n]).max() for state, first, n in parts)

    assert error(gap) < 1e-5 < 1e-3 < error(gap - 1)


def test_nothing_but_filler_is_finite_and_moves_nothing(base):
    empty = base.batch.replace(row_mask=np.zeros(ROWS, bool), label=np.full(ROWS, np.nan, np.float32))
    got = jax.device_get(program(TINY, SNUG, ROWS)(base.variables, base.features, empty))
    assert got["loss"] == 0.0
    assert np.isfinite(got["logits"]).all()
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(got["gradient"]))
    jax.tree.map(np.testing.assert_array_equal, got["stats"], base.variables["batch_stats"])


@pytest.mark.slow
def test_vmapped_variables_equal_one_by_one(base):
    other = random_variables(TINY, seed=9)
    stacked = jax.tree.map(lambda *x: np.stack(x), base.variables, other)
    view = functools.partial(train_view, TINY, SNUG)
    together = jax.jit(jax.vmap(view, in_axes=(0, None, None)))(stacked, base.features, base.batch)
    alone = jax.device_get(program(TINY, SNUG, ROWS)(other, base.features, base.batch))
    for i, expected in enumerate((base.view, alone)):
        assert_same_view(jax.tree.map(lambda x, i=i: np.asarray(x[i]), together), expected)


@pytest.mark.slow
def test_bfloat16_is_close_with_float32_parameters_and_statistics(base):
    config = ModelConfig(**(vars(TINY) | {"dtype": "bfloat16"}))
    got = jax.device_get(program(config, SNUG, ROWS)(base.variables, base.features, base.batch))
    expected = base.view
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    shapes = jax.tree.leaves(jax.eval_shape(lambda: init_variables(config, 0)))
    assert {leaf.dtype for leaf in shapes} == {np.dtype(np.float32)}
    for name, tolerance in (("loss", 0.03), ("logits", 0.05), ("stats", 0.02), ("gradient", 0.2)):
        flat = lambda view, name=name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(view[name])])
        error = np.linalg.norm(flat(got) - flat(expected)) / np.linalg.norm(flat(expected))
        assert 0.0 < error < tolerance, (name, error)


class PerHead(BilinearAttention):
    """The published form, which builds one map a head."""

    def __call__(self, drug, protein, drug_mask, protein_mask, row_mask, rate, *, train):
        if train:
            drug, protein = self.dropped(drug, protein, rate)
        v, q = self.project_drug(drug, drug_mask), self.project_protein(protein, protein_mask)
        score = jnp.einsum("hk,bak,blk->bhal", self.heads_weight(), v, q) + self.head_bias[None, :, None, None]
        f = jnp.einsum("bak,bhal,blk->bk", v, score, q) / pool_size(self.pool, drug_mask, protein_mask)[:, None]
        joint = f.reshape(f.shape[0], self.joint_features, self.pool_size).sum(-1)
        return self.norm(joint, row_mask, train=train)


def largest_array(compiled):
    """Elements of the largest array named in a compiled program."""
    sizes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    return max(int(np.prod([int(n) for n in size.split(",")])) for size in sizes)


@pytest.mark.slow
def test_training_builds_no_map_per_head(base, monkeypatch):
    per_head_map = ROWS * TINY.heads * SNUG.atoms * SNUG.residues
    assert largest_array(program(TINY, SNUG, ROWS)) < per_head_map
    # The published form fails that check, and computes the same.
    monkeypatch.setattr(jaxdti.models.drugban, "BilinearAttention", PerHead)
    per_head = program.__wrapped__(TINY, SNUG, ROWS)
    assert largest_array(per_head) >= per_head_map
    assert_same_view(jax.device_get(per_head(base.variables, base.features, base.batch)), base.view)


# Evaluation.


@pytest.fixture(scope="module")
def all_pairs():
    """Every drug with every protein."""
    drug, protein = (x.ravel().astype(np.int32) for x in np.indices((len(ATOM_COUNTS), len(RESIDUE_COUNTS))))
    names = lambda count: np.array([str(i) for i in range(count)], object)
    return InteractionTable(
        drugs=names(len(ATOM_COUNTS)),
        proteins=names(len(RESIDUE_COUNTS)),
        drug=drug,
        protein=protein,
        label=np.zeros(len(drug), np.float32),
        part=np.full(len(drug), "table", object),
        row=np.arange(len(drug)),
    )


@pytest.mark.slow
def test_scores_do_not_depend_on_buckets_or_company(base, all_pairs):
    rows = np.arange(len(all_pairs))
    one = make_scorer(TINY, base.features, all_pairs, one_bucket(all_pairs, SNUG), batch_size=5)
    expected = one(base.variables, rows)
    assert np.isfinite(expected).all() and np.ptp(expected) > 0.1

    # The short chain in a bucket of its own; then the rows of the buckets in the opposite order, and in other company.
    of_row = np.where(all_pairs.protein == 1, 1, 0).astype(np.int32)
    buckets = Buckets((ROOMY, Shape(8, 8, 2)), of_row, 0.0)
    several = make_scorer(TINY, base.features, all_pairs, buckets, batch_size=3)
    for order in (rows, np.argsort(-of_row), np.random.default_rng(0).permutation(rows), rows[7:8]):
        np.testing.assert_allclose(several(base.variables, order), expected[order], rtol=1e-5, atol=1e-5)
    apart = [several(base.variables, rows[of_row == bucket]) for bucket in (1, 0)]
    np.testing.assert_array_equal(np.concatenate(apart), several(base.variables, np.argsort(-of_row, kind="stable")))


@pytest.fixture(scope="module")
def attend():
    """``attend(variables, drug batch, protein batch)``: the summed map."""
    return jax.jit(lambda *arguments: DrugBAN(TINY).apply(*arguments, method="attention"))


def test_attention_follows_atoms_and_residues(base, attend):
    index = np.int32([0, 2]), np.int32([0, 2])
    drugs, proteins = base.features.drugs(index[0], SNUG), base.features.proteins(index[1], SNUG)
    expected = np.asarray(attend(base.variables, drugs, proteins))
    assert expected.shape == (2, SNUG.atoms, SNUG.residues)
    inside = np.asarray(drugs.mask)[:, :, None] & np.asarray(proteins.mask)[:, None, :]
    assert (expected[~inside] == 0.0).all() and (expected[inside] != 0.0).all()

    other, places = relabelled(base.store)
    got = np.asarray(attend(base.variables, device_features(other).drugs(index[0], SNUG), proteins))
    for row, drug in enumerate(index[0]):
        np.testing.assert_allclose(got[row][places[drug]], expected[row][: ATOM_COUNTS[drug]], rtol=1e-4, atol=1e-5)

    # Another letter at position 6 changes the columns whose convolutions see it, and no other.
    letters = np.array(proteins.residues)
    letters[0, 6] = letters[0, 6] % 25 + 1
    changed = np.asarray(attend(base.variables, drugs, proteins.replace(residues=letters))) != expected
    left, right = RECEPTIVE
    assert set(np.flatnonzero(changed[0].any(0))) == set(range(6 - right, 6 + left + 1))
    assert not changed[1].any()


def test_letters_past_the_end_of_a_chain_are_not_read(base, attend):
    drugs, proteins = base.features.drugs(np.int32([0, 2]), SNUG), base.features.proteins(np.int32([1, 2]), SNUG)
    littered = np.where(np.asarray(proteins.mask), np.asarray(proteins.residues), 7).astype(np.uint8)
    got = attend(base.variables, drugs, proteins.replace(residues=littered))
    np.testing.assert_array_equal(got, attend(base.variables, drugs, proteins))


def test_single_heads_are_refused_outside_the_reference():
    drug = DrugBatch(
        atoms=np.zeros((1, 2, 8), np.int8),
        bonds=np.zeros((1, 1, 2), np.int32),
        atom_count=np.int32([2]),
        bond_count=np.int32([1]),
    )
    protein = ProteinBatch(residues=np.ones((1, 3), np.uint8), residue_count=np.int32([3]))
    with pytest.raises(ValueError, match=r"per head needs model\.reference"):
        DrugBAN(TINY).apply(random_variables(TINY), drug, protein, per_head=True, method="attention")


def test_score_of_one_and_two_logits():
    np.testing.assert_array_equal(score(jnp.array([[1.5], [-2.0]])), [1.5, -2.0])
    np.testing.assert_array_equal(score(jnp.array([[1.0, 4.0], [2.0, -1.0]])), [3.0, -3.0])
