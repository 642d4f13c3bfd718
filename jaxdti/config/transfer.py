"""Section ``transfer``: from a trained network to other data."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxdti.config.rules import Between, Count, Dropout, Fits, NotNegative, Section, Share, Widths

Compounds = Annotated[
    tuple[int, ...],
    Fits(
        lambda sizes: sizes and min(sizes) >= 2 and not any(size % 2 for size in sizes),
        "even numbers from 2 on are expected",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SizesConfig(Section, path="transfer.sizes"):
    """`jaxdti transfer --protocol sizes`: a network on fingerprints, carried to families with few compounds."""

    targets: tuple[str, ...] = ()
    """families to transfer to; default: every one"""
    compounds: Compounds = (2, 6, 12, 48, 96, 200, 400, 1000)
    """sizes of the balanced training sets; those a family is too small for are left out"""
    repeats: Count = 5
    """training sets drawn of each size"""
    test_compounds: Annotated[int, Between(12)] = 300
    """of each balanced test set; a third of it where the family has fewer than 1,000 compounds"""
    fingerprint_bits: Count = 2048
    """of ECFP4"""
    features: Widths = (1200, 300)
    """hidden widths of the network"""
    dropout: Dropout = 0.1
    """in training only"""
    frozen_layers: Count = 1
    """hidden layers that mode 2 keeps as they are"""
    learning_rate: NotNegative = 1e-3
    """on the target family; training.learning_rate is that on the sources"""
    epochs: Count = 8
    """on the target family; training.epochs are those on the sources, at most"""
    batch_size: Count = 64
    """on the target family"""
    updates: Count = 20
    """more epochs for a small training set, until it has had so many updates"""

    def __post_init__(self):
        super().__post_init__()
        if self.frozen_layers > len(self.features):
            raise ValueError(
                f"transfer.sizes.frozen_layers={self.frozen_layers!r}: there are {len(self.features)} hidden layers"
            )


@dataclass(frozen=True, kw_only=True)
class TransferConfig(Section, path="transfer"):
    """How a trained model is carried to a small data set, by `jaxdti transfer`."""

    mode: Literal["none", "full", "feature", "shallow"] = "none"
    """none | full (all weights start from the source) | feature (a lower part stays the source's, and is computed once)
    | shallow (logistic regression, beside SVM and random forest, on the source's joint features)"""
    frozen: tuple[str, ...] = ("pooling",)
    """feature: what stays: pooling (all before the decoder), encoders, drug_encoder, protein_encoder, up_to_N (the
    lowest N layers of both encoders, the embeddings first), or names of modules such as sequence_layers_*"""
    fresh: tuple[str, ...] = ()
    """full, feature: what begins anew from random weights, such as decoder; names as in frozen"""
    unfreeze: tuple[str, ...] = ()
    """full: what stays frozen at first, stage by stage, such as pooling,encoders; names as in frozen. A stage ends with
    training.patience; the next begins with its best weights and a tenth of the learning rate; the last trains all"""
    layer_decay: Share = 1.0
    """full, feature: learning rate of a layer as a share of that of the layer above it"""
    scratch: bool = False
    """full, feature: also train from random weights, to compare with"""
    sizes: SizesConfig = field(default_factory=SizesConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.unfreeze and self.mode != "full":
            raise ValueError(
                f"transfer.unfreeze={','.join(self.unfreeze)} needs transfer.mode=full, which trains all in the end, "
                f"found {self.mode}"
            )
        if self.mode == "feature" and not self.frozen:
            raise ValueError("transfer.frozen=(): transfer.mode=feature needs a frozen part, such as pooling")
