"""Sections ``training`` and ``output``."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxdti.config.rules import Between, Count, NotNegative, Positive, Section


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section, path="training"):
    """Optimiser, length and order of the training."""

    epochs: Count = 100
    """passes over the training part"""
    batch_size: Count = 64
    """pairs a step"""
    learning_rate: NotNegative = 5e-5
    """of the optimiser, after the warm-up"""
    optimizer: Literal["adam", "adamw"] = "adam"
    """{choices}, which are the same without weight_decay"""
    weight_decay: NotNegative = 0.0
    """adam: that share of a weight is added to its gradient; adamw: decoupled from the gradient"""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant | cosine (to zero at the last step)"""
    warmup_epochs: NotNegative = 0.0
    """linear warm-up from zero"""
    clip_norm: Positive | None = None
    """largest global gradient norm"""
    class_weight: bool = False
    """weight classes inversely to their frequency in train"""
    patience: Count | None = None
    """stop after so many epochs without a better validation score"""
    seed: int = 0
    """of the initial weights, the order of the pairs and the dropout"""
    frozen: tuple[str, ...] = ()
    """parts that keep their initial weights: drug_encoder, protein_encoder, encoders, pooling, or names of modules such
    as sequence_layers_*; their BatchNorm still takes the statistics of each batch"""
    replicas: Count = 1
    """models trained at once, with seeds counting up from training.seed; predictions are their mean"""
    buckets: Count = 8
    """distinct batch shapes at most"""
    chunk_steps: Count | None = None
    """steps of one program call; default: 1 on CPU, 16 on accelerators"""
    distributed: bool = False
    """join other processes, found by Slurm, TPU pod or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"""

    def __post_init__(self):
        super().__post_init__()
        Between(0, 2**31 - 1 - self.replicas).check("training.seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Section, path="output"):
    """What is written, and where."""

    directory: str | None = None
    """run directory; default: runs/<config name>"""
    baselines: bool = True
    """score the similarity and scikit-learn baselines on the same split"""
    tensorboard: bool = True
    """write TensorBoard events"""
    bootstrap: Annotated[int, Between(0)] = 1000
    """resamples for the 95 % intervals; 0 = no interval"""
