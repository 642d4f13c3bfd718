"""Section ``model``: the sizes of DrugBAN."""

from dataclasses import dataclass
from typing import Literal

from jaxdti.config.rules import Count, Dropout, Section, Widths

REFERENCE_ATOMS = 290  # the published code pads every molecule to this many nodes,
REFERENCE_RESIDUES = 1200  # every protein to this many residues, and masks neither


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, path="model"):
    """DrugBAN's architecture; the defaults are the paper's sizes."""

    drug_features: Count = 128
    """width of the molecular GCN"""
    drug_layers: Count = 3
    """graph convolutions"""
    protein_features: Count = 128
    """width of the protein CNN"""
    protein_kernels: Widths = (3, 6, 9)
    """residues that each convolution sees"""
    joint_features: Count = 256
    """width of the pooled pair vector"""
    pool_size: Count = 3
    """sum-pooling window after the attention; the attention's rank is joint_features * pool_size"""
    heads: Count = 2
    """attention heads"""
    decoder_features: Widths = (512, 512, 128)
    """widths of the decoder"""
    logits: Literal[1, 2] = 1
    """1, or 2 with score = logit[1] - logit[0]"""
    pool: Literal["sum", "mean", "sqrt"] = "mean"
    """joint vector divided by 1 (sum), atoms * residues (mean) or their square root (sqrt)"""
    dropout: Dropout = 0.2
    """on the inputs of the two attention projections"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """compute dtype: {choices}; parameters and reductions stay float32"""
    reference: bool = False
    """reproduce the published code, faults included, to check numbers against its weights"""
