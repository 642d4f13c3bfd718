"""How replicas learn: what the training loop has to know of plain training, and of every other kind."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxdti.config import Config
from jaxdti.data.batches import Buckets, Chunk, PairBatch, Shape, most_distinct, pair_batch, plan_epoch, shared_proteins
from jaxdti.data.interactions import DataError, InteractionTable
from jaxdti.inference.scoring import Scorer
from jaxdti.models.drugban import PARTS
from jaxdti.training.label_tree import partition, select
from jaxdti.training.objectives import Objective, pair_objective
from jaxdti.training.optimizer import RateOf, ShareOf, one_rate, whole_rate
from jaxdti.training.state import init_variables

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}


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


def with_frozen(method: Method, patterns: Sequence[str], root: tuple[str, ...] = ()) -> Method:
    """The same training, but the parts of the network that ``patterns`` name keep their initial parameters.

    They are in the state's ``frozen``: no gradient, no moments, no share in clipping. Their BatchNorm works as in the
    others, on the statistics of each batch, because at the beginning it has no stored ones.

    Args:
      root: where the network is in the method's parameters.

    Raises:
      DataError: a pattern names nothing, or nothing is left to train.
    """
    if not patterns:
        return method
    network = jax.eval_shape(method.init, 0)["params"]
    for name in root:
        network = network[name]
    chosen = select(network, patterns, PARTS, "training.frozen")
    if not partition(network, chosen)[0]:
        raise DataError(f"training.frozen={','.join(patterns)}: nothing is left to train")
    frozen = frozenset((*root, *path) for path in chosen)

    def init(seed: int | jax.Array) -> Variables:
        variables = method.init(seed)
        params, kept = partition(variables["params"], frozen)
        return variables | {"params": params, "frozen": kept}

    return replace(method, init=init)


def _plan(
    rows: Sequence[np.ndarray], buckets: Buckets, batch_size: int, steps: int, seeds: Sequence[int], epoch: int
) -> list[Chunk]:
    return plan_epoch(rows, buckets, batch_size, steps, seeds=seeds, epoch=epoch)
