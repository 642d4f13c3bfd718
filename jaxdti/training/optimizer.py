"""The optimiser of a run, from its configuration."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdti.config import TrainingConfig


class ScheduledState(NamedTuple):
    """The moments, and the number of updates that the schedule has seen: int32 []."""

    moments: optax.OptState
    count: Array


# The path of a parameter -> the entry of ``hyper`` that is its learning rate.
RateOf = Callable[[tuple[str, ...]], str]


# The path of a parameter -> what its learning rate is multiplied with.
ShareOf = Callable[[tuple[str, ...]], float]


def one_rate(path: tuple[str, ...]) -> str:
    return "learning_rate"


def whole_rate(path: tuple[str, ...]) -> float:
    return 1.0


def make_optimizer(
    config: TrainingConfig, steps_per_epoch: int, rate_of: RateOf = one_rate, share_of: ShareOf = whole_rate
) -> optax.GradientTransformationExtraArgs:
    """Adam or AdamW after optional clipping, with linear warm-up and a constant or cosine learning rate.

    With u(g) Adam's direction for the clipped gradient g, and s_t the schedule, which starts from 1:

        adam:   x <- x - learning_rate s_t u(g + weight_decay x)
        adamw:  x <- x - learning_rate s_t (u(g) + weight_decay x)

    both as in PyTorch. ``update`` takes the rates from ``hyper``, so that replicas with different ones share a program.
    """
    schedule = _schedule(config, steps_per_epoch)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    decoupled = config.optimizer == "adamw"
    adam = optax.chain(*clip, optax.scale_by_adam() if decoupled else _adam_with_penalty())

    def init(params: chex.ArrayTree) -> ScheduledState:
        return ScheduledState(adam.init(params), jnp.zeros((), jnp.int32))

    def update(gradients, state: ScheduledState, params=None, *, hyper: dict[str, Array]):
        directions, moments = adam.update(gradients, state.moments, params, hyper=hyper)
        decay, share = hyper["weight_decay"], schedule(state.count)

        def move(path: tuple[Any, ...], u: Array, x: Array) -> Array:
            names = tuple(key.key for key in path)
            rate = hyper[rate_of(names)] * share_of(names) * share
            return -rate * (u + decay * x if decoupled else u)

        updates = jax.tree_util.tree_map_with_path(move, directions, params)
        return updates, ScheduledState(moments, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _adam_with_penalty() -> optax.GradientTransformationExtraArgs:
    """Adam's direction for the gradient of the loss and ``weight_decay / 2 ||x||^2``; its state is Adam's."""
    adam = optax.scale_by_adam()

    def update(gradients, state, params=None, *, hyper: dict[str, Array]):
        penalised = jax.tree.map(lambda g, x: g + hyper["weight_decay"] * x, gradients, params)
        return adam.update(penalised, state)

    return optax.GradientTransformationExtraArgs(adam.init, update)  # pyright: ignore[reportArgumentType]


def _schedule(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    total = max(config.epochs * steps_per_epoch, 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    rate = optax.constant_schedule(1.0)
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(1.0, total - warmup)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), rate], [warmup])
    return rate


def make_rmsprop() -> optax.GradientTransformationExtraArgs:
    """``v <- 0.99 v + 0.01 g^2, x <- x - learning_rate g / (sqrt(v) + 1e-8)``, the rate from ``hyper``."""
    scale = optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)

    def update(gradients, state, params=None, *, hyper: dict[str, Array]):
        directions, state = scale.update(gradients, state, params)
        return jax.tree.map(lambda u: -hyper["learning_rate"] * u, directions), state

    return optax.GradientTransformationExtraArgs(scale.init, update)  # pyright: ignore[reportArgumentType]
