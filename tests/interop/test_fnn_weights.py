"""Published weights of the feed-forward network: conversion, and the recorded logits of the published code."""

import re

import jax
import numpy as np
import pytest

from jaxdti.errors import DataError
from jaxdti.interop.fnn import from_torch


@pytest.fixture
def tiny_state():
    """Torch's arrays of a network 4 -> 3 -> 2 -> 1, counters included."""
    rng = np.random.default_rng(0)
    shapes = {"l1.weight": (3, 4), "l1.bias": (3,), "l2.weight": (2, 3), "l2.bias": (2,)}
    shapes |= {"layer_out.weight": (1, 2), "layer_out.bias": (1,)}
    for i, width in ((1, 3), (2, 2)):
        shapes |= {f"bn{i}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"bn{i}.num_batches_tracked"] = ()
    return {name: rng.random(shape).astype(np.float32) + 0.5 for name, shape in shapes.items()}


def test_published_logits(reference_dir):
    model, variables = from_torch(dict(np.load(reference_dir / "tl4dti_kinase_state.npz")))
    assert (tuple(model.features), model.outputs) == ((1200, 300), 1)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 724_801
    recorded = np.load(reference_dir / "tl4dti_kinase_eval.npz")
    run = jax.jit(lambda x: model.apply(variables, x, np.ones(len(x), bool), train=False))
    np.testing.assert_allclose(run(recorded["inputs_scaled"]), recorded["logits_scaled"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(run(recorded["inputs"]), recorded["logits"], rtol=2e-5)


def test_every_array_finds_its_place(tiny_state):
    model, variables = from_torch(tiny_state)
    assert (tuple(model.features), model.outputs) == ((3, 2), 1)
    np.testing.assert_array_equal(variables["params"]["hidden_1"]["dense"]["kernel"], tiny_state["l2.weight"].T)
    np.testing.assert_array_equal(variables["batch_stats"]["norm_0"]["var"], tiny_state["bn1.running_var"])
    assert len(jax.tree.leaves(variables)) == len(tiny_state) - 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"l2.bias": None}, "missing ['l2.bias']; unknown none"),
        ({"bn3.weight": np.ones(2)}, "missing none; unknown ['bn3.weight']"),
        ({"bn1.weight": np.ones(5)}, "bn1.weight has shape (5,), expected (3,)"),
        ({"l2.weight": np.ones((2, 4))}, "l2.weight has shape (2, 4), expected (2, 3)"),
        ({"l1.bias": np.full(3, np.nan)}, "l1.bias holds NaN or infinity"),
        ({"l1.weight": None, "l2.weight": None}, "missing ['l1.weight']"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tiny_state, change, message):
    state = {name: x for name, x in (tiny_state | change).items() if x is not None}
    with pytest.raises(DataError, match=re.escape(message)):
        from_torch(state)
