"""The feed-forward network on drug features of Dalkıran et al. 2023 (doi 10.1093/bioinformatics/btad234)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.dropout import dropout
from jaxdti.layers.linear import Linear
from jaxdti.layers.norm import MaskedBatchNorm

FEATURES = (1200, 300)  # of the paper


class FNN(nn.Module):
    """Hidden layers ``dropout(ReLU(BatchNorm(x W + b)))``, then a linear layer.

    x [B, F] of any number dtype, row_mask bool [B] -> float32 [B, outputs], the logits; or with ``outputs`` None the
    last hidden layer, [B, features[-1]]. Masked rows enter no statistic; their own outputs mean nothing.
    Dropout (arXiv:1207.0580) acts in training only and draws from the rng "dropout".

    Attributes:
      features: widths of the hidden layers.
      outputs: logits, 1 or the number of classes; None for a network that ends in its last hidden layer.
      first: number of the first hidden layer, so that a part of a network (see ``split``) keeps its parameters' names.
      unbiased: put the n/(n-1) variance into the running statistics, as torch does.
    """

    features: Sequence[int] = FEATURES
    outputs: int | None = 1
    first: int = 0
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: Array, row_mask: Array, dropout_rate: float | Array = 0.0, *, train: bool) -> Array:
        x = x.astype(jnp.float32)
        for i, width in enumerate(self.features, self.first):
            x = Linear(width, name=f"hidden_{i}")(x)
            x = nn.relu(MaskedBatchNorm(unbiased=self.unbiased, name=f"norm_{i}")(x, row_mask, train=train))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return x if self.outputs is None else Linear(self.outputs, name="output")(x)


def split(model: FNN, layers: int) -> tuple[FNN, FNN]:
    """The first ``layers`` hidden layers, and the rest with the output: ``model(x) == upper(lower(x))`` at test time.

    Raises:
      ValueError: ``layers`` is not between 1 and the number of hidden layers.
    """
    if not 1 <= layers <= len(model.features):
        raise ValueError(f"layers={layers}: between 1 and {len(model.features)} hidden layers can be split off")
    lower = model.clone(features=tuple(model.features[:layers]), outputs=None)
    return lower, model.clone(features=tuple(model.features[layers:]), first=model.first + layers)


def parts_of(model: FNN) -> dict[str, tuple[str, ...]]:
    """``up_to_1``, ``up_to_2``, ...: the lowest hidden layers with their BatchNorm, by the names of their modules."""
    names = [(f"hidden_{i}", f"norm_{i}") for i in range(len(model.features))]
    return {f"up_to_{n}": sum(names[:n], ()) for n in range(1, len(names) + 1)}


def depth(model: FNN, path: tuple[str, ...]) -> int:
    """Layers between a parameter and the logits: 0 in the output layer, most in the first hidden one."""
    if path[0] == "output":
        return 0
    return model.first + len(model.features) - int(path[0].rpartition("_")[2])


def init_fnn(model: FNN, inputs: int, seed: int | Array) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of a fresh network on ``inputs`` features; vmappable over ``seed``."""
    x, row_mask = jnp.zeros((1, inputs)), jnp.ones((1,), bool)
    variables = model.init({"params": jax.random.PRNGKey(seed)}, x, row_mask, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def take_layers(variables: Mapping[str, Any], part: FNN) -> dict[str, Any]:
    """Of a network's variables those that ``part`` (see ``split``) has."""
    numbers = range(part.first, part.first + len(part.features))
    names = {f"{kind}_{i}" for kind in ("hidden", "norm") for i in numbers}
    if part.outputs is not None:
        names.add("output")
    return {kind: {name: tree[name] for name in tree if name in names} for kind, tree in variables.items()}


def hidden_and_logits(
    model: FNN,
    variables: dict[str, Any],
    x: Array,
    mask: Array,
    dropout: Array | float = 0.0,
    rng: Array | None = None,
) -> tuple[tuple[Array, Array], Any]:
    """The last hidden layer and the logits, and the running statistics; training where there is an ``rng``."""
    lower, upper = split(model, len(model.features))
    rngs = None if rng is None else {"dropout": rng}
    hidden, updates = lower.apply(
        take_layers(variables, lower), x, mask, dropout, train=rng is not None, rngs=rngs, mutable=["batch_stats"]
    )
    logits: Any = upper.apply(take_layers(variables, upper), hidden, mask, train=False)
    return (hidden, logits), updates["batch_stats"]
