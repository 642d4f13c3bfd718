"""Compounds by protein family, and the test, training and source sets drawn from them."""

import csv

import numpy as np
import pytest

from jaxdti.config import DataConfig
from jaxdti.data.vectors.families import (
    EVERY,
    FamilyCompounds,
    draw_target,
    draw_training,
    load_families,
    plain_smiles,
    without,
)
from jaxdti.errors import DataError

KINASE, GPCR, OTHER = "MKTAYIAKQRQ", "MGSSHHHHHHS", "MAAAAAAAAAA"


@pytest.fixture
def tables(tmp_path):
    """Paths of pairs, drugs and proteins; ``write(name, rows)`` replaces one."""

    def write(name, rows):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)

    write("drugs", [("drug", "SMILES"), ("a", "CCO"), ("b", "OCC"), ("c", "c1ccccc1"), ("d", "CCN"), ("e", "CCCl")])
    proteins = [("k1", KINASE, "kinase"), ("k2", KINASE + "A", "kinase"), ("g", GPCR.lower(), "gpcr"), ("o", OTHER, "")]
    write("proteins", [("protein", "Protein", "family"), *proteins])
    pairs = [("a", "k1", 0), ("b", "k2", 1), ("c", "k1", 0), ("c", "g", 1), ("d", "g", 0), ("e", "o", 1)]
    write("pairs", [("drug", "protein", "Y"), *pairs])
    config = DataConfig(
        table=str(tmp_path / "pairs.csv"), drugs=str(tmp_path / "drugs.csv"), proteins=str(tmp_path / "proteins.csv")
    )
    return config, write


def test_a_compound_is_active_if_it_binds_any_protein_of_a_family(tables):
    found = load_families(tables[0])
    assert found.names == ("gpcr", "kinase")
    known = {name: {} for name in found.names}
    for i, name in enumerate(found.names):
        for j, smiles in enumerate(found.smiles):
            if found.measured[i, j]:
                known[name][smiles] = bool(found.active[i, j])
    # Both spellings of ethanol are one compound, inactive on one kinase and active on the other.
    assert known == {"gpcr": {"c1ccccc1": True, "CCN": False}, "kinase": {"CCO": True, "c1ccccc1": False}}
    rows, active = found.source(EVERY, "gpcr")
    assert dict(zip(found.smiles[rows], active, strict=True)) == known["kinase"]
    assert (
        dict(zip(found.smiles[found.source("gpcr", "kinase")[0]], [1, 0], strict=True)).keys() == known["gpcr"].keys()
    )


def test_a_compound_belongs_to_every_database_that_it_has_pairs_of(tables):
    config, write = tables
    assert load_families(config).databases == {}
    pairs = [("a", "k1", 0, "one"), ("b", "k2", 1, "two"), ("c", "k1", 0, "one"), ("d", "g", 0, "two")]
    write("pairs", [("drug", "protein", "Y", "source"), *pairs])
    found = load_families(config)
    names = {name: set(found.smiles[own]) for name, own in found.databases.items()}
    assert names == {"one": {"CCO", "c1ccccc1"}, "two": {"CCO", "CCN"}}  # a and b are both ethanol


def test_tables_without_families_are_refused(tables):
    config, write = tables
    with pytest.raises(DataError, match="family 'gpcrs': choose from gpcr, kinase"):
        load_families(config).source("gpcrs", "kinase")
    write("proteins", [("protein", "Protein", "family"), ("k1", KINASE, "kinase"), ("g", KINASE, "gpcr")])
    with pytest.raises(DataError, match="a sequence of 11 residues has families kinase, gpcr"):
        load_families(config)
    write("proteins", [("protein", "Protein", "class"), ("k1", KINASE, "kinase")])
    with pytest.raises(DataError, match="no column 'family'; columns found: 'protein', 'Protein', 'class'"):
        load_families(config)
    write("proteins", [("protein", "Protein", "family"), ("k1", KINASE, "kinase"), ("k2", GPCR, "kinase")])
    write("pairs", [("drug", "protein", "Y"), ("a", "k1", 0), ("b", "k2", 1)])
    with pytest.raises(DataError, match=r"1 protein families found \(kinase\)"):
        load_families(config)
    write("proteins", [("protein", "Protein", "family"), ("k1", KINASE, "all"), ("k2", GPCR, "kinase")])
    with pytest.raises(DataError, match="family 'all': the name stands for something else here"):
        load_families(config)
    with pytest.raises(DataError, match="name data.dataset"):
        load_families(DataConfig())
    with pytest.raises(DataError, match="a table of pairs beside tables of drugs and proteins"):
        load_families(DataConfig(dataset="human/random"))


def many_compounds(count=400, seed=0):
    """Two families over ``count`` compounds in scaffolds of one to five, and one of sixty."""
    rng = np.random.default_rng(seed)
    scaffolds = np.sort(np.concatenate([rng.integers(1, count // 3, count - 60), np.zeros(60, int)]))
    measured, active = rng.random((2, count)) < 0.8, rng.random((2, count)) < 0.4
    smiles = np.asarray([f"{i}" for i in range(count)], object)
    return FamilyCompounds(
        smiles=smiles, names=("a", "b"), measured=measured, active=measured & active, lines=()
    ), scaffolds


def test_target_sets_are_balanced_and_apart_in_scaffolds():
    compounds, scaffolds = many_compounds()
    sets = draw_target(compounds, "b", scaffolds, compounds.smiles, test=60, sizes=(2, 40, 100, 5000), seed=1)
    assert len(sets.test) == 60 == 2 * compounds.active[1][sets.test].sum()
    pool = np.concatenate(list(sets.pool.values()))
    assert compounds.measured[1][np.concatenate([pool, sets.test])].all()
    assert not np.intersect1d(scaffolds[pool], scaffolds[sets.test]).size
    assert 0 not in scaffolds[sets.test]  # the largest scaffold would fill it
    assert all(compounds.active[1][rows].all() == which for which, rows in sets.pool.items())
    assert sets.sizes == (2, 40, 100)
    again = draw_target(compounds, "b", scaffolds, compounds.smiles, test=60, sizes=(2, 40, 100, 5000), seed=1)
    np.testing.assert_array_equal(again.test, sets.test)
    other = draw_target(compounds, "b", scaffolds, compounds.smiles, test=60, sizes=(2,), seed=2)
    assert len(np.setdiff1d(other.test, sets.test))


def test_no_stereoisomer_of_a_test_compound_is_in_the_pool():
    compounds, scaffolds = many_compounds()
    plain = compounds.smiles.copy()
    draw = lambda: draw_target(compounds, "b", scaffolds, plain, test=60, sizes=(2,), seed=1)
    first = draw()
    twin = first.pool[True][0]
    plain[twin] = plain[first.test[0]]
    np.testing.assert_array_equal(draw().test, first.test)
    np.testing.assert_array_equal(draw().pool[True], first.pool[True][1:])


def test_training_sets_are_balanced_nested_within_a_repeat_and_differ_between_repeats():
    compounds, scaffolds = many_compounds()
    sets = draw_target(compounds, "a", scaffolds, compounds.smiles, test=40, sizes=(2, 12, 48), seed=0)
    small, middle, large = (draw_training(sets, size, 3, 0) for size in sets.sizes)
    for rows, size in ((small, 2), (middle, 12), (large, 48)):
        assert len(np.unique(rows)) == size == 2 * compounds.active[0][rows].sum()
        assert not np.intersect1d(rows, sets.test).size
    assert np.isin(small, middle).all() and np.isin(middle, large).all()
    assert len(np.setdiff1d(draw_training(sets, 48, 4, 0), large))


def test_too_few_compounds_are_told_with_their_number():
    compounds, scaffolds = many_compounds(100)
    with pytest.raises(DataError, match=r"family a: \d+ compounds, \d+ of them active, are too few .* test set of 80"):
        draw_target(compounds, "a", scaffolds, compounds.smiles, test=80, sizes=(2,), seed=0)


def test_sources_lose_test_compounds_and_their_stereoisomers():
    smiles = np.asarray(["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CCO", "CCN"], object)
    plain = plain_smiles(smiles)
    assert plain[0] == plain[1] and len(set(plain)) == 3
    np.testing.assert_array_equal(without(np.arange(4), np.asarray([1, 3]), plain), [False, False, True, False])


@pytest.mark.slow
def test_the_six_families(data_dir, monkeypatch):
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    found = load_families(DataConfig(dataset="families/dti_six"))
    assert found.names == ("gpcr", "ion_channel", "kinase", "nuclear_receptor", "protease", "transporter")
    assert len(found.smiles) == 13_420
    assert found.measured.sum(1).tolist() == [2949, 2828, 4656, 851, 4467, 1566]
