"""Section ``adaptation``: how a network adapts to an unlabelled target domain."""

from dataclasses import dataclass

from jaxdti.config.tree import _between, _choose

ADAPTATION_METHODS = ("none", "dann", "cdan", "san", "san_released", "pada", "mmd", "coral", "mcc")


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """How the network is adapted to the unlabelled target pairs of a cluster split or of data.target."""

    method: str = "none"
    """none | dann | cdan | san | san_released | pada | mmd | coral | mcc"""
    strength: float = 1.0
    """of the gradient reversal, or weight of the loss of mmd, coral and mcc"""
    schedule: str = "ramp"
    """strength over the epochs: ramp | constant"""
    start: float = 0.1
    """epochs without adaptation at the beginning, fewer than training.epochs; below 1: a share of them"""
    batchnorm: str = "separate"
    """statistics of source and target pairs: separate (the target is scored with its own) | joint"""
    discriminator_features: tuple[int, ...] = (256, 256)
    """hidden widths of each discriminator"""
    discriminator_learning_rate: float | None = None
    """default: training.learning_rate"""
    random_features: int | None = None
    """cdan: width of the randomised multilinear map; default: the outer product of features and predictions"""
    entropy_conditioning: bool = False
    """cdan: pairs predicted with confidence count more (CDAN+E)"""
    class_weights: str = "target"
    """san, pada: mean predictions over all target pairs (target), or over the batch's (batch)"""
    refresh_steps: int | None = None
    """class_weights=target: predict all target pairs anew after so many steps, and in each epoch; default: only that"""
    target_entropy: float = 0.0
    """weight of the mean prediction entropy of target pairs in the loss"""
    selection: str = "source"
    """what chooses the epoch, never a target label: source (validation score) | information (of the predictions on
    target pairs) | importance (validation loss, weighted towards the target); of pairs, see vectors.select"""
    source_only: bool = True
    """train without adaptation first, to compare with"""
    oracle: bool = False
    """also record the test score of every epoch, which selects nothing, to tell what selection by source costs"""

    def __post_init__(self):
        _choose("adaptation.method", self.method, ADAPTATION_METHODS)
        _choose("adaptation.schedule", self.schedule, ("ramp", "constant"))
        _choose("adaptation.batchnorm", self.batchnorm, ("separate", "joint"))
        _choose("adaptation.class_weights", self.class_weights, ("target", "batch"))
        _choose("adaptation.selection", self.selection, ("source", "information", "importance"))
        for name in ("strength", "start", "target_entropy"):
            _between(f"adaptation.{name}", getattr(self, name), 0)
        if self.discriminator_learning_rate is not None:
            _between("adaptation.discriminator_learning_rate", self.discriminator_learning_rate, 0)
        if self.random_features is not None:
            _between("adaptation.random_features", self.random_features, 1)
        if self.refresh_steps is not None:
            _between("adaptation.refresh_steps", self.refresh_steps, 1)
            if self.class_weights != "target":
                raise ValueError(
                    f"adaptation.refresh_steps={self.refresh_steps!r} needs adaptation.class_weights=target, found "
                    f"{self.class_weights}"
                )
        if not self.discriminator_features or min(self.discriminator_features) < 1:
            raise ValueError(
                f"adaptation.discriminator_features={self.discriminator_features!r}: one or more whole numbers above 0 "
                "are expected"
            )
