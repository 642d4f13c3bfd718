"""Section ``adaptation``: how a network adapts to an unlabelled target domain."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxdti.config.rules import Count, NotNegative, Section, Widths

AdaptationMethod = Literal["none", "dann", "cdan", "san", "san_released", "pada", "mmd", "coral", "mcc"]
ADAPTATION_METHODS: tuple[str, ...] = get_args(AdaptationMethod)


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig(Section, path="adaptation"):
    """How the network is adapted to the unlabelled target pairs of a cluster split or of data.target."""

    method: AdaptationMethod = "none"
    """{choices}"""
    strength: NotNegative = 1.0
    """of the gradient reversal, or weight of the loss of mmd, coral and mcc"""
    schedule: Literal["ramp", "constant"] = "ramp"
    """strength over the epochs: {choices}"""
    start: NotNegative = 0.1
    """epochs without adaptation at the beginning, fewer than training.epochs; below 1: a share of them"""
    batchnorm: Literal["separate", "joint"] = "separate"
    """statistics of source and target pairs: separate (the target is scored with its own) | joint"""
    discriminator_features: Widths = (256, 256)
    """hidden widths of each discriminator"""
    discriminator_learning_rate: NotNegative | None = None
    """default: training.learning_rate"""
    random_features: Count | None = None
    """cdan: width of the randomised multilinear map; default: the outer product of features and predictions"""
    entropy_conditioning: bool = False
    """cdan: pairs predicted with confidence count more (CDAN+E)"""
    class_weights: Literal["target", "batch"] = "target"
    """san, pada: mean predictions over all target pairs (target), or over the batch's (batch)"""
    refresh_steps: Count | None = None
    """class_weights=target: predict all target pairs anew after so many steps, and in each epoch; default: only that"""
    target_entropy: NotNegative = 0.0
    """weight of the mean prediction entropy of target pairs in the loss"""
    selection: Literal["source", "information", "importance"] = "source"
    """what chooses the epoch, never a target label: source (validation score) | information (of the predictions on
    target pairs) | importance (validation loss, weighted towards the target); of pairs, see vectors.select"""
    source_only: bool = True
    """train without adaptation first, to compare with"""
    oracle: bool = False
    """also record the test score of every epoch, which selects nothing, to tell what selection by source costs"""

    def __post_init__(self):
        super().__post_init__()
        if self.refresh_steps is not None and self.class_weights != "target":
            raise ValueError(
                f"adaptation.refresh_steps={self.refresh_steps!r} needs adaptation.class_weights=target, found "
                f"{self.class_weights}"
            )
