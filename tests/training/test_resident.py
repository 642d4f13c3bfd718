"""Networks on feature vectors: learning, replicas of any size together as alone, early stopping, what is refused."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxdti.config import TrainingConfig
from jaxdti.errors import Interrupted
from jaxdti.models.fnn import FNN, init_fnn
from jaxdti.training import resident
from jaxdti.training.fit import fit as training_fit
from jaxdti.training.plans import EvenPlan
from jaxdti.training.replicas import predict_vectors
from jaxdti.training.run_folder import open_run
from jaxdti.training.selection import masked_auroc
from jaxdti.training.supervised import row_task
from jaxdti.training.task import Trial

INPUTS, ROWS = 6, 90
MODEL = FNN((8,))
CONFIG = TrainingConfig(epochs=4, batch_size=16)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, INPUTS)).astype(np.float32)
BINARY = (X[:, 0] + X[:, 1] > 0).astype(np.float32)
CLASSES = np.digitize(X[:, 2], [-0.5, 0.5]).astype(np.float32)
VALUE = 50 + 7 * X[:, 3]


@pytest.fixture(params=[True, False], ids=["one by one", "vmap"])
def form(request, monkeypatch):
    monkeypatch.setattr(resident, "runs_one_by_one", lambda *_: request.param)


def trial(seed=0, size=40, label=BINARY, **settings):
    """Fields of the trial, its hyper-parameters and its rows by name."""
    rows = np.random.default_rng(seed).permutation(ROWS)
    values = {"train": rows[:size], "validation": rows[60:], "dropout": 0.1, "learning_rate": 1e-2} | settings
    parts = {part: values.pop(part) for part in ("train", "validation")}
    hyper = {name: values.pop(name) for name in ("dropout", "learning_rate")}
    return Trial(rows=parts, label=label, seed=seed, hyper=hyper, **values)


def task_of(trials, model=MODEL, config=CONFIG, features=X, **settings):
    return row_task(model, partial(init_fnn, model, INPUTS), features, trials, config.batch_size, **settings)


def fit(trials, model=MODEL, config=CONFIG, features=X, *, run=None, start=None, progress=None, **settings):
    task = task_of(trials, model, config, features, **settings)
    return training_fit(task, trials, config, run=run, start=start, progress=progress)


def members():
    """Different sizes, epochs, rates and labels: one batch and five, a last batch that is not full."""
    flipped = np.where(np.arange(ROWS) < 60, 1 - BINARY, BINARY)
    return [
        trial(0, 40),
        trial(1, 2, dropout=0.4),
        trial(2, 57, learning_rate=3e-2, class_weight=True),
        trial(3, 17, label=flipped, epochs=2, validation=np.arange(60, 81)),
    ]


def same(one, other):
    """The same networks up to rounding. Under ``steady``: a bias before a batch normalisation cannot move the output,
    so its gradient is rounding alone, of which Adam's own epsilon makes whole steps."""
    chex.assert_trees_all_close(*(jax.tree.map(np.asarray, each) for each in (one, other)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_together_equal_each_alone(form):
    replicas = members()
    together = fit(replicas, select="auroc")
    for i, one in enumerate(replicas):
        alone = fit([one], select="auroc")
        same(jax.tree.map(lambda leaf, i=i: leaf[i], together.variables), jax.tree.map(lambda x: x[0], alone.variables))
        done = alone.loss.shape[1]
        np.testing.assert_allclose(together.loss[i, :done], alone.loss[0], rtol=1e-4)
        # Of the 200 or so pairs behind an AUROC, two may change places with the rounding of nearly equal scores.
        np.testing.assert_allclose(together.value[i, :done], alone.value[0], atol=0.01)
        assert together.best_epoch[i] == alone.best_epoch[0]
    assert np.isnan(together.loss[3, 2:]).all() and np.isfinite(together.loss[3, :2]).all()


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("select", ["loss", "accuracy", None])
def test_both_forms_agree(select, monkeypatch):
    found = []
    for one_by_one in (True, False):
        monkeypatch.setattr(resident, "runs_one_by_one", lambda *_, value=one_by_one: value)
        found.append(fit(members(), select=select))
    same(found[0].variables, found[1].variables)
    np.testing.assert_array_equal(found[0].best_epoch, found[1].best_epoch)
    assert np.isfinite(found[0].value[0]).all() == (select is not None)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_own_features_of_each_replica_equal_shared_ones(form):
    replicas = [trial(0), trial(1)]
    own = np.stack([X, X[::-1]])
    mirrored = replace(replicas[1], rows={part: ROWS - 1 - rows for part, rows in replicas[1].rows.items()})
    # The order of training depends on the seed and on the order of ``train``, which is mirrored likewise.
    mirrored = replace(mirrored, label=BINARY[::-1])
    shared = fit(replicas, select="auroc")
    found = fit([replicas[0], mirrored], features=own, select="auroc")
    same(found.variables, shared.variables)
    scores = predict_vectors(MODEL, found.variables, own, np.arange(5))
    np.testing.assert_allclose(
        scores[1], predict_vectors(MODEL, shared.variables, X)[1, ::-1][:5], rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_it_learns_two_classes_many_classes_and_values():
    config, seen, rest = replace(CONFIG, epochs=100), np.arange(60), np.arange(60, 90)
    score = lambda model, found: predict_vectors(model, found.variables, X, rest)[0]
    plain = {"train": seen, "validation": rest, "dropout": 0.0}
    binary = fit([trial(**plain)], config=config, select="auroc")
    assert roc_auc_score(BINARY[rest], score(MODEL, binary)[:, 0]) > 0.95
    assert binary.loss[0, -1] < 0.5 * binary.loss[0, 0]
    classes = MODEL.clone(outputs=3)
    found = fit([trial(label=CLASSES, **plain)], classes, config, select="accuracy")
    assert np.mean(score(classes, found).argmax(-1) == CLASSES[rest]) == pytest.approx(found.best_value[0], abs=1e-6)
    assert found.best_value[0] > 0.7
    values = fit([trial(label=VALUE, **plain)], MODEL, config, kind="regression", select="loss")
    mean, sd = values.label_scale[0]
    assert (mean, sd) == pytest.approx((VALUE[seen].mean(), VALUE[seen].std()), rel=1e-5)
    error = np.mean((score(MODEL, values)[:, 0] * sd + mean - VALUE[rest]) ** 2)
    assert error < 0.2 * VALUE[rest].var()
    assert -values.best_value[0] * sd**2 == pytest.approx(error, rel=1e-3)


@pytest.mark.slow
def test_the_best_epoch_is_kept_and_patience_ends_a_replica_alone(form):
    config = replace(CONFIG, epochs=12, patience=2)
    wrong = np.where(np.arange(ROWS) < 60, BINARY, 1 - BINARY)  # the more it learns, the worse its validation
    rows = {"train": np.arange(60), "validation": np.arange(60, 90), "dropout": 0.0}
    found = fit([trial(label=wrong, **rows), trial(**rows)], config=config, select="auroc")
    for i, label in enumerate((wrong, BINARY)):
        best = found.best_epoch[i]
        done = int(np.isfinite(found.value[i]).sum())
        assert found.value[i, best - 1] == np.nanmax(found.value[i]) == found.best_value[i]
        assert done == min(best + 2, 12)
        scores = predict_vectors(MODEL, found.variables, X, np.arange(60, 90))[i, :, 0]
        assert roc_auc_score(label[60:], scores) == pytest.approx(found.best_value[i], abs=1e-6)
    assert np.isfinite(found.value[0]).sum() < np.isfinite(found.value[1]).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_replicas_that_have_stopped_leave_the_program_and_change_nothing(monkeypatch):
    monkeypatch.setattr(resident, "runs_one_by_one", lambda *_: False)
    monkeypatch.setattr(resident, "_STEPS_A_CALL", 1)  # an epoch a call
    sizes, epochs = [], EvenPlan.epochs
    monkeypatch.setattr(EvenPlan, "epochs", lambda plan, who, *rest: sizes.append(len(who)) or epochs(plan, who, *rest))
    replicas = [trial(seed, epochs=epochs) for seed, epochs in enumerate((1, 5, 1, 1, 3))]
    features = np.stack([X + 0.1 * seed for seed in range(5)])
    together = fit(replicas, config=replace(CONFIG, epochs=5), features=features, select="auroc")
    assert sizes == [5, 5, 2, 2, 1]
    assert np.isfinite(together.loss).sum(1).tolist() == [1, 5, 1, 1, 3]
    for i, one in enumerate(replicas):
        alone = fit([one], config=replace(CONFIG, epochs=5), features=features[i : i + 1], select="auroc")
        assert together.best_epoch[i] == alone.best_epoch[0]
        same(jax.tree.map(lambda leaf, i=i: leaf[i], together.variables), jax.tree.map(lambda x: x[0], alone.variables))


@pytest.mark.slow
def test_training_goes_on_from_given_variables():
    first = fit([trial(0, epochs=1), trial(1, epochs=1)])
    same = fit([trial(0, learning_rate=0.0), trial(1, learning_rate=0.0)], start=first.variables)
    chex.assert_trees_all_equal(same.variables["params"], first.variables["params"])
    assert np.any(np.asarray(same.variables["batch_stats"]["norm_0"]["mean"]) != 0)


@pytest.mark.slow
def test_a_replica_that_diverges_stops_alone(form):
    found = fit([trial(0), trial(1, label=1e30 * VALUE, learning_rate=1e30)], kind="regression", select="loss")
    assert found.first_bad[0] == -1 and np.isfinite(found.loss[0]).all()
    assert found.first_bad[1] >= 0 and np.isnan(found.loss[1, -1])
    assert all(np.isfinite(leaf[0]).all() for leaf in jax.tree.leaves(found.variables))


@pytest.mark.slow
@pytest.mark.bitwise
def test_rows_out_of_the_training_set_change_nothing(form):
    rows = np.arange(30)
    dirty = X.copy()
    dirty[30:] = np.nan
    clean, other = (fit([trial(train=rows)], features=features) for features in (X, dirty))
    chex.assert_trees_all_equal(clean.variables, other.variables)


@pytest.mark.slow
def test_progress_is_told_and_may_end_the_training(form):
    seen = []

    def progress(course):
        seen.append((course.epoch, course.trained_rows))
        if course.epoch >= 20:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit([trial(0), trial(1)], config=replace(CONFIG, epochs=50), progress=progress)
    assert seen == [(10, 800), (20, 1600)]  # epochs of three steps


@pytest.mark.slow
def test_equal_shapes_compile_once(form):
    config = replace(CONFIG, epochs=3)
    fit([trial(0)], config=config, select="auroc")
    task = replace(task_of([trial(1, 39)], config=config, select="auroc"), objective=None)  # a new trace would call it
    training_fit(task, [trial(1, 39)], config)


def interrupt_after(epoch):
    return lambda course: os.kill(os.getpid(), signal.SIGTERM) if course.epoch == epoch else None


@pytest.mark.slow
def test_a_training_that_was_stopped_repeats_an_unbroken_one(form, monkeypatch, tmp_path):
    """With trials that have left the program, and one that waits for a better epoch."""
    monkeypatch.setattr(resident, "_STEPS_A_CALL", 1)  # an epoch a call
    config = replace(CONFIG, epochs=8, patience=4)
    trials = [trial(seed, epochs=epochs) for seed, epochs in enumerate((2, 8, 1, 2, 8))]
    unbroken = fit(trials, config=config, select="auroc")
    for epoch in (1, 5):
        with open_run(tmp_path, quiet=True) as run, pytest.raises(Interrupted):
            fit(trials, config=config, select="auroc", run=run, progress=interrupt_after(epoch))
    with open_run(tmp_path, quiet=True) as run:
        resumed = fit(trials, config=config, select="auroc", run=run)
    for name in ("variables", "best_epoch", "best_value", "first_bad", "loss", "value"):
        chex.assert_trees_all_equal(getattr(resumed, name), getattr(unbroken, name))
    assert resumed.progress.trained_rows == unbroken.progress.trained_rows == 40 * np.isfinite(unbroken.loss).sum()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == np.isfinite(unbroken.loss).sum()
    for record in records:
        i, epoch = record["replica"], record["epoch"] - 1
        assert record["loss"] == unbroken.loss[i, epoch] and record["validation_auroc"] == unbroken.value[i, epoch]


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(resident.Resident, "save_seconds", 0.0)  # else once a minute
    config, trials = replace(CONFIG, epochs=30), [trial(0), trial(1)]
    seen = []

    def killed(course):
        seen.append(course.epoch)
        if course.epoch == 20:
            raise MemoryError

    with open_run(tmp_path, quiet=True) as run, pytest.raises(MemoryError):
        fit(trials, config=config, run=run, progress=killed)
    with open_run(tmp_path, quiet=True) as run:
        resumed = fit(trials, config=config, run=run, progress=lambda course: seen.append(course.epoch))
    assert seen == [10, 20, 20, 30]  # the second call was told before it was saved
    chex.assert_trees_all_equal(resumed.variables, fit(trials, config=config).variables)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == np.repeat(np.arange(1, 31), 2).tolist()


def test_masked_auroc_matches_scikit_learn_and_leaves_masked_rows_out():
    rng = np.random.default_rng(5)
    score, label = rng.integers(0, 6, 40).astype(np.float32), rng.integers(0, 2, 40).astype(np.float32)
    mask = rng.random(40) < 0.6
    expected = roc_auc_score(label[mask], score[mask])
    for filler in (-np.inf, 3.0, np.inf, np.nan):
        found = masked_auroc(np.where(mask, score, filler), np.where(mask, label, 1.0), jnp.asarray(mask))
        assert float(found) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(masked_auroc(score, np.ones(40), jnp.asarray(mask)))


@pytest.mark.parametrize(
    "replicas, settings, message",
    [
        ([], {}, "fit: no trial"),
        ([trial(train=np.arange(0))], {}, "trial 0: no training row"),
        (
            [trial(), trial(validation=np.arange(0))],
            {"select": "auroc"},
            "trial 1: selection by validation_auroc needs",
        ),
        ([trial(label=np.where(X[:, 0] > 0, np.nan, 1))], {}, "train rows have no label"),
        ([trial()], {"select": "auroc", "kind": "regression"}, "kind='regression', select='auroc': choose from"),
        ([trial()], {"select": "f1"}, "select='f1': choose from"),
    ],
)
def test_what_cannot_be_trained_is_refused(replicas, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fit(replicas, **settings)
