"""The planted dataset: its truth is re-derived here by means of its own, and its simple shortcuts must stay closed."""

import re
import time
from collections import Counter

import numpy as np
import pytest
from rdkit import Chem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jaxdti.config import PLANTED_KINDS, PlantedConfig
from jaxdti.data.fingerprints import composition, ecfp4
from jaxdti.data.pairs.planted import GROUP_NAMES, as_interactions, describe, make_planted
from jaxdti.errors import DataError
from jaxdti.evaluation.baselines import baseline_scores

# Written without a look at the generator's own patterns: heteroatoms and hydrogens spelt out.
SMARTS = {
    "sulfonamide": "[#16;D4](=[#8;D1])(=[#8;D1])-[#7;D1]",
    "carboxylic acid": "[#6;D3](=[#8;D1])-[#8;D1]",
    "nitrile": "[#6;D2]#[#7;D1]",
    "primary amide": "[#6;D3](=[#8;D1])-[#7;D1]",
    "trifluoromethyl": "[#6;D4](-[#9])(-[#9])-[#9]",
    "boronic acid": "[#5](-[#8;D1])-[#8;D1]",
}


@pytest.fixture(scope="module", params=PLANTED_KINDS)
def small(request):
    return make_planted(PlantedConfig(kind=request.param, drugs=150, proteins=120, pairs=1000, noise=0.1, seed=3))


@pytest.fixture(scope="module")
def default():
    start = time.process_time()
    planted = make_planted(PlantedConfig())
    assert time.process_time() - start < 10
    return planted


@pytest.fixture(scope="module", params=PLANTED_KINDS)
def scored(request, default):
    """Default-sized data of each kind, and the scores of the simple baselines on its test pairs."""
    planted = default if request.param == "in_domain" else make_planted(PlantedConfig(kind=request.param))
    table = as_interactions(planted)
    train, test = (np.flatnonzero(planted.part == part) for part in ("train", "test"))
    # The forest takes seconds, and one that fails on known proteins does not do better on new ones.
    names = None if request.param == "in_domain" else ("similarity", "logistic_regression")
    return planted, test, baseline_scores(table, train, test, task="classification", names=names)


def test_same_seed_same_data_and_other_seed_other_data(small):
    again = make_planted(small.config)
    other = make_planted(PlantedConfig(kind=small.config.kind, drugs=60, proteins=60, pairs=100, seed=4))
    assert (again.smiles, again.sequences) == (small.smiles, small.sequences)
    for name in ("drug", "protein", "label", "clean", "part"):
        np.testing.assert_array_equal(getattr(again, name), getattr(small, name))
    assert again.truth.motifs == small.truth.motifs and again.truth.group_atoms == small.truth.group_atoms
    assert not set(other.sequences) & set(small.sequences) and other.truth.motifs != small.truth.motifs


def test_molecules_and_sequences_are_valid_distinct_and_of_usual_size(small):
    assert len(set(small.smiles)) == len(small.smiles) == 150
    assert len(set(small.sequences)) == len(small.sequences) == 120
    for smiles in small.smiles:
        molecule = Chem.MolFromSmiles(smiles)
        assert molecule is not None and Chem.MolToSmiles(molecule) == smiles and "." not in smiles
        assert 12 <= molecule.GetNumAtoms() <= 40
    for sequence in small.sequences:
        assert 100 <= len(sequence) <= 300 and set(sequence) <= set("ACDEFGHIKLMNPQRSTVWY")


def test_group_atoms_are_what_a_second_search_finds(small):
    patterns = [Chem.MolFromSmarts(SMARTS[name]) for name in GROUP_NAMES]
    for smiles, carried, atoms in zip(small.smiles, small.truth.drug_groups, small.truth.group_atoms, strict=True):
        molecule = Chem.MolFromSmiles(smiles)
        found = {k: molecule.GetSubstructMatches(pattern) for k, pattern in enumerate(patterns)}
        assert {k: [tuple(sorted(match)) for match in matches] for k, matches in found.items() if matches} == {
            k: [group] for k, group in atoms.items()
        }
        assert sorted(atoms) == np.flatnonzero(carried).tolist()


def test_atom_order_is_that_of_the_smiles(small):
    for smiles, atoms in zip(small.smiles, small.truth.group_atoms, strict=True):
        letters = re.findall(r"\[[^]]*\]|Cl|Br|[BCNOSPFIcnos]", smiles)
        for group, indices in atoms.items():
            expected = {"boronic acid": "BOO", "nitrile": "CN", "trifluoromethyl": "CFFF", "sulfonamide": "NOOS"}
            name = GROUP_NAMES[group]
            if name in expected:
                assert "".join(sorted(letters[i] for i in indices)) == expected[name]


def test_motif_spans_are_every_match_of_the_motif(small):
    for sequence, carried, spans in zip(
        small.sequences, small.truth.protein_motifs, small.truth.motif_spans, strict=True
    ):
        for m, motif in enumerate(small.truth.motifs):
            starts = [i for i in range(len(sequence)) if re.match(motif, sequence[i:])]
            assert starts == ([spans[m][0]] if m in spans else [])
            assert carried[m] == bool(starts)
            if m in spans:
                assert re.fullmatch(motif, sequence[slice(*spans[m])])


def test_clean_labels_follow_the_rule_and_noise_flips_its_share(small):
    truth = small.truth
    assert truth.rule.sum(0).tolist() == truth.rule.sum(1).tolist() == [1] * len(GROUP_NAMES)
    expected = [
        any(truth.rule[k, m] for k in truth.group_atoms[d] for m in truth.motif_spans[p])
        for d, p in zip(small.drug, small.protein, strict=True)
    ]
    np.testing.assert_array_equal(small.clean, np.array(expected, dtype=np.float32))
    assert small.clean.mean() == 0.5
    flipped = (small.clean != small.label).mean()
    assert abs(flipped - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 1000)


def test_no_pair_repeats(small):
    assert len(set(zip(small.drug.tolist(), small.protein.tolist(), strict=True))) == len(small.drug) == 1000
    assert small.drug.dtype == small.protein.dtype == np.int32
    assert small.label.dtype == small.clean.dtype == np.float32


@pytest.mark.parametrize("positive", [0.2, 0.5, 0.8])
def test_class_balance(positive):
    planted = make_planted(PlantedConfig(drugs=150, proteins=120, pairs=1000, positive=positive, noise=0.0))
    assert planted.clean.mean() == pytest.approx(positive)
    np.testing.assert_array_equal(planted.label, planted.clean)
    assert planted.bayes_auroc == 1.0


def test_parts_of_the_kinds(small):
    parts = {part: small.part == part for part in set(small.part)}
    sizes = {part: int(members.sum()) for part, members in parts.items()}
    if small.config.kind == "shifted":
        assert sizes == {"train": 500, "validation": 100, "target_train": 200, "test": 200}
        source = parts["train"] | parts["validation"]
        for family, index in ((small.truth.drug_family, small.drug), (small.truth.protein_family, small.protein)):
            assert set(family[index[source]]) == {0, 1, 2, 3} and set(family[index[~source]]) == {4, 5, 6, 7}
    else:
        assert sizes == {"train": 700, "validation": 100, "test": 200}
    if small.config.kind == "cold":
        for index in (small.drug, small.protein):
            train, validation, test = (set(index[parts[part]]) for part in ("train", "validation", "test"))
            assert not train & validation and not train & test and not validation & test


def test_table_counts_rows_within_parts_and_hides_target_labels(small):
    table = as_interactions(small)
    hidden = table.part == "target_train"
    assert np.isnan(table.label[hidden]).all() and hidden.any() == (small.config.kind == "shifted")
    np.testing.assert_array_equal(table.label[~hidden], small.label[~hidden])
    assert len(table) == 1000 and table.row.dtype == np.int64 and table.label.dtype == np.float32
    for part in set(table.part):
        rows = table.row[table.part == part]
        np.testing.assert_array_equal(rows, np.arange(len(rows)))
    assert table.drugs[table.drug[5]] == small.smiles[small.drug[5]]
    assert table.proteins[table.protein[5]] == small.sequences[small.protein[5]]


def test_ceiling_is_the_auroc_of_the_true_posterior(small):
    test = small.part == "test"
    posterior = np.where(small.clean == 1, 0.9, 0.1)
    assert small.bayes_auroc == pytest.approx(roc_auc_score(small.label[test], posterior[test]), abs=1e-12)


def test_labels_that_are_all_noise_have_a_ceiling_of_one_half():
    assert make_planted(PlantedConfig(drugs=60, proteins=40, pairs=200, noise=0.5)).bayes_auroc == 0.5


@pytest.mark.parametrize("kind", ["cold", "shifted"])
def test_too_few_entities_are_an_error_with_the_numbers(kind):
    with pytest.raises(DataError, match=r"data\.planted\.pairs: .* would need \d+ .*interacting pairs.* have \d+"):
        make_planted(PlantedConfig(kind=kind, drugs=20, proteins=10, pairs=200))


def test_description_names_sizes_rule_and_ceiling(small):
    lines = describe(small)
    text = "\n".join(lines)
    assert "1000 pairs of 150 drugs" in lines[0] and "120 proteins" in lines[0] and all("\n" not in x for x in lines)
    assert all(f"  {part}: " in text for part in set(small.part))
    assert all(name in text for name in GROUP_NAMES) and f"{small.bayes_auroc:.4f} at 10.0% flipped" in text


# Shortcuts that must stay closed, at the default size


@pytest.mark.slow
def test_no_entity_knows_its_labels(default):
    """Entities that can have both labels have them evenly, up to the scatter of a fair coin."""
    for index, carried in ((default.drug, default.truth.drug_groups), (default.protein, default.truth.protein_motifs)):
        number = np.bincount(index, minlength=len(carried))
        positives = np.bincount(index, weights=default.clean, minlength=len(carried))
        for count in (1, 2, 3):
            members = carried.sum(1) == count
            share = positives[members].sum() / number[members].sum()
            assert abs(share - 0.52) < 0.05, (count, share)
        able = carried.any(1) & (number > 0)
        excess = ((positives[able] - 0.52 * number[able]) ** 2).sum() / (0.25 * number[able]).sum()
        assert excess < 1.15


def test_composition_does_not_tell_the_motifs(default):
    features = composition(default.sequences)
    half = np.arange(len(features)) % 2 == 0
    for m in range(len(default.truth.motifs)):
        carried = default.truth.protein_motifs[:, m]
        model = LogisticRegression(max_iter=1000).fit(features[half], carried[half])
        assert abs(roc_auc_score(carried[~half], model.predict_proba(features[~half])[:, 1]) - 0.5) < 0.08


def test_decoys_keep_the_short_words(default):
    """Carriers and others hold the letters of each motif equally often, and most of its 3-mers."""
    m = 0
    motif = default.truth.motifs[m]
    words = re.findall(r"\[[A-Z]+\]|[A-Z]", motif)
    carried = default.truth.protein_motifs[:, m]
    counts = Counter()
    for sequence, has in zip(default.sequences, carried, strict=True):
        for i in (0, 5):  # a window on each side of every cut
            counts[bool(has), i] += bool(re.search("".join(words[i : i + 3]), sequence))
    for i in (0, 5):
        assert counts[True, i] == carried.sum()
        assert counts[False, i] / (~carried).sum() > 0.99


@pytest.mark.slow
def test_simple_baselines_stay_far_below_the_ceiling(scored):
    planted, test, scores = scored
    auroc = {name: roc_auc_score(planted.label[test], score) for name, score in scores.items()}
    assert max(auroc.values()) < 0.75 < planted.bayes_auroc - 0.2, auroc
    assert len(auroc) == (5 if planted.config.kind == "in_domain" else 2)


def test_the_true_features_reach_the_ceiling_and_shuffled_labels_do_not(default):
    truth, label = default.truth, default.label
    train, test = default.part == "train", default.part == "test"
    features = truth.drug_groups[default.drug][:, :, None] & truth.protein_motifs[default.protein][:, None, :]
    features = features.reshape(len(label), -1)
    oracle = LogisticRegression().fit(features[train], label[train]).predict_proba(features[test])[:, 1]
    assert roc_auc_score(label[test], oracle) > default.bayes_auroc - 0.01

    rng = np.random.default_rng(0)
    fingerprints = np.asarray(ecfp4(default.smiles), dtype=np.float32)[default.drug]
    features = np.concatenate([fingerprints, composition(default.sequences)[default.protein]], axis=1)
    model = LogisticRegression(max_iter=300, C=0.1).fit(features[train], rng.permutation(label[train]))
    auroc = roc_auc_score(label[test], model.predict_proba(features[test])[:, 1])
    positives = label[test].sum()
    negatives = test.sum() - positives
    # The variance of Mann and Whitney's statistic where both classes have one distribution.
    half_width = 1.96 * np.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    assert abs(auroc - 0.5) < half_width
