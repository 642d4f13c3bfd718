"""Parts of a network that stay as they are: chosen by name, left out of gradients and moments, trained around."""

import re
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxdti.config import Config, ModelConfig, TrainingConfig
from jaxdti.data.batches import Shape, pair_batch
from jaxdti.data.interactions import DataError
from jaxdti.data.load import load_data
from jaxdti.models.drugban import PARTS
from jaxdti.training.checkpoints import load_weights
from jaxdti.training.features import device_features
from jaxdti.training.label_tree import merge, partition, select
from jaxdti.training.method import Method, with_frozen
from jaxdti.training.objectives import pair_objective
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.run import resume, train
from jaxdti.training.state import hyper_parameters, init_state, init_variables
from jaxdti.training.step import make_train_step

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
    method = Method(init=init, objective=unused, plan=unused, batch=unused, proteins=unused, network=unused)
    return objective, method, jax.tree.map(jnp.asarray, pair_batch(dataset.table, np.arange(8)))


CONFIG = Config(model=MODEL, training=TrainingConfig(optimizer="adamw", weight_decay=0.1, clip_norm=0.01))
TX = make_optimizer(CONFIG.training, 10)


def begun(method, seed=0):
    return init_state(method.init, TX, seed, hyper_parameters(CONFIG))


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
