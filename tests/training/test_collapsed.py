"""No map per head exists in a compiled training step, in any shape."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.config import Config, ModelConfig
from jaxdti.data.batches import PairBatch, Shape
from jaxdti.layers.bilinear import BilinearAttention
from jaxdti.training.features import DeviceFeatures
from jaxdti.training.objectives import pair_objective
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.state import hyper_parameters, init_state
from jaxdti.training.step import make_train_step

BATCH, HEADS, ATOMS, RESIDUES = 3, 5, 29, 31  # coprime; B x heads x atoms x residues exceeds every other array
MODEL = ModelConfig(
    drug_features=4,
    drug_layers=1,
    protein_features=4,
    protein_kernels=(3,),
    joint_features=3,
    pool_size=1,
    heads=HEADS,
    decoder_features=(4,),
)


def largest_array(replicas: int) -> int:
    """Elements of the largest array in the optimised program of a training step, over the number of replicas."""
    shape = Shape(ATOMS, 8, RESIDUES)
    features = DeviceFeatures(
        atoms=jnp.zeros((40, 8), jnp.int8),
        atom_offsets=jnp.array([0, 20, 40]),
        bonds=jnp.zeros((6, 2), jnp.int16),
        bond_offsets=jnp.array([0, 3, 6]),
        residues=jnp.ones(50, jnp.uint8),
        residue_offsets=jnp.array([0, 25, 50]),
    )
    config = Config(model=MODEL)
    tx = make_optimizer(config.training, 10)
    step = make_train_step(pair_objective(MODEL, "classification", features, shape), tx)
    index = np.array([0, 1, 0], np.int32)
    batch = PairBatch(drug=index, protein=index, label=np.zeros(3, np.float32), row_mask=np.ones(3, bool))
    state = init_state(MODEL, tx, 0, hyper_parameters(config))
    stacked = jax.tree.map(lambda x: np.stack([x] * replicas), (state, batch))
    text = jax.jit(jax.vmap(step)).lower(*stacked).compile().as_text()
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert len(sizes) > 100
    return max(sizes) // replicas


def attention_per_head(self, drug, protein, drug_mask, protein_mask, row_mask, rate, *, train):
    v, q = self.project(drug, protein, drug_mask, protein_mask, rate, train=train)
    maps = jnp.einsum("hk,bak,blk->bhal", self.heads_weight(), v, q) + self.head_bias[None, :, None, None]
    f = jnp.einsum("bak,bhal,blk->bk", v, maps, q)
    return self.norm(f.reshape(f.shape[0], self.joint_features, self.pool_size).sum(-1), row_mask, train=train)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_training_step_holds_no_map_per_head(replicas):
    assert largest_array(replicas) < BATCH * HEADS * ATOMS * RESIDUES


def test_the_per_head_form_fails_that_test(monkeypatch):
    monkeypatch.setattr(BilinearAttention, "__call__", attention_per_head)
    assert largest_array(1) >= BATCH * HEADS * ATOMS * RESIDUES
