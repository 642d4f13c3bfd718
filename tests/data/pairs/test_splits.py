import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.data.pairs import splits
from jaxdti.data.pairs.clusters import NEITHER, SOURCE, TARGET, ClusterDomains
from jaxdti.data.pairs.splits import (
    DOMAIN_PARTS,
    KINDS,
    describe_domains,
    dropped_rows,
    hold_out,
    make_split,
    read_split,
    scaffold_groups,
    split_domains,
    write_split,
)
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccoc1", "C1CCNCC1", "c1ccsc1", "C1CCCC1", "c1ccc2ccccc2c1", "C1COCCN1")
TAILS = ("C", "CC", "CCC", "CCCC", "CO", "CN", "CCO", "CCN", "CCCO")


def make_table(rows=2000, drugs=81, proteins=30, seed=0):
    rng = np.random.default_rng(seed)
    smiles = [tail + ring for ring in RINGS for tail in TAILS][:drugs]
    return InteractionTable(
        drugs=np.array(smiles, dtype=object),
        proteins=np.array(["M" + "ACDEFGHIKL"[i % 10] * (i + 1) for i in range(proteins)], dtype=object),
        drug=rng.integers(0, drugs, rows).astype(np.int32),
        protein=rng.integers(0, proteins, rows).astype(np.int32),
        label=rng.integers(0, 2, rows).astype(np.float32),
        part=np.full(rows, "table", dtype=object),
        row=np.arange(rows),
    )


def sides(table, rows):
    drugs, proteins = set(table.drug[rows].tolist()), set(table.protein[rows].tolist())
    return drugs, proteins, set(zip(table.drug[rows].tolist(), table.protein[rows].tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_share_nothing_they_must_not(kind, seed):
    table = make_table()
    split = make_split(table, kind, (0.7, 0.1, 0.2), seed)
    assert list(split) == ["train", "validation", "test"]
    rows = np.concatenate(list(split.values()))
    assert rows.dtype == np.int64 and len(set(rows.tolist())) == len(rows)
    scaffolds = scaffold_groups(table.drugs)
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        (drugs_a, proteins_a, pairs_a), (drugs_b, proteins_b, pairs_b) = sides(table, split[a]), sides(table, split[b])
        assert not pairs_a & pairs_b
        if kind in ("cold_drug", "cold_both", "scaffold"):
            assert not drugs_a & drugs_b
        if kind in ("cold_protein", "cold_both"):
            assert not proteins_a & proteins_b
        if kind == "scaffold":
            assert not set(scaffolds[list(drugs_a)]) & set(scaffolds[list(drugs_b)])
    if kind == "cold_both":
        assert dropped_rows(table, split) == 2000 - len(rows) > 0
        assert f"{2000 - len(rows):,}" in splits.describe_split(table, split)[-1]
    else:
        assert dropped_rows(table, split) == 0 and sorted(rows) == list(range(2000))


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("random", 0.005), ("cold_drug", 0.03), ("cold_protein", 0.04), ("cold_both", 0.12), ("scaffold", 0.12)],
)
def test_shares_are_met(kind, tolerance):
    table = make_table()
    split = make_split(table, kind, (0.7, 0.1, 0.2), 0)
    sizes = np.array([len(rows) for rows in split.values()])
    np.testing.assert_allclose(sizes / sizes.sum(), (0.7, 0.1, 0.2), atol=tolerance)


def test_a_group_too_big_for_test_stays_in_train():
    table = make_table(rows=1000)
    table.protein[:600] = 7
    for seed in range(10):
        split = make_split(table, "cold_protein", (0.7, 0.1, 0.2), seed)
        assert 7 in table.protein[split["train"]]


@pytest.mark.parametrize("kind", KINDS)
def test_seeded(kind):
    table = make_table()
    first, again, other = (make_split(table, kind, (0.6, 0.2, 0.2), seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 5),
)
def test_any_table_splits_without_leak_or_says_why(pairs, kind, seed):
    drug, protein = np.array(pairs, np.int32).T
    table = make_table(rows=len(pairs))
    table.drug[:], table.protein[:] = drug, protein
    try:
        split = make_split(table, kind, (0.5, 0.25, 0.25), seed)
    except DataError as error:
        assert "a part is empty" in str(error) and "\n" not in str(error)
        return
    assert all(len(rows) for rows in split.values())  # leaks raise RuntimeError inside


def test_tiny_data_is_an_error_with_counts():
    table = make_table(rows=2)
    with pytest.raises(DataError, match=r"split random of 2 rows .*a part is empty \(train 1, validation 1, test 0\)"):
        make_split(table, "random", (0.7, 0.1, 0.2), 0)
    with pytest.raises(DataError, match="split 'cold': choose from random, cold_drug"):
        make_split(table, "cold", (0.7, 0.1, 0.2), 0)


@pytest.mark.parametrize(("kind", "side"), [("cold_drug", "protein"), ("random", "row"), ("scaffold", "drug")])
def test_a_leak_is_an_internal_error(monkeypatch, kind, side):
    """Grouped by the wrong side, the split must not come out."""
    table = make_table()
    wrong = getattr(table, side)

    def assign(groups, fractions, rng):
        return np.searchsorted(np.cumsum(fractions)[:-1], rng.random(wrong.max() + 1))[wrong]

    monkeypatch.setattr(splits, "_assign", assign)
    monkeypatch.setattr(splits, "_assign_pairs", assign)
    with pytest.raises(RuntimeError, match="internal error"):
        make_split(table, kind, (0.7, 0.1, 0.2), 0)


def make_domains(table, seed=0):
    """Clusters of three neighbours each, in random domains, some in none."""
    rng = np.random.default_rng(seed)
    drug, protein = np.arange(len(table.drugs)) // 3, np.arange(len(table.proteins)) // 3
    pattern = (SOURCE, SOURCE, TARGET, NEITHER)
    choose = lambda cluster: rng.permutation(np.resize(pattern, cluster.max() + 1))[cluster]
    return ClusterDomains(
        drug_cluster=drug, protein_cluster=protein, drug_domain=choose(drug), protein_domain=choose(protein)
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_domains_are_kept_apart_and_divided(seed):
    table = make_table()
    domains = make_domains(table, seed)
    split = split_domains(table, domains, (0.1, 0.2), seed)
    assert tuple(split) == DOMAIN_PARTS
    both = lambda domain: (
        (domains.drug_domain[table.drug] == domain) & (domains.protein_domain[table.protein] == domain)
    )
    source, target = (sorted([*split[a], *split[b]]) for a, b in (DOMAIN_PARTS[:2], DOMAIN_PARTS[2:]))
    assert source == np.flatnonzero(both(SOURCE)).tolist() and target == np.flatnonzero(both(TARGET)).tolist()
    assert dropped_rows(table, split) == 2000 - len(source) - len(target) > 0
    np.testing.assert_allclose(len(split["validation"]) / len(source), 0.1, atol=0.02)
    np.testing.assert_allclose(len(split["test"]) / len(target), 0.2, atol=0.03)
    pairs = [sides(table, rows)[2] for rows in split.values()]
    assert sum(map(len, pairs)) == len(set.union(*pairs))
    lines = describe_domains(table, domains, split)
    assert any(f"{dropped_rows(table, split):,}" in line for line in lines)
    again, other = (split_domains(table, domains, (0.1, 0.2), draw) for draw in (seed, seed + 1))
    assert all(np.array_equal(again[part], split[part]) for part in split)
    assert not np.array_equal(other["test"], split["test"])


def test_domains_without_rows_are_an_error():
    table = make_table()
    domains = make_domains(table)
    for held_out, none in (((0.0, 0.2), SOURCE), ((0.1, 0.2), TARGET)):
        nobody = ClusterDomains(
            **{**vars(domains), "drug_domain": np.where(domains.drug_domain == none, NEITHER, SOURCE)}
        )
        with pytest.raises(DataError, match=r"split cluster of 2000 rows .* a part is empty \(train"):
            split_domains(table, nobody, held_out, 0)


def test_a_cluster_in_both_domains_is_an_internal_error():
    table = make_table()
    domains = make_domains(table)
    torn = ClusterDomains(**{**vars(domains), "protein_domain": np.arange(len(table.proteins)) % 2})
    with pytest.raises(RuntimeError, match="internal error: source and target of the cluster split share"):
        split_domains(table, torn, (0.1, 0.2), 0)


def test_a_split_file_keeps_the_target_part(tmp_path):
    table = make_table()
    split = split_domains(table, make_domains(table), (0.1, 0.2), 0)
    path = tmp_path / "split.json"
    write_split(path, split, table, "cluster", 0)
    again = read_split(path, table)
    assert list(again) == list(DOMAIN_PARTS)
    assert all(np.array_equal(again[part], split[part]) for part in split)
    path.write_text(path.read_text().replace('"validation"', '"valid"'))
    with pytest.raises(DataError, match="train, validation, target_train, test expected"):
        read_split(path, table)


def test_scaffolds():
    groups = scaffold_groups(np.array(["Cc1ccccc1", "CCOc1ccccc1", "CCO", "CCN", "c1ccncc1", "[Mg+2]", "C[C@H]1CCCO1"]))
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 6  # acyclic molecules stay apart from each other


def test_hold_out_keeps_replicates_together():
    table = make_table()
    train = np.arange(0, 2000, 2)
    stay, taken = hold_out(table, train, 0.1, seed=0)
    assert sorted([*stay, *taken]) == train.tolist()
    assert abs(len(taken) - 100) <= 5
    assert not sides(table, stay)[2] & sides(table, taken)[2]
    assert np.array_equal(taken, hold_out(table, train, 0.1, seed=0)[1])
    with pytest.raises(DataError, match="validation from 1 training rows"):
        hold_out(table, train[:1], 0.1, seed=0)


def test_split_file_comes_back(tmp_path):
    table = make_table()
    split = make_split(table, "cold_both", (0.7, 0.1, 0.2), 5)
    path = tmp_path / "new" / "split.json"
    write_split(path, split, table, "cold_both", 5)
    again = read_split(path, table)
    assert list(again) == list(split)
    assert all(np.array_equal(again[name], split[name]) and again[name].dtype == np.int64 for name in split)
    assert json.loads(path.read_text())["dropped"] == dropped_rows(table, split)
    assert os.listdir(path.parent) == ["split.json"]


def test_split_file_fits_the_same_rows_only(tmp_path):
    table = make_table()
    path = tmp_path / "split.json"
    write_split(path, make_split(table, "random", (0.7, 0.1, 0.2), 0), table, "random", 0)
    # Numbered in another order, the same molecules are still the same table.
    order = np.random.default_rng(1).permutation(len(table.drugs))
    renumbered = make_table()
    renumbered.drugs[:] = table.drugs[order]
    renumbered.drug[:] = np.argsort(order)[table.drug]
    read_split(path, renumbered)
    swapped = make_table()
    swapped.protein[0] = (swapped.protein[0] + 1) % 30
    for other in (swapped, make_table(seed=1), table.rows(np.arange(1999)), table.rows(np.arange(2000)[::-1])):
        with pytest.raises(DataError, match="split.json: written for another table: 2000 rows there"):
            read_split(path, other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a split file, JSON expected"),
        (lambda text: "[1, 2]", "not a split file of format 1"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "not a split file of format 1"),
        (lambda text: text.replace('"validation"', '"valid"'), "parts test, train, valid found"),
        (lambda text: _with_part(text, "test", [0, 2000]), "part test: row numbers outside 0 to 1999"),
        (lambda text: _with_part(text, "test", [-1]), "part test: row numbers outside"),
        (lambda text: _with_part(text, "test", []), "part test: a list of row numbers expected"),
        (lambda text: _with_part(text, "test", [True, 0.5]), "part test: a list of row numbers expected"),
        (lambda text: _with_part(text, "test", json.loads(text)["parts"]["train"][:3]), "a row stands in two parts"),
    ],
)
def test_damaged_split_file(tmp_path, damage, message):
    table = make_table()
    path = tmp_path / "split.json"
    write_split(path, make_split(table, "random", (0.7, 0.1, 0.2), 0), table, "random", 0)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        read_split(path, table)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "move", "message"),
    [
        ("random", ("train", "test"), r"train and test share \d pairs"),
        ("cold_drug", ("train", "validation"), r"train and validation share \d pairs and 1 drugs"),
        ("cold_protein", ("test", "train"), r"train and test share \d pairs and 1 proteins"),
        ("cold_both", ("validation", "test"), r"validation and test share .*1 drugs and 1 proteins"),
        ("scaffold", ("train", "test"), r"train and test share \d pairs and 1 drugs and 1 scaffolds"),
        ("cluster", ("train", "target_train"), r"train and target_train share .*1 drugs and 1 proteins"),
        ("cluster", ("train", "validation"), r"train and validation share \d pairs;"),
    ],
)
def test_a_changed_split_file_that_leaks_is_refused(tmp_path, kind, move, message):
    table, path = make_table(), tmp_path / "split.json"
    if kind == "cluster":
        split = split_domains(table, make_domains(table), (0.1, 0.2), 0)
    else:
        split = make_split(table, kind, (0.7, 0.1, 0.2), 0)
    write_split(path, split, table, kind, 0)
    source, target = (split[part].tolist() for part in move)
    keys = (table.drug.astype(int) * 100 + table.protein)[source]
    values, counts = np.unique(keys, return_counts=True)
    row = source.pop(np.flatnonzero(np.isin(keys, values[counts > 1]))[0])  # its pair stays behind, too
    path.write_text(_with_part(_with_part(path.read_text(), move[0], source), move[1], [*target, row]))
    with pytest.raises(DataError, match=rf"split.json: a {kind} split that leaks: .*{message}") as caught:
        read_split(path, table)
    assert "\n" not in str(caught.value)
    for other in ("given", "file", "my own"):
        path.write_text(re.sub('"kind": "[^"]+"', f'"kind": "{other}"', path.read_text()))
        read_split(path, table)


def _with_part(text, name, rows):
    content = json.loads(text)
    content["parts"][name] = rows
    return json.dumps(content)


def test_split_file_missing_or_not_writable(tmp_path):
    table = make_table(rows=100)
    with pytest.raises(DataError, match=r"none.json: the split file cannot be read \(No such file"):
        read_split(tmp_path / "none.json", table)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_split(tmp_path / "file" / "split.json", {}, table, "random", 0)


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    table = make_table(rows=100)
    split = make_split(table, "random", (0.6, 0.2, 0.2), 0)
    path = tmp_path / "split.json"
    write_split(path, split, table, "random", 0)
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_split(path, split, table, "random", 1)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["split.json"]
