"""Sections ``training`` and ``output``."""

import math
from dataclasses import dataclass

from jaxdti.config.tree import _between, _choose

OPTIMIZERS = ("adam", "adamw")


SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimiser, length and order of the training."""

    epochs: int = 100
    """passes over the training part"""
    batch_size: int = 64
    """pairs a step"""
    learning_rate: float = 5e-5
    """of the optimiser, after the warm-up"""
    optimizer: str = "adam"
    """adam | adamw, which are the same without weight_decay"""
    weight_decay: float = 0.0
    """adam: that share of a weight is added to its gradient; adamw: decoupled from the gradient"""
    schedule: str = "constant"
    """constant | cosine (to zero at the last step)"""
    warmup_epochs: float = 0.0
    """linear warm-up from zero"""
    clip_norm: float | None = None
    """largest global gradient norm"""
    class_weight: bool = False
    """weight classes inversely to their frequency in train"""
    patience: int | None = None
    """stop after so many epochs without a better validation score"""
    seed: int = 0
    """of the initial weights, the order of the pairs and the dropout"""
    frozen: tuple[str, ...] = ()
    """parts that keep their initial weights: drug_encoder, protein_encoder, encoders, pooling, or names of modules such
    as sequence_layers_*; their BatchNorm still takes the statistics of each batch"""
    replicas: int = 1
    """models trained at once, with seeds counting up from training.seed; predictions are their mean"""
    buckets: int = 8
    """distinct batch shapes at most"""
    chunk_steps: int | None = None
    """steps of one program call; default: 1 on CPU, 16 on accelerators"""
    distributed: bool = False
    """join other processes, found by Slurm, TPU pod or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"""

    def __post_init__(self):
        _choose("training.optimizer", self.optimizer, OPTIMIZERS)
        _choose("training.schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "buckets", "replicas"):
            _between(f"training.{name}", getattr(self, name), 1)
        _between("training.seed", self.seed, 0, 2**31 - 1 - self.replicas)
        if self.chunk_steps is not None:
            _between("training.chunk_steps", self.chunk_steps, 1)
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            _between(f"training.{name}", getattr(self, name), 0)
        if self.patience is not None:
            _between("training.patience", self.patience, 1)
        if self.clip_norm is not None and not (0 < self.clip_norm < math.inf):
            raise ValueError(f"training.clip_norm={self.clip_norm!r}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written, and where."""

    directory: str | None = None
    """run directory; default: runs/<config name>"""
    baselines: bool = True
    """score the similarity and scikit-learn baselines on the same split"""
    tensorboard: bool = True
    """write TensorBoard events"""
    bootstrap: int = 1000
    """resamples for the 95 % intervals; 0 = no interval"""

    def __post_init__(self):
        _between("output.bootstrap", self.bootstrap, 0)
