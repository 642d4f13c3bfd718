"""Training beside an unlabelled target domain: plans, labels that must not matter, statistics, the published step."""

import csv
import dataclasses
import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxdti.config import (
    REFERENCE_ATOMS,
    REFERENCE_RESIDUES,
    AdaptationConfig,
    Config,
    ModelConfig,
    config_from_dict,
)
from jaxdti.data.molecules import featurize_batch
from jaxdti.data.pairs.buckets import Buckets, Chunk, PairBatch, Shape, pair_batch
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.load import load_data
from jaxdti.data.pairs.sequences import encode_sequence
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.errors import DataError, Interrupted
from jaxdti.inference.predict import predict
from jaxdti.inference.scoring import buckets_for
from jaxdti.interop.drugban import from_torch, read_weights, to_torch
from jaxdti.models.drugban import init_variables
from jaxdti.studies.pairs import fit_pairs, make_task, resume, train
from jaxdti.training import adapted as adapted_module
from jaxdti.training.adapted import adapted_pair_objective, domain_batch
from jaxdti.training.checkpoints import load_weights
from jaxdti.training.plans import BesidePlan, refreshes
from jaxdti.training.progress import Reporter
from jaxdti.training.streamed import Streamed
from jaxdti.training.supervised import hyper_parameters, pair_trial
from jaxdti.training.task import Trial


@pytest.fixture(scope="module")
def target_rows():
    """Thirty pairs of other drugs and proteins, of the two lengths of the source."""
    rng = np.random.default_rng(8)
    drugs = ("CCCO", "CCCN", "CCC(=O)O", "c1ccccc1C", "c1ccncc1C", "CC(=O)Nc1ccc(C)cc1")
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in (14, 18, 22, 52, 58)]
    return [(drug, protein, int("N" in drug), 5.0) for drug, protein in itertools.product(drugs, proteins)]


@pytest.fixture(scope="module")
def adapted_config(tiny_config, target_rows, tmp_path_factory):
    """``adapted_config(method, adaptation={...}, ...)``: as ``tiny_config``, with a table of target pairs."""
    target = write_pairs(tmp_path_factory.mktemp("target") / "target.csv", target_rows)

    def build(method, *, adaptation=None, data=None, task="classification", **others) -> Config:
        # One bucket and one epoch: one program to compile.
        config = tiny_config(task, data={"target": target} | (data or {}), **{"buckets": 1, "epochs": 1} | others)
        settings = {"discriminator_features": (8,), "start": 0.0, "source_only": False} | (adaptation or {})
        return dataclasses.replace(config, adaptation=AdaptationConfig(method=method, **settings))

    return build


def write_pairs(path, rows) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("SMILES", "Protein", "Y", "affinity"), *rows])
    return str(path)


def weights_of(config, run):
    like = jax.eval_shape(lambda: init_variables(config.model, 0))
    return load_weights(run / "weights", like)


def replica(train_rows, target, seed=0):
    return Trial(
        rows={"train": np.asarray(train_rows), "target_train": np.asarray(target)}, label=np.zeros(60), seed=seed
    )


def plan_domains(trials, buckets, batch_size, steps, *, epoch):
    return BesidePlan(trials, buckets, batch_size, steps, batch=None).epoch(epoch)


BUCKETS = Buckets((Shape(8, 8, 32), Shape(16, 8, 32)), (np.arange(60) % 3 == 0).astype(np.int32), 0.0)


def halves(chunks):
    rows = np.concatenate([chunk.rows for chunk in chunks], axis=1)  # [R, steps, 2 B]
    return rows[..., 0::2], rows[..., 1::2]


def test_every_source_pair_comes_once_and_target_pairs_come_from_its_bucket():
    chunks = plan_domains([replica(range(30), range(30, 60))], BUCKETS, 4, 2, epoch=3)
    source, target = halves(chunks)
    assert sorted(source[source >= 0]) == list(range(30)) and set(target[target >= 0]) <= set(range(30, 60))
    for chunk in chunks:
        assert set(BUCKETS.of_row[chunk.rows[chunk.rows >= 0]]) == {chunk.bucket}
    for mine, theirs in zip(source[0], target[0], strict=True):
        assert np.any(mine >= 0) == np.any(theirs >= 0)  # filler steps stay filler
        assert len(set(theirs[theirs >= 0])) == np.sum(theirs >= 0) in (0, 4)


def test_target_pairs_are_used_equally_often_within_a_bucket():
    _, target = halves(plan_domains([replica(range(30), [31, 32, 34, 35, 37])], BUCKETS, 4, 1, epoch=0))
    counts = np.bincount(target[target >= 0])[[31, 32, 34, 35, 37]]
    assert counts.max() - counts.min() <= 1


def test_a_target_smaller_than_a_batch_or_missing_in_a_bucket():
    source, target = halves(plan_domains([replica(range(30), [31, 32])], BUCKETS, 4, 1, epoch=0))
    steps = [set(rows[rows >= 0]) for rows in target[0]]
    buckets = [BUCKETS.of_row[rows[rows >= 0][0]] for rows in source[0]]
    assert all(rows == ({31, 32} if bucket == 0 else set()) for rows, bucket in zip(steps, buckets, strict=True))


def test_plans_are_repeatable_and_those_of_one_replica_do_not_depend_on_the_others():
    both = [replica(range(30), range(30, 60), seed=1), replica(range(30), range(30, 60), seed=2)]
    one = plan_domains(both[1:], BUCKETS, 4, 1, epoch=1)
    two = plan_domains(both, BUCKETS, 4, 1, epoch=1)
    np.testing.assert_array_equal([c.rows[0] for c in one], [c.rows[1] for c in two])
    assert any(np.any(c.rows[0] != c.rows[1]) for c in two)


def test_labels_of_the_target_never_reach_the_device(adapted_config):
    dataset = load_data(adapted_config("dann").data, "classification")
    target, train_rows = dataset.parts["target_train"], dataset.parts["train"]
    assert np.isnan(dataset.table.label[target]).all()
    table = dataclasses.replace(dataset.table, label=np.ones(len(dataset.table), np.float32))
    label = domain_batch(table, np.stack([train_rows[:4], target[:4]], -1).reshape(1, 8)).label
    np.testing.assert_array_equal(label, [[1, 0] * 4])


@pytest.mark.slow
@pytest.mark.bitwise
def test_other_target_labels_or_none_change_nothing(adapted_config, target_rows, tmp_path):
    flipped = write_pairs(tmp_path / "flipped.csv", [(*row[:2], 1 - row[2], 0.0) for row in target_rows])
    with open(tmp_path / "none.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("SMILES", "Protein"), *(row[:2] for row in target_rows)])
    trained = []
    for i, data in enumerate(({"target": flipped}, {"target": str(tmp_path / "none.csv")})):
        config = adapted_config("cdan", data=data)
        train(config, tmp_path / str(i))
        trained.append(weights_of(config, tmp_path / str(i)))
    jax.tree.map(np.testing.assert_array_equal, *trained)


@pytest.mark.slow
def test_a_run_shows_the_oracle_and_predicts(adapted_config, tmp_path):
    """Of one method: the others differ in their loss alone, see tests/adaptation."""
    adaptation = {"target_entropy": 0.1, "oracle": True}
    config = adapted_config("cdan", model={"logits": 2}, adaptation=adaptation, epochs=2)
    summary = train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all("oracle_auroc" in line for line in lines)
    scores = predict(tmp_path / "run", predict_table())
    assert np.isfinite(scores["score"].to_numpy()).all() and 0 <= summary["test"]["auroc"] <= 1


def predict_table():
    import pyarrow as pa

    return pa.table({"SMILES": ["CCO", "c1ccncc1"], "Protein": ["MKTAYIAKQRQISFVK", "MKTAYIAKQR"]})


@pytest.mark.slow
def test_regression_can_be_adapted(adapted_config, tmp_path):
    summary = train(adapted_config("dann", task="regression"), tmp_path / "run")
    assert np.isfinite(summary["test"]["mse"])


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_without_strength_the_network_learns_what_plain_training_learns(adapted_config, tmp_path):
    """Separate statistics: the target leaves no trace in the scores of the source."""
    config = adapted_config("mmd", adaptation={"strength": 0.0}, model={"dropout": 0.0}, learning_rate=3e-4)
    plain = dataclasses.replace(config, adaptation=AdaptationConfig())
    dataset = load_data(config.data, config.task)
    found = []
    for i, each in enumerate((plain, config)):
        fitted = fit_pairs([each], dataset, tmp_path / str(i))
        found.append(fitted.scorer(fitted.network(0, "validation"), dataset.parts["validation"]))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_each_domain_has_statistics_of_its_own_unless_joint(adapted_config, tmp_path):
    config = adapted_config("dann")
    dataset = load_data(config.data, config.task)
    fitted = fit_pairs([config], dataset, tmp_path / "fit")
    source, target = (fitted.network(0, part)["batch_stats"] for part in ("validation", "test"))
    differ = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 1e-4), source, target)
    assert all(jax.tree.leaves(differ))
    joint = dataclasses.replace(config, adaptation=dataclasses.replace(config.adaptation, batchnorm="joint"))
    fitted = fit_pairs([joint], dataset, tmp_path / "joint")
    assert fitted.network(0, "validation")["batch_stats"] is fitted.network(0, "test")["batch_stats"]


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_adapt_as_they_would_alone(adapted_config, tmp_path):
    settings = ({"strength": 0.3}, {"strength": 3.0})
    configs = [adapted_config("cdan", adaptation=each, seed=i, learning_rate=3e-4) for i, each in enumerate(settings)]
    dataset = load_data(configs[0].data, "classification")
    together = fit_pairs(configs, dataset, tmp_path / "together")
    scores = lambda fitted, i: fitted.scorer(fitted.network(i, "test"), dataset.parts["test"])
    alone = fit_pairs(configs[1:], dataset, tmp_path / "alone")
    np.testing.assert_allclose(scores(together, 1), scores(alone, 0), rtol=0, atol=1e-3)
    assert np.abs(scores(together, 0) - scores(together, 1)).max() > 3e-2


@pytest.mark.slow
def test_class_weights_are_the_mean_predictions_over_the_target(adapted_config):
    config = adapted_config("san")
    dataset = load_data(config.data, config.task)
    buckets = buckets_for(config.model, dataset.table, dataset.store, 1, 8)
    logits = np.linspace(-1.0, 3.0, len(dataset.parts["target_train"]))

    def task_of(config):
        trials = [pair_trial(config, dataset.table, dataset.parts)]
        return make_task(config, trials, dataset.table, None, buckets, lambda network, rows: logits), trials

    task, trials = task_of(config)
    executor = Streamed(task, trials, config.training, None)
    np.testing.assert_array_equal(executor.state.hyper["target_classes"], [[0.5, 0.5]])
    executor.begin(Reporter())
    executor.refresh()
    positive = np.mean(1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(executor.state.hyper["target_classes"], [[1 - positive, positive]], rtol=1e-6)
    assert task_of(adapted_config("san", adaptation={"class_weights": "batch"}))[0].refresh is None


def test_class_weights_are_refreshed_at_the_start_of_an_epoch_and_after_so_many_steps():
    full, short, filler = np.zeros((2, 3, 4), int), np.full((2, 3, 4), -1), np.full((2, 3, 4), -1)
    short[1, 0, 2] = 5  # one step with a row, of one replica
    chunks = [Chunk(0, rows) for rows in (full, short, full, filler, full)]  # 0, 3, 4, 7 and 7 steps done before
    assert refreshes(chunks, None) == [True, False, False, False, False]
    assert refreshes(chunks, 1) == [True, True, True, True, False]
    assert refreshes(chunks, 4) == [True, False, True, False, False]
    assert refreshes(chunks, 6) == [True, False, False, True, False]
    assert refreshes(chunks, 100) == [True, False, False, False, False]


@pytest.mark.slow
@pytest.mark.bitwise
def test_an_epoch_that_is_resumed_refreshes_the_class_weights_where_an_unbroken_one_does(
    adapted_config, tmp_path, monkeypatch
):
    config = adapted_config("san", adaptation={"refresh_steps": 2})  # an epoch has 6 steps, each a chunk
    seen, batches, refresh = [], [], Streamed.refresh
    monkeypatch.setattr(Streamed, "refresh", lambda executor: seen.append(len(batches)) or refresh(executor))

    def batch(table, rows):
        batches.append(rows)
        if len(batches) == 6 + 4:  # of the second run
            os.kill(os.getpid(), signal.SIGTERM)
        return pair_batch(table, rows)

    monkeypatch.setattr(adapted_module, "pair_batch", batch)
    train(config, tmp_path / "unbroken")
    assert seen == [0, 2, 4]
    with pytest.raises(Interrupted):
        train(config, tmp_path / "resumed")
    resume(tmp_path / "resumed")
    assert seen[3:] == [6, 8, 10]
    weights = [weights_of(config, tmp_path / name) for name in ("unbroken", "resumed")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.slow
def test_source_only_is_trained_beside_it(adapted_config, tmp_path, capfd):
    config = adapted_config("dann", adaptation={"source_only": True}, replicas=2)
    summary = train(config, tmp_path / "run")
    plain = json.loads((tmp_path / "run" / "source_only" / "summary.json").read_text())
    difference, auroc = summary["difference_to"]["source_only"], lambda run: run["test"]["auroc"]
    assert difference["auroc"] == pytest.approx(auroc(summary) - auroc(plain))
    by_seed = [auroc(mine) - auroc(other) for mine, other in zip(summary["replicas"], plain["replicas"], strict=True)]
    assert difference["auroc_seeds"] == pytest.approx([np.mean(by_seed), np.std(by_seed, ddof=1)])
    low, high = difference["auroc_ci"]
    assert low <= difference["auroc"] <= high and "test auroc less that of source only" in capfd.readouterr().out
    assert 0 <= summary["source_only"]["test"]["auroc"] <= 1
    assert set(summary["domain_gap"]) == {"source_only", "adapted"}
    assert (tmp_path / "run" / "source_only" / "replicas" / "1" / "weights").exists() and (
        tmp_path / "run" / "domains.png"
    ).stat().st_size
    frame = pq.read_table(tmp_path / "run" / "domains.parquet")
    assert set(frame["domain"].to_pylist()) == {"source", "target"}


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["information", "importance"])
def test_the_target_selects_the_epoch_without_its_labels(adapted_config, target_rows, tmp_path, selection):
    config = adapted_config("mmd", adaptation={"selection": selection}, epochs=3)
    summary = train(config, tmp_path / "run")
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [record[f"selection_{selection}"] for record in history]
    assert len(set(values)) == 3 and summary["best_epoch"] == 1 + int(np.argmax(values))
    if selection == "information":
        assert 0.0 < min(values) <= max(values) < np.log(2.0)
    other = write_pairs(tmp_path / "other.csv", [(drug, protein, 1 - y, 9.0) for drug, protein, y, _ in target_rows])
    flipped = train(dataclasses.replace(config, data=dataclasses.replace(config.data, target=other)), tmp_path / "flip")
    assert flipped["best_epoch"] == summary["best_epoch"] and flipped["test"] == summary["test"]


def test_selection_needs_a_method_and_information_needs_classes():
    with pytest.raises(DataError, match="adaptation.selection=importance needs an adaptation.method"):
        config_from_dict({"adaptation": {"selection": "importance"}})
    with pytest.raises(DataError, match="class predictions"):
        config_from_dict({"task": "regression", "adaptation": {"method": "mmd", "selection": "information"}})


def test_nothing_to_adapt_to_is_an_error(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config(), adaptation=AdaptationConfig(method="dann"))
    with pytest.raises(DataError, match=r"adaptation\.method=dann needs unlabelled target pairs"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["cdan", "san", "san_released", "pada", "mcc"])
def test_methods_for_classes_refuse_affinities(method):
    with pytest.raises(DataError, match="class predictions"):
        config_from_dict({"task": "regression", "adaptation": {"method": method}})


# The published adversarial step: weights, losses and gradients of drugban_cdan_*.

PUBLISHED = ModelConfig(reference=True, dropout=0.0, logits=2)
LAYERS = {"fc1": "hidden_0", "fc2": "hidden_1", "fc3": "output", "bn1": "norm_0", "bn2": "norm_1"}


@pytest.fixture(scope="module")
def recorded(reference_dir):
    return dict(np.load(reference_dir / "drugban_cdan_step.npz"))


@pytest.fixture(scope="module")
def published(reference_dir, data_dir, recorded):
    """(variables, features, shape, batch) of the recorded step: source and target rows in turn."""
    import gzip

    def rows(part):
        with gzip.open(data_dir / "biosnap" / "cluster" / f"{part}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            return list(itertools.islice(csv.DictReader(file), 8))

    pairs = [row for both in zip(rows("source_train"), rows("target_train"), strict=True) for row in both]
    drugs = featurize_batch([row["SMILES"] for row in pairs])
    residues = [encode_sequence(row["Protein"])[:REFERENCE_RESIDUES] for row in pairs]
    offsets = lambda counts: np.concatenate([[0], np.cumsum(counts)])
    store = FeatureStore(
        atom_offsets=offsets(drugs.atom_counts),
        atoms=drugs.atoms,
        bond_offsets=offsets(drugs.bond_counts),
        bonds=drugs.bonds,
        residue_offsets=offsets([len(x) for x in residues]),
        residues=np.concatenate(residues),
    )
    state = read_weights(reference_dir / "drugban_cdan_state.npz")
    disc = {name.removeprefix("disc."): x for name, x in state.items() if name.startswith("disc.")}
    network = from_torch({name: x for name, x in state.items() if not name.startswith("disc.")}, PUBLISHED)
    params, statistics = {}, {}
    for torch, ours in LAYERS.items():
        if torch.startswith("fc"):
            params[ours] = {"dense": {"kernel": disc[f"{torch}.weight"].T, "bias": disc[f"{torch}.bias"]}}
        else:
            params[ours] = {"scale": disc[f"{torch}.weight"], "bias": disc[f"{torch}.bias"]}
            statistics[ours] = {"mean": disc[f"{torch}.running_mean"], "var": disc[f"{torch}.running_var"]}
    random = (recorded["random_matrix_features"], recorded["random_matrix_predictions"])
    variables = {
        "params": {"network": network["params"], "adaptation": params},
        "batch_stats": {
            "network": network["batch_stats"],
            "adaptation": {"discriminator": statistics, "random": random},
        },
    }
    label = np.zeros(16, np.float32)
    label[0::2] = recorded["source_labels"]
    index = np.arange(16, dtype=np.int32)
    batch = PairBatch(drug=index, protein=index, label=label, row_mask=np.ones(16, bool))
    shape = Shape(REFERENCE_ATOMS, int(drugs.bond_counts.max()), REFERENCE_RESIDUES)
    return jax.tree.map(jnp.asarray, variables), device_features(store), shape, batch


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cdan", "cdan_e"])
def test_the_published_step(published, recorded, case):
    variables, features, shape, batch = published
    adaptation = AdaptationConfig(
        method="cdan", random_features=256, schedule="constant", start=0, entropy_conditioning=case == "cdan_e"
    )
    config = Config(model=PUBLISHED, adaptation=adaptation)
    objective = adapted_pair_objective(config, features, shape, 1)
    hyper = hyper_parameters(config) | {"step": np.int32(0)}

    def loss(params):
        held = {"params": params, "batch_stats": variables["batch_stats"]}
        return objective(held, batch, jax.random.PRNGKey(0), jax.tree.map(jnp.asarray, hyper))

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (_, metrics)), gradient = compiled(variables["params"])
    found = {"model_loss": metrics["loss"], "da_loss": metrics["domain_loss"], "total_loss": total}
    for name, value in found.items():
        np.testing.assert_allclose(value, recorded[f"{case}/{name}"], rtol=0, atol=5e-5, err_msg=name)
    network = {"params": gradient["network"], "batch_stats": variables["batch_stats"]["network"]}
    norms = {name: np.linalg.norm(x) for name, x in to_torch(network, PUBLISHED).items()}
    np.testing.assert_allclose(
        [norms[name] for name in recorded["param_names"]], recorded[f"{case}/grad_norm"], rtol=5e-3
    )
    ours = []
    for name in recorded["disc_param_names"]:
        layer, kind = name.removeprefix("disc.").split(".")
        leaf = gradient["adaptation"][LAYERS[layer]]
        leaf = (
            leaf["dense"]["kernel" if kind == "weight" else "bias"]
            if layer.startswith("fc")
            else leaf["scale" if kind == "weight" else "bias"]
        )
        ours.append(np.linalg.norm(leaf))
    np.testing.assert_allclose(ours, recorded[f"{case}/disc_grad_norm"], rtol=5e-3, atol=1e-6)
