"""Parts of a network that stay as they are: chosen by name, left out of gradients and moments, trained around."""

import dataclasses
import json
import os
import re
import shutil
import signal
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from flax.traverse_util import flatten_dict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from jaxdti import cli
from jaxdti.config import Config, ModelConfig, TrainingConfig, TransferConfig
from jaxdti.data.pairs.buckets import Shape, pair_batch
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.load import load_data
from jaxdti.errors import DataError, Interrupted
from jaxdti.inference.joint_features import make_joint_features
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.inference.trained import Weights, load_run
from jaxdti.models.drugban import PARTS, DrugBAN, depth, init_variables
from jaxdti.studies.pairs import resume, train, transfer
from jaxdti.studies.transfer.frozen import (
    FrozenOutputs,
    check_parts,
    frozen_and_fresh,
    rescaled,
    transferred,
    unfreezing_stages,
)
from jaxdti.training import supervised as method_module
from jaxdti.training.checkpoints import load_weights
from jaxdti.training.objective import binding_loss
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.partition import merge, partition, select
from jaxdti.training.state import init_state
from jaxdti.training.step import make_train_step
from jaxdti.training.supervised import hyper_parameters, pair_objective, pair_task, pair_trial, with_frozen
from jaxdti.training.task import Task

SHAPE = Shape(16, 16, 64)
# Sizes that no other array of the step has, so that the kernel of the CNN is known by its shape.
MODEL = ModelConfig(
    drug_features=8,
    drug_layers=2,
    protein_features=7,
    protein_kernels=(3, 5),
    joint_features=6,
    pool_size=1,
    decoder_features=(9,),
    dropout=0.2,
)


def part(params, *patterns):
    """The parameters without those that the patterns name, and these."""
    return partition(params, select(params, patterns, PARTS, "training.frozen"))


def paths(tree):
    return {"/".join(path) for path in flatten_dict(tree)}


def chosen_names(*patterns):
    params = jax.eval_shape(partial(init_variables, MODEL), 0)["params"]
    return {"/".join(path) for path in select(params, patterns, PARTS, "training.frozen")}


@pytest.mark.slow
def test_patterns_name_modules_single_parameters_and_groups():
    layers = [f"sequence_layers_{i}/{name}" for i in (0, 1) for name in ("conv/kernel", "conv/bias", "norm/scale")]
    assert chosen_names("sequence_layers_*") == {*layers, *(f"sequence_layers_{i}/norm/bias" for i in (0, 1))}
    assert chosen_names("sequence_layers_1/norm/scale") == {"sequence_layers_1/norm/scale"}
    layers = [f"{kind}_layers_{i}" for kind in ("sequence", "graph") for i in (0, 1)]
    assert chosen_names("*/norm/bias") == {f"{name}/norm/bias" for name in ("bilinear", *layers)}
    assert chosen_names("encoders") == chosen_names("drug_encoder", "protein_encoder")
    assert {path.split("/")[0] for path in chosen_names("pooling")} == {
        *("atom_projection", "graph_layers_0", "graph_layers_1", "embedding"),
        *("sequence_layers_0", "sequence_layers_1", "bilinear"),
    }
    everything = paths(init_variables(MODEL, 0)["params"])
    assert everything - chosen_names("pooling") == {path for path in everything if path.startswith("decoder/")}


def test_layers_are_frozen_from_the_bottom_by_their_number(tiny_config):
    params = jax.eval_shape(partial(init_variables, MODEL), 0)["params"]
    config = dataclasses.replace(carried(tiny_config, "feature"), model=MODEL)
    chosen = {}
    for name in ("up_to_1", "up_to_2", "up_to_3", "encoders"):
        one = dataclasses.replace(config, transfer=TransferConfig(mode="feature", frozen=(name,)))
        chosen[name] = {path[0] for path in frozen_and_fresh(one, params)[0]}
    assert chosen["up_to_1"] == {"atom_projection", "embedding"}
    assert chosen["up_to_2"] == chosen["up_to_1"] | {"graph_layers_0", "sequence_layers_0"}
    assert chosen["up_to_3"] == chosen["encoders"]
    four = dataclasses.replace(config, transfer=TransferConfig(mode="feature", frozen=("up_to_4",)))
    with pytest.raises(DataError, match="'up_to_4' names no parameter; groups: .*up_to_2, up_to_3; modules"):
        frozen_and_fresh(four, params)


@pytest.mark.parametrize("pattern", ["sequence_layer", "decoder/norm", "decoder/norm_0/scale/more", ""])
def test_a_pattern_that_names_nothing_is_an_error_with_the_names(pattern):
    with pytest.raises(DataError, match=r"training.frozen: '.*' names no parameter; groups: drug_encoder.*bilinear"):
        chosen_names("encoders", pattern)


def test_parts_of_a_tree_make_the_tree_again():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    for chosen in ([], [("a", "b")], [("a", "b"), ("a", "c", "d")], [("e",), ("a", "c", "d")]):
        rest, taken = partition(tree, frozenset(chosen))
        assert flatten_dict(taken).keys() == set(chosen) and not flatten_dict(rest).keys() & set(chosen)
        assert merge(rest, taken) == merge(taken, rest) == tree


@pytest.fixture(scope="module")
def problem(tiny_config):
    """The objective of DrugBAN on eight pairs, a method around it, and their batch."""
    dataset = load_data(tiny_config().data, "classification")
    objective = pair_objective(MODEL, "classification", device_features(dataset.store), SHAPE)
    unused: Any = None
    init = partial(init_variables, MODEL)
    method = Task(init=init, inputs=unused, objective=unused, plan=unused, hyper=unused, selector=unused, scored=unused)
    return objective, method, jax.tree.map(jnp.asarray, pair_batch(dataset.table, np.arange(8)))


CONFIG = Config(model=MODEL, training=TrainingConfig(optimizer="adamw", weight_decay=0.1, clip_norm=0.01))
TX = make_optimizer(CONFIG.training, 10)


def begun(method, seed=0):
    return init_state(method.init, TX, seed, hyper_parameters(CONFIG))


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_frozen_step_is_the_plain_one_with_gradients_of_the_rest_alone(problem):
    objective, method, batch = problem
    state = begun(with_frozen(method, ["protein_encoder", "graph_layers_0"]))
    plain = begun(method)
    chex.assert_trees_all_equal(state.variables, plain.variables)

    def zeroed(variables, batch, rng, hyper):
        rest, kept = part(variables["params"], "protein_encoder", "graph_layers_0")
        return objective(variables | {"params": merge(rest, jax.lax.stop_gradient(kept))}, batch, rng, hyper)

    step, wanted = jax.jit(make_train_step(objective, TX)), jax.jit(make_train_step(zeroed, TX))
    for _ in range(2):
        state, metrics = step(state, batch)
        plain, expected = wanted(plain, batch)
        # Zero gradients neither move Adam nor count in the norm, but weight decay would shrink their parameters.
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-6)
        plain = plain.replace(
            params=merge(partition(plain.params, frozenset(flatten_dict(state.frozen)))[0], state.frozen)
        )
    chex.assert_trees_all_close(state.variables, plain.variables, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(state.frozen, begun(with_frozen(method, ["protein_encoder", "graph_layers_0"])).frozen)
    # Their BatchNorm has no statistics of an earlier training to stand on.
    assert np.any(np.asarray(state.batch_stats["sequence_layers_0"]["norm"]["mean"]) != 0)


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient_and_no_moments(problem):
    objective, method, batch = problem
    state = begun(with_frozen(method, ["protein_encoder"]))
    assert paths(state.params) | paths(state.frozen) == paths(begun(method).params)
    assert not paths(state.params) & paths(state.frozen)
    moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    assert [x.shape for x in moments] == [x.shape for x in jax.tree.leaves(state.params)]

    def makers(state):
        """What the compiled step does to make arrays of the shape of the second convolution's kernel."""
        text = jax.jit(make_train_step(objective, TX)).lower(state, batch).compile().as_text()
        return set(re.findall(r"f32\[5,7,7\]\S* ([a-z-]+)\(", text))

    passing = {"parameter", "copy", "bitcast", "transpose", "get-tuple-element"}
    assert makers(state) <= passing
    assert not makers(begun(method)) <= passing


def test_nothing_left_to_train_is_an_error(problem):
    with pytest.raises(DataError, match="training.frozen=pooling,decoder: nothing is left to train"):
        with_frozen(problem[1], ["pooling", "decoder"])


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_run_with_frozen_parts_keeps_them_and_resumes(tiny_config, tmp_path):
    settings = {"buckets": 1, "epochs": 1, "frozen": ("protein_encoder",), "replicas": 2}
    config = tiny_config(**settings)
    train(config, tmp_path / "run")
    like = jax.eval_shape(lambda: init_variables(config.model, 0))
    for seed in (0, 1):
        weights = load_weights(tmp_path / "run" / "replicas" / str(seed) / "weights", like)["params"]
        fresh = init_variables(config.model, seed)["params"]
        chex.assert_trees_all_equal(part(weights, "protein_encoder")[1], part(fresh, "protein_encoder")[1])
        projection = [params["bilinear"]["protein_projection"]["kernel"] for params in (weights, fresh)]
        assert np.any(projection[0] != projection[1])
    (tmp_path / "run" / "summary.json").unlink()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()


# Transfer from a trained run.

ONE = {"buckets": 1, "epochs": 1}  # one program to compile


@pytest.fixture(scope="module")
def source(tiny_config, tmp_path_factory):
    """The directory of a trained run, and the variables of its network."""
    run = tmp_path_factory.mktemp("source") / "run"
    train(tiny_config(**ONE), run)
    return run, load_run(run).members[0].variables


def carried(tiny_config, mode, *, task="classification", model=None, data=None, transfer=None, **training) -> Config:
    """``tiny_config`` to train on from a source, on the test pairs of its training."""
    config = tiny_config(task, model=model, **ONE | training)
    files = {"train": config.data.test, "validation": config.data.validation, "test": config.data.train}
    data = dataclasses.replace(config.data, **files | (data or {}))
    return dataclasses.replace(config, data=data, transfer=TransferConfig(mode=mode, **transfer or {}))


def network_of(run):
    return load_run(run).members[0].variables


@pytest.fixture(scope="module")
def pieces(tiny_config, source):
    """What ``transferred`` works on: a function of the patterns, and the data."""
    config = carried(tiny_config, "feature")
    dataset = load_data(config.data, config.task)
    features = device_features(dataset.store)
    buckets = buckets_for(config.model, dataset.table, dataset.store, 1, 8)

    def build(*frozen, **transfer):
        changed = dataclasses.replace(config, transfer=TransferConfig(mode="feature", frozen=frozen, **transfer))
        trials = [pair_trial(changed, dataset.table, dataset.parts)]
        weights, unscored = Weights(source[1], (0.0, 1.0)), lambda network, rows: None
        plain = pair_task(changed, trials, dataset.table, features, buckets, unscored, 1)
        return transferred(changed, [weights], plain, trials, dataset.table, features)

    return build, dataset, features, buckets


def loss_and_gradients(method, features, buckets, rows):
    """Of the trainable parameters, without dropout; and the running statistics after the step."""
    variables = method.init(0)
    objective = method.objective(method.inputs, method.plan.shapes[0], None)
    hyper = hyper_parameters(Config()) | {"dropout": np.float32(0.0), "step": 0}

    def loss(params):
        both = {"params": merge(params, variables["frozen"]), "batch_stats": variables["batch_stats"]}
        return objective(both, method.plan.batch(rows), jax.random.PRNGKey(0), hyper)

    (value, (statistics, _)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return value, gradients, statistics


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("pooling",), ("protein_encoder",), ("encoders", "decoder/*_0")])
def test_frozen_modules_run_as_in_scoring_and_the_others_as_in_training(pieces, source, frozen):
    build, dataset, features, buckets = pieces
    rows = np.array([*dataset.parts["train"][:7], -1])
    value, gradients, statistics = loss_and_gradients(build(*frozen), features, buckets, rows)

    _, start = source
    chosen = select(start["params"], frozen, PARTS, "")
    shape, batch = buckets.shapes[0], pair_batch(dataset.table, rows)
    model = DrugBAN(load_run(source[0]).config.model)
    trains = lambda part: not select(start["params"], (part,), PARTS, "") <= chosen

    def expected(params):
        def run(network):
            mask = jnp.asarray(batch.row_mask)
            drug, protein = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
            atoms, atom_mask = network.encode_drug(drug, mask, train=trains("drug_encoder"))
            residues, residue_mask = network.encode_protein(protein, mask, train=trains("protein_encoder"))
            masks = (atom_mask, residue_mask, mask)
            joint = network.bilinear(atoms, residues, *masks, 0.0, train=trains("bilinear"))
            # Its layers are "hidden_0", "norm_0" and "output".
            return network.decoder(joint, mask, train=trains("decoder/norm_0"))

        variables = {
            "params": merge(params, partition(start["params"], chosen)[1]),
            "batch_stats": start["batch_stats"],
        }
        keys = {"dropout": jax.random.PRNGKey(0)}
        logits, updates = model.apply(variables, method=run, rngs=keys, mutable=["batch_stats"])
        loss = binding_loss(logits, batch.label, batch.row_mask)
        return jnp.sum(loss) / 7, updates["batch_stats"]

    trainable = partition(start["params"], chosen)[0]
    (wanted, moved), slopes = jax.jit(jax.value_and_grad(expected, has_aux=True))(trainable)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    # The gradient of a bias before BatchNorm is 0 but for rounding.
    chex.assert_trees_all_close(gradients, slopes, rtol=1e-4, atol=3e-6)
    chex.assert_trees_all_close(statistics, moved, rtol=1e-5, atol=1e-6)
    for name, part in (("graph_layers_0", "drug_encoder"), ("sequence_layers_0", "protein_encoder")):
        same = np.array_equal(statistics[name]["norm"]["mean"], start["batch_stats"][name]["norm"]["mean"])
        assert same != trains(part)


@pytest.mark.parametrize("frozen", ["pooling", "drug_encoder"])
def test_scores_from_the_outputs_of_the_frozen_part_are_those_of_the_network(pieces, source, frozen):
    build, dataset, features, buckets = pieces
    method = build(frozen)
    rows = dataset.parts["test"][[3, 1, 2, 1]]
    scorer = make_scorer(load_run(source[0]).config.model, features, dataset.table, buckets, 8)
    np.testing.assert_allclose(method.selector.scorer(source[1], rows), scorer(source[1], rows), rtol=1e-4, atol=1e-5)


def test_single_frozen_layers_are_computed_in_each_step(pieces):
    method = pieces[0]("sequence_layers_0", "embedding/embedding")
    assert method.inputs is not None and method.inputs.proteins is not None  # together they are the whole encoder
    assert not isinstance(pieces[0]("sequence_layers_0").inputs, FrozenOutputs)


@pytest.mark.slow
@pytest.mark.bitwise
def test_fresh_parts_begin_anew_and_the_rest_is_the_source(pieces, source):
    method = pieces[0]("encoders", fresh=("decoder",))
    start = jax.vmap(method.init)(jnp.arange(2))
    for seed in (0, 1):
        mine = jax.tree.map(lambda x: x[seed], start)  # noqa: B023
        fresh = init_variables(load_run(source[0]).config.model, seed)
        chex.assert_trees_all_close(mine["params"]["decoder"], fresh["params"]["decoder"], rtol=1e-6)
        chex.assert_trees_all_equal(mine["batch_stats"]["decoder"], fresh["batch_stats"]["decoder"])
        chex.assert_trees_all_equal(mine["params"]["bilinear"], source[1]["params"]["bilinear"])
        kept = {**mine["batch_stats"], "decoder": source[1]["batch_stats"]["decoder"]}
        chex.assert_trees_all_equal(kept, source[1]["batch_stats"])


def test_the_last_layer_starts_from_the_affinities_of_the_source():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    variables = {"params": {"decoder": {"output": {"dense": {"kernel": draw(9, 1), "bias": draw(1)}}}}}
    moved, x = rescaled(variables, (6.0, 2.0), (5.0, 0.5)), draw(4, 9)

    def affinity(variables, mean, sd):
        output = variables["params"]["decoder"]["output"]["dense"]
        return (x @ output["kernel"] + output["bias"][None]) * sd + mean

    np.testing.assert_allclose(affinity(moved, 5.0, 0.5), affinity(variables, 6.0, 2.0), rtol=1e-5)
    chex.assert_trees_all_equal(rescaled(variables, (0.0, 1.0), (0.0, 1.0)), variables)


def test_learning_rates_shrink_layer_by_layer():
    tx = make_optimizer(CONFIG.training, 10, share_of=lambda path: 0.5 ** depth(MODEL, path))
    shapes = jax.eval_shape(partial(init_variables, MODEL), 0)["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    hyper = hyper_parameters(CONFIG) | {"learning_rate": 1.0, "weight_decay": 0.0}
    updates, _ = jax.jit(lambda x: tx.update(x, tx.init(x), x, hyper=hyper))(params)
    layers = {"output": 0, "hidden_0": 1, "norm_0": 1, "bilinear": 2, "embedding": 5, "atom_projection": 5}
    layers |= {f"{kind}_layers_{i}": 4 - i for kind in ("graph", "sequence") for i in (0, 1)}
    for path, update in flatten_dict(updates).items():  # Adam's first step has the size of the learning rate
        name = path[1] if path[0] == "decoder" else path[0]
        np.testing.assert_allclose(update, -(0.5 ** layers[name]), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_are_the_same_one_by_one_and_resume(tiny_config, source, tmp_path):
    settings = {"transfer": {"fresh": ("decoder",)}, "epochs": 2, "learning_rate": 1e-2}
    transfer(source[0], carried(tiny_config, "feature", replicas=2, **settings), tmp_path / "both")
    transfer(source[0], carried(tiny_config, "feature", seed=1, **settings), tmp_path / "alone")
    lines = lambda run: map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
    losses = lambda run, i: [line["loss"] for line in lines(run) if line.get("replica", 0) == i]
    assert losses("both", 1) == pytest.approx(losses("alone", 0), rel=1e-4)
    assert losses("both", 0) != pytest.approx(losses("alone", 0), rel=1e-3)
    alone = network_of(tmp_path / "alone")
    # The first of the two epochs is the last one that was saved.
    steps = sorted((tmp_path / "alone" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(steps[-1])
    (tmp_path / "alone" / "summary.json").unlink()
    resume(tmp_path / "alone")
    chex.assert_trees_all_equal(network_of(tmp_path / "alone"), alone)


@pytest.mark.slow
def test_full_transfer_starts_from_all_weights_and_compares(tiny_config, source, tmp_path):
    config = carried(tiny_config, "full", transfer={"scratch": True}, learning_rate=0.0)
    summary = transfer(source[0], config, tmp_path / "run")
    found = network_of(tmp_path / "run")
    chex.assert_trees_all_equal(found["params"], source[1]["params"])
    means = [variables["batch_stats"]["bilinear"]["norm"]["mean"] for variables in (found, source[1])]
    assert np.any(means[0] != means[1])
    assert list(summary["compared"]) == ["the source itself", "DrugBAN from scratch"]
    assert (tmp_path / "run" / "scratch" / "weights").is_dir() and set(summary["difference_to"]) == {"scratch"}


UNFREEZE = {"transfer": {"unfreeze": ("pooling", "encoders")}, "patience": 1, "epochs": 1, "learning_rate": 1e-2}


def test_the_stages_of_a_gradual_unfreezing(tiny_config, pieces, source):
    config = carried(tiny_config, "full", **UNFREEZE | {"transfer": UNFREEZE["transfer"] | {"fresh": ("decoder",)}})
    stages = unfreezing_stages(config)
    assert [stage.transfer.mode for stage in stages] == ["feature", "feature", "full"]
    assert [stage.transfer.frozen for stage in stages[:2]] == [("pooling",), ("encoders",)]
    assert [stage.transfer.fresh for stage in stages] == [("decoder",), (), ()]
    assert [stage.training.learning_rate for stage in stages] == pytest.approx([1e-2, 1e-3, 1e-4])
    plain = carried(tiny_config, "full")
    assert unfreezing_stages(plain) == [plain]
    for unfreeze, message in (
        (("encoders", "pooling"), "pooling is not a part of encoders, but each stage freezes less"),
        (("drug_encoder", "protein_encoder"), "protein_encoder is not a part of drug_encoder"),
        (("pooling", "pooling"), "pooling is not a part of pooling"),
        (("pool",), "transfer.frozen: 'pool' names no parameter"),
    ):
        wrong = carried(tiny_config, "full", patience=1, transfer={"unfreeze": unfreeze})
        with pytest.raises(DataError, match=message):
            check_parts(wrong, source[1]["params"])
    with pytest.raises(ValueError, match="transfer.unfreeze=pooling needs transfer.mode=full, .* found feature"):
        TransferConfig(mode="feature", unfreeze=("pooling",))
    with pytest.raises(ValueError, match="transfer.unfreeze needs training.patience"):
        carried(tiny_config, "full", transfer={"unfreeze": ("pooling",)})


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_gradual_unfreezing_goes_on_from_the_best_weights_and_resumes(tiny_config, source, tmp_path, monkeypatch):
    config = carried(tiny_config, "full", replicas=2, **UNFREEZE)
    run, other = tmp_path / "run", tmp_path / "other"
    transfer(source[0], config, run)
    stages = [load_run(run / "stage_1"), load_run(run / "stage_2"), load_run(run)]
    for member in (0, 1):
        start, *found = (source[1], *(stage.members[member].variables for stage in stages))
        moves = lambda before, after: {
            path[0]
            for path, x in flatten_dict(after["params"]).items()
            if np.any(x != flatten_dict(before["params"])[path])
        }
        assert moves(start, found[0]) == {"decoder"}
        assert moves(found[0], found[1]) == {"decoder", "bilinear"}
        assert {"decoder", "bilinear", "atom_projection", "sequence_layers_0"} <= moves(found[1], found[2])
    for stage, before in ((run / "stage_2", stages[0]), (run / "stage_1", load_run(source[0]))):
        for mine, theirs in zip(load_run(stage / "source").members, before.members, strict=True):
            chex.assert_trees_all_equal(mine.variables, theirs.variables)
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["compared"]) == ["the source itself"] and not (run / "stage_1" / "baselines.json").exists()
    for stage, name in (("stage_1", "the source itself"), ("stage_2", "the stage before")):
        assert list(json.loads((run / stage / "summary.json").read_text())["compared"]) == [name]

    chunks = []

    def stopping(table, rows):
        chunks.append(rows)
        if len(chunks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return pair_batch(table, rows)

    monkeypatch.setattr(method_module, "pair_batch", stopping)  # stage 1 has rows of numbers, and no pairs
    with pytest.raises(Interrupted):
        transfer(source[0], config, other)
    assert (other / "stage_1" / "summary.json").is_file() and not (other / "stage_2" / "summary.json").exists()
    resume(other)
    for mine, theirs in zip(load_run(other).members, load_run(run).members, strict=True):
        chex.assert_trees_all_equal(mine.variables, theirs.variables)


@pytest.mark.slow
def test_replicas_start_from_those_of_an_ensemble(tiny_config, tmp_path):
    train(tiny_config(**ONE, replicas=2), tmp_path / "source")
    members = load_run(tmp_path / "source").members
    still = {"learning_rate": 0.0}  # the parameters stay as they began
    for mode, replicas in (("full", 3), ("full", 1), ("feature", 2)):
        with pytest.raises(
            DataError, match=r"an ensemble of 2 networks; name one of them, such as .*source/replicas/0"
        ):
            transfer(tmp_path / "source", carried(tiny_config, mode, replicas=replicas), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = transfer(tmp_path / "source", carried(tiny_config, "full", replicas=2, **still), tmp_path / "run")
    for mine, theirs in zip(load_run(tmp_path / "run").members, members, strict=True):
        chex.assert_trees_all_equal(mine.variables["params"], theirs.variables["params"])
    config = carried(tiny_config, "full")
    dataset = load_data(config.data, config.task)
    scores = load_run(tmp_path / "source").score(dataset.table, dataset.store)[dataset.parts["test"]]
    expected = roc_auc_score(dataset.table.label[dataset.parts["test"]], scores)
    assert summary["compared"]["the source itself"]["test"]["auroc"] == pytest.approx(expected)
    shutil.rmtree(tmp_path / "source" / "replicas" / "0")  # a member is a run of its own
    transfer(tmp_path / "source" / "replicas" / "1", carried(tiny_config, "full", **still), tmp_path / "one")
    chex.assert_trees_all_equal(network_of(tmp_path / "one")["params"], members[1].variables["params"])


@pytest.mark.slow
def test_the_command_takes_the_architecture_of_the_source_and_writes_a_run(tiny_config, source, tmp_path, capfd):
    config, run = carried(tiny_config, "feature"), tmp_path / "run"
    flags = {f"data.{name}": getattr(config.data, name) for name in ("train", "validation", "test", "label_column")}
    flags |= {"transfer.mode": "feature", "transfer.frozen": "encoders", "training.batch_size": 8, "training.epochs": 1}
    flags |= {"training.buckets": 1, "output.baselines": "false", "output.tensorboard": "false", "output.bootstrap": 20}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert cli.main(["transfer", str(source[0]), *words, "--output", str(run)]) == 0
    output = capfd.readouterr()
    assert "computed the outputs of the frozen part" in output.err and "the source itself" in output.out
    assert load_run(run).config.model == load_run(source[0]).config.model

    found, start = network_of(run), source[1]
    for name in ("graph_layers_0", "sequence_layers_0"):
        chex.assert_trees_all_equal(found["params"][name], start["params"][name])
        chex.assert_trees_all_equal(found["batch_stats"][name], start["batch_stats"][name])
    assert np.any(found["params"]["bilinear"]["head_bias"] != start["params"]["bilinear"]["head_bias"])
    # What was scored from the outputs of the frozen part is what the run scores by itself.
    dataset = load_data(config.data, "classification")
    rows = np.concatenate([dataset.parts[part] for part in ("validation", "test")])
    predicted = pq.read_table(run / "predictions.parquet")["score"].to_numpy()
    np.testing.assert_allclose(load_run(run).score(dataset.table, dataset.store)[rows], predicted, rtol=1e-4, atol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    label, test = dataset.table.label, dataset.parts["test"]
    theirs = load_run(source[0]).score(dataset.table, dataset.store)
    expected = roc_auc_score(label[test], theirs[test])
    assert summary["compared"]["the source itself"]["test"]["auroc"] == pytest.approx(expected)


@pytest.mark.slow
def test_shallow_classifiers_learn_on_the_joint_features(tiny_config, source, tmp_path, pieces):
    config = carried(tiny_config, "shallow")
    summary = transfer(source[0], config, tmp_path / "run")
    _, dataset, features, buckets = pieces
    parts, label = dataset.parts, dataset.table.label
    rows = np.arange(len(label))
    joint = make_joint_features(config.model, features, dataset.table, buckets, 8)(source[1], rows)
    streamed = make_joint_features(config.model, dataset.store, dataset.table, buckets, 8)(source[1], rows)
    np.testing.assert_array_equal(streamed, joint)
    network = network_of(tmp_path / "run")["params"]["decoder"]["hidden_0"]["dense"]
    linear = joint @ network["kernel"][:, 0] + network["bias"][0]
    scores = load_run(tmp_path / "run").score(dataset.table, dataset.store)
    np.testing.assert_allclose(scores, linear, rtol=1e-3, atol=1e-4)
    fit = lambda model: model.fit(joint[parts["train"]], label[parts["train"]]).decision_function(joint)
    fits = [fit(LogisticRegression(C=strength, tol=1e-6)) for strength in (0.01, 0.1, 1.0, 10.0, 100.0)]
    aurocs = [roc_auc_score(label[parts["validation"]], found[parts["validation"]]) for found in fits]
    np.testing.assert_allclose(linear, fits[int(np.argmax(aurocs))], rtol=0.02, atol=0.02)
    expected = roc_auc_score(label[parts["test"]], fit(SVC())[parts["test"]])
    assert summary["compared"]["SVM on its features"]["test"]["auroc"] == pytest.approx(expected, abs=0.02)
    assert list(summary["compared"]) == ["the source itself", "SVM on its features", "random forest on its features"]


@pytest.mark.parametrize(
    ("transfer_settings", "model", "message"),
    [
        ({"frozen": ("sequence",)}, {}, r"transfer.frozen: 'sequence' names no parameter; groups: drug_encoder, "),
        ({"fresh": ("head",)}, {}, "transfer.fresh: 'head' names no parameter"),
        ({"frozen": ("pooling", "decoder")}, {}, "transfer.frozen=pooling,decoder: nothing is left to train"),
        ({"fresh": ("bilinear",)}, {}, "transfer.frozen and transfer.fresh both name bilinear/drug_projection/bias"),
        (
            {},
            {"heads": 3, "protein_kernels": (5,)},
            r"of another architecture: model.protein_kernels \(3,\), here \(5,\); model.heads 2, here 3$",
        ),
    ],
)
def test_what_does_not_suit_the_source_is_an_error(tiny_config, source, tmp_path, transfer_settings, model, message):
    config = carried(tiny_config, "feature", transfer=transfer_settings, model=model)
    with pytest.raises(DataError, match=message):
        transfer(source[0], config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_faults_of_a_transfer(tiny_config, source, tmp_path, pieces):
    config = carried(tiny_config, "full")
    with pytest.raises(DataError, match="not a run directory"):
        transfer(tmp_path, config, tmp_path / "run")
    with pytest.raises(DataError, match="transfer.mode=full needs a trained model: jaxdti transfer SOURCE_RUN"):
        train(config, tmp_path / "run")
    with pytest.raises(DataError, match="transfer.mode=none: choose from full, feature, shallow"):
        transfer(source[0], tiny_config(), tmp_path / "run")
    with pytest.raises(DataError, match="holds the source run"):
        transfer(source[0], config, source[0], overwrite=True)
    with pytest.raises(DataError, match=r"the outputs of the frozen part take .* GiB, more than data.device_gib=0"):
        transfer(source[0], carried(tiny_config, "feature", data={"device_gib": 0.0}), tmp_path / "run")
    with pytest.raises(ValueError, match="transfer.mode=shallow needs task=classification and training.replicas=1"):
        carried(tiny_config, "shallow", replicas=2)
    with pytest.raises(ValueError, match="transfer.mode=full excludes adaptation.method, training.frozen"):
        carried(tiny_config, "full", frozen=("encoders",))
