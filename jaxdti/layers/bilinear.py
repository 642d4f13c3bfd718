"""Bilinear attention between atoms and residues, pooled to one vector a pair, without a map per head."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.dropout import dropout
from jaxdti.layers.linear import NormalisedWeights, product
from jaxdti.layers.norm import MaskedBatchNorm


class BilinearAttention(nn.Module):
    """DrugBAN's attention layer (doi 10.1038/s42256-022-00605-1, after arXiv:1805.07932).

    With V = ReLU(drug W_v + c_v), Q = ReLU(protein W_q + c_q) of rank K = joint_features * pool_size:

        A^h_vq = sum_k H_hk V_vk Q_qk + b_h
        f_k = sum_h sum_vq V_vk A^h_vq Q_qk
        joint_j = sum_{i<pool} f_{j*pool+i}

    then batch normalisation. Heads enter f only through w = sum_h H_h and b = sum_h b_h, so training builds one map
    A = (V * w) Q^T + b and f = sum_v V * (A Q), and single heads are not identifiable.

    drug [B, A, Fd], protein [B, L, Fp], masks bool [B, A] and [B, L], row_mask bool [B] -> float32 [B, joint_features]
    """

    joint_features: int
    pool_size: int
    heads: int
    pool: str
    dtype: jax.typing.DTypeLike = jnp.float32
    unbiased: bool = False

    def setup(self):
        rank = self.joint_features * self.pool_size
        self.drug_projection = NormalisedWeights(rank, dtype=self.dtype)
        self.protein_projection = NormalisedWeights(rank, dtype=self.dtype)
        normal = nn.initializers.normal(1.0)
        self.head_kernel = self.param("head_kernel", normal, (self.heads, rank), jnp.float32)
        self.head_gain = self.param("head_gain", lambda key: jnp.linalg.norm(self.head_kernel.reshape(-1)))
        self.head_bias = self.param("head_bias", normal, (self.heads,), jnp.float32)
        self.norm = MaskedBatchNorm(unbiased=self.unbiased)

    def heads_weight(self) -> Array:
        """H float32 [heads, K], normalised by one gain."""
        return self.head_kernel * (self.head_gain / jnp.linalg.norm(self.head_kernel.reshape(-1)))

    def __call__(self, drug, protein, drug_mask, protein_mask, row_mask, rate, *, train: bool) -> Array:
        if train:
            drug, protein = self.dropped(drug, protein, rate)
        projections = self.drug_projection(drug.shape[-1]), self.protein_projection(protein.shape[-1])
        attend = partial(attended, projections, self.folded_heads())
        if jax.default_backend() == "cpu":
            # Pair by pair the projections stay in the caches, and are made again for the gradients instead of kept.
            attend = partial(jax.lax.map, jax.checkpoint(attend))
        f = attend((drug, protein, drug_mask, protein_mask))
        f = f / pool_size(self.pool, drug_mask, protein_mask)[:, None]
        joint = f.reshape(f.shape[0], self.joint_features, self.pool_size).sum(-1)
        return self.norm(joint, row_mask, train=train)

    def dropped(self, drug: Array, protein: Array, rate: float | Array) -> tuple[Array, Array]:
        """Both after dropout, which falls on the inputs of the projections."""
        if isinstance(rate, float) and rate == 0.0:  # known before tracing: no random numbers are asked of the caller
            return drug, protein
        return dropout(drug, rate, self.make_rng("dropout")), dropout(protein, rate, self.make_rng("dropout"))

    def project_drug(self, drug: Array, mask: Array) -> Array:
        """V [B, A, K], 0 at padding: all that the attention needs of a drug."""
        return projected(self.drug_projection(drug.shape[-1]), drug, mask)

    def project_protein(self, protein: Array, mask: Array) -> Array:
        """Q [B, L, K], 0 at padding: all that the attention needs of a protein."""
        return projected(self.protein_projection(protein.shape[-1]), protein, mask)

    def folded_heads(self) -> tuple[Array, Array]:
        """w float32 [K] and b float32 []: the heads as they enter f."""
        return jnp.sum(self.heads_weight(), 0), jnp.sum(self.head_bias)

    def joint(self, f: Array, atoms: Array, residues: Array) -> Array:
        """float32 [B, joint_features] from f float32 [B, K] and the counts [B] of what it sums; stored statistics."""
        f = f / pooling_divisor(self.pool, atoms, residues)[:, None]
        joint = f.reshape(f.shape[0], self.joint_features, self.pool_size).sum(-1)
        return self.norm(joint, jnp.ones(f.shape[0], bool), train=False)

    def attention(self, drug, protein, drug_mask, protein_mask, *, per_head: bool = False) -> Array:
        """The map without dropout: float32 [B, A, L] summed over heads, or [B, heads, A, L]; 0 at padding."""
        v, q = self.project_drug(drug, drug_mask), self.project_protein(protein, protein_mask)
        weight, bias = self.heads_weight(), self.head_bias
        if not per_head:
            weight, bias = weight.sum(0, keepdims=True), bias.sum(0, keepdims=True)
        score = jnp.einsum("hk,bak,blk->bhal", weight, v, q) + bias[None, :, None, None]
        score = jnp.where(drug_mask[:, None, :, None] & protein_mask[:, None, None, :], score, 0.0)
        return score if per_head else score[:, 0]


def projected(weights: tuple[Array, Array], x: Array, mask: Array) -> Array:
    """``ReLU(x W + b)``, 0 where masked; x [..., F], W [F, K], b [K], mask bool [...] -> [..., K]."""
    weight, bias = weights
    y = product(x.astype(weight.dtype), weight) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    # Masked after the ReLU: relu(bias) is not 0 at padding.
    return nn.relu(y) * mask[..., None].astype(y.dtype)


def attended(projections, heads: tuple[Array, Array], pairs: tuple[Array, Array, Array, Array]) -> Array:
    """f [B, K] of pairs (drug [B, A, Fd], protein [B, L, Fp], and their masks), or f [K] of one without the axis B.

    Args:
      projections: (W, b) of the drug and of the protein.
      heads: w [K] and b [].
    """
    drug, protein, drug_mask, protein_mask = pairs
    v, q = projected(projections[0], drug, drug_mask), projected(projections[1], protein, protein_mask)
    if v.ndim == 2:
        return pooled_attention(v[None], q[None], *heads)[0]
    return pooled_attention(v, q, *heads)


@jax.custom_vjp
def pooled_attention(v: Array, q: Array, weight: Array, bias: Array) -> Array:
    """``f_k = sum_vq V_vk ((V * w) Q^T + b)_vq Q_qk``; v [B, A, K], q [B, L, K], w [K], b [] -> [B, K].

    The last sum is float32, or float64 where the inputs are. Of a single pair the gradient with respect to Q is one
    product instead of two and their sum, each as large as Q.
    """
    return _pooled_attention(v, q, weight, bias)[0]


def _pooled_attention(v: Array, q: Array, weight: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    wide = jnp.promote_types(v.dtype, jnp.float32)
    score = jnp.einsum("bak,blk->bal", v * weight.astype(v.dtype)[None, None], q) + bias.astype(v.dtype)
    context = jnp.einsum("bal,blk->bak", score, q)
    return jnp.sum(v.astype(wide) * context.astype(wide), axis=1), (v, q, weight, bias, score, context)


def _pooled_attention_gradients(saved: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array, Array]:
    v, q, weight, bias, score, context = saved
    wide = g.dtype
    weighted = v * weight.astype(v.dtype)[None, None]
    to_context = (v.astype(wide) * g[:, None]).astype(v.dtype)
    to_score = jnp.einsum("bak,blk->bal", to_context, q)
    to_weighted = jnp.einsum("bal,blk->bak", to_score, q)
    if v.shape[0] == 1:
        # score^T to_context + to_score^T weighted, stacked over atoms: one product where pairs come one by one.
        maps, rows = jnp.concatenate([score, to_score], 1), jnp.concatenate([to_context, weighted], 1)
        to_q = jnp.einsum("bal,bak->blk", maps, rows)
    else:  # all pairs at once: the stacked maps would be as large as one map for each of two heads
        to_q = jnp.einsum("bal,bak->blk", score, to_context) + jnp.einsum("bal,bak->blk", to_score, weighted)
    to_v = context.astype(wide) * g[:, None] + to_weighted.astype(wide) * weight.astype(wide)[None, None]
    to_weight = jnp.sum(to_weighted.astype(wide) * v.astype(wide), (0, 1))
    to_bias = jnp.sum(to_score.astype(wide))
    return to_v.astype(v.dtype), to_q, to_weight.astype(weight.dtype), to_bias.astype(bias.dtype)


pooled_attention.defvjp(_pooled_attention, _pooled_attention_gradients)


def gram_state(x: Array) -> tuple[Array, Array]:
    """What an entity brings to the Gram form: x [B, n, K] -> x^T x as [K, B, K], and sum_n x [B, K].

    Both are float32, or float64 where ``x`` is. The rows k come first because ``gram_attention`` is one product a row.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    gram = jnp.einsum("bnk,bnj->kbj", x, x, preferred_element_type=wide)
    return gram, jnp.sum(x.astype(wide), axis=1)


def gram_attention(
    drug_gram: Array, drug_total: Array, protein_gram: Array, protein_total: Array, weight: Array, bias: Array
) -> Array:
    """``pooled_attention`` of every drug with every protein, from their Gram states alone:

        f_k = sum_j w_j (V^T V)_kj (Q^T Q)_kj + b (sum_v V_vk) (sum_q Q_qk)

    drug_gram [K, D, K], drug_total [D, K], protein_gram [K, P, K], protein_total [P, K], w [K], b [] -> [D, P, K].
    A state costs n K^2 multiply-adds, then a pair K^2, however many atoms and residues there are.
    """
    weight = weight.astype(drug_gram.dtype)

    def row(states):
        drug, protein = states
        return (drug * weight[None]) @ protein.T

    # On CPU XLA runs one batched product slower than a loop of plain ones (64 x 64 pairs, K = 768: 25 to 40 against
    # 11 to 17 microseconds a pair).
    over_rows = jax.lax.map if jax.default_backend() == "cpu" else lambda f, xs: jax.vmap(f)(xs)
    f = jnp.moveaxis(over_rows(row, (drug_gram, protein_gram)), 0, -1)
    return f + bias.astype(f.dtype) * (drug_total[:, None] * protein_total[None])


def pool_size(pool: str, drug_mask: Array, protein_mask: Array) -> Array:
    """What the sum over atoms and residues is divided by: float32 [B], at least 1."""
    return pooling_divisor(pool, drug_mask.sum(1), protein_mask.sum(1))


def pooling_divisor(pool: str, atoms: Array, residues: Array) -> Array:
    """``pool_size`` from the numbers of atoms and residues [B] that are summed over: float32 [B], at least 1."""
    if pool == "sum":
        return jnp.ones(atoms.shape[0])
    size = jnp.maximum(atoms * residues, 1).astype(jnp.float32)
    return size if pool == "mean" else jnp.sqrt(size)
