"""Pre-training of the autoencoders: settings of one method train together, snapshots are kept on the way.

Settings that differ in seed, dropout, learning rate, weight of the alignment or in the target samples they see are
replicas of one program; those that differ in length only are snapshots of the longest run.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdti.config import PretrainingConfig, ResponseConfig, TrainingConfig
from jaxdti.errors import Interrupted, NonFiniteLoss
from jaxdti.files import load_arrays, save_arrays
from jaxdti.training.codeae import (
    SEPARATING,
    AdversarialState,
    ProfileBatch,
    Profiles,
    init_params,
    make_adversarial_step,
    pretraining_objective,
)
from jaxdti.training.optimizer import make_optimizer, make_rmsprop
from jaxdti.training.plans import stream
from jaxdti.training.replicas import map_replicas
from jaxdti.training.state import fresh_state
from jaxdti.training.step import make_train_step

ADVERSARIAL = "codeae_adv"
BASE = "codeae_base"
_ALIGNED = ("codeae_mmd", "codeae_adv", "dsn_dann", "coral", "adae")  # methods that ``alignment`` matters to
_CALL_STEPS = 8  # of one program call; an epoch is a multiple of it, so that one program does for all
_SAVE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one replica of a method trains with."""

    method: str
    protocol: str  # transductive: all target samples; inductive: only those without a response
    seed: int
    dropout: float
    learning_rate: float
    orthogonality: float = 0.0
    alignment: float = 0.0
    adversarial_learning_rate: float = 0.0
    reconstruction_epochs: int = 0  # of codeae_base, which codeae_adv continues

    @property
    def base(self) -> "Setting":
        """The reconstruction run that codeae_adv continues."""
        return replace(self, method=BASE, alignment=0.0, adversarial_learning_rate=0.0, reconstruction_epochs=0)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The models of all settings of a method after ``epochs`` passes."""

    method: str
    settings: tuple[Setting, ...]
    epochs: int
    params: dict[str, Any]  # of the model alone, NumPy arrays stacked on axis 0
    failed: np.ndarray  # int [R]; the step whose loss was not finite, -1 where there is none


def settings_of(method: str, config: ResponseConfig) -> tuple[Setting, ...]:
    """All combinations of what may differ between the replicas of a method."""
    pre, seeds = config.pretraining, range(config.seed, config.seed + config.seeds)
    adversarial = method == ADVERSARIAL
    choices = {
        "protocol": config.protocols,
        "reconstruction_epochs": pre.epochs if adversarial else (0,),
        "seed": seeds,
        "dropout": pre.dropout,
        "learning_rate": pre.learning_rate,
        "orthogonality": pre.orthogonality if method in SEPARATING else (0.0,),
        "alignment": pre.alignment if method in _ALIGNED else (0.0,),
        "adversarial_learning_rate": pre.adversarial_learning_rate if adversarial else (0.0,),
    }
    return tuple(
        Setting(method=method, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    )


def pretrain(
    settings: Sequence[Setting],
    profiles: Profiles,
    target_rows: dict[str, np.ndarray],
    confounders: int,
    config: PretrainingConfig,
    folder: Path,
    stopped: list[int],
    say: Callable[[str], None],
    start: Sequence[Snapshot] = (),
) -> list[Snapshot]:
    """Trains the settings of one method; what ``folder`` already holds is not trained again.

    Args:
      settings: of one method.
      target_rows: protocol -> int rows of the target profiles that it may see.
      confounders: number of categories, for adae.
      folder: snapshots and the state under way are kept here.
      stopped: receives signals; the state is saved at the next look, and ``Interrupted`` raised.
      start: for codeae_adv, the snapshots of codeae_base, of every ``setting.reconstruction_epochs`` and
        ``setting.base``; what failed there has failed here.

    Raises:
      NonFiniteLoss: every setting has failed.
      Interrupted: a signal arrived.
    """
    method = settings[0].method
    lengths = config.adversarial_epochs if method == ADVERSARIAL else config.epochs
    paths = {epochs: folder / f"{method}_{epochs}.npz" for epochs in lengths}
    steps = epoch_steps(profiles, config.batch_size)
    state, run, batches_a_step = _programs(settings, profiles, confounders, config, start)
    done, seconds, checkpoint = 0, 0.0, folder / f"{method}_state.npz"
    if paths[lengths[-1]].is_file():
        done = lengths[-1] * steps
    elif checkpoint.is_file():
        state, saved = load_arrays(checkpoint, state), np.load(checkpoint)
        done, seconds = int(saved["_done"]), float(saved["_seconds"])
        say(f"{method}: continuing after step {done} of {lengths[-1] * steps}")
    saved_at = time.perf_counter()
    while done < lengths[-1] * steps:
        began = time.perf_counter()
        batches = plan_batches(settings, profiles, target_rows, config.batch_size, done, _CALL_STEPS, batches_a_step)
        state, metrics = run(state, batches, profiles)
        loss = np.asarray(metrics["loss"]).mean(1)
        done += _CALL_STEPS
        seconds += time.perf_counter() - began
        if done // steps in paths and done % steps == 0:
            failed = _failed(state)
            if np.all(failed >= 0):
                raise NonFiniteLoss(
                    f"{method}: the loss of every setting became non-finite, the first at step {failed.min()}"
                )
            save_arrays(
                paths[done // steps], jax.device_get(_model_params(state)), _failed=failed, _loss=loss, _seconds=seconds
            )
        if stopped or time.perf_counter() - saved_at > _SAVE_SECONDS:
            save_arrays(checkpoint, jax.device_get(state), _done=done, _seconds=seconds)
            saved_at = time.perf_counter()
        if stopped:
            raise Interrupted(stopped[0])
    snapshots = [_read_snapshot(paths[epochs], _model_params(state), method, settings, epochs) for epochs in lengths]
    last = np.load(paths[lengths[-1]])
    say(
        f"{method}: {len(settings)} models, {lengths[-1]} epochs of {steps} steps, reconstruction error "
        f"{np.nanmean(last['_loss']):.3f}, {float(last['_seconds']):.1f} s"
    )
    for setting, failed in zip(settings, snapshots[-1].failed, strict=True):
        if failed >= 0:
            say(f"  failed at step {failed}, left out: {setting}")
    checkpoint.unlink(missing_ok=True)
    return snapshots


def epoch_steps(profiles: Profiles, batch_size: int) -> int:
    """Steps of one pass over the larger domain, rounded up to whole program calls."""
    return -(-max(len(profiles.source), len(profiles.target)) // (batch_size * _CALL_STEPS)) * _CALL_STEPS


def plan_batches(
    settings: Sequence[Setting],
    profiles: Profiles,
    target_rows: dict[str, np.ndarray],
    batch_size: int,
    first: int,
    count: int,
    batches_a_step: int,
) -> ProfileBatch:
    """The batches of ``count`` steps from step ``first`` on, [R, count, B], or [R, count, batches_a_step, B].

    Each domain runs through its own sequence of passes, each pass in a new order, so that neither starts anew when the
    other does. What a step sees follows from seed and step alone.
    """
    sizes = (count, batches_a_step, batch_size) if batches_a_step > 1 else (count, batch_size)
    per_step = batches_a_step * batch_size

    def rows(setting: Setting, domain: int) -> np.ndarray:
        members = np.arange(len(profiles.source)) if domain == 0 else target_rows[setting.protocol]
        # The adversarial part has an order of its own, or it would repeat that of the reconstruction.
        seed = (setting.seed, domain, int(setting.method == ADVERSARIAL))
        return stream(members, seed, first * per_step, count * per_step).reshape(sizes)

    source, target = (jnp.asarray(np.stack([rows(setting, domain) for setting in settings])) for domain in (0, 1))
    present = jnp.ones(source.shape, bool)
    return ProfileBatch(source, target, present, present)


def _hyper(setting: Setting, config: PretrainingConfig, adversarial: bool) -> dict[str, np.ndarray]:
    values = {
        "dropout": setting.dropout,
        "learning_rate": setting.adversarial_learning_rate if adversarial else setting.learning_rate,
        "weight_decay": config.weight_decay,
        "orthogonality": setting.orthogonality,
        "alignment": setting.alignment,
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def _programs(
    settings: Sequence[Setting],
    profiles: Profiles,
    confounders: int,
    config: PretrainingConfig,
    start: Sequence[Snapshot],
) -> tuple[Any, Callable[..., tuple[Any, dict[str, Any]]], int]:
    """Fresh states stacked on axis 0, the program ``run(states, batches, profiles)``, and batches a step."""
    method, genes = settings[0].method, profiles.source.shape[-1]
    adversarial = method == ADVERSARIAL
    seeds = np.array([setting.seed for setting in settings], np.int32)
    hyper = jax.tree.map(lambda *leaves: np.stack(leaves), *(_hyper(s, config, adversarial) for s in settings))
    fresh = lambda seed: init_params(method, genes, confounders, config, jax.random.PRNGKey(seed))
    if adversarial:
        tx = make_rmsprop()
        after = {snapshot.epochs: snapshot for snapshot in start}
        starts = [_model(after[setting.reconstruction_epochs], setting.base) for setting in settings]
        pretrained = jax.tree.map(lambda *leaves: np.stack(leaves), *(params for params, _ in starts))
        failed = np.array([step for _, step in starts], np.int32)  # what did not survive the reconstruction is no start

        def begin(seed, hyper, params, failed):
            model = fresh_state({"params": params}, tx, seed, hyper).replace(first_bad=failed)
            critic = fresh_state({"params": fresh(seed)["adversary"]}, tx, seed, hyper)
            return AdversarialState(model, critic.replace(rng=jax.random.fold_in(critic.rng, 2)))

        state = jax.jit(jax.vmap(begin))(seeds, hyper, pretrained, failed)
        make_step = lambda profiles: make_adversarial_step(profiles, tx, config)
    else:
        tx = make_optimizer(TrainingConfig(optimizer="adamw", weight_decay=config.weight_decay), 1)
        state = jax.jit(jax.vmap(lambda seed, hyper: fresh_state({"params": fresh(seed)}, tx, seed, hyper)))(
            seeds, hyper
        )
        make_step = lambda profiles: make_train_step(pretraining_objective(method, profiles, confounders, config), tx)

    def one(state, batches, profiles):
        step: Any = make_step(profiles)
        return jax.lax.scan(step, state, batches)

    return (
        state,
        jax.jit(map_replicas(one, (0, 0, None)), donate_argnums=0),
        config.critic_steps + 1 if adversarial else 1,
    )


def _model(snapshot: Snapshot, setting: Setting) -> tuple[Any, int]:
    """The parameters of one setting, and the step at which it failed, -1 if it did not."""
    row = snapshot.settings.index(setting)
    return jax.tree.map(lambda x: x[row], snapshot.params), int(snapshot.failed[row])


def _model_params(state: Any) -> Any:
    return state.model.params if isinstance(state, AdversarialState) else state.params["model"]


def _failed(state: Any) -> np.ndarray:
    """int [R]: the step of the first non-finite loss of either player, -1 where there is none."""
    if isinstance(state, AdversarialState):
        return np.maximum(np.asarray(state.model.first_bad), np.asarray(state.critic.first_bad))
    return np.asarray(state.first_bad)


def _read_snapshot(path: Path, like: Any, method: str, settings: Sequence[Setting], epochs: int) -> Snapshot:
    return Snapshot(
        method=method,
        settings=tuple(settings),
        epochs=epochs,
        params=load_arrays(path, like),
        failed=np.load(path)["_failed"],
    )
