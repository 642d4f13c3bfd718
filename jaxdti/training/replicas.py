"""Functions over replicas stacked on axis 0."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_ROWS_A_CALL = 1024  # of predictions


_SIDE_BY_SIDE = 200_000  # parameters of a network up to which replicas train by ``vmap`` on CPU too


def predict_vectors(
    model: nn.Module, variables: dict[str, Any], features: Array | np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """float32 [R, M, outputs] of the networks ``variables`` (stacked on axis 0) at test time.

    Args:
      features: [N, F], or [R, N, F], as the inputs of a task.
      rows: int [M], the rows to score; all of them by default.
    """
    features = jnp.asarray(features)
    rows = np.arange(features.shape[-2]) if rows is None else np.asarray(rows)
    run = _predictor(model, features.ndim == 3)
    size = min(_ROWS_A_CALL, len(rows))
    parts = []
    for first in range(0, len(rows), max(size, 1)):
        part = rows[first : first + size]
        padded = np.pad(part, (0, size - len(part))).astype(np.int32)  # one shape, one program
        parts.append(np.asarray(run(variables, features, padded))[:, : len(part)])
    return np.concatenate(parts, 1)


def map_replicas(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """``function`` over replicas stacked on axis 0 where ``in_axes`` is 0; arguments of ``None`` are shared.

    By ``vmap`` on accelerators; on CPU one by one in a loop of the program, since XLA runs batched matrix products
    there slower than the same ones in turn.
    """
    if not runs_one_by_one():
        return jax.vmap(function, in_axes=in_axes)

    def looped(*arguments: Any) -> Any:
        mapped = tuple(x for x, axis in zip(arguments, in_axes, strict=True) if axis == 0)

        def one(slices: tuple[Any, ...]) -> Any:
            left = iter(slices)
            return function(*(next(left) if axis == 0 else x for x, axis in zip(arguments, in_axes, strict=True)))

        return jax.lax.map(one, mapped)

    return looped


def runs_one_by_one(parameters: int | None = None) -> bool:
    """Whether replicas run in a loop instead of by ``vmap``; ``parameters`` is the size of one that trains.

    On CPU only, and not where a network is so small that the program spends its time on starting operations.
    """
    return jax.default_backend() == "cpu" and (parameters is None or parameters > _SIDE_BY_SIDE)


@lru_cache(maxsize=32)
def _predictor(model: nn.Module, own_features: bool):
    """``run(variables, features, rows) -> [R, rows, outputs]``."""
    return jax.jit(map_replicas(predicting(model), (0, 0 if own_features else None, None)))


@lru_cache(maxsize=32)  # one function for equal models, so that it is traced once
def predicting(model: nn.Module) -> Callable[..., Any]:
    return partial(_predict, model)


def _predict(model: nn.Module, variables: dict[str, Any], features: Array, rows: Array | np.ndarray) -> Any:
    """[rows, outputs] of one network."""
    return model.apply(variables, features[rows], jnp.ones(rows.shape, bool), train=False)
