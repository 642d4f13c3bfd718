"""How replicas learn: what the training loop has to know of plain training, and of every other kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxdti.config import Config
from jaxdti.data.batches import Buckets, Chunk, PairBatch, Shape, most_distinct, pair_batch, plan_epoch, shared_proteins
from jaxdti.data.interactions import InteractionTable
from jaxdti.training.features import DeviceFeatures
from jaxdti.training.objectives import Objective, pair_objective
from jaxdti.training.optimizer import RateOf, one_rate
from jaxdti.training.state import init_variables

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}


@dataclass(frozen=True)
class Replica:
    """One of the models that train together; they share everything that ``state.hyper_parameters`` does not list."""

    config: Config
    parts: dict[str, np.ndarray]  # int64 table rows of "train" and "validation", and of "target_train" to adapt to


@dataclass(frozen=True)
class Method:
    """One kind of training, for all replicas of a run."""

    init: Callable[[int | jax.Array], Variables]  # fresh variables from a seed; vmappable
    objective: Callable[[DeviceFeatures, Shape, int | None], Objective]  # of one bucket, and of shared proteins
    plan: Callable[[int], list[Chunk]]  # the chunks of an epoch; of equal number and sizes in every epoch
    batch: Callable[[np.ndarray], PairBatch]  # of table rows [replicas, steps, B] of a plan
    proteins: Callable[[Chunk], int | None]  # how many proteins the chunk's program encodes a batch; None: one a pair
    network: Callable[[Variables, str], Variables]  # from what one replica trains: the network that scores a part
    rate_of: RateOf = one_rate
    wants_target_classes: bool = False  # whether ``hyper["target_classes"]`` is the mean prediction, epoch by epoch


def supervised(replicas: Sequence[Replica], table: InteractionTable, buckets: Buckets, steps: int) -> Method:
    """Plain training on the pairs of train, in chunks of ``steps`` batches."""
    config = replicas[0].config
    rows = [replica.parts["train"] for replica in replicas]
    seeds = [replica.config.training.seed for replica in replicas]
    plan = partial(_plan, rows, buckets, config.training.batch_size, steps, seeds)
    shared = {} if config.model.reference else shared_proteins(table, plan(0))

    def proteins(chunk: Chunk) -> int | None:
        size = shared.get(chunk.bucket)
        return size if size and most_distinct(table.protein, chunk.rows) <= size else None

    return Method(
        init=partial(init_variables, config.model),
        objective=partial(pair_objective, config.model, config.task),
        plan=plan,
        batch=partial(pair_batch, table),
        proteins=proteins,
        network=lambda variables, part: variables,
    )


def _plan(
    rows: Sequence[np.ndarray], buckets: Buckets, batch_size: int, steps: int, seeds: Sequence[int], epoch: int
) -> list[Chunk]:
    return plan_epoch(rows, buckets, batch_size, steps, seeds=seeds, epoch=epoch)
