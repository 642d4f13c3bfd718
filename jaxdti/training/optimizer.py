"""The optimiser of a run, from its configuration."""

import optax

from jaxdti.config import TrainingConfig


def make_optimizer(config: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Adam or AdamW after optional clipping, with linear warm-up and a constant or cosine learning rate."""
    total = max(config.epochs * steps_per_epoch, 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, total - warmup)
    else:
        rate = optax.constant_schedule(config.learning_rate)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), rate], [warmup])
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.optimizer == "adamw":
        return optax.chain(*clip, optax.adamw(rate, weight_decay=config.weight_decay))
    return optax.chain(*clip, optax.adam(rate))
