"""The joint features of pairs: what the decoder sees, and what methods between domains align; and encoded entities."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import ModelConfig
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, pair_batch, plan_evaluation
from jaxdti.data.pairs.device import DeviceFeatures, chunk_features
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.layers.graph import DrugBatch
from jaxdti.layers.sequence import ProteinBatch
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.compilation import told_jit

JointFeatures = Callable[[dict[str, Any], np.ndarray], np.ndarray]  # (variables, table rows [N]) -> [N, F]


# (network, drugs, proteins, row mask) -> a vector of each pair [B, F], of one of its entities or of both
Vectors = Callable[[DrugBAN, DrugBatch, ProteinBatch, Array], Array]


def _joint(network: DrugBAN, drugs: DrugBatch, proteins: ProteinBatch, row_mask: Array) -> Array:
    return network.features_and_logits(drugs, proteins, row_mask, train=False)[0]


def _mean_atom(network: DrugBAN, drugs: DrugBatch, proteins: ProteinBatch, row_mask: Array) -> Array:
    return _mean(*network.encode_drug(drugs, row_mask))


def _mean_residue(network: DrugBAN, drugs: DrugBatch, proteins: ProteinBatch, row_mask: Array) -> Array:
    return _mean(*network.encode_protein(proteins, row_mask))


def _mean(states: Array, mask: Array) -> Array:
    """states [B, n, F], mask bool [B, n] -> float32 [B, F], the mean where the mask is set; 0 where it is nowhere."""
    weight = mask.astype(jnp.float32)
    total = jnp.einsum("bnf,bn->bf", states.astype(jnp.float32), weight)
    return total / jnp.maximum(weight.sum(1), 1.0)[:, None]


# What to call it, the vectors, and the field of the configuration that holds their width.
KINDS: dict[str, tuple[str, Vectors, str]] = {
    "pairs": ("features", _joint, "joint_features"),
    "drugs": ("mean atoms", _mean_atom, "drug_features"),
    "proteins": ("mean residues", _mean_residue, "protein_features"),
}


def make_joint_features(
    config: ModelConfig,
    features: DeviceFeatures | FeatureStore,
    table: InteractionTable,
    buckets: Buckets,
    batch_size: int,
    kind: str = "pairs",
) -> JointFeatures:
    """Joint features float32 of table rows, in their order; BatchNorm uses the running statistics.

    Of other kinds, "drugs" or "proteins", the mean of what the encoder makes of the atoms, or residues, of the rows.

    Programs are compiled and told once a bucket, at its first use. Features in a store stay on the host, and every
    batch brings its own.
    """
    config = replace(config, dropout=0.0)  # it has no part here, and would make programs of its own
    model, (what, vectors, width) = DrugBAN(config), KINDS[kind]

    def program(shape: Shape):
        def run(variables: dict[str, Any], features: DeviceFeatures, batch: PairBatch):
            drugs, proteins = features.drugs(batch.drug, shape), features.proteins(batch.protein, shape)
            return model.apply(variables, drugs, proteins, batch.row_mask, method=vectors)

        def name(variables, features, batch: PairBatch) -> str:
            return f"{what} of {len(batch.drug)} pairs of {shape.atoms} atoms, {shape.residues} residues"

        return told_jit(run, name, (what, config, shape))

    programs = [program(shape) for shape in buckets.shapes]

    def joint_features(variables: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), getattr(config, width)), np.float32)
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
