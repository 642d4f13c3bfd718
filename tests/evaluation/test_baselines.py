import csv
import dataclasses
import gzip

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from sklearn.metrics import roc_auc_score

from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.evaluation import baselines
from jaxdti.evaluation.baselines import BASELINES, baseline_scores, baseline_table, evaluate_baselines
from jaxdti.evaluation.part import json_ready

SIMILARITY = ("similarity", "drug_only", "protein_only")
DRUGS = ("CCO", "CCN", "CCCC", "c1ccccc1", "c1ccccc1O", "c1ccncc1", "CC(=O)O", "CC(=O)N", "[Zn]", "CC(=O)Oc1ccccc1")


def make_table(drugs, proteins, drug, protein, label):
    count = len(label)
    return InteractionTable(
        drugs=np.array(drugs, object),
        proteins=np.array(proteins, object),
        drug=np.array(drug, np.int32),
        protein=np.array(protein, np.int32),
        label=np.array(label, np.float32),
        part=np.full(count, "table", object),
        row=np.arange(count),
    )


@pytest.fixture(autouse=True)
def small_forest(monkeypatch):
    monkeypatch.setattr(baselines, "FOREST_TREES", 20)


@pytest.fixture(scope="module")
def table():
    """120 pairs, some of them repeated; label 1 mostly for aromatic drugs with proteins rich in A."""
    rng = np.random.default_rng(0)
    alphabets = ["ACDE", "AACD", "FGHI", "KLMN", "KLMX", "AC"]
    proteins = ["".join(rng.choice(list(letters), 30)) for letters in alphabets]
    drug, protein = rng.integers(0, len(DRUGS), 120), rng.integers(0, len(proteins), 120)
    aromatic = np.array(["c1" in smiles for smiles in DRUGS])
    label = (aromatic[drug] & np.array([1, 1, 0, 0, 0, 1], bool)[protein]) ^ (rng.random(120) < 0.1)
    return make_table(DRUGS, proteins, drug, protein, label)


def reference_similarity(table, train, evaluate, name):
    """One query at a time: RDKit's Tanimoto, cosines from counted strings, float64."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(smiles)) for smiles in table.drugs]

    def words(sequence):
        found = [sequence[i : i + 3] for i in range(len(sequence) - 2)]
        return {word: found.count(word) for word in found if set(word) <= set("ACDEFGHIKLMNPQRSTVWY")}

    def cosine(a, b):
        length = np.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
        return sum(a[word] * b.get(word, 0) for word in a) / length if length else 0.0

    counts = [words(sequence) for sequence in table.proteins]
    scores = []
    for query in evaluate:
        weights = np.ones(len(train))
        for k, row in enumerate(train):
            if name != "protein_only":
                pair = prints[table.drug[query]], prints[table.drug[row]]
                weights[k] *= DataStructs.TanimotoSimilarity(*pair) ** 4
            if name != "drug_only":
                weights[k] *= cosine(counts[table.protein[query]], counts[table.protein[row]]) ** 4
        label = table.label[train].astype(float)
        scores.append(weights @ label / weights.sum() if weights.sum() > 0 else label.mean())
    return np.array(scores)


@pytest.mark.parametrize("blocks", [(1 << 25, 4096), (300, 7)], ids=["one block", "small blocks"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_similarity_equals_one_query_at_a_time(table, task, blocks, monkeypatch):
    monkeypatch.setattr(baselines, "_BLOCK_ELEMENTS", blocks[0])
    monkeypatch.setattr(baselines, "_PAIR_BLOCK", blocks[1])
    if task == "regression":
        table = make_table(table.drugs, table.proteins, table.drug, table.protein, 5 + table.label + table.drug / 7)
    train, evaluate = np.arange(0, 80), np.random.default_rng(1).permutation(np.arange(60, 120))
    found = baseline_scores(table, train, evaluate, task=task, names=SIMILARITY)
    assert list(found) == list(SIMILARITY)
    for name, score in found.items():
        assert score.dtype == np.float32 and score.shape == (60,)
        np.testing.assert_allclose(score, reference_similarity(table, train, evaluate, name), rtol=2e-6, atol=2e-6)


def test_without_any_weight_the_score_is_the_training_mean():
    table = make_table(["CCO", "[Zn]"], ["ACDEF", "KLMNP"], [0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0])
    found = baseline_scores(table, np.arange(3), np.arange(3, 6), task="classification", names=SIMILARITY)
    # [Zn] shares no bit with ethanol, and the proteins share no 3-mer.
    for score in found.values():
        np.testing.assert_allclose(score, 2 / 3, rtol=1e-6)


def test_labels_outside_train_are_never_read(table):
    train, evaluate = np.arange(80), np.arange(80, 120)
    hidden = make_table(table.drugs, table.proteins, table.drug, table.protein, table.label)
    hidden.label[80:] = np.nan
    seen = baseline_scores(table, train, evaluate, task="classification")
    blind = baseline_scores(hidden, train, evaluate, task="classification")
    assert list(seen) == list(BASELINES["classification"])
    for name in BASELINES["classification"]:
        np.testing.assert_array_equal(seen[name], blind[name])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_fitted_baselines_learn_and_repeat(table, task):
    train, evaluate = np.arange(80), np.arange(80, 120)
    names = (BASELINES[task][-1], "random_forest")
    found = baseline_scores(table, train, evaluate, task=task, seed=1, names=names)
    again = baseline_scores(table, train, evaluate, task=task, seed=1, names=names)
    assert list(found) == list(names)
    for name in names:
        np.testing.assert_array_equal(found[name], again[name])
        assert roc_auc_score(table.label[evaluate], found[name]) > 0.7
        if task == "classification":
            assert 0 <= found[name].min() and found[name].max() <= 1


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_one_label_only_is_returned_as_it_is(table, task):
    constant = make_table(table.drugs, table.proteins, table.drug, table.protein, np.ones(120))
    for score in baseline_scores(constant, np.arange(80), np.arange(80, 120), task=task).values():
        np.testing.assert_allclose(score, 1.0, rtol=1e-6)


def test_nothing_to_score_gives_empty_scores(table):
    for score in baseline_scores(table, np.arange(80), np.arange(0), task="classification").values():
        assert score.shape == (0,) and score.dtype == np.float32


def test_progress_names_what_was_done(table):
    done = []
    names = ("protein_only", "similarity", "logistic_regression")
    baseline_scores(
        table, np.arange(80), np.arange(80, 90), task="classification", names=names, progress=lambda *x: done.append(x)
    )
    assert [name for name, _ in done] == ["protein_only, similarity", "logistic_regression"]
    assert all(seconds >= 0 for _, seconds in done)


def test_evaluation_reports_test_rows_with_the_validation_threshold(table):
    train, validation, test = np.arange(60), np.arange(60, 85), np.arange(85, 120)
    results = evaluate_baselines(table, train, validation, test, task="classification", bootstrap=200)
    assert list(results) == list(BASELINES["classification"])
    scores = baseline_scores(table, train, test, task="classification")
    for name, metrics in results.items():
        assert metrics["auroc"] == pytest.approx(roc_auc_score(table.label[test], scores[name]))
        assert metrics["auroc_ci"][0] <= metrics["auroc"] <= metrics["auroc_ci"][1]
        called = scores[name] >= metrics["threshold"]
        assert metrics["accuracy"] == pytest.approx(np.mean(called == table.label[test]))
    rows = baseline_table(results, "classification")
    assert rows[0] == ("model", "auroc", "95 % interval", "auprc")
    assert [row[0] for row in rows[1:]] == list(BASELINES["classification"])
    assert rows[1][1] == f"{results['similarity']['auroc']:.3f}"


def test_a_test_part_of_one_class_has_undefined_metrics(table):
    table = dataclasses.replace(table, label=np.where(np.arange(len(table)) < 80, table.label, 1.0))
    asked = {"task": "classification", "names": ["similarity"], "bootstrap": 20}
    results = evaluate_baselines(table, np.arange(60), np.arange(60, 80), np.arange(80, 120), **asked)
    expected = ("similarity", "undefined", "", "undefined")
    assert baseline_table(results, "classification")[1] == expected
    assert baseline_table(json_ready(results), "classification")[1] == expected  # as a run stores them


def test_the_consensus_is_the_mean_rank_of_network_similarity_and_forest(table):
    rng = np.random.default_rng(3)
    train, validation, test = np.arange(16), np.arange(16, 22), np.arange(22, 36)
    table = dataclasses.replace(table, label=np.where(np.arange(len(table)) == 23, np.nan, table.label))
    network = {"validation": rng.normal(size=6), "test": np.round(rng.normal(size=14), 1)}
    asked = {"task": "classification", "names": ["similarity", "random_forest"]}
    results = evaluate_baselines(table, train, validation, test, bootstrap=20, network=network, **asked)
    kept = test != 23
    scores = [*baseline_scores(table, train, test[kept], **asked).values(), network["test"][kept]]
    below = [[np.mean(score < x) + (np.sum(score == x) + 1) / 2 / len(score) for x in score] for score in scores]
    label = table.label[test[kept]]
    assert results["consensus"]["auroc"] == pytest.approx(roc_auc_score(label, np.mean(below, axis=0)))
    assert "auroc_ci" in results["consensus"] and "brier" not in results["consensus"]
    assert list(results) == ["similarity", "random_forest", "consensus"]


def test_evaluation_of_regression_without_intervals(table):
    affinity = make_table(table.drugs, table.proteins, table.drug, table.protein, 5 + 2 * table.label)
    affinity.label[119] = np.nan  # an unlabelled test row is left out
    parts = np.arange(80), np.arange(0), np.arange(80, 120)
    results = evaluate_baselines(affinity, *parts, task="regression", bootstrap=0, names=["similarity"])
    assert set(results["similarity"]) == {"mse", "rmse", "pearson", "spearman", "concordance_index", "r2m"}
    assert results["similarity"]["mse"] < np.var(affinity.label[80:119])
    assert baseline_table(results, "regression")[1][2] == ""


def test_bad_input_is_refused(table):
    every = np.arange(10)
    with pytest.raises(DataError, match="the training part has no rows"):
        baseline_scores(table, every[:0], every, task="classification")
    unlabelled = make_table(table.drugs, table.proteins, table.drug, table.protein, np.full(120, np.nan))
    with pytest.raises(DataError, match="10 of 10 training rows have no label"):
        baseline_scores(unlabelled, every, every, task="classification")
    with pytest.raises(DataError, match="test part has no labelled rows"):
        evaluate_baselines(table, every, every, every[:0], task="classification")
    with pytest.raises(ValueError, match="task='ranking': choose from classification, regression"):
        baseline_scores(table, every, every, task="ranking")
    with pytest.raises(ValueError, match="baseline 'forest' for classification: choose from similarity"):
        baseline_scores(table, every, every, task="classification", names=["forest"])


def read_dataset(directory):
    """The three files of a flat dataset in which every drug has one SMILES, and the rows of each part."""
    drugs, proteins, columns, parts = {}, {}, [], []
    for part in ("train", "val", "test"):
        with gzip.open(directory / f"{part}.csv.gz", "rt", newline="") as file:
            for row in csv.DictReader(file):
                drug = drugs.setdefault(row["SMILES"], len(drugs))
                protein = proteins.setdefault(row["Protein"], len(proteins))
                columns.append((drug, protein, float(row["Y"])))
                parts.append(part)
    table = make_table(list(drugs), list(proteins), *np.array(columns).T)
    return table, {part: np.flatnonzero(np.array(parts) == part) for part in ("train", "val", "test")}


# Test AUROC measured independently with scikit-learn on the same files.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, expected",
    [
        ("random", {"similarity": 0.977, "drug_only": 0.971, "protein_only": 0.905, "logistic_regression": 0.941}),
        ("cold", {"similarity": 0.834, "drug_only": 0.823, "protein_only": 0.647, "logistic_regression": 0.785}),
    ],
)
def test_human_auroc_is_the_measured_one(data_dir, name, expected):
    directory = data_dir / "human" / name
    if not directory.is_dir():
        pytest.skip(f"{directory} does not exist")
    table, rows = read_dataset(directory)
    found = baseline_scores(table, rows["train"], rows["test"], task="classification", names=list(expected))
    for key, value in expected.items():
        assert roc_auc_score(table.label[rows["test"]], found[key]) == pytest.approx(value, abs=0.003), key
