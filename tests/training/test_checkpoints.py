"""Checkpoints: the same bits come back, and what a kill leaves behind is never mistaken for one."""

import gc
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdti.errors import DataError
from jaxdti.training.checkpoints import load_weights, open_checkpoints, save_weights

PROGRESS = {"epoch": 2, "best_value": None, "loss_sum": 0.1 + 0.2, "history": [{"validation_auroc": float("nan")}]}


@pytest.fixture
def states(toy):
    """Two states that differ in every kind of leaf, the second with values that text would not keep."""
    tx = optax.adam(1e-3)
    first = toy.init(tx, seed=0)
    odd = jnp.asarray(np.array([np.pi, 1e-45, -0.0, np.finfo(np.float32).max], np.float32))
    params = {"drug": first.params["drug"].at[0].set(odd), "protein": -first.params["protein"]}
    second = toy.init(tx, seed=1).replace(step=jnp.int32(7), params=params, first_bad=jnp.int32(3))
    return first, second


def bits(tree):
    return [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def test_the_same_bits_come_back(tmp_path, states):
    like, state = states
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(7, state, state.params, PROGRESS)
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 7
        restored, best, progress = checkpoints.restore(like, like.params)
    chex.assert_trees_all_equal_structs(restored, state)
    assert bits((restored, best)) == bits((state, state.params))
    assert progress["loss_sum"] == PROGRESS["loss_sum"] and progress["best_value"] is None
    assert np.isnan(progress["history"][0]["validation_auroc"])


def test_the_last_two_steps_are_kept(tmp_path, states):
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (3, 5, 8):
            checkpoints.save(step, states[0].replace(step=jnp.int32(step)), states[0].params, PROGRESS)
        assert int(checkpoints.restore(states[0], states[0].params)[0].step) == 8
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 8]


def test_what_a_save_left_half_written_is_not_a_checkpoint(tmp_path, states, monkeypatch):
    """Dies at each rename of the save in turn; the earlier step stays the last until the whole save is done."""
    like, state = states
    folder = tmp_path / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(3, like, like.params, PROGRESS)
    real, survived = {name: getattr(os, name) for name in ("rename", "replace")}, 0
    for attempt in range(50):
        calls = []

        def dying(*arguments, name, calls=calls, attempt=attempt, **options):
            if len(calls) >= attempt:
                raise KeyboardInterrupt
            calls.append(arguments)
            return real[name](*arguments, **options)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, lambda *a, name=name, **o: dying(*a, name=name, **o))
            try:
                with open_checkpoints(folder) as checkpoints:
                    checkpoints.save(7, state, state.params, PROGRESS | {"epoch": 3})
            except BaseException:
                survived += 1
            else:
                break
        with open_checkpoints(folder) as checkpoints:
            assert checkpoints.latest() == 3
            restored, best, progress = checkpoints.restore(like, like.params)
        assert bits((restored, best)) == bits((like, like.params)) and progress["epoch"] == 2
    assert survived >= 1, "nothing is renamed: the test no longer tests anything"
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 7
        assert bits(checkpoints.restore(like, like.params)[0]) == bits(state)


def damage(folder):
    """Empties all files of an array tree, as a full disk does."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_is_saved_again(tmp_path, states, capsys):
    first, second = states
    folder = tmp_path / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        for step, state in ((3, first), (5, second)):
            checkpoints.save(step, state, state.params, PROGRESS | {"epoch": step})
    damage(folder / "5" / "state" / "d")
    with open_checkpoints(folder) as checkpoints:
        restored, best, progress = checkpoints.restore(second, second.params)
        assert bits((restored, best)) == bits((first, first.params)) and progress["epoch"] == 3
        said = capsys.readouterr().err
        assert said.startswith(f"{folder / '5'}: damaged (") and said.count("\n") == 1
        checkpoints.save(5, second, second.params, PROGRESS)
        assert bits(checkpoints.restore(first, first.params)[0]) == bits(second)
    for step in ("3", "5"):
        damage(folder / step / "progress")
    with (
        open_checkpoints(folder) as checkpoints,
        pytest.raises(DataError, match="no checkpoint can be read; .* 5,") as e,
    ):
        checkpoints.restore(first, first.params)
    assert "\n" not in str(e.value) and sorted(path.name for path in folder.iterdir()) == ["3", "5"]
    gc.collect()  # what the failed restores left


def test_weights_come_back_and_are_replaced(tmp_path, states):
    first, second = states
    save_weights(tmp_path / "weights", first.params)
    save_weights(tmp_path / "weights", second.params)
    like = jax.eval_shape(lambda: first.params)
    assert bits(load_weights(tmp_path / "weights", like)) == bits(second.params)


def test_weights_that_are_missing_or_of_another_model_are_refused(tmp_path, states):
    params = states[0].params
    with pytest.raises(DataError, match="weights: no trained weights here; expected the run directory of a finished"):
        load_weights(tmp_path / "weights", params)
    save_weights(tmp_path / "weights", params)
    others = {
        "drug has shape \\(12, 4\\), expected \\(12, 5\\)": {**params, "drug": jnp.zeros((12, 5))},
        "protein has shape \\(12, 4\\), expected no such array": {"drug": params["drug"]},
        "decoder/bias has shape none, expected \\(3,\\)": {**params, "decoder": {"bias": jnp.zeros(3)}},
    }
    for fault, other in others.items():
        with pytest.raises(DataError, match=f"weights: the weights do not fit the run's configuration: {fault}$"):
            load_weights(tmp_path / "weights", other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("file", ["manifest.ocdbt", "_METADATA"])
def test_damaged_weights_are_an_error_of_one_line(tmp_path, states, file):
    save_weights(tmp_path / "weights", states[0].params)
    (tmp_path / "weights" / file).write_bytes(b"{}")
    with pytest.raises(DataError, match="weights: the weights are damaged") as error:
        load_weights(tmp_path / "weights", states[0].params)
    assert "\n" not in str(error.value)
    gc.collect()  # the tasks that the failed restore left: here, not in some later test
