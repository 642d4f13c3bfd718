"""The scoring benchmark: which pairs, and that what is timed is the scorer itself."""

import inference
import numpy as np
import pytest

from jaxdti.config import DataConfig, ModelConfig, PlantedConfig
from jaxdti.data.pairs.load import load_data
from jaxdti.inference import scoring


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_data(
        DataConfig(dataset="planted", cache_dir=cache, planted=PlantedConfig(drugs=60, proteins=50, pairs=300)),
        "classification",
    )


def test_every_pair_is_there_once(dataset):
    drugs, proteins = np.array([5, 0, 3]), np.array([2, 7])
    table = inference.every_pair(dataset.table, drugs, proteins)
    assert sorted(zip(table.drug.tolist(), table.protein.tolist(), strict=True)) == sorted(
        (d, p) for d in drugs.tolist() for p in proteins.tolist()
    )
    assert len(table) == 6 and table.drug.dtype == table.protein.dtype == np.int32
    assert all(len(x) == 6 for x in (table.label, table.part, table.row))


def test_some_entities_are_distinct_and_a_single_protein_is_of_median_length():
    atoms, residues = np.arange(10), np.array([50, 10, 40, 20, 30])
    drugs, proteins = inference.some_entities(atoms, residues, 10, 1)
    assert sorted(drugs) == list(range(10)) and proteins.tolist() == [4]
    assert len(set(inference.some_entities(atoms, residues, 2, 4)[1].tolist())) == 4
    with pytest.raises(ValueError, match="11 drugs and 1 proteins of 10 and 5"):
        inference.some_entities(atoms, residues, 11, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "expected"), [(None, "gram"), ("pairwise", "pairwise")])
def test_the_scorer_is_timed_in_the_form_asked_for_or_chosen(
    dataset, form, expected, monkeypatch, compile_fast_and_once
):
    config = ModelConfig(drug_features=8, drug_layers=1, protein_features=8, joint_features=4, decoder_features=(8,))
    table = inference.every_pair(dataset.table, np.arange(6), np.arange(5))
    rows = np.arange(len(table) - 3)
    monkeypatch.setattr(inference, "BUCKETS", 1)
    original, scores, used = scoring.make_scorer, [], []

    def kept(*arguments):
        scorer = original(*arguments)
        return lambda *call: scores.append(scorer(*call))

    def noted(name, build):
        def make(*arguments):
            score = build(*arguments)
            return lambda *call: (used.append(name), score(*call))[1]

        return make

    monkeypatch.setattr(scoring, "make_scorer", kept)
    monkeypatch.setattr(scoring, "_pairwise", noted("pairwise", scoring._pairwise))
    monkeypatch.setattr(scoring, "_gram", noted("gram", scoring._gram))
    got = inference.time_scoring(config, table, dataset.store, rows, form=form, repeats=2)

    assert used == [expected] * 5 and (got["form"], got["chosen"]) == (expected, "gram")
    assert all(found.shape == (27,) and np.array_equal(found, scores[0]) for found in scores)
    assert (got["pairs"], got["drugs"], got["proteins"]) == (27, 6, 5)
    assert got["programs"] >= 3 and got["encode_seconds"] > 0 and got["score_seconds"] > 0
    assert got["pairs_per_second"] == pytest.approx(27 / got["seconds"])
