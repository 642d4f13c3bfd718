"""Section ``model``: the sizes of DrugBAN."""

from dataclasses import dataclass

from jaxdti.config.tree import _between, _choose

POOLS = ("sum", "mean", "sqrt")


DTYPES = ("float32", "bfloat16")


REFERENCE_ATOMS = 290  # the published code pads every molecule to this many nodes,


REFERENCE_RESIDUES = 1200  # every protein to this many residues, and masks neither


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """DrugBAN's architecture; the defaults are the paper's sizes."""

    drug_features: int = 128
    """width of the molecular GCN"""
    drug_layers: int = 3
    """graph convolutions"""
    protein_features: int = 128
    """width of the protein CNN"""
    protein_kernels: tuple[int, ...] = (3, 6, 9)
    """residues that each convolution sees"""
    joint_features: int = 256
    """width of the pooled pair vector"""
    pool_size: int = 3
    """sum-pooling window after the attention; the attention's rank is joint_features * pool_size"""
    heads: int = 2
    """attention heads"""
    decoder_features: tuple[int, ...] = (512, 512, 128)
    """widths of the decoder"""
    logits: int = 1
    """1, or 2 with score = logit[1] - logit[0]"""
    pool: str = "mean"
    """joint vector divided by 1 (sum), atoms * residues (mean) or their square root (sqrt)"""
    dropout: float = 0.2
    """on the inputs of the two attention projections"""
    dtype: str = "float32"
    """compute dtype: float32 | bfloat16; parameters and reductions stay float32"""
    reference: bool = False
    """reproduce the published code, faults included, to check numbers against its weights"""

    def __post_init__(self):
        _choose("model.pool", self.pool, POOLS)
        _choose("model.dtype", self.dtype, DTYPES)
        _choose("model.logits", self.logits, (1, 2))
        _between("model.dropout", self.dropout, 0.0, 0.95)
        for name in ("drug_features", "drug_layers", "protein_features", "joint_features", "pool_size", "heads"):
            _between(f"model.{name}", getattr(self, name), 1)
        for name in ("protein_kernels", "decoder_features"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"model.{name}={values!r}: one or more whole numbers above 0 are expected")
