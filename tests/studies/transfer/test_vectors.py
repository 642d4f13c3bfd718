"""Networks on feature vectors that are kept, carried to a small table, and score the rows of others."""

import csv
import dataclasses
import json
import os
import signal
from functools import reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.csv
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from jaxdti.cli.main import main
from jaxdti.config import TransferConfig, config_from_dict
from jaxdti.data.vectors.domains import FeatureSpace, VectorDomains, read_domains
from jaxdti.errors import DataError
from jaxdti.inference.networks import VectorNetworks, load_networks, predict_rows, save_networks
from jaxdti.models.fnn import FNN, init_fnn
from jaxdti.studies import vector_methods
from jaxdti.studies.adapted_rows import score_domains
from jaxdti.studies.transfer import vectors as vector_transfer
from jaxdti.studies.transfer.shallow import shallow_scores
from jaxdti.studies.transfer.vectors import check_transfer, fit_transfer, stages_of, start
from jaxdti.training.task import Trial

pytestmark = pytest.mark.usefixtures("compile_fast_and_once")

CLASSES = ("x", "y", "z")


def networks_of(seeds, *, classes=CLASSES, hidden=(6, 4), inputs=3, space=None):
    model = FNN(hidden, outputs=len(classes))
    drawn = [init_fnn(model, inputs, seed) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    # Statistics that normalise with something else than 0 and 1, so that it shows which ones are used.
    stacked["batch_stats"] = jax.tree.map(lambda x: x + 0.25, stacked["batch_stats"])
    return VectorNetworks(model=model, variables=stacked, classes=classes, inputs=inputs, space=space)


def domains_of(classes=CLASSES, rows=60):
    rng = np.random.default_rng(0)
    label = np.arange(rows) % len(classes)
    features = rng.normal(size=(rows, 3)).astype(np.float32) + label[:, None]
    parts = {"train": np.arange(32), "validation": np.arange(32, 43), "test": np.arange(43, rows)}
    tasks = {"tables": (parts | {"target_train": np.zeros(0, int)},)}
    return VectorDomains(features=features, label=label, classes=classes, tasks=tasks)


def trials_of(domains, seeds, rate=0.01):
    (parts,) = domains.tasks["tables"]
    return [
        Trial(
            rows={part: parts[part] for part in ("train", "validation")},
            label=domains.label.astype(float),
            seed=seed,
            hyper={"learning_rate": rate},
        )
        for seed in seeds
    ]


def config_of(epochs=2, **transfer):
    training = {"epochs": epochs, "batch_size": 8, "replicas": 2, "learning_rate": 0.01, "patience": 9}
    vectors = {"source": "a", "test": "b", "methods": ["none"], "features": [6, 4], "select": "source"}
    return config_from_dict({"transfer": transfer, "training": training, "vectors": vectors})


@pytest.mark.slow
def test_each_replica_starts_from_its_own_network_or_all_from_one():
    source = networks_of((5, 6))
    own = start(TransferConfig(mode="full"), source, CLASSES, (0, 1))
    jax.tree.map(np.testing.assert_array_equal, own, source.variables)
    two_targets = start(TransferConfig(mode="full"), source, CLASSES, (0, 1, 0, 1))
    for i in range(4):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y[i % 2]), two_targets, source.variables)
    one = start(TransferConfig(mode="full"), networks_of((5,)), CLASSES, (0, 1, 2))
    for i in range(3):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y[0]), one, source.variables)


def test_fresh_parts_are_those_of_new_networks_and_other_classes_make_a_fresh_output():
    source = networks_of((5, 6))
    anew = [init_fnn(FNN((6, 4), outputs=2), 3, seed) for seed in (0, 1)]
    found = start(TransferConfig(mode="full", fresh=("norm_1",)), source, ("x", "w"), (0, 1))
    for i in range(2):
        for kind, name in (("params", "output"), ("params", "norm_1"), ("batch_stats", "norm_1")):
            jax.tree.map(
                lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), found[kind][name], anew[i][kind][name]
            )
    half = start(TransferConfig(mode="full", fresh=("norm_1/scale",)), source, CLASSES, (0, 1))
    jax.tree.map(np.testing.assert_array_equal, half["batch_stats"], source.variables["batch_stats"])
    kept = found["params"]["hidden_0"], source.variables["params"]["hidden_0"]
    jax.tree.map(np.testing.assert_array_equal, *kept)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "frozen"), [("full", 0), ("feature", 1), ("feature", 2)])
def test_frozen_layers_stay_to_the_bit_and_the_others_move(mode, frozen):
    source, domains = networks_of((5, 6)), domains_of()
    config = config_of(mode=mode, **({"frozen": [f"up_to_{frozen}"]} if frozen else {}))
    model, fit = fit_transfer(config, source, domains, trials_of(domains, (0, 1)), mode, None)
    assert model == source.model and not np.any(fit.first_bad >= 0)
    for kind, tree in source.variables.items():
        for name, module in tree.items():
            same = jax.tree.leaves(jax.tree.map(np.array_equal, fit.variables[kind][name], module))
            stays = name != "output" and int(name[-1]) < frozen
            assert all(same) if stays else not any(same), (kind, name)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_one_network_serves_all_replicas_and_its_frozen_outputs_are_computed_once(monkeypatch):
    source, domains, shapes = networks_of((5,)), domains_of(), []
    fit = vector_transfer.fit

    def recorded(task, trials, training, **settings):
        shapes.append(task.inputs.shape)
        return fit(task, trials, training, **settings)

    monkeypatch.setattr(vector_transfer, "fit", recorded)
    config = config_of(epochs=1, mode="feature", frozen=["up_to_1"])
    fit_transfer(config, source, domains, trials_of(domains, (0, 1)), "feature", None)
    fit_transfer(config, networks_of((5, 6)), domains, trials_of(domains, (0, 1)), "feature", None)
    _, fitted = fit_transfer(config, networks_of((5, 6)), domains, trials_of(domains, (0, 1, 0, 1)), "feature", None)
    assert shapes == [(60, 6), (2, 60, 6), (4, 60, 6)]
    # The same seed and rows on the second target, above the same network: the same outcome.
    jax.tree.map(lambda x: np.testing.assert_allclose(x[:2], x[2:], rtol=1e-5, atol=1e-6), fitted.variables)


@pytest.mark.slow
def test_training_above_a_frozen_layer_equals_plain_gradient_steps_above_it():
    """The reference holds the lower layer in NumPy and differentiates the upper one written out."""
    source, domains = networks_of((5,)), domains_of()
    (trial,) = trials_of(domains, (7,))
    config = config_of(epochs=1, mode="feature", frozen=["up_to_1"])
    _, fit = fit_transfer(config, source, domains, [trial], "feature", None)

    params = jax.tree.map(lambda x: x[0], source.variables["params"])
    held = jax.tree.map(lambda x: np.asarray(x[0]), source.variables["batch_stats"]["norm_0"])
    lower = np.asarray(domains.features) @ params["hidden_0"]["dense"]["kernel"] + params["hidden_0"]["dense"]["bias"]
    lower = (lower - held["mean"]) / np.sqrt(held["var"] + 1e-5) * params["norm_0"]["scale"] + params["norm_0"]["bias"]
    lower = np.maximum(lower, 0.0)

    def loss(upper, rows):
        h = lower[rows] @ upper["hidden_1"]["dense"]["kernel"] + upper["hidden_1"]["dense"]["bias"][None]
        h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)
        h = jax.nn.relu(h * upper["norm_1"]["scale"][None] + upper["norm_1"]["bias"][None])
        logits = h @ upper["output"]["dense"]["kernel"] + upper["output"]["dense"]["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, domains.label[rows]).mean()

    tx = optax.adam(0.01)
    upper = {name: params[name] for name in ("hidden_1", "norm_1", "output")}
    state = tx.init(upper)
    for rows in np.array_split(np.random.default_rng((7, 0)).permutation(trial.rows["train"]), 4):
        updates, state = tx.update(jax.grad(loss)(upper, rows), state)
        upper = optax.apply_updates(upper, updates)
    found = {name: jax.tree.map(lambda x: x[0], fit.variables["params"][name]) for name in upper}
    for tree in (upper, found):  # its gradient is 0 before a BatchNorm, and Adam makes steps of the rounding
        del tree["hidden_1"]["dense"]["bias"]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), found, upper)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_together_equal_each_alone():
    source, domains = networks_of((5, 6)), domains_of()
    config = config_of(mode="feature", frozen=["up_to_1"])
    _, both = fit_transfer(config, source, domains, trials_of(domains, (0, 1)), "feature", "accuracy")
    for i in range(2):
        alone = networks_of(((5, 6)[i],))
        _, one = fit_transfer(config, alone, domains, trials_of(domains, (i,)), "feature", "accuracy")
        pair = jax.tree.map(lambda x, i=i: x[i], both.variables), jax.tree.map(lambda x: x[0], one.variables)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *pair)


@pytest.mark.slow
def test_layers_are_slowed_down_against_those_above():
    source, domains = networks_of((5,)), domains_of()
    place = {"norm_0": ("scale",), "norm_1": ("scale",), "output": ("dense", "bias")}

    def weights(variables):
        return {name: reduce(getitem, path, variables["params"][name]) for name, path in place.items()}

    before, moved = weights(source.variables), {}
    for decay in (1.0, 0.5):
        config = config_of(epochs=1, mode="full", layer_decay=decay)
        (trial,) = trials_of(domains, (0,))
        one_step = dataclasses.replace(trial, rows={"train": trial.rows["train"][:8]})
        _, fit = fit_transfer(config, source, domains, [one_step], "full", None)
        moved[decay] = {name: np.asarray(x - before[name]) for name, x in weights(fit.variables).items()}
    for name, share in (("output", 1.0), ("norm_1", 0.5), ("norm_0", 0.25)):
        np.testing.assert_allclose(moved[0.5][name], share * moved[1.0][name], rtol=1e-3, atol=1e-7)
        assert np.abs(moved[1.0][name]).max() > 1e-3


@pytest.mark.slow
def test_stages_of_unfreezing(monkeypatch):
    source, domains, seen = networks_of((5, 6)), domains_of(), []
    fit = vector_transfer.fit

    def recorded(task, trials, training, **settings):
        hidden = [name for name in task.init(0)["params"] if name.startswith("hidden")]
        seen.append((len(hidden), trials[0].hyper["learning_rate"]))
        return fit(task, trials, training, **settings)

    monkeypatch.setattr(vector_transfer, "fit", recorded)
    config = config_of(epochs=1, mode="full", unfreeze=["up_to_2", "up_to_1"])
    check_transfer(config, source, domains)
    _, found = fit_transfer(config, source, domains, trials_of(domains, (0, 1)), "full", "accuracy")
    assert [layers for layers, _ in seen] == [0, 1, 2]
    np.testing.assert_allclose([rate for _, rate in seen], [0.01, 0.001, 0.0001])
    assert set(found.variables["params"]) == {"hidden_0", "hidden_1", "norm_0", "norm_1", "output"}


@pytest.mark.slow
def test_shallow_classifiers_on_the_last_hidden_layer():
    source, domains = networks_of((5, 6)), domains_of()
    (parts,) = domains.tasks["tables"]
    trials = trials_of(domains, (0, 1))
    for r, variables in enumerate([jax.tree.map(lambda x, r=r: x[r], source.variables) for r in range(2)]):
        hidden = np.asarray(domains.features, np.float64)
        for i in range(2):
            layer, norm = (variables["params"][f"{kind}_{i}"] for kind in ("hidden", "norm"))
            held = variables["batch_stats"][f"norm_{i}"]
            hidden = hidden @ layer["dense"]["kernel"] + layer["dense"]["bias"]
            hidden = (hidden - held["mean"]) / np.sqrt(held["var"] + 1e-5) * norm["scale"] + norm["bias"]
            hidden = np.maximum(hidden, 0)
        train, asked = hidden[parts["train"]], hidden[parts["test"]]
        label = domains.label[parts["train"]]
        for name, model in (
            ("logistic", LogisticRegression(tol=1e-8, max_iter=5000)),
            ("svm", SVC()),
            ("forest", RandomForestClassifier(100, random_state=r)),
        ):
            found = shallow_scores(name, source, domains, trials, [parts, parts])[r]["test"]
            for k in range(3):
                model.fit(train.astype(np.float32), label == k)
                margin = getattr(model, "decision_function", None)
                wanted = margin(asked) if margin else model.predict_proba(asked.astype(np.float32))[:, 1] - 0.5
                np.testing.assert_allclose(found[:, k], wanted, atol=0.02 if name == "logistic" else 0.011)


def test_shallow_classifiers_where_classes_are_missing():
    source, domains = networks_of((5,)), domains_of()
    (parts,) = domains.tasks["tables"]
    two = parts | {"train": parts["train"][domains.label[parts["train"]] != 1]}
    one = parts | {"train": parts["train"][domains.label[parts["train"]] == 2]}
    for parts, classes in ((two, {0, 2}), (one, {2})):
        trial = Trial(rows={"train": parts["train"]}, label=domains.label.astype(float))
        found = shallow_scores("forest", source, domains, [trial], [parts])[0]["test"]
        assert set(found.argmax(1)) <= classes and np.isfinite(found).all()


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"mode": "feature", "frozen": ["hidden_1"]}, "the lowest layers freeze together, such as up_to_1, up_to_2"),
        ({"mode": "feature", "frozen": ["pooling"]}, "'pooling' names no parameter; groups: up_to_1, up_to_2"),
        ({"mode": "feature", "frozen": ["up_to_2", "output"]}, "nothing is left to train"),
        ({"mode": "feature", "frozen": ["up_to_1"], "fresh": ["norm_0"]}, "both name norm_0"),
        ({"mode": "full", "fresh": ["decoder"]}, "'decoder' names no parameter"),
    ],
)
def test_parts_that_do_not_suit(transfer, message):
    with pytest.raises(DataError, match=message):
        check_transfer(config_of(**transfer), networks_of((5, 6)), domains_of())


def test_networks_that_do_not_suit():
    domains, config = domains_of(), config_of(mode="full")
    with pytest.raises(DataError, match=r"another architecture: vectors.features \[7\], here \[6, 4\]"):
        check_transfer(config, networks_of((5, 6), hidden=(7,)), domains)
    with pytest.raises(DataError, match="length of a feature vector 5, here 3"):
        check_transfer(config, networks_of((5, 6), inputs=5), domains)
    with pytest.raises(DataError, match=r"3 networks, .* training.replicas=3 .* found 2"):
        check_transfer(config, networks_of((5, 6, 7)), domains)
    stages = TransferConfig(mode="full", unfreeze=("up_to_1", "up_to_2"))
    assert stages_of(stages, networks_of((5,))) == [1, 2, 0]
    config = config_of(mode="full", unfreeze=["up_to_1", "up_to_2"])
    with pytest.raises(DataError, match="each stage freezes fewer layers"):
        check_transfer(config, networks_of((5,)), domains)


def test_networks_are_read_as_they_were_written(tmp_path):
    space = FeatureSpace(columns=("a", "ü", "c"), mean=(0.5, 1.0, 2.0), deviation=(1.0, 2.0, 4.0))
    source = networks_of((5, 6), space=space)
    save_networks(tmp_path / "networks" / "none" / "tables", source)
    found = load_networks(tmp_path)
    assert (found.model, found.classes, found.inputs, found.space, len(found)) == (source.model, CLASSES, 3, space, 2)
    jax.tree.map(np.testing.assert_array_equal, found.variables, source.variables)
    save_networks(tmp_path / "networks" / "san" / "tables", source)
    with pytest.raises(DataError, match="networks of 2 methods and targets; name one of .*none/tables"):
        load_networks(tmp_path)
    card = tmp_path / "networks" / "san" / "tables" / "network.json"
    card.write_text(card.read_text().replace('"hidden"', '"hid"'))
    with pytest.raises(DataError, match=r"network\.json: damaged \(KeyError"):
        load_networks(card.parent)
    with pytest.raises(DataError, match="no trained networks here"):
        load_networks(tmp_path / "nothing")
    save_networks(tmp_path / "digits", networks_of((5,)))
    with pytest.raises(DataError, match="vectors that are those of no table"):
        predict_rows(tmp_path / "digits", tmp_path / "any.csv")


def write_tables(folder, names, *, classes=("no", "yes"), move=0.0, seed=0):
    rng = np.random.default_rng(seed)
    for name, count in names.items():
        label = np.arange(count) % len(classes)
        x = np.stack([4.0 * label - 2.0 + move, np.full(count, move)], 1) + rng.normal(scale=0.4, size=(count, 2))
        lines = [f"{a},{b},{classes[y]}" for (a, b), y in zip(x, label, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["a,b,label", *lines]))


@pytest.fixture(scope="module")
def source_run(tmp_path_factory, compile_fast_and_once):
    """Two networks without adaptation and two with, on tables of numbers."""
    folder = tmp_path_factory.mktemp("source")
    write_tables(folder, {"source": 60, "target": 30, "test": 30})
    tables = [f"--vectors.{name}={folder / name}.csv" for name in ("source", "target", "test")]
    sizes = ["--vectors.features=6,4", "--adaptation.discriminator_features=4", "--training.batch_size=16"]
    common = [
        *tables,
        *sizes,
        "--epochs=6",
        "--learning-rate=0.02",
        "--training.replicas=2",
        "--output.baselines=false",
    ]
    assert main(["train", "--vectors.methods=none,san", *common, "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def small(tmp_path):
    write_tables(tmp_path, {"small": 20, "held_out": 30}, move=0.5, seed=1)
    return ["--vectors.source", str(tmp_path / "small.csv"), "--vectors.test", str(tmp_path / "held_out.csv")]


@pytest.mark.slow
def test_kept_networks_score_as_the_run_did(source_run):
    config = config_from_dict(json.loads(json.dumps({"vectors": {"features": [6, 4]}})))
    domains = read_domains(
        *(source_run.parent / f"{name}.csv" for name in ("source", "target", "test")),
        validation=0.2,
        seeds=(0, 1),
    )
    networks = load_networks(source_run / "networks" / "san" / "tables")
    rows = np.tile(domains.tasks["tables"][0]["test"], (2, 1))
    _, logits = score_domains(networks.model, config.adaptation, networks.variables, domains.features, rows, "test")
    table = predict_rows(source_run / "networks" / "san" / "tables", source_run.parent / "test.csv")
    odds = np.exp(logits.astype(float))
    wanted = (odds / odds.sum(-1, keepdims=True))[..., 1]
    np.testing.assert_allclose(table["probability_yes"].to_numpy(), wanted.mean(0), rtol=1e-5)
    called = np.array(table["class"].to_pylist()) == "yes"
    spread = table["probability_sd"].to_numpy()
    np.testing.assert_allclose(spread, wanted.std(0), atol=1e-6)
    with (source_run / "results.csv").open(newline="") as file:
        accuracy = [float(row["target_accuracy"]) for row in csv.DictReader(file) if row["method"] == "san"]
    label = domains.label[rows[0]]
    np.testing.assert_allclose(np.mean((logits.argmax(-1) == label), -1), accuracy)
    assert called.shape == label.shape


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["feature", "shallow"])
def test_the_modes_from_the_command_line(mode, source_run, small, tmp_path, capsys):
    networks = source_run / "networks" / "none" / "tables"
    run = tmp_path / "run"
    flags = ["--transfer.mode", mode, "--epochs=3", "--learning-rate=0.01", *small, "--output", str(run)]
    assert main(["transfer", str(source_run), *flags]) == 2
    assert "networks of 2 methods and targets; name one of" in capsys.readouterr().err
    assert main(["transfer", str(networks), *flags]) == 0
    shown = capsys.readouterr().out
    learned = {
        "full": ["full"],
        "feature": ["feature"],
        "shallow": ["shallow_logistic", "shallow_svm", "shallow_forest"],
    }
    methods = ["scratch", "source", *learned[mode], "similarity", "random_forest", "logistic_regression"]
    assert " ".join(["target", *methods]) in " ".join(shown.split()) and "AUROC on target test rows" in shown
    with (run / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [(name, seed) for name in methods for seed in "01"]
    assert all(float(row["target_auroc"]) > 0.9 for row in rows if row["method"] in ("source", *learned))
    if mode == "shallow":
        assert not (run / "networks").exists()
        return
    assert main(["predict", str(run), str(tmp_path / "held_out.csv"), "--output", str(tmp_path / "scores.csv")]) == 0
    assert (
        main(["transfer", str(run), "--transfer.mode=full", "--epochs=1", *small, "--output", str(tmp_path / "n")]) == 0
    )


def test_the_source_is_measured_as_it_is_beside_fresh_parts(source_run, small, tmp_path):
    networks, accuracy = str(source_run / "networks" / "none" / "tables"), []
    flags = ["--transfer.mode=full", "--epochs=1", "--output.baselines=false", *small, "--output"]
    for name, more in (("kept", []), ("fresh", ["--transfer.fresh=output,norm_1"])):
        assert main(["transfer", networks, *flags, str(tmp_path / name), *more]) == 0
        rows = json.loads((tmp_path / name / "methods" / "source.json").read_text())
        accuracy.append([row["target_auroc"] for row in rows])
    assert accuracy[0] == accuracy[1]


@pytest.mark.slow
def test_other_classes_begin_with_a_fresh_output(source_run, tmp_path, capsys):
    write_tables(tmp_path, {"small": 24, "held_out": 30}, classes=("low", "middle", "yes"), seed=2)
    given = ["--vectors.source", str(tmp_path / "small.csv"), "--vectors.test", str(tmp_path / "held_out.csv")]
    networks = source_run / "networks" / "none" / "tables"
    flags = ["--transfer.mode=full", "--epochs=2", "--output.baselines=false", *given]
    assert main(["transfer", str(networks), *flags, "--output", str(tmp_path / "run")]) == 0
    assert load_networks(tmp_path / "run").classes == ("low", "middle", "yes")
    shown = capsys.readouterr()
    assert "source" not in shown.out.splitlines()[1]
    assert "the source's classes are no, yes, here low, middle, yes: the output layer begins with" in shown.err


@pytest.mark.slow
def test_a_transfer_that_is_stopped_goes_on(source_run, small, tmp_path, capsys, monkeypatch):
    networks = source_run / "networks" / "none" / "tables"
    flags = ["--transfer.mode=full", "--epochs=2", "--output.baselines=false", *small, "--output"]
    assert main(["transfer", str(networks), *flags, str(tmp_path / "whole")]) == 0
    fit = vector_methods.fit_transfer

    def stopping(*given):
        if given[4] == "full":
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(*given)

    with monkeypatch.context() as patch:
        patch.setattr(vector_methods, "fit_transfer", stopping)
        assert main(["transfer", str(networks), *flags, str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert f"jaxdti transfer --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.csv").exists()
    assert main(["transfer", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()


def test_what_a_transfer_on_vectors_refuses(source_run, small, tmp_path, capsys):
    networks = str(source_run / "networks" / "none" / "tables")
    for flags, message in (
        (["--transfer.mode=full"], "give the small data set with --vectors.source and --vectors.test"),
        (small, "transfer.mode=none: choose from full, feature, shallow"),
        (
            [*small, "--transfer.mode=full", "--vectors.methods=san", f"--vectors.target={small[1]}"],
            "vectors.methods=san",
        ),
        (
            [*small, "--transfer.mode=full", "--vectors.fingerprint_bits=64"],
            "vectors.fingerprint_bits None, here 64",
        ),
    ):
        assert main(["transfer", networks, *flags, "--output", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert (
        main(["train", *small, "--vectors.methods=none", "--transfer.mode=full", "--output", str(tmp_path / "r")]) == 2
    )
    assert "needs a trained model: jaxdti transfer SOURCE_RUN" in capsys.readouterr().err
    assert main(["evaluate", str(source_run), small[1]]) == 2
    assert "a run on feature vectors, not on pairs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "r").exists()


@pytest.mark.slow
def test_networks_on_fingerprints_score_molecules(tmp_path, capsys):
    active, inactive = ["CCO", "CCCO", "CCCCO", "OCCO", "CC(C)O"], ["CCN", "CCCN", "CCCCN", "NCCN", "CC(C)N"]
    rows = [f"{text},{label}" for texts, label in ((active, "active"), (inactive, "inactive")) for text in texts]
    for name in ("source", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["SMILES,label", *rows]))
    flags = [f"--vectors.{name}={tmp_path / name}.csv" for name in ("source", "test")]
    flags += ["--vectors.methods=none", "--vectors.fingerprint_bits=64", "--vectors.features=8", "--epochs=30"]
    flags += ["--learning-rate=0.02", "--output.baselines=false", "--output", str(tmp_path / "run")]
    assert main(["train", *flags]) == 0
    assert "10 of the test rows have the features of a source row" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("class,Drug\nmine,CCCCCO\n,C(C\nü,CCCCCN\n")
    scores = tmp_path / "scores.csv"
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--output", str(scores)]) == 0
    found = pyarrow.csv.read_csv(
        scores, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    ).to_pylist()
    assert [row["class"] for row in found] == ["active", None, "inactive"]
    assert [row["class_input"] for row in found] == ["mine", None, "ü"]
    assert found[1]["error"] == "SMILES 'C(C': not a valid SMILES" and found[1]["probability_active"] is None
    assert main(["predict", str(tmp_path / "run"), "--smiles", "CCO", "--sequence", "MKT"]) == 2
