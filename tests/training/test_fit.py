"""The loop's own logic, with the toy network in DrugBAN's place: plans, programs, signals, patience, bad batches."""

import contextlib
import copy
import dataclasses
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import chex
import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from jaxdti.config import Config, TrainingConfig
from jaxdti.data.pairs.buckets import Buckets, Shape, pair_batch, plan_epoch
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import Interrupted, NonFiniteLoss
from jaxdti.evaluation.metrics import concordance_index
from jaxdti.training import streamed
from jaxdti.training.compilation import forget_programs
from jaxdti.training.fit import fit
from jaxdti.training.progress import Reporter
from jaxdti.training.supervised import pair_task, pair_trial, validate
from jaxdti.training.task import class_weights, label_scale

TRAIN, VALIDATION = np.arange(5, 42), np.arange(42, 60)
LABEL = np.random.default_rng(2).integers(0, 2, 60)
BUCKETS = Buckets((Shape(8, 8, 32), Shape(16, 8, 32)), (np.arange(60) % 3 == 0).astype(np.int32), 0.0)
TX = optax.adam(0.05)


def make_table(label: np.ndarray) -> InteractionTable:
    rng = np.random.default_rng(1)
    return InteractionTable(
        drugs=np.array([f"drug {i}" for i in range(12)], object),
        proteins=np.array([f"protein {i}" for i in range(12)], object),
        drug=rng.integers(0, 12, 60).astype(np.int32),
        protein=rng.integers(0, 12, 60).astype(np.int32),
        label=label.astype(np.float32),
        part=np.where(np.arange(60) < 42, "train", "validation").astype(object),
        row=np.arange(60) * 10,  # as of a file where most rows were rejected
    )


PARTS = {"train": TRAIN, "validation": VALIDATION, "test": VALIDATION}


class Memory:
    """A run in memory; the progress goes through JSON, as on disk."""

    def __init__(self):
        self.saved = []
        self.told = SimpleNamespace()

    def save(self, step, saved):
        assert not self.saved or step > self.saved[-1][0], "a step was saved twice"
        *trees, progress = saved
        arrays = jax.tree.map(np.array, trees)
        self.saved.append((step, *arrays, json.dumps(progress)))

    def restored(self, like):
        if not self.saved:
            return None
        _, *trees, progress = self.saved[-1]
        return *jax.tree.map(jax.numpy.array, trees), json.loads(progress)

    @contextlib.contextmanager
    def reporting(self, progress, epochs):
        self.told = told = SimpleNamespace(updates=[], epochs=[], programs=[], failed=[])
        alone = len(progress.members) == 1
        yield Reporter(
            update=lambda line: told.updates.append(copy.deepcopy(line)),
            epoch=lambda i, record: told.epochs.append(record if alone else (i, record)),
            failed=lambda i, reason: told.failed.append((i, reason)),
            compiled=lambda name, seconds: told.programs.append(name),
        )


@pytest.fixture
def problem(toy):
    """``run(...)`` trains the toy network on 37 pairs in two buckets: 8 batches of up to 5 an epoch."""
    chunks = []
    hook = SimpleNamespace(before=lambda number, rows: None, change=lambda rows, batch: batch)

    def recorded(table, rows):
        hook.before(len(chunks), rows)
        chunks.append(rows)
        return hook.change(rows, pair_batch(table, rows))

    def run_many(
        settings,
        memory=None,
        *,
        parts=None,
        scorer=None,
        label=LABEL,
        task="classification",
        tx=TX,
        rates=None,
        keep=True,
        **training,
    ):
        """One trial for each dictionary of ``settings``; ``memory``, if it holds anything, is continued."""
        memory = memory or Memory()
        table = make_table(label)
        training = {"epochs": 4, "batch_size": 5, "chunk_steps": 1} | training
        configs = [Config(task=task, training=TrainingConfig(**training | setting)) for setting in settings]
        parts, rates = parts or [PARTS] * len(configs), rates or [0.25] * len(configs)
        trials = [
            dataclasses.replace(pair_trial(config, table, part), hyper={"dropout": rate})
            for config, part, rate in zip(configs, parts, rates, strict=True)
        ]

        def score(variables, rows):
            drug, protein = (np.asarray(variables["params"][name]) for name in ("drug", "protein"))
            return np.sum(drug[table.drug[rows]] * protein[table.protein[rows]], axis=-1)

        def init(seed):
            state = toy.init(tx, seed)
            return {"params": state.params, "batch_stats": state.batch_stats}

        steps = configs[0].training.chunk_steps
        plain = pair_task(configs[0], trials, table, None, BUCKETS, scorer or score, steps)
        plain.plan.batch = lambda rows: recorded(table, rows)
        toys = dataclasses.replace(
            plain,
            init=init,
            objective=lambda *arguments: toy.objective,
            optimizer=lambda config, steps: tx,
            key=(toy.objective, tx),  # so that a program is compiled once for all tests
        )
        result = fit(toys, trials, configs[0].training, run=memory if keep else None)
        state = memory.saved[-1][1] if keep else None
        return SimpleNamespace(
            state=state, best=result.variables, progress=result.progress, told=memory.told, memory=memory, result=result
        )

    def run(memory=None, *, rate=0.25, **settings):
        result = run_many([{}], memory, rates=[rate], **settings)
        result.state, result.best = jax.tree.map(lambda x: x[0], (result.state, result.best))
        result.member = result.progress.members[0]
        return result

    return SimpleNamespace(run=run, run_many=run_many, chunks=chunks, hook=hook)


def without_times(history):
    return [{k: v for k, v in record.items() if k not in ("seconds", "samples_per_second")} for record in history]


def test_every_epoch_trains_every_pair_once_in_one_program_a_bucket(problem):
    forget_programs()
    result = problem.run(epochs=3, chunk_steps=2)
    assert len(result.told.programs) == len(set(result.told.programs)) == 2
    rows = np.concatenate([chunk.ravel() for chunk in problem.chunks])
    assert sorted(rows[rows >= 0]) == sorted(np.tile(TRAIN, 3))
    counted = sum(bool((batch >= 0).any()) for chunk in problem.chunks for batch in chunk[0])
    assert int(result.state.step) == counted == int(result.state.batch_stats["calls"])
    assert [record["epoch"] for record in result.told.epochs] == [1, 2, 3] and result.progress.epoch == 3
    assert result.progress.trained_rows == 3 * len(TRAIN) and result.progress.chunk == result.member.rows == 0
    assert result.member.history == result.told.epochs
    share = result.told.updates[-1]
    assert share["share"] == 1.0 and share["epoch"] == 3 and share["eta_seconds"] == 0.0


def test_a_training_needs_no_run(problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept, free = problem.run(), problem.run(keep=False)
    chex.assert_trees_all_equal(free.best, kept.best)
    np.testing.assert_array_equal(free.result.loss[0], np.float32([record["loss"] for record in kept.told.epochs]))
    scores = [record["validation_auroc"] for record in kept.told.epochs]
    np.testing.assert_array_equal(free.result.value[0], np.float32(scores))
    assert free.result.best_epoch.tolist() == [1 + int(np.argmax(scores))] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_epochs_loss_is_the_mean_over_its_pairs(problem):
    """With a network that stands still, the same at any batch size, although batches are not equally large."""
    frozen = optax.set_to_zero()
    losses = [problem.run(epochs=1, tx=frozen, rate=0.0, batch_size=size).told.epochs[0]["loss"] for size in (5, 8, 40)]
    assert len({int((batch >= 0).sum()) for chunk in problem.chunks for batch in chunk[0]}) > 3
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_how_often_the_host_looks_changes_nothing(problem, monkeypatch):
    monkeypatch.setattr(streamed, "_CONTACT_SECONDS", 1e9)
    seldom = problem.run(epochs=2)
    monkeypatch.setattr(streamed, "_CONTACT_SECONDS", -1.0)
    often = problem.run(epochs=2)
    assert len(seldom.told.updates) == 2 and len(often.told.updates) == 16
    chex.assert_trees_all_equal((often.state, often.best), (seldom.state, seldom.best))
    assert without_times(often.told.epochs) == without_times(seldom.told.epochs)


@pytest.mark.slow
def test_a_slow_device_is_looked_at_as_often_as_a_slow_host(problem, monkeypatch):
    """The host queues chunks at once; their time shows only where it waits for them."""
    looks, collect = [], streamed._collect

    def slow(progress, pending):
        looks.append(len(pending))
        time.sleep(0.05 * len(pending))
        collect(progress, pending)

    monkeypatch.setattr(streamed, "_collect", slow)
    monkeypatch.setattr(streamed, "_CONTACT_SECONDS", 0.12)
    problem.hook.before = lambda number, rows: number == 1 and time.sleep(0.2)  # so that a first look comes soon
    problem.run(epochs=1, batch_size=2)
    assert sum(looks) >= 19 and max(looks[1:]) <= 3


@pytest.mark.slow
def test_the_toy_learns_its_pairs_by_heart(problem):
    label = np.random.default_rng(3).integers(0, 2, 60)
    table = make_table(label)
    for i in range(60):  # a pair has one label
        twins = (table.drug == table.drug[i]) & (table.protein == table.protein[i])
        label[twins] = label[i]
    result = problem.run(epochs=60, label=label)
    drug, protein = (np.asarray(result.state.params[name]) for name in ("drug", "protein"))
    score = np.sum(drug[table.drug[TRAIN]] * protein[table.protein[TRAIN]], axis=-1)
    assert roc_auc_score(label[TRAIN], score) > 0.99
    assert result.told.epochs[-1]["loss"] < 0.5 * result.told.epochs[0]["loss"]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("resumed", [False, True], ids=["unbroken", "resumed"])
def test_the_bad_batch_is_named(problem, steps, epoch, resumed):
    plan = plan_epoch([TRAIN], BUCKETS, 5, steps, seeds=[0], epoch=epoch)
    *_, bad = (step for step in plan[-1].rows[0] if (step >= 0).any())
    first_chunk = epoch * len(plan)

    def poison(rows, batch):
        hit = (rows == bad[0]) & (len(problem.chunks) > first_chunk)
        return batch.replace(label=np.where(hit, np.nan, batch.label).astype(np.float32))

    problem.hook.change = poison
    memory = Memory()
    if resumed:
        problem.hook.before = lambda number, rows: number == first_chunk and os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            problem.run(memory, chunk_steps=steps)
        assert json.loads(memory.saved[-1][-1])["chunk"] == 1
    with pytest.raises(NonFiniteLoss) as error:
        problem.run(memory, chunk_steps=steps)
    counted = sum(bool((batch >= 0).any()) for chunk in problem.chunks for batch in chunk[0])
    rows = bad[bad >= 0]
    assert str(error.value).startswith(
        f"step {counted - 1} (epoch {epoch + 1}): the loss or its gradient is not finite; its batch of {len(rows)} "
        f"pairs begins with {', '.join(f'train row {10 * row + 1}' for row in rows[:4])}. The last checkpoint"
    )
    assert len(memory.saved) == epoch + resumed
    for step, state, best, _ in memory.saved:
        assert step < counted and state.first_bad == -1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, best)))


def test_scores_that_are_not_finite_stop_the_run(problem):
    """As after a last update that overflowed the weights: its loss was finite."""
    memory = Memory()

    def scorer(variables, rows):
        score = np.linspace(0, 1, len(rows), dtype=np.float32)
        score[3:5] = (np.nan, np.inf) if memory.saved else score[3:5]
        return score

    with pytest.raises(
        NonFiniteLoss, match=r"^step 15 \(epoch 2, its last\): 2 of 18 validation scores are not finite"
    ):
        problem.run(memory, scorer=scorer)
    assert len(memory.saved) == 1


def scripted(values):
    """A scorer whose validation AUROC after epoch k is ``values[k]``."""
    values = iter(values)

    def scorer(variables, rows):
        positive = LABEL[rows] == 1
        score, value = np.where(positive, 1.0, 0.0), next(values)
        flipped = np.flatnonzero(positive)[: round((1 - value) * positive.sum())]
        score[flipped] = -1.0
        return score

    return scorer


def test_the_best_epoch_is_kept_and_the_earlier_one_of_equals(problem):
    result = problem.run(scorer=scripted([0.5, 0.75, 0.75, 0.25]))
    assert result.member.best_epoch == 2 and result.progress.epoch == 4
    state, best = jax.tree.map(lambda x: x[0], result.memory.saved[1][1:3])
    chex.assert_trees_all_equal(result.best, best)
    chex.assert_trees_all_equal(best["params"], state.params)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), best["params"], result.state.params)))
    assert result.member.best_value == result.told.epochs[1]["validation_auroc"]


@pytest.mark.parametrize("patience, last", [(1, 2), (2, 5), (None, 6)])
def test_patience_counts_the_epochs_without_a_better_score(problem, patience, last):
    result = problem.run(scorer=scripted([0.5, 0.5, 0.75, 0.75, 0.5, 1.0]), epochs=6, patience=patience)
    assert result.progress.epoch == last == len(result.told.epochs)


def test_patience_and_the_best_weights_survive_resuming(problem):
    values = [0.5, 0.75, 0.5, 0.5, 0.25, 1.0]
    unbroken = problem.run(scorer=scripted(values), epochs=6, patience=3)
    assert unbroken.progress.epoch == 5 and unbroken.member.best_epoch == 2
    problem.chunks.clear()
    problem.hook.before = lambda number, rows: number == 26 and os.kill(os.getpid(), signal.SIGINT)
    memory = Memory()
    with pytest.raises(Interrupted):
        problem.run(memory, scorer=scripted(values), epochs=6, patience=3)
    assert len(memory.saved) == 4 and json.loads(memory.saved[-1][-1])["epoch"] == 3
    result = problem.run(memory, scorer=scripted(values[3:]), epochs=6, patience=3)
    chex.assert_trees_all_equal((result.state, result.best), (unbroken.state, unbroken.best))
    assert without_times(result.member.history) == without_times(unbroken.member.history)
    finished = problem.run(memory, scorer=scripted([]), epochs=6, patience=3)
    assert finished.progress == result.progress and not finished.told.epochs and not finished.told.programs
    chex.assert_trees_all_equal((finished.state, finished.best), (result.state, result.best))


def test_with_equal_validation_labels_the_last_epoch_is_the_best(problem):
    label = np.where(np.arange(60) < 42, LABEL, 1)
    result = problem.run(label=label, patience=1)
    assert result.progress.epoch == result.member.best_epoch == 4 and result.member.best_value is None
    chex.assert_trees_all_equal(result.best["params"], result.state.params)
    assert np.isnan(result.told.epochs[0]["validation_auroc"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("chunk", [0, 4, 7, 8, 31], ids=["first", "middle", "last of epoch", "next epoch", "last"])
def test_a_signal_saves_at_the_chunks_end_and_resuming_repeats_the_unbroken_run(problem, number, chunk):
    unbroken = problem.run()
    assert len(problem.chunks) == 32
    problem.chunks.clear()
    problem.hook.before = lambda at, rows: at == chunk and os.kill(os.getpid(), number)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    memory = Memory()
    with pytest.raises(Interrupted, match=number.name) as stop:
        problem.run(memory)
    assert stop.value.signal == number and len(problem.chunks) == chunk + 1 == memory.saved[-1][0]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    result = problem.run(memory)
    assert len(problem.chunks) == 32
    chex.assert_trees_all_equal((result.state, result.best), (unbroken.state, unbroken.best))
    assert without_times(result.member.history) == without_times(unbroken.member.history)
    assert result.progress.trained_rows == unbroken.progress.trained_rows


def test_a_second_ctrl_c_stops_at_once(problem):
    memory, handler = Memory(), signal.getsignal(signal.SIGINT)

    def twice(number, rows):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    problem.hook.before = twice
    with pytest.raises(KeyboardInterrupt):
        problem.run(memory)
    assert not memory.saved and signal.getsignal(signal.SIGINT) is handler


def test_a_run_outside_the_main_thread_trains_without_signal_handlers(problem):
    results = []
    thread = threading.Thread(target=lambda: results.append(problem.run(epochs=1)))
    thread.start()
    thread.join()
    assert results[0].progress.epoch == 1


def test_class_weights_are_the_balanced_ones_of_scikit_learn():
    label = (np.arange(60) % 5 == 0).astype(int)
    config = Config(training=TrainingConfig(class_weight=True))
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=label[TRAIN])
    np.testing.assert_allclose(class_weights(pair_trial(config, make_table(label), PARTS)), expected, rtol=1e-6)
    assert class_weights(pair_trial(Config(), make_table(label), PARTS)) == (1.0, 1.0)
    assert class_weights(pair_trial(config, make_table(np.ones(60)), PARTS)) == (1.0, 1.0)


def test_labels_are_standardised_by_the_training_part_alone():
    label = np.random.default_rng(0).normal(6, 2, 60).astype(np.float32)
    scale = lambda label, task="regression": label_scale(pair_trial(Config(task=task), make_table(label), PARTS), task)
    mean, sd = scale(label)
    assert mean == pytest.approx(label[TRAIN].mean(), rel=1e-6) and sd == pytest.approx(label[TRAIN].std(), rel=1e-6)
    assert scale(np.full(60, 7.0)) == (7.0, 1.0)
    assert scale(label, "classification") == (0.0, 1.0)


def test_validation_metrics_are_those_of_the_labels_own_unit():
    score = np.random.default_rng(1).normal(size=18).astype(np.float32)
    found = validate(make_table(LABEL), "classification", (0.0, 1.0), VALIDATION, score)
    label = LABEL[VALIDATION]
    expected = {"auroc": roc_auc_score(label, score), "auprc": average_precision_score(label, score)}
    assert found == pytest.approx(expected)
    affinity = np.random.default_rng(2).normal(6, 2, 60).astype(np.float32)
    config = Config(task="regression")
    scale = label_scale(pair_trial(config, make_table(affinity), PARTS), "regression")
    found = validate(make_table(affinity), "regression", scale, VALIDATION, score)
    prediction = score * affinity[TRAIN].std() + affinity[TRAIN].mean()
    mse = np.mean((prediction - affinity[VALIDATION]) ** 2)
    expected = {"concordance_index": concordance_index(affinity[VALIDATION], score), "mse": mse}
    assert found == pytest.approx(expected, rel=1e-5)


SETTINGS = [{"seed": seed} for seed in (3, 4, 3)]
RATES = [0.0, 0.25, 0.5]


def assert_as_alone(problem, together, i, alone):
    """Replica ``i`` of a run of many against a run of one."""
    ours = jax.tree.map(lambda x: x[i], (together.state, together.best))
    chex.assert_trees_all_close(ours, jax.tree.map(lambda x: x[0], (alone.state, alone.best)), rtol=1e-5, atol=1e-6)
    mine, other = (without_times(result.progress.members[k].history) for result, k in ((together, i), (alone, 0)))
    assert [record["epoch"] for record in mine] == [record["epoch"] for record in other]
    for one, two in zip(mine, other, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert together.progress.members[i].best_epoch == alone.progress.members[0].best_epoch


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_replicas_equal_separate_runs(problem, steps):
    forget_programs()
    together = problem.run_many(SETTINGS, rates=RATES, chunk_steps=steps)
    assert len(together.told.programs) == 2 and "3 replicas x" in together.told.programs[0]
    for i in range(3):
        alone = problem.run_many(SETTINGS[i : i + 1], rates=RATES[i : i + 1], chunk_steps=steps)
        assert_as_alone(problem, together, i, alone)
    assert [i for i, _ in together.told.epochs] == [0, 1, 2] * 4


def test_replicas_on_splits_of_different_sizes_equal_separate_runs(problem):
    """Chunks of both buckets are as many for all splits here, so that the separate runs have the same order."""
    parts = [PARTS | {"train": TRAIN[:-k] if k else TRAIN, "validation": VALIDATION[k:]} for k in (0, 1, 2)]
    together = problem.run_many(SETTINGS, parts=parts, rates=RATES)
    for i in range(3):
        alone = problem.run_many(SETTINGS[i : i + 1], parts=parts[i : i + 1], rates=RATES[i : i + 1])
        assert_as_alone(problem, together, i, alone)
    assert together.progress.trained_rows == 4 * sum(len(part["train"]) for part in parts)


def test_a_replica_with_fewer_batches_is_left_as_it_is_by_the_others(problem):
    parts = [PARTS, PARTS | {"train": TRAIN[:6]}]
    result = problem.run_many(SETTINGS[:2], parts=parts)
    taken = [np.concatenate([chunk[i].ravel() for chunk in problem.chunks]) for i in range(2)]
    for i in range(2):
        assert sorted(taken[i][taken[i] >= 0]) == sorted(np.tile(parts[i]["train"], 4))
    calls = [sum(bool((batch >= 0).any()) for chunk in problem.chunks for batch in chunk[i]) for i in range(2)]
    assert result.state.step.tolist() == result.state.batch_stats["calls"].tolist() == calls and calls[0] > calls[1]


def test_each_replica_stops_by_its_own_patience_and_stays_as_it_was(problem):
    """Scores fall for the first replica from its second epoch on, and rise for the second."""
    seen = []

    def scorer(variables, rows):
        epoch, i = divmod(len(seen), 2) if len(seen) < 4 else (len(seen) - 2, 1)
        seen.append(i)
        positive = LABEL[rows] == 1
        score = np.where(positive, 1.0, 0.0)
        share = (0.5 - 0.1 * epoch) if i == 0 else 0.1 * epoch
        score[np.flatnonzero(positive)[: round((1 - share) * positive.sum())]] = -1.0
        return score

    result = problem.run_many(SETTINGS[:2], scorer=scorer, epochs=6, patience=1)
    first, second = result.progress.members
    assert (first.last_epoch, first.best_epoch) == (2, 1) and (second.last_epoch, second.best_epoch) == (6, 6)
    assert seen == [0, 1, 0, 1, 1, 1, 1, 1]
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: np.asarray(x[0]), result.state),
        jax.tree.map(lambda x: x[0], result.memory.saved[1][1]),
    )
    assert result.state.step.tolist() == [16, 48]


def test_a_replica_that_fails_is_named_and_the_others_go_on(problem):
    clean = problem.run_many(SETTINGS, rates=RATES)
    problem.chunks.clear()

    def poison(rows, batch):
        label = batch.label.copy()
        if len(problem.chunks) == 11:  # in the second epoch of 8
            label[1] = np.nan
        return batch.replace(label=label)

    problem.hook.change = poison
    result = problem.run_many(SETTINGS, rates=RATES)
    ((failed, reason),) = result.told.failed
    assert failed == 1 and reason.startswith("step 10 (epoch 2): the loss or its gradient is not finite; its batch of")
    assert [member.failed for member in result.progress.members] == [None, reason, None]
    assert result.state.first_bad.tolist() == [-1, 10, -1] and result.state.step.tolist() == [32, 10, 32]
    assert [len(member.history) for member in result.progress.members] == [4, 1, 4]
    for i in (0, 2):
        pick = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        chex.assert_trees_all_close(pick(result.best), pick(clean.best), rtol=1e-5, atol=1e-6)


def test_the_run_stops_when_all_replicas_have_failed(problem):
    problem.hook.change = lambda rows, batch: batch.replace(label=np.full_like(batch.label, np.nan))
    with pytest.raises(NonFiniteLoss, match="^step 0 "):
        problem.run_many(SETTINGS)


def test_replicas_resume_as_unbroken(problem):
    unbroken = problem.run_many(SETTINGS, rates=RATES)
    problem.chunks.clear()
    problem.hook.before = lambda at, rows: at == 12 and os.kill(os.getpid(), signal.SIGTERM)
    memory = Memory()
    with pytest.raises(Interrupted):
        problem.run_many(SETTINGS, memory, rates=RATES)
    result = problem.run_many(SETTINGS, memory, rates=RATES)
    chex.assert_trees_all_equal((result.state, result.best), (unbroken.state, unbroken.best))
    for one, other in zip(result.progress.members, unbroken.progress.members, strict=True):
        assert without_times(one.history) == without_times(other.history)
