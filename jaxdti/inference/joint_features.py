"""The joint features of pairs: what the decoder sees, and what methods between domains align."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdti.config import ModelConfig
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, pair_batch, plan_evaluation
from jaxdti.data.pairs.device import DeviceFeatures, chunk_features
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.compilation import told_jit

JointFeatures = Callable[[dict[str, Any], np.ndarray], np.ndarray]  # (variables, table rows [N]) -> [N, F]


def make_joint_features(
    config: ModelConfig,
    features: DeviceFeatures | FeatureStore,
    table: InteractionTable,
    buckets: Buckets,
    batch_size: int,
) -> JointFeatures:
    """Joint features float32 of table rows, in their order; BatchNorm uses the running statistics.

    Programs are compiled and told once a bucket, at its first use. Features in a store stay on the host, and every
    batch brings its own.
    """
    config = replace(config, dropout=0.0)  # it has no part here, and would make programs of its own
    model = DrugBAN(config)

    def program(shape: Shape):
        def run(variables: dict[str, Any], features: DeviceFeatures, batch: PairBatch):
            drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
            method = DrugBAN.features_and_logits
            return model.apply(variables, drugs, proteins, batch.row_mask, train=False, method=method)[0]

        def name(variables, features, batch: PairBatch) -> str:
            return f"features of {len(batch.drug)} pairs of {shape.atoms} atoms, {shape.residues} residues"

        return told_jit(run, name, ("joint features", config, shape))

    programs = [program(shape) for shape in buckets.shapes]

    def joint_features(variables: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), config.joint_features), np.float32)
        place = {int(row): i for i, row in enumerate(rows)}
        for chunk in plan_evaluation(rows, buckets, batch_size):
            members = chunk.rows[0]
            chosen, batch = features, pair_batch(table, members)
            if isinstance(features, FeatureStore):
                chosen, batch = chunk_features(features, batch, buckets.shapes[chunk.bucket])
            joint = programs[chunk.bucket](variables, chosen, batch)
            kept = members >= 0
            found[[place[int(row)] for row in members[kept]]] = np.asarray(joint)[kept]
        return found

    return joint_features
