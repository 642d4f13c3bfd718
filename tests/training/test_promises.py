"""What both executors promise, on toy tasks: trials together as alone, resumed as unbroken, frozen parts that stay."""

import os
import signal
from dataclasses import replace
from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest

from jaxdti.config import Config, TrainingConfig
from jaxdti.data.pairs.buckets import Buckets, Shape
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import Interrupted
from jaxdti.models.fnn import FNN, init_fnn
from jaxdti.training import resident
from jaxdti.training.fit import fit
from jaxdti.training.partition import partition
from jaxdti.training.run_folder import open_run
from jaxdti.training.supervised import pair_task, row_task
from jaxdti.training.task import Trial

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 2, 60).astype(np.float32)
X = RNG.normal(size=(60, 6)).astype(np.float32)
TABLE = InteractionTable(
    drugs=np.array([f"drug {i}" for i in range(12)], object),
    proteins=np.array([f"protein {i}" for i in range(12)], object),
    drug=RNG.integers(0, 12, 60).astype(np.int32),
    protein=RNG.integers(0, 12, 60).astype(np.int32),
    label=LABEL,
    part=np.full(60, "train", object),
    row=np.arange(60),
)
CONFIG = TrainingConfig(epochs=4, batch_size=5)


def trial(seed, size=37, **settings):
    rows = {"train": np.arange(size), "validation": np.arange(40, 60)}
    return Trial(rows=rows, label=LABEL, seed=seed, hyper={"dropout": 0.1}, **settings)


TRIALS = [trial(3), trial(4, size=36), trial(5, epochs=2)]  # as many batches each, so that their order is the same


def sgd(config, steps):
    """Adam would scale the rounding of gradients that are 0."""
    return optax.with_extra_args_support(optax.sgd(0.1))


@pytest.fixture(params=["streamed", "resident"])
def executor(request, toy, monkeypatch):
    """``(task_of, path)``: ``task_of(trials, freeze=False)`` builds a task, which may freeze the parameter ``path``."""

    def score(variables, rows):
        drug, protein = (np.asarray(variables["params"][name]) for name in ("drug", "protein"))
        return np.sum(drug[TABLE.drug[rows]] * protein[TABLE.protein[rows]], axis=-1)

    def init_toy(seed):
        state = toy.init(optax.identity(), seed)
        return {"params": state.params, "batch_stats": state.batch_stats}

    def streamed(trials):
        buckets = Buckets((Shape(8, 8, 32),), np.zeros(60, np.int32), 0.0)
        plain = pair_task(Config(training=CONFIG), trials, TABLE, None, buckets, score, 1)
        return replace(plain, init=init_toy, objective=lambda *_: toy.objective)

    def rows(trials):
        model = FNN((4,))
        return row_task(model, partial(init_fnn, model, 6), X, trials, CONFIG.batch_size, select="auroc")

    build, path = {
        "streamed": (streamed, ("drug",)),
        "resident": (rows, ("hidden_0", "dense", "kernel")),
    }[request.param]
    monkeypatch.setattr(resident, "_STEPS_A_CALL", 1)  # an epoch a call

    def task_of(trials, freeze=False):
        task = build(trials)

        def init(seed):
            variables = task.init(seed)
            params, kept = partition(variables["params"], frozenset([path]))
            return variables | {"params": params, "frozen": kept}

        key = ("promises", request.param, freeze, toy.objective)
        return replace(task, init=init if freeze else task.init, optimizer=sgd, key=key)

    return task_of, path


def test_trials_together_are_as_each_alone(executor):
    task_of, _ = executor
    together = fit(task_of(TRIALS), TRIALS, CONFIG)
    assert np.isfinite(together.loss).sum(1).tolist() == [4, 4, 2]
    for i, one in enumerate(TRIALS):
        alone = fit(task_of([one]), [one], CONFIG)
        ours, theirs = (
            jax.tree.map(lambda x, i=i: x[i], result.variables) for result, i in ((together, i), (alone, 0))
        )
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
        done = alone.loss.shape[1]
        np.testing.assert_allclose(together.loss[i, :done], alone.loss[0], rtol=1e-4)
        assert together.best_epoch[i] == alone.best_epoch[0]


def test_a_stopped_training_repeats_an_unbroken_one_and_none_is_kept_without_a_run(executor, tmp_path, monkeypatch):
    task_of, _ = executor
    monkeypatch.chdir(tmp_path)
    unbroken = fit(task_of(TRIALS), TRIALS, CONFIG)
    assert not list(tmp_path.iterdir())
    stop = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.epoch == 2 else None
    with open_run(tmp_path / "run", quiet=True) as run, pytest.raises(Interrupted):
        fit(task_of(TRIALS), TRIALS, CONFIG, run=run, progress=stop)
    with open_run(tmp_path / "run", quiet=True) as run:
        resumed = fit(task_of(TRIALS), TRIALS, CONFIG, run=run)
    for name in ("variables", "best_epoch", "best_value", "first_bad", "loss", "value"):
        chex.assert_trees_all_equal(getattr(resumed, name), getattr(unbroken, name))
    assert resumed.progress.trained_rows == unbroken.progress.trained_rows == 4 * 37 + 4 * 36 + 2 * 37


def test_a_frozen_part_stays_and_the_others_move(executor):
    task_of, path = executor
    task = task_of(TRIALS, freeze=True)
    result = fit(task, TRIALS, CONFIG)
    for i, one in enumerate(TRIALS):
        begun = executor[0](TRIALS).init(one.seed)["params"]
        params = jax.tree.map(lambda x, i=i: np.asarray(x[i]), result.variables["params"])
        (moved, stayed), (moved_from, stayed_from) = (partition(tree, frozenset([path])) for tree in (params, begun))
        chex.assert_trees_all_equal(stayed, jax.tree.map(np.asarray, stayed_from))
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (moved, moved_from)), strict=True))
