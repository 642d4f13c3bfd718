"""Vectors of pairs, drugs or proteins, and batches of pairs for one's own JAX code."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax import Array

from jaxdti.config import Config
from jaxdti.data.pairs.device import device_features, features_within
from jaxdti.data.pairs.layouts import Columns
from jaxdti.data.pairs.validation import PredictionData
from jaxdti.errors import DataError
from jaxdti.inference.joint_features import KINDS, make_joint_features
from jaxdti.inference.predict import read_unscored
from jaxdti.inference.scoring import buckets_for
from jaxdti.inference.trained import TrainedRun
from jaxdti.layers.graph import DrugBatch
from jaxdti.layers.sequence import ProteinBatch
from jaxdti.training.compilation import keep_programs

_BATCH = 64
_BUCKETS = 6
# What stands beside entities that are encoded alone: the vector of the one does not depend on the other.
_ANY_DRUG, _ANY_PROTEIN = "C", "A"


class Batch(NamedTuple):
    """N pairs, padded to A atoms, E bonds and L residues, as ``DrugBAN`` takes them; a pytree."""

    drug: DrugBatch  # int8 [N, A, 8] atoms, int32 [N, E, 2] bonds, int32 [N] counts
    protein: ProteinBatch  # uint8 [N, L] residues, int32 [N] counts
    row_mask: Array  # bool [N], False where the row is invalid; what the network makes of it means nothing


def featurize(config: Config, source: Path | pa.Table, **columns: Unpack[Columns]) -> Batch:
    """All N rows of a table in one batch, on the default device.

    A is a multiple of 8 and L of 32, the least that hold every row, so that tables of like sizes share programs (under
    ``model.reference`` they are fixed).

    Raises:
      DataError: the table cannot be read, or no row is valid.
    """
    found = read_unscored(config, source, **columns)
    if not len(found.table):
        raise DataError(f"table: no valid row among {len(found.errors)}; first: {found.errors[0]}")
    shape = buckets_for(config.model, found.table, found.store, 1, 1).shapes[0]
    drug, protein = np.zeros((2, len(found.errors)), np.int32)
    mask = np.zeros(len(found.errors), bool)
    rows = found.table.row
    drug[rows], protein[rows], mask[rows] = found.table.drug, found.table.protein, True
    features = device_features(found.store)
    return Batch(features.drugs(drug, shape), features.proteins(protein, shape), jnp.asarray(mask))


def embed_pairs(trained: TrainedRun, source: Path | pa.Table, **columns: Unpack[Columns]) -> np.ndarray:
    """float32 [N, joint_features] of the rows of a table, which the decoder sees; NaN where a row is invalid."""
    return _embed(trained, read_unscored(trained.config, source, **columns), "pairs")


def embed_drugs(trained: TrainedRun, smiles: Sequence[str]) -> np.ndarray:
    """float32 [N, drug_features]: the mean over the atoms of what the encoder makes of them; NaN where invalid."""
    table = pa.table({"SMILES": pa.array(smiles, pa.string()), "Protein": [_ANY_PROTEIN] * len(smiles)})
    return _embed(trained, read_unscored(trained.config, table), "drugs")


def embed_proteins(trained: TrainedRun, sequences: Sequence[str]) -> np.ndarray:
    """float32 [N, protein_features]: the mean over the residues, up to ``data.max_residues``; NaN where invalid."""
    table = pa.table({"SMILES": [_ANY_DRUG] * len(sequences), "Protein": pa.array(sequences, pa.string())})
    return _embed(trained, read_unscored(trained.config, table), "proteins")


def _embed(trained: TrainedRun, found: PredictionData, kind: str) -> np.ndarray:
    (network,), config, table = trained.members, trained.config, found.table
    out = np.full((len(found.errors), getattr(config.model, KINDS[kind][2])), np.nan, np.float32)
    if not len(table):
        return out
    keep_programs()
    batch = min(_BATCH, len(table))
    buckets = buckets_for(config.model, table, found.store, _BUCKETS, batch)
    features = features_within(found.store, config.data.device_gib)
    # A pair, or entity, that occurs more than once is computed once.
    keys = {"drugs": table.drug, "proteins": table.protein, "pairs": table.drug.astype(np.int64) << 32 | table.protein}
    _, first, inverse = np.unique(keys[kind], return_index=True, return_inverse=True)
    vectors = make_joint_features(config.model, features, table, buckets, batch, kind)(network.variables, first)
    out[table.row] = vectors[inverse]
    return out
