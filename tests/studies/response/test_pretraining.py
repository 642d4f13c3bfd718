"""Pre-training runs: which batches, snapshots on the way, interruption, failures, and what a setting is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import PretrainingConfig, ResponseConfig
from jaxdti.errors import Interrupted, NonFiniteLoss
from jaxdti.files import load_arrays, save_arrays
from jaxdti.studies.response.pretraining import Setting, epoch_steps, plan_batches, pretrain, settings_of
from jaxdti.training.codeae import Profiles

CONFIG = PretrainingConfig(
    widths=(6,), latent=3, epochs=(1, 2), adversarial_epochs=(1,), batch_size=4, critic_steps=1, learning_rate=(1e-2,)
)
ROWS = {"transductive": np.arange(22), "inductive": np.arange(5, 22)}


@pytest.fixture(scope="module")
def profiles():
    rng = np.random.default_rng(0)
    draw = lambda rows: jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32)
    return Profiles(draw(12), draw(22), jnp.zeros(12, jnp.int32), jnp.zeros(22, jnp.int32))


def settings(method="ae", seeds=2, **pretraining):
    config = dataclasses.replace(CONFIG, **pretraining)
    return settings_of(method, ResponseConfig(seeds=seeds, pretraining=config))


def train(method, profiles, folder, *, stopped=(), start=(), config=CONFIG, chosen=None):
    chosen = settings(method) if chosen is None else chosen
    return pretrain(chosen, profiles, ROWS, 2, config, folder, list(stopped), lambda line: None, start)


def test_settings_are_all_combinations_that_matter_to_the_method():
    lists = {"dropout": (0.0, 0.1), "alignment": (1.0, 2.0, 3.0), "adversarial_learning_rate": (1e-4, 5e-4)}
    assert len(settings("ae", 2, **lists)) == 4
    assert len(settings("codeae_mmd", 2, **lists)) == 12
    lists |= {"orthogonality": (0.1, 1.0)}
    assert len(settings("ae", 2, **lists)) == 4 and len(settings("coral", 2, **lists)) == 24
    adversarial = settings("codeae_adv", 2, **lists)
    assert len(adversarial) == 96 and {setting.base for setting in adversarial} == set(
        settings("codeae_base", 2, **lists)
    )
    both = settings_of("ae", ResponseConfig(protocols=("transductive", "inductive")))
    assert [setting.protocol for setting in both] == ["transductive", "inductive"]


def planned(profiles, first, count, setting=None, batches_a_step=1):
    chosen = setting or settings(seeds=1)[0]
    batch = plan_batches([chosen], profiles, ROWS, 4, first, count, batches_a_step)
    return np.asarray(batch.source)[0].reshape(-1), np.asarray(batch.target)[0].reshape(-1)


def test_each_domain_runs_through_its_own_passes_without_starting_anew(profiles):
    source, target = planned(profiles, 0, 11)
    assert len(source) == len(target) == 44
    for rows, size in ((source, 12), (target, 22)):
        passes = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes)  # in a new order each


def test_what_a_step_sees_follows_from_its_number_alone(profiles):
    whole = planned(profiles, 0, 12)
    for first, count in ((0, 5), (5, 3), (8, 4)):
        for rows, part in zip(whole, planned(profiles, first, count), strict=True):
            np.testing.assert_array_equal(part, rows[4 * first : 4 * (first + count)])


def test_critic_and_model_get_fresh_batches(profiles):
    source, _ = planned(profiles, 0, 1, settings("codeae_adv", 1)[0], batches_a_step=3)
    assert sorted(source) == list(range(12))
    assert not np.array_equal(source, planned(profiles, 0, 3)[0])


def test_the_inductive_protocol_never_sees_a_labelled_sample(profiles):
    setting = dataclasses.replace(settings(seeds=1)[0], protocol="inductive")
    assert set(planned(profiles, 0, 20, setting)[1]) == set(range(5, 22))


def test_an_epoch_is_a_pass_over_the_larger_domain_in_whole_calls(profiles):
    assert epoch_steps(profiles, 4) == 8 and epoch_steps(profiles, 22) == 8 and epoch_steps(profiles, 2) == 16


@pytest.mark.slow
@pytest.mark.bitwise
def test_snapshots_on_the_way_are_those_of_shorter_runs_and_nothing_is_trained_twice(profiles, tmp_path):
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    first, last = train("ae", profiles, tmp_path / "long")
    (alone,) = train("ae", profiles, tmp_path / "short", config=dataclasses.replace(CONFIG, epochs=(1,)))
    jax.tree.map(np.testing.assert_array_equal, first.params, alone.params)
    assert (first.epochs, last.epochs) == (1, 2) and np.all(last.failed == -1)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first.params, last.params)), strict=True))
    again = train("ae", profiles, tmp_path / "long", stopped=[15])  # would raise if it trained
    jax.tree.map(np.testing.assert_array_equal, again[1].params, last.params)


@pytest.mark.slow
@pytest.mark.bitwise
def test_an_interrupted_run_ends_in_the_same_bits(profiles, tmp_path):
    for name in ("unbroken", "broken", "alone"):
        (tmp_path / name).mkdir()
    base = train("codeae_base", profiles, tmp_path / "unbroken")
    whole = train("codeae_adv", profiles, tmp_path / "unbroken", start=base)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train("codeae_base", profiles, tmp_path / "broken", stopped=[15])
    resumed = train("codeae_base", profiles, tmp_path / "broken")
    jax.tree.map(np.testing.assert_array_equal, resumed[-1].params, base[-1].params)
    again = train("codeae_adv", profiles, tmp_path / "broken", start=resumed)
    jax.tree.map(np.testing.assert_array_equal, again[0].params, whole[0].params)
    # The critic came after one epoch and after two.
    assert [setting.reconstruction_epochs for setting in whole[0].settings] == [1, 1, 2, 2]
    shorter = whole[0].settings[:2]
    alone = train("codeae_adv", profiles, tmp_path / "alone", start=base[:1], chosen=shorter)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:2], b, rtol=1e-4, atol=1e-6), whole[0].params, alone.params)
    assert not list((tmp_path / "broken").glob("*_state.npz"))


@pytest.mark.slow
def test_replicas_train_as_they_would_alone(profiles, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=(1,))
    chosen = [
        Setting(method="ae", protocol=protocol, seed=seed, dropout=rate, learning_rate=1e-2)
        for seed, rate, protocol in ((0, 0.0, "transductive"), (1, 0.3, "inductive"))
    ]
    for name in ("both", "0", "1"):
        (tmp_path / name).mkdir()
    (both,) = train("ae", profiles, tmp_path / "both", config=config, chosen=chosen)
    for i, setting in enumerate(chosen):
        (alone,) = train("ae", profiles, tmp_path / str(i), config=config, chosen=[setting])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-6), both.params, alone.params
        )


def test_a_setting_that_diverges_is_marked_and_the_others_go_on(profiles, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=(1,), learning_rate=(1e-2, 1e30))
    lines = []
    chosen = settings(seeds=1, learning_rate=config.learning_rate)
    (snapshot,) = pretrain(chosen, profiles, ROWS, 2, config, tmp_path, [], lines.append)
    assert snapshot.failed[0] == -1 and snapshot.failed[1] >= 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(snapshot.params))
    assert any(line.startswith(f"  failed at step {snapshot.failed[1]}, left out") for line in lines)


@pytest.mark.slow
def test_what_failed_before_the_critic_came_has_failed(profiles, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=(1,), learning_rate=(1e-2, 1e30))
    own = {"learning_rate": config.learning_rate, "epochs": (1,)}
    base, adversarial = (settings(method, 1, **own) for method in ("codeae_base", "codeae_adv"))
    (start,) = train("codeae_base", profiles, tmp_path, config=config, chosen=base)
    assert start.failed[0] == -1 and start.failed[1] >= 0
    (snapshot,) = train("codeae_adv", profiles, tmp_path, config=config, chosen=adversarial, start=[start])
    np.testing.assert_array_equal(snapshot.failed, start.failed)


def test_an_error_when_all_diverge(profiles, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=(1,), learning_rate=(1e30,))
    with pytest.raises(NonFiniteLoss, match="ae: the loss of every setting became non-finite, the first at step"):
        train("ae", profiles, tmp_path, config=config, chosen=settings(seeds=1, learning_rate=(1e30,)))


def test_arrays_survive_a_file(tmp_path):
    tree = {"a": {"b": np.arange(3), "c": np.float32(2.5)}, "d": (np.ones((2, 2)), np.zeros(0))}
    save_arrays(tmp_path / "x.npz", tree, _done=7)
    jax.tree.map(np.testing.assert_array_equal, load_arrays(tmp_path / "x.npz", tree), tree)
    assert int(np.load(tmp_path / "x.npz")["_done"]) == 7 and len(list(tmp_path.iterdir())) == 1
