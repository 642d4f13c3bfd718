"""Scores of many pairs with given variables, in bucketed batches on the device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxdti.config import ModelConfig
from jaxdti.data.batches import Buckets, PairBatch, Shape, choose_buckets, one_bucket, pair_batch, plan_evaluation
from jaxdti.data.interactions import FeatureStore, InteractionTable
from jaxdti.models.drugban import REFERENCE_ATOMS, REFERENCE_RESIDUES, DrugBAN, score
from jaxdti.training.features import DeviceFeatures

Scorer = Callable[[dict[str, Any], np.ndarray], np.ndarray]


def buckets_for(
    config: ModelConfig, table: InteractionTable, store: FeatureStore, count: int, batch_size: int
) -> Buckets:
    """Length buckets for these pairs, or the one fixed shape of the published code under ``reference``."""
    if config.reference:
        most_bonds = int(store.bond_counts.max(initial=1))
        return one_bucket(table, Shape(REFERENCE_ATOMS, -(-most_bonds // 8) * 8, REFERENCE_RESIDUES))
    return choose_buckets(table, store, count, least_rows=batch_size)


def make_scorer(
    config: ModelConfig, features: DeviceFeatures, table: InteractionTable, buckets: Buckets, batch_size: int
) -> Scorer:
    """Builds ``scorer(variables, rows) -> float32 [len(rows)]``: raw network outputs of table rows.

    They come in the order of ``rows``, which may name a row more than once. One program a bucket shape, compiled at
    its first use; BatchNorm uses the running statistics.
    """
    model = DrugBAN(config)

    def forward(variables: dict[str, Any], features: DeviceFeatures, batch: PairBatch, shape: Shape) -> Array:
        drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
        logits: Any = model.apply(variables, drugs, proteins, batch.row_mask, train=False)
        return score(logits)

    compiled = jax.jit(forward, static_argnames="shape")

    def scorer(variables: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        pending = []
        for chunk in plan_evaluation(rows, buckets, batch_size):
            batch = pair_batch(table, chunk.rows[0])
            pending.append((chunk.rows[0], compiled(variables, features, batch, buckets.shapes[chunk.bucket])))
        scores = np.zeros(len(table), np.float32)
        for taken, values in pending:
            valid = taken >= 0
            scores[taken[valid]] = np.asarray(values)[valid]
        return scores[rows]

    return scorer
