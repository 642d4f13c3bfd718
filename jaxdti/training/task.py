"""How replicas learn: what the training loop has to know of plain training, and of every other kind."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxdti.config import Config
from jaxdti.data.pairs.buckets import (
    Buckets,
    Chunk,
    PairBatch,
    Shape,
)
from jaxdti.training.objective import Objective
from jaxdti.training.optimizer import RateOf, ShareOf, one_rate, whole_rate

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}
Scorer = Callable[[dict[str, Any], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Replica:
    """One of the models that train together; they share everything that ``state.hyper_parameters`` does not list."""

    config: Config
    parts: dict[str, np.ndarray]  # int64 table rows of "train" and "validation", and of "target_train" to adapt to


Judge = Callable[[Replica, Callable[[str], Variables]], float]  # of a replica and the network that scores a part


@dataclass(frozen=True)
class Method:
    """One kind of training, for all replicas of a run."""

    init: Callable[[int | jax.Array], Variables]  # fresh variables from a seed, with "frozen" if any; vmappable
    objective: Callable[[Any, Shape, int | None], Objective]  # of the features, one bucket, and shared proteins
    plan: Callable[[int], list[Chunk]]  # the chunks of an epoch; of equal number and sizes in every epoch
    batch: Callable[[np.ndarray], PairBatch]  # of table rows [replicas, steps, B] of a plan
    proteins: Callable[[Chunk], int | None]  # how many proteins the chunk's program encodes a batch; None: one a pair
    network: Callable[[Variables, str], Variables]  # from what one replica trains: the network that scores a part
    rate_of: RateOf = one_rate
    share_of: ShareOf = whole_rate
    # Whether to put the mean prediction into ``hyper["target_classes"]`` before a chunk; of the chunks of an epoch.
    target_classes_due: Callable[[list[Chunk]], list[bool]] | None = None
    inputs: Any = None  # what the objective gets in place of the features, where it does
    buckets: Buckets | None = None  # those of its batches and scores, where they are others
    scorer: Scorer | None = None  # scores networks in its own way
    judge: Judge | None = None  # selects the epoch, instead of the validation score
    key: Hashable = None  # all that its programs depend on beside their arguments; None: they are not kept


@dataclass(frozen=True, kw_only=True)
class VectorReplica:
    """One of the networks that train together: rows, labels, and what may differ inside one program."""

    train: np.ndarray  # int [n], rows of the features
    label: np.ndarray  # float [N], of every row of the features; NaN where there is none
    validation: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int [v]
    epochs: int | None = None  # fewer than the others
    seed: int = 0  # of the initial weights, the order of the rows and the dropout
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # decoupled or not, as ``optimizer`` of the configuration says
    dropout: float = 0.0
    class_weight: bool = False  # weight classes inversely to their frequency in ``train``
    target: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int [t], unlabelled, for a method
    hyper: dict[str, Any] = field(default_factory=dict)  # float or float [...], what else a method traces


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorMethod:
    """How the network learns. Programs are compiled for each object, so equal methods should be the same object."""

    objective: Callable[[Array], Objective]  # of the features
    network: Callable[[dict[str, Any]], dict[str, Any]]  # of all variables those that validation applies the model to
    rate_of: RateOf = one_rate
    share_of: ShareOf = whole_rate
    # (variables, features, rows int32 [T] of the whole target, -1 where there is none) -> what changes in ``hyper``
    # at the start of each epoch, and within it after so many steps
    refresh: Callable[[dict[str, Any], Array, Array], dict[str, Array]] | None = None
    refresh_steps: int | None = None
