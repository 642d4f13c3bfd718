"""Weights of the published PyTorch feed-forward network of TransferLearning4DTI, by their torch names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdti.errors import DataError
from jaxdti.models.fnn import FNN


def from_torch(state: Mapping[str, np.ndarray]) -> tuple[FNN, dict[str, Any]]:
    """The network and its ``{"params", "batch_stats"}`` from arrays by torch name (l1, bn1, l2, ..., layer_out).

    ``num_batches_tracked`` counters are ignored. Torch stores a linear layer as [out, in].

    Raises:
      DataError: listing every missing and unknown name, or an array of the wrong shape or with values not finite.
    """
    given = {name: np.asarray(x, np.float32) for name, x in state.items() if not name.endswith("num_batches_tracked")}
    depth = sum(name.startswith("l") and name[1:].removesuffix(".weight").isdigit() for name in given)
    wanted = {torch: place for torch, place in _names(max(depth, 1))}
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        raise DataError(f"weights do not fit the FNN: missing {missing or 'none'}; unknown {unknown or 'none'}")
    if faults := [
        fault for name, shape in _shapes(given, depth).items() if (fault := _fault(name, given[name], shape))
    ]:
        raise DataError(f"weights do not fit the FNN: {'; '.join(faults)}")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for torch, (kind, *path) in wanted.items():
        node = variables[kind]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(given[torch].T)
    features = tuple(len(given[f"l{i + 1}.weight"]) for i in range(depth))
    return FNN(features, len(given["layer_out.weight"]), unbiased=True), variables


def _names(depth: int) -> list[tuple[str, tuple[str, ...]]]:
    """Every array: its torch name, and (collection, *path) here."""
    linear = [(f"l{i + 1}", f"hidden_{i}") for i in range(depth)] + [("layer_out", "output")]
    names = [
        (f"{torch}.{theirs}", ("params", ours, "dense", name))
        for torch, ours in linear
        for theirs, name in (("weight", "kernel"), ("bias", "bias"))
    ]
    norm = (
        *(("weight", "params", "scale"), ("bias", "params", "bias")),
        *(("running_mean", "batch_stats", "mean"), ("running_var", "batch_stats", "var")),
    )
    return names + [
        (f"bn{i + 1}.{theirs}", (kind, f"norm_{i}", name)) for i in range(depth) for theirs, kind, name in norm
    ]


def _shapes(given: Mapping[str, np.ndarray], depth: int) -> dict[str, tuple[int, ...]]:
    """What the shapes have to be, as the biases and the first layer's inputs have it."""
    linear = [*(f"l{i + 1}" for i in range(depth)), "layer_out"]
    widths = [given[f"{name}.bias"].size for name in linear]
    inputs = [given["l1.weight"].shape[-1], *widths]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width, before in zip(linear, widths, inputs, strict=False):
        shapes |= {f"{name}.weight": (width, before), f"{name}.bias": (width,)}
    for i in range(depth):
        shapes |= {f"bn{i + 1}.{key}": (widths[i],) for key in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def _fault(name: str, x: np.ndarray, shape: tuple[int, ...]) -> str:
    """What is wrong with the array, or nothing."""
    if x.shape != shape:
        return f"{name} has shape {x.shape}, expected {shape}"
    return "" if np.isfinite(x).all() else f"{name} holds NaN or infinity"
