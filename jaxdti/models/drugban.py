"""DrugBAN (Bai et al., Nature Machine Intelligence 2023, doi 10.1038/s42256-022-00605-1).

A molecular graph network encodes atoms, a convolutional network encodes residues, bilinear attention pools every
atom-residue pair into one joint vector, and a small network decodes it into a score. Padding never counts, unless
``config.reference`` asks for the published behaviour.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.layers.bilinear import BilinearAttention
from jaxdti.layers.graph import DrugBatch, GraphConvolution, adjacency, atom_features
from jaxdti.layers.linear import Linear
from jaxdti.layers.mlp import Decoder
from jaxdti.layers.sequence import ProteinBatch, ProteinsEndToEnd, SequenceConvolution

LETTERS = 26  # 25 letters and 0

# The names of the modules whose parameters belong to a part of the network; "pooling" is all before the decoder.
PARTS = {
    "drug_encoder": ("atom_projection", "graph_layers_*"),
    "protein_encoder": ("embedding", "sequence_layers_*"),
    "encoders": ("atom_projection", "graph_layers_*", "embedding", "sequence_layers_*"),
    "pooling": ("atom_projection", "graph_layers_*", "embedding", "sequence_layers_*", "bilinear"),
}


def parts_of(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """``PARTS``, and ``up_to_1``, ``up_to_2``, ...: the lowest layers of both encoders, of which embeddings are one."""
    parts: dict[str, tuple[str, ...]] = dict(PARTS)
    lowest: tuple[str, ...] = ("atom_projection", "embedding")
    for i in range(max(config.drug_layers, len(config.protein_kernels)) + 1):
        parts[f"up_to_{i + 1}"] = lowest
        lowest += (f"graph_layers_{i}", f"sequence_layers_{i}")
    return parts


class SharedProteins(flax.struct.PyTreeNode):
    """P proteins that B pairs share, each encoded once.

    BatchNorm counts a protein as often as pairs use it, so values and gradients equal those of one protein a pair.
    Dropout comes after, pair by pair.
    """

    rows: Array  # int32 [B]; the protein of each pair
    uses: Array  # float32 [P]; pairs that use it, 0 for filler


def share_proteins(index: ArrayLike, row_mask: ArrayLike, size: int) -> tuple[Array, SharedProteins]:
    """The distinct values int32 [size] of ``index`` [B], which must fit, and how the pairs use them."""
    values, rows = jnp.unique(jnp.asarray(index), return_inverse=True, size=size, fill_value=0)
    uses = jnp.zeros(size).at[rows].add(jnp.asarray(row_mask, jnp.float32))
    return values, SharedProteins(rows.astype(jnp.int32), uses)


class DrugBAN(nn.Module):
    """Scores B drug-protein pairs.

    ``reference`` reproduces the published code for comparison with its weights: no masks, padded to 290 nodes and
    1,200 residues, two self-loops an atom, convolutions without padding, the protein features reinterpreted in memory
    instead of transposed, plain sum pooling, torch's running variance.
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        dtype, unbiased = jnp.dtype(c.dtype), c.reference
        self.atom_projection = Linear(c.drug_features, use_bias=False, dtype=dtype)
        self.graph_layers = [
            GraphConvolution(c.drug_features, dtype=dtype, unbiased=unbiased) for _ in range(c.drug_layers)
        ]
        self.embedding = nn.Embed(LETTERS, c.protein_features, dtype=dtype, embedding_init=nn.initializers.normal(1.0))
        padding = "VALID" if c.reference else "SAME"
        self.sequence_layers = [
            SequenceConvolution(c.protein_features, kernel, padding, dtype=dtype, unbiased=unbiased)
            for kernel in c.protein_kernels
        ]
        self.bilinear = BilinearAttention(
            c.joint_features, c.pool_size, c.heads, "sum" if c.reference else c.pool, dtype=dtype, unbiased=unbiased
        )
        self.decoder = Decoder(c.decoder_features, c.logits, dtype=dtype, unbiased=unbiased)

    def encode_drug(self, drug: DrugBatch, row_mask: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Atoms [B, A, drug_features] and their mask [B, A]."""
        features = atom_features(drug.atoms, jnp.dtype(self.config.dtype))
        real = drug.mask
        if self.config.reference:
            virtual = (~real)[..., None].astype(features.dtype)
            features = jnp.concatenate([features * real[..., None].astype(features.dtype), virtual], -1)
            mask = jnp.broadcast_to(row_mask[:, None], real.shape)
            neighbours = adjacency(drug, 1.0 + real.astype(jnp.float32))
        else:
            mask = real & row_mask[:, None]
            features = features * mask[..., None].astype(features.dtype)
            neighbours = adjacency(drug, mask.astype(jnp.float32))
        h = self.atom_projection(features)
        for layer in self.graph_layers:
            h = layer(h, neighbours, mask, train=train)
        return h, mask

    def encode_protein(
        self, protein: ProteinBatch | ProteinsEndToEnd, uses: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Residues [B, L, protein_features] and their mask [B, L]; B is 1 for proteins that lie end to end.

        ``uses`` [B], bool or float32, is how often each protein counts in the statistics of BatchNorm; 0 for filler.
        """
        dtype = jnp.dtype(self.config.dtype)
        # Letter 0 is padding or unknown: a zero vector that learns nothing.
        letters = jax.nn.one_hot(protein.residues.astype(jnp.int32) - 1, LETTERS - 1, dtype=dtype)
        basis = self.embedding(jnp.arange(1, LETTERS)).astype(jnp.float32)
        if not self.config.reference:
            weight = protein.mask * uses[:, None]
            first, *layers = self.sequence_layers
            x = first(letters * (weight > 0)[..., None].astype(dtype), weight, basis, train=train)
            for layer in layers:
                x = layer(x, weight, train=train)
            return x, weight > 0
        x = letters @ basis.astype(dtype)
        for layer in self.sequence_layers:
            length = x.shape[1] - layer.kernel + 1
            x = layer(x, jnp.broadcast_to(uses[:, None], (x.shape[0], length)), train=train)
        # The published code views the [channels, positions] memory as [positions, channels].
        x = jnp.swapaxes(x, 1, 2).reshape(x.shape)
        return x, jnp.broadcast_to(uses[:, None] > 0, x.shape[:2])

    def __call__(
        self,
        drug: DrugBatch,
        protein: ProteinBatch,
        row_mask: Array,
        dropout: float | Array = 0.0,
        *,
        train: bool,
        shared: SharedProteins | None = None,
    ) -> Array:
        """float32 [B, logits]; ``row_mask`` bool [B] is False for filler rows, whose logits mean nothing.

        ``protein`` holds one protein a pair, or with ``shared`` each of them once.
        """
        return self.features_and_logits(drug, protein, row_mask, dropout, train=train, shared=shared)[1]

    def features_and_logits(
        self,
        drug: DrugBatch,
        protein: ProteinBatch,
        row_mask: Array,
        dropout: float | Array = 0.0,
        *,
        train: bool,
        shared: SharedProteins | None = None,
    ) -> tuple[Array, Array]:
        """The joint features float32 [B, joint_features], which methods between domains align, and the logits."""
        atoms, atom_mask = self.encode_drug(drug, row_mask, train=train)
        residues, residue_mask = self.encode_protein(protein, shared.uses if shared else row_mask, train=train)
        if shared:
            residues, residue_mask = residues[shared.rows], residue_mask[shared.rows]
        joint = self.bilinear(atoms, residues, atom_mask, residue_mask, row_mask, dropout, train=train)
        return joint, self.decoder(joint.astype(jnp.dtype(self.config.dtype)), row_mask, train=train)

    def project_drug(self, drug: DrugBatch, row_mask: Array) -> tuple[Array, Array]:
        """V [B, atoms, K], all that any pair needs of these drugs, and the mask [B, atoms]."""
        atoms, mask = self.encode_drug(drug, row_mask)
        return self.bilinear.project_drug(atoms, mask), mask

    def project_protein(self, protein: ProteinBatch | ProteinsEndToEnd, row_mask: Array) -> tuple[Array, Array]:
        """Q [B, residues, K], all that any pair needs of these proteins, and the mask [B, residues]."""
        residues, mask = self.encode_protein(protein, row_mask)
        return self.bilinear.project_protein(residues, mask), mask

    def folded_heads(self) -> tuple[Array, Array]:
        """w float32 [K] and b float32 [] of the attention."""
        return self.bilinear.folded_heads()

    def decode(self, f: Array, atoms: Array, residues: Array) -> Array:
        """float32 [B, logits] from pooled attention f float32 [B, K] and the counts int32 [B] of both projections."""
        joint = self.bilinear.joint(f, atoms, residues)
        return self.decoder(joint.astype(jnp.dtype(self.config.dtype)), jnp.ones(f.shape[0], bool), train=False)

    def attention(self, drug: DrugBatch, protein: ProteinBatch, *, per_head: bool = False) -> Array:
        """The attention map float32 [B, A, L] summed over heads, or under ``reference`` per head: [B, heads, A, L].

        Raises:
          ValueError: per head without ``reference``.
        """
        if per_head and not self.config.reference:
            raise ValueError("attention per head needs model.reference: only the sum over heads is identifiable")
        row_mask = jnp.ones(drug.atoms.shape[0], bool)
        atoms, atom_mask = self.encode_drug(drug, row_mask)
        residues, residue_mask = self.encode_protein(protein, row_mask)
        return self.bilinear.attention(atoms, residues, atom_mask, residue_mask, per_head=per_head)


def depth(config: ModelConfig, path: tuple[str, ...]) -> int:
    """Layers between a parameter and the score: 0 in the decoder's last layer, most in the encoders' first ones."""
    module, attention = path[0], len(config.decoder_features) + 1
    number = lambda name: int(name.rpartition("_")[2])
    if module == "decoder":
        return 0 if path[1] == "output" else len(config.decoder_features) - number(path[1])
    if module == "bilinear":
        return attention
    layers = len(config.protein_kernels) if module.startswith(("embedding", "sequence")) else config.drug_layers
    below = number(module) if "_layers_" in module else -1
    return attention + layers - below


def score(logits: Array) -> Array:
    """[B, 1] -> the logit [B]; [B, 2] -> logit_1 - logit_0."""
    return logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]


def init_variables(config: ModelConfig, seed: int | Array) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of a fresh DrugBAN; no shape depends on the data."""
    atoms = REFERENCE_ATOMS if config.reference else 2
    residues = REFERENCE_RESIDUES if config.reference else 4
    drug = DrugBatch(
        atoms=jnp.zeros((1, atoms, 8), jnp.int8),
        bonds=jnp.zeros((1, 1, 2), jnp.int32),
        atom_count=jnp.ones((1,), jnp.int32),
        bond_count=jnp.zeros((1,), jnp.int32),
    )
    protein = ProteinBatch(
        residues=jnp.ones((1, residues), jnp.uint8), residue_count=jnp.full((1,), residues, jnp.int32)
    )
    # One program: operation by operation, dozens of small ones would be compiled.
    init = jax.jit(partial(DrugBAN(config).init, train=False))
    variables = init({"params": jax.random.PRNGKey(seed)}, drug, protein, jnp.ones((1,), bool))
    return {"params": variables["params"], "batch_stats": variables["batch_stats"]}
