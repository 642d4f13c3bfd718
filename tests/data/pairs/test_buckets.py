"""Buckets and epoch plans: every row once, within its bucket's shape, the same for the same seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdti.data.pairs.buckets import (
    Buckets,
    Shape,
    choose_buckets,
    most_distinct,
    one_bucket,
    pair_batch,
    pair_cost,
    plan_epoch,
    plan_evaluation,
    shared_proteins,
)
from jaxdti.data.pairs.table import FeatureStore, InteractionTable


def offsets(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def problem(atom_counts, residue_counts, drug, protein):
    """A table and a store of these sizes, with trees for molecules and nothing in the arrays."""
    atom_counts, residue_counts = np.array(atom_counts, int), np.array(residue_counts, int)
    bond_counts = np.maximum(atom_counts - 1, 0)
    store = FeatureStore(
        atom_offsets=offsets(atom_counts),
        atoms=np.zeros((atom_counts.sum(), 8), np.int8),
        bond_offsets=offsets(bond_counts),
        bonds=np.zeros((bond_counts.sum(), 2), np.int16),
        residue_offsets=offsets(residue_counts),
        residues=np.zeros(residue_counts.sum(), np.uint8),
    )
    rows = len(drug)
    names = lambda count: np.array([str(i) for i in range(count)], object)
    table = InteractionTable(
        drugs=names(len(atom_counts)),
        proteins=names(len(residue_counts)),
        drug=np.array(drug, np.int32),
        protein=np.array(protein, np.int32),
        label=np.arange(rows, dtype=np.float32),
        part=np.full(rows, "table", object),
        row=np.arange(rows),
    )
    return table, store


@st.composite
def problems(draw):
    atom_counts = draw(st.lists(st.integers(1, 290), min_size=1, max_size=8))
    residue_counts = draw(st.lists(st.integers(1, 1200), min_size=1, max_size=8))
    rows = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return problem(
        atom_counts,
        residue_counts,
        rng.integers(0, len(atom_counts), rows),
        rng.integers(0, len(residue_counts), rows),
    )


@settings(max_examples=40)
@given(problems(), st.integers(1, 7), st.integers(1, 40))
def test_buckets_hold_their_rows_and_waste_less_than_one(case, count, least_rows):
    table, store = case
    buckets = choose_buckets(table, store, count, least_rows=least_rows)
    assert 1 <= len(buckets.shapes) <= count
    assert len(buckets.of_row) == len(table)
    assert 0.0 <= buckets.padding < 1.0
    sizes = np.bincount(buckets.of_row, minlength=len(buckets.shapes))
    assert len(buckets.shapes) == 1 or sizes.min() >= least_rows
    for i, shape in enumerate(buckets.shapes):
        rows = buckets.of_row == i
        assert (store.atom_counts[table.drug[rows]] <= shape.atoms).all() and shape.atoms % 8 == 0
        assert (store.bond_counts[table.drug[rows]] <= shape.bonds).all() and shape.bonds % 8 == 0
        assert (store.residue_counts[table.protein[rows]] <= shape.residues).all() and shape.residues % 32 == 0


@settings(max_examples=20)
@given(problems())
def test_more_buckets_never_waste_more(case):
    table, store = case
    padding = [choose_buckets(table, store, count, least_rows=4).padding for count in (1, 2, 4)]
    assert padding[0] + 1e-12 >= padding[1] and padding[1] + 1e-12 >= padding[2]


def test_padding_is_the_share_of_work_that_pads():
    table, store = problem([8, 16], [32, 64], [0, 1], [0, 1])
    useful = float(pair_cost(8, 32) + pair_cost(16, 64))
    whole = choose_buckets(table, store, 1, least_rows=1)
    assert whole.shapes == (Shape(16, 16, 64),)
    assert whole.padding == pytest.approx(1 - useful / (2 * float(pair_cost(16, 64))))
    split = choose_buckets(table, store, 2, least_rows=1)
    assert set(split.shapes) == {Shape(8, 8, 32), Shape(16, 16, 64)}
    assert split.padding == pytest.approx(0.0)
    assert choose_buckets(table, store, 2, least_rows=2).shapes == whole.shapes


def test_two_kinds_of_pairs_are_told_apart_along_each_axis():
    for atom_counts, residue_counts in (((20, 280), (500, 500)), ((20, 20), (100, 1100))):
        table, store = problem(atom_counts, residue_counts, [0, 1] * 10, [0, 1] * 10)
        buckets = choose_buckets(table, store, 6, least_rows=10)
        assert len(buckets.shapes) == 2
        assert len(set(buckets.of_row[::2])) == len(set(buckets.of_row[1::2])) == 1


def test_one_bucket_takes_every_row():
    table, _ = problem([3, 5], [10, 20], [0, 1, 1], [1, 0, 1])
    buckets = one_bucket(table, Shape(290, 320, 1200))
    assert buckets.shapes == (Shape(290, 320, 1200),)
    np.testing.assert_array_equal(buckets.of_row, np.zeros(3))


@st.composite
def plans(draw):
    """Rows of a larger table, their buckets, the batch size and the steps of a chunk."""
    total = draw(st.integers(1, 200))
    kinds = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    buckets = Buckets(
        tuple(Shape(8 * i, 8 * i, 32 * i) for i in range(1, kinds + 1)), rng.integers(0, kinds, total, np.int32), 0.0
    )
    rows = rng.permutation(total)[: draw(st.integers(1, total))]
    return rows, buckets, draw(st.integers(1, 17)), draw(st.integers(1, 5))


def content(chunks):
    return [(chunk.bucket, chunk.rows.tolist()) for chunk in chunks]


@settings(max_examples=60)
@given(plans(), st.lists(st.integers(0, 2**32), min_size=1, max_size=3), st.integers(0, 1000), st.randoms())
def test_an_epoch_takes_every_row_of_every_replica_once(plan, seeds, epoch, random):
    rows, buckets, batch_size, steps = plan
    parts = [rows[: random.randint(0, len(rows))] for _ in seeds]
    chunks = plan_epoch(parts, buckets, batch_size, steps, seeds=seeds, epoch=epoch)
    for chunk in chunks:
        assert chunk.rows.shape == (len(seeds), steps, batch_size) and chunk.rows.dtype == np.int64
        assert (buckets.of_row[chunk.rows[chunk.rows >= 0]] == chunk.bucket).all()
        # Filler stands behind the rows of a batch, and empty steps behind the steps of a chunk.
        assert (np.diff((chunk.rows >= 0).astype(int), axis=2) <= 0).all()
        assert (np.diff((chunk.rows >= 0).any(2).astype(int), axis=1) <= 0).all()
        assert (chunk.rows[:, 0] >= 0).any()
    for i, mine in enumerate(parts):
        taken = np.concatenate([chunk.rows[i].ravel() for chunk in chunks]) if chunks else np.zeros(0, int)
        np.testing.assert_array_equal(np.sort(taken[taken != -1]), np.sort(mine))
        assert (taken >= -1).all()
        for bucket in range(len(buckets.shapes)):
            here = (buckets.of_row[mine] == bucket).sum()
            sizes = [(step >= 0).sum() for chunk in chunks if chunk.bucket == bucket for step in chunk.rows[i]]
            sizes = [size for size in sizes if size]
            assert len(sizes) == -(-here // batch_size)
            # Spread evenly: no tiny batch beside full ones.
            assert not sizes or (max(sizes) - min(sizes) <= 1 and (len(sizes) == 1 or min(sizes) >= batch_size // 2))
    assert content(plan_epoch(parts, buckets, batch_size, steps, seeds=seeds, epoch=epoch)) == content(chunks)


def test_a_replica_is_planned_as_if_it_were_alone():
    rows = np.arange(400)
    buckets = Buckets((Shape(8, 8, 32), Shape(16, 16, 64)), (rows % 2).astype(np.int32), 0.0)
    together = plan_epoch([rows] * 3, buckets, 10, 4, seeds=[7, 8, 7], epoch=2)
    for i, seed in enumerate((7, 8, 7)):
        alone = plan_epoch([rows], buckets, 10, 4, seeds=[seed], epoch=2)
        assert content(alone) == [(chunk.bucket, chunk.rows[i : i + 1].tolist()) for chunk in together]


def test_epochs_differ_in_rows_and_in_the_order_of_buckets_and_seeds_in_rows():
    rows = np.arange(400)
    buckets = Buckets((Shape(8, 8, 32), Shape(16, 16, 64)), (rows % 2).astype(np.int32), 0.0)
    keys = list(itertools.product((0, 1), (0, 1, 2)))
    plans = [plan_epoch([rows], buckets, 10, 2, seeds=[seed], epoch=epoch) for seed, epoch in keys]
    order = lambda plan: [chunk.bucket for chunk in plan]
    company = lambda plan: {frozenset(step.tolist()) for chunk in plan for step in chunk.rows[0]}
    for (one, (_, epoch)), (other, (_, another)) in itertools.combinations(zip(plans, keys, strict=True), 2):
        assert not company(one) & company(other)
        assert (order(one) == order(other)) == (epoch == another)


@settings(max_examples=40)
@given(plans())
def test_evaluation_takes_every_row_once_in_order(plan):
    rows, buckets, batch_size, _ = plan
    chunks = plan_evaluation(rows, buckets, batch_size)
    assert [chunk.bucket for chunk in chunks] == sorted(chunk.bucket for chunk in chunks)
    taken = np.concatenate([chunk.rows.ravel() for chunk in chunks])
    expected = np.concatenate([rows[buckets.of_row[rows] == i] for i in range(len(buckets.shapes))])
    np.testing.assert_array_equal(taken[taken != -1], expected)
    for chunk in chunks:
        assert chunk.rows.shape == (1, batch_size)
        assert (buckets.of_row[chunk.rows[chunk.rows >= 0]] == chunk.bucket).all()


def test_the_most_distinct_entities_of_a_batch():
    index = np.array([4, 4, 7, 9])
    assert most_distinct(index, np.array([[0, 1, 2], [0, 1, 0]])) == 2
    assert most_distinct(index, np.array([[[0, 2, 3]], [[0, -1, -1]]])) == 3
    assert most_distinct(index, np.array([[0, -1, -1]])) == 2  # filler is entity 0


def test_proteins_are_shared_where_batches_have_few():
    rng = np.random.default_rng(0)
    protein = np.concatenate([rng.integers(0, 20, 300), rng.integers(0, 400, 300)])
    table, _ = problem([3], [10] * 400, np.zeros(600, int), protein)
    buckets = Buckets((Shape(8, 8, 32),) * 2, np.repeat([0, 1], 300).astype(np.int32), 0.0)
    chunks = plan_epoch([np.arange(600)], buckets, 64, 2, seeds=[0], epoch=0)
    found = shared_proteins(table, chunks)
    assert list(found) == [0] and found[0] % 8 == 0
    most = max(len(set(protein[b[b >= 0]])) for c in chunks if c.bucket == 0 for b in c.rows[0])
    assert most < found[0] <= 32
    assert shared_proteins(table, plan_epoch([np.arange(600)], buckets, 16, 2, seeds=[0], epoch=0)) == {}
    assert shared_proteins(table, []) == {}


def test_nothing_to_plan():
    empty, buckets = np.zeros(0, int), Buckets((Shape(8, 8, 32),), np.zeros(3, np.int32), 0.0)
    assert plan_epoch([empty, empty], buckets, 4, 2, seeds=[0, 1], epoch=0) == []
    assert plan_evaluation(empty, buckets, 4) == []


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_pair_batch_masks_filler(shape):
    table, _ = problem([3, 5], [10, 20, 30], [1, 1, 0], [2, 1, 0])
    rows = np.array([2, -1, 0, 1, -1, 0]).reshape(shape)
    batch = pair_batch(table, rows)
    expected = {
        "drug": [0, 0, 1, 1, 0, 1],
        "protein": [0, 0, 2, 1, 0, 2],
        "label": [2.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        "row_mask": [True, False, True, True, False, True],
    }
    kinds = {"drug": np.int32, "protein": np.int32, "label": np.float32, "row_mask": bool}
    for name, values in expected.items():
        got = getattr(batch, name)
        np.testing.assert_array_equal(got, np.array(values).reshape(shape), err_msg=name)
        assert got.dtype == kinds[name], name
