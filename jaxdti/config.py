"""The one configuration tree: frozen dataclasses, read from YAML, every field overridable on the command line.

The text below a field is its help on the command line.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jaxdti.config_tree import Leaf, branches_of, build, check_keys, leaves_of, plant, read_yaml, value_of_text
from jaxdti.data.interactions import DataError

TASKS = ("classification", "regression")
SPLITS = ("random", "cold_drug", "cold_protein", "cold_both", "scaffold", "cluster")
POOLS = ("sum", "mean", "sqrt")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
ADAPTATION_METHODS = ("none", "dann", "cdan", "san", "san_released", "pada", "mmd", "coral", "mcc")
PLANTED_KINDS = ("in_domain", "cold", "shifted")
RESPONSE_DATASETS = ("planted-expression", "gdsc_tcga", "tcrp_sorafenib")
_OF_RESPONSE_DATASETS = (  # keys that each of them brings values of its own for
    *("source_expression", "target_expression", "source_response", "target_response"),
    *("source_value_column", "target_value_column", "date_column", "group_column"),
)
RESPONSE_METHODS = ("ae", "dae", "vae", "codeae_base", "codeae_mmd", "codeae_adv", "dsn_dann", "coral", "adae")
RESPONSE_BASELINES = ("elastic_net", "random_forest", "mlp")
RESPONSE_KINDS = ("continuous", "binary")
TRANSFER_MODES = ("none", "full", "feature", "shallow")
PROTOCOLS = ("transductive", "inductive")
ERRORS = ("squared", "absolute", "euclidean", "elastic")
VECTOR_DATASETS = ("digits", "families", "planted")
REFERENCE_ATOMS = 290  # the published code pads every molecule to this many nodes,
REFERENCE_RESIDUES = 1200  # every protein to this many residues, and masks neither


def _choose(path: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{path}={value!r}: choose from {', '.join(map(str, choices))}")


def _between(path: str, value: float, low: float, high: float = float("inf")) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
        raise ValueError(f"{path}={value!r}: must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """The embedded synthetic dataset, used when ``data.dataset`` is ``planted``."""

    kind: str = "in_domain"
    """in_domain | cold | shifted"""
    drugs: int = 1200
    """distinct molecules"""
    proteins: int = 1500
    """distinct sequences"""
    pairs: int = 6000
    """rows over all parts"""
    positive: float = 0.5
    """share of positive labels before noise"""
    noise: float = 0.03
    """probability that a label is flipped"""
    seed: int = 0
    """of the generator"""

    def __post_init__(self):
        _choose("data.planted.kind", self.kind, PLANTED_KINDS)
        _between("data.planted.drugs", self.drugs, 20)
        _between("data.planted.proteins", self.proteins, 10)
        _between("data.planted.pairs", self.pairs, 100, self.drugs * self.proteins)
        _between("data.planted.positive", self.positive, 0.05, 0.95)
        _between("data.planted.noise", self.noise, 0.0, 0.5)
        _between("data.planted.seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from: a named dataset, three given files, or one table that is split here."""

    dataset: str | None = None
    """a name of `jaxdti data list`, such as human/random, or planted"""
    train: str | None = None
    """given split: path of the training table"""
    validation: str | None = None
    """given split: path of the validation table; held out of train when not given"""
    test: str | None = None
    """given split: path of the test table"""
    target: str | None = None
    """given split: path of the unlabelled pairs of the target domain, for adaptation; a label column is not read"""
    table: str | None = None
    """one table of pairs, split here by data.split"""
    drugs: str | None = None
    """relational layout: table of drug key and SMILES"""
    proteins: str | None = None
    """relational layout: table of protein key and sequence"""
    drug_column: str | None = None
    """column of SMILES; found among the usual names when not given"""
    protein_column: str | None = None
    """column of protein sequences; likewise"""
    label_column: str | None = None
    """column of labels; likewise"""
    split: str = "random"
    """random | cold_drug | cold_protein | cold_both | scaffold | cluster, for data.table"""
    split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """shares of train, validation and test; cluster: of validation in the source, of test in the target"""
    cluster_threshold: float = 0.5
    """cluster: largest distance that joins two drugs (ECFP4, Jaccard) or two proteins (3-mers, cosine)"""
    target_share: float = 0.4
    """cluster: share of the drug clusters, and of the protein clusters, that are the target domain"""
    split_seed: int = 0
    """of the split"""
    split_file: str | None = None
    """reuse the indices that `jaxdti data split` wrote"""
    max_atoms: int = REFERENCE_ATOMS
    """drugs with more heavy atoms are rejected"""
    max_residues: int = REFERENCE_RESIDUES
    """longer proteins are cut at the end"""
    max_rejected: float = 0.05
    """error when a larger share of the rows is rejected"""
    replicates: str = "keep"
    """regression, same pair measured again: keep | mean"""
    cache_dir: str | None = None
    """features; default: the user cache directory"""
    device_gib: float = 4.0
    """features larger than this stay on the host, and every program call gets its own"""
    planted: PlantedConfig = field(default_factory=PlantedConfig)

    def __post_init__(self):
        _choose("data.split", self.split, SPLITS)
        _choose("data.replicates", self.replicates, ("keep", "mean"))
        _between("data.max_atoms", self.max_atoms, 1, 1000)
        _between("data.max_residues", self.max_residues, 9, 10_000)
        _between("data.max_rejected", self.max_rejected, 0.0, 1.0)
        _between("data.split_seed", self.split_seed, 0)
        _between("data.cluster_threshold", self.cluster_threshold, 0.0, 1.0)
        _between("data.target_share", self.target_share, 0.0, 1.0)
        _between("data.device_gib", self.device_gib, 0)
        shares = self.split_fractions
        if len(shares) != 3 or not (abs(sum(shares) - 1) <= 1e-6 and min(shares) >= 0):
            raise ValueError(f"data.split_fractions={shares!r}: three shares that sum to 1 are expected")


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


@dataclass(frozen=True, kw_only=True)
class VectorsConfig:
    """Networks on feature vectors with classes instead of pairs: methods of adaptation on several targets."""

    dataset: str | None = None
    """digits (ten in the source, five in shifted targets) | families (which protein family a compound binds) | planted
    (synthetic: eight classes in the source, three in the target; tasks are strengths of the shift, such as 0,0.5,1)"""
    source: str | None = None
    """given tables: columns of numbers and a label, to train on"""
    target: str | None = None
    """given tables: the same columns, unlabelled; a label column is not read; methods=none does without it"""
    test: str | None = None
    """given tables: the same columns with labels, to measure on"""
    label_column: str | None = None
    """column of the class in source and test; found among the usual names, label first, when not given"""
    fingerprint_bits: int | None = None
    """given tables hold SMILES (data.drug_column, or a usual name) instead of numbers: bits of their ECFP4"""
    tasks: tuple[str, ...] = ()
    """targets of the dataset to adapt to; default: all of them"""
    methods: tuple[str, ...] = ("none", "dann", "san")
    """to compare, of adaptation.method; the other keys of adaptation hold for all of them"""
    features: tuple[int, ...] = (256, 128)
    """hidden widths of the network; the last ones are compared between domains"""
    dropout: float = 0.0
    """behind every hidden layer"""
    validation: float = 0.2
    """share of the source rows that validates"""
    select: str = "last"
    """epoch that is kept, never by a target label: last | source (best accuracy on the source's validation rows) |
    information (of the predictions on unlabelled target rows) | importance (validation loss, weighted towards the
    target)"""

    def __post_init__(self):
        if self.dataset is not None:
            _choose("vectors.dataset", self.dataset, VECTOR_DATASETS)
        given = [name for name in ("source", "target", "test") if getattr(self, name)]
        unadapted = self.methods == ("none",) and self.select in ("last", "source")
        wanted = {"source", "test"} if unadapted else {"source", "target", "test"}
        if given and (self.dataset or not wanted <= set(given)):
            raise ValueError(
                f"vectors.{given[0]}: name vectors.dataset, or give vectors.source, vectors.target and vectors.test; "
                "where neither vectors.methods nor vectors.select uses the target, it may be missing"
            )
        if self.fingerprint_bits is not None:
            _between("vectors.fingerprint_bits", self.fingerprint_bits, 16)
            if self.dataset:
                raise ValueError(
                    f"vectors.fingerprint_bits={self.fingerprint_bits}: is about given tables; "
                    f"vectors.dataset={self.dataset} brings its own features"
                )
        for method in self.methods:
            _choose("vectors.methods", method, ADAPTATION_METHODS)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"vectors.methods={self.methods!r}: one or more are expected, each only once")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"vectors.tasks={self.tasks!r}: each only once")
        if not self.features or min(self.features) < 1:
            raise ValueError(f"vectors.features={self.features!r}: whole numbers above 0 are expected")
        _choose("vectors.select", self.select, ("last", "source", "information", "importance"))
        _between("vectors.dropout", self.dropout, 0.0, 0.95)
        _between("vectors.validation", self.validation, 0.01, 0.5)

    @property
    def given(self) -> bool:
        """Whether there are feature vectors to train on."""
        return self.dataset is not None or self.source is not None


@dataclass(frozen=True, kw_only=True)
class PlantedExpressionConfig:
    """The embedded cell lines and patients, used when ``response.dataset`` is ``planted-expression``."""

    genes: int = 240
    """columns of both expression tables"""
    source: int = 500
    """cell lines, all with responses"""
    target: int = 1000
    """patients"""
    labelled: float = 0.5
    """share of the patients with responses"""
    drugs: int = 4
    """drugs, each with its own response signal"""
    shared: int = 8
    """factors that both domains have; responses depend on three of them"""
    private: int = 6
    """factors of each domain alone"""
    shift: float = 1.5
    """strength of the private factors, 1 being that of a shared one"""
    confounding: float = 0.5
    """effect of private factors and of the known confounder on the source response, 1 being that of the signal"""
    noise: float = 0.5
    """standard deviation of the noise of a gene, and of the source response"""
    seed: int = 0
    """of the generator"""

    def __post_init__(self):
        _between("response.planted.source", self.source, 50)
        _between("response.planted.target", self.target, 50)
        _between("response.planted.labelled", self.labelled, 0.0, 1.0)
        _between("response.planted.drugs", self.drugs, 1)
        _between("response.planted.shared", self.shared, 3)
        _between("response.planted.private", self.private, 1, self.shared)
        _between("response.planted.genes", self.genes, 12 * self.shared + 16 * self.private + 8)
        for name in ("shift", "confounding", "noise", "seed"):
            _between(f"response.planted.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The autoencoders, trained without any response; a setting for each combination of the lists."""

    widths: tuple[int, ...] = (512, 256)
    """hidden layers of the encoders; decoders mirror them"""
    latent: int = 128
    """width of a code"""
    epochs: tuple[int, ...] = (100,)
    """passes over the larger domain; all but the longest are snapshots of one run"""
    adversarial_epochs: tuple[int, ...] = (50,)
    """codeae_adv: further passes with the critic, after each of epochs; likewise"""
    batch_size: int = 64
    """samples a step of each domain"""
    learning_rate: tuple[float, ...] = (1e-3,)
    """AdamW; 1e-4 in the paper"""
    adversarial_learning_rate: tuple[float, ...] = (1e-4,)
    """codeae_adv: RMSprop, of both players"""
    dropout: tuple[float, ...] = (0.1,)
    """in encoders, decoders and the critic"""
    weight_decay: float = 0.0
    """decoupled"""
    reconstruction: str = "squared"
    """squared | absolute | euclidean | elastic"""
    orthogonality: tuple[float, ...] = (1.0,)
    """weight of mean((S^T P)^2)"""
    alignment: tuple[float, ...] = (1.0,)
    """weight of MMD, CORAL, the reversed classifier, the critic or the confounder's adversary"""
    divergence: float = 0.01
    """vae: weight of the KL divergence, which is a sum over the code, against the mean error over genes"""
    corruption: float = 0.2
    """dae: share of the values set to 0"""
    critic_steps: int = 5
    """updates of the critic, each on a batch of its own, for one of the autoencoder"""
    gradient_penalty: float = 10.0
    """weight of (|gradient| - 1)^2"""

    def __post_init__(self):
        path = "response.pretraining"
        _choose(f"{path}.reconstruction", self.reconstruction, ERRORS)
        for name in ("widths", "epochs", "adversarial_epochs"):
            if (
                not (values := getattr(self, name))
                or min(values) < 1
                or (name != "widths" and list(values) != sorted(set(values)))
            ):
                rising = "" if name == "widths" else ", each larger than the one before,"
                raise ValueError(f"{path}.{name}={values!r}: one or more whole numbers above 0{rising} are expected")
        for name, least in (("latent", 2), ("batch_size", 1), ("critic_steps", 1)):
            _between(f"{path}.{name}", getattr(self, name), least)
        for name in ("learning_rate", "adversarial_learning_rate", "dropout", "alignment", "orthogonality"):
            if not (values := getattr(self, name)):
                raise ValueError(f"{path}.{name}={values!r}: one or more numbers are expected")
            for value in values:
                _between(f"{path}.{name}", value, 0.0, 0.95 if name == "dropout" else math.inf)
        for name in ("weight_decay", "divergence", "gradient_penalty"):
            _between(f"{path}.{name}", getattr(self, name), 0.0)
        _between(f"{path}.corruption", self.corruption, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The classifiers of responses, one for each drug, fold and pre-trained encoder."""

    widths: tuple[int, ...] = (64, 32, 16)
    """hidden layers"""
    epochs: int = 100
    """passes over the training folds at most, before an encoder layer is unfrozen and after each"""
    patience: int = 10
    """epochs without a lower validation loss that end such a phase"""
    batch_size: int = 64
    """samples a step"""
    learning_rate: float = 1e-3
    """AdamW, with the encoder frozen"""
    weight_decay: float = 1e-4
    """decoupled"""
    dropout: float = 0.1
    """behind every hidden layer"""
    unfreeze: int = 0
    """encoder layers, from the code down, that are trained too, one more after each plateau"""
    decay: float = 0.1
    """of the learning rate with every layer that is unfrozen"""

    def __post_init__(self):
        for name in ("epochs", "patience", "batch_size"):
            _between(f"response.heads.{name}", getattr(self, name), 1)
        if self.widths and min(self.widths) < 1:
            raise ValueError(f"response.heads.widths={self.widths!r}: whole numbers above 0 are expected")
        for name in ("learning_rate", "weight_decay", "unfreeze"):
            _between(f"response.heads.{name}", getattr(self, name), 0)
        _between("response.heads.dropout", self.dropout, 0.0, 0.95)
        _between("response.heads.decay", self.decay, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ResponseConfig:
    """Drug response that carries over from cell lines (source) to patients (target)."""

    dataset: str | None = None
    """planted-expression | gdsc_tcga | tcrp_sorafenib, each with tables and kinds of its own; null: the tables below"""
    source_expression: str | None = None
    """table of samples x genes; the labelled domain, such as cell lines"""
    target_expression: str | None = None
    """table of samples x genes; the other domain, such as patients"""
    source_response: str | None = None
    """table of sample, drug and response"""
    target_response: str | None = None
    """likewise, to evaluate on; may be left out"""
    sample_column: str | None = None
    """column of sample names in the tables that have it; elsewhere found among the usual names"""
    drug_column: str | None = None
    """column of drug names; likewise"""
    source_value_column: str | None = None
    """column of source responses; found among the usual names when not given"""
    target_value_column: str | None = None
    """column of target responses; likewise"""
    date_column: str | None = None
    """target responses: of several records of a sample and drug, the first by this number counts; likewise"""
    group_column: str | None = None
    """of the target expression, such as cancer: results within each group too"""
    source_kind: str = "continuous"
    """continuous (ln IC50 or AUC: low = responds) | binary (1 = responds)"""
    target_kind: str = "binary"
    """binary (1 = responds) | continuous (low = responds; measured by rank correlation)"""
    thresholds: str | None = None
    """table of drug and threshold: a lower source response is label 1; default: the median of the training folds"""
    confounders: str | None = None
    """table of sample and a category (sex, batch, subtype) for adae, of samples of both domains"""
    confounder_column: str | None = None
    """column of the category; default: the one beside the samples"""
    log: bool = False
    """log(1 + x) of the expression"""
    scale: str = "domain"
    """mean 0 and deviation 1 of each gene: in each domain (domain), by those of the source (source), or none"""
    clip: float | None = 10.0
    """largest size of a scaled value; null for no limit"""
    drugs: tuple[str, ...] = ()
    """drugs to model; default: all that have responses in both domains"""
    methods: tuple[str, ...] = ("ae", "dae", "vae", "codeae_base", "codeae_mmd", "codeae_adv", "dsn_dann", "coral")
    """ae | dae | vae | codeae_base | codeae_mmd | codeae_adv | dsn_dann | coral | adae"""
    baselines: tuple[str, ...] = ("elastic_net", "random_forest", "mlp")
    """on raw genes, same folds: elastic_net | random_forest | mlp"""
    protocols: tuple[str, ...] = ("transductive",)
    """pre-training sees all target samples (transductive), or none with a response (inductive); where
    inductive is among them, those without a response alone give the target's scale and tell its constant genes"""
    folds: int = 5
    """of the source samples of a drug; one validates, the others train"""
    seeds: int = 1
    """whole repetitions: pre-training, folds and classifiers"""
    seed: int = 0
    """the first of them"""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    planted: PlantedExpressionConfig = field(default_factory=PlantedExpressionConfig)

    def __post_init__(self):
        if self.dataset is not None:
            _choose("response.dataset", self.dataset, RESPONSE_DATASETS)
        for name, choices in (
            ("methods", RESPONSE_METHODS),
            ("baselines", RESPONSE_BASELINES),
            ("protocols", PROTOCOLS),
        ):
            values = getattr(self, name)
            for value in values:
                _choose(f"response.{name}", value, choices)
            if len(set(values)) < len(values):
                raise ValueError(f"response.{name}={values!r}: each only once")
        if not self.protocols:
            raise ValueError(f"response.protocols=(): choose from {', '.join(PROTOCOLS)}")
        if not self.methods and not self.baselines:
            raise ValueError("response.methods=() and response.baselines=(): nothing to do")
        _choose("response.source_kind", self.source_kind, RESPONSE_KINDS)
        _choose("response.target_kind", self.target_kind, RESPONSE_KINDS)
        _choose("response.scale", self.scale, ("domain", "source", "none"))
        _between("response.folds", self.folds, 2, 20)
        _between("response.seeds", self.seeds, 1)
        _between("response.seed", self.seed, 0, 2**31 - 1 - self.seeds)
        if self.clip is not None and not (0 < self.clip < math.inf):
            raise ValueError(f"response.clip={self.clip!r}: must be above 0")
        self._check_unused()
        if self.dataset is not None:
            self._check_dataset(self.dataset)

    def _check_unused(self) -> None:
        """Refuses names that nothing would read."""
        for name, used, reason in (
            ("thresholds", self.source_kind == "continuous", "response.source_kind=binary has labels already"),
            ("target_value_column", self.target_response or self.dataset, "response.target_response is not given"),
            ("date_column", self.target_response or self.dataset, "response.target_response is not given"),
            ("date_column", self.target_kind == "binary", "repeated continuous responses are averaged"),
            ("confounder_column", self.confounders or self.dataset, "response.confounders is not given"),
        ):
            if (value := getattr(self, name)) is not None and not used:
                raise ValueError(f"response.{name}={value!r} would not be read: {reason}")

    def _check_dataset(self, dataset: str) -> None:
        """Refuses what would be ignored beside a dataset, and a kind that would turn the sign."""
        own = _OF_RESPONSE_DATASETS
        if dataset != "gdsc_tcga":  # its samples may have confounders, in a table of the user
            own += ("sample_column", "confounders", "confounder_column")
        for name in own:
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"response.{name}={value!r}: response.dataset={dataset} brings its own; for other tables set "
                    "response.dataset=null"
                )
        for name, kind in (("source_kind", "continuous"), ("target_kind", "binary")):
            # Of tcrp_sorafenib the target is continuous, whether that is said or not.
            if getattr(self, name) != kind and (name, dataset) != ("target_kind", "tcrp_sorafenib"):
                raise ValueError(f"response.{name}={getattr(self, name)}: that of response.dataset={dataset} is {kind}")


@dataclass(frozen=True, kw_only=True)
class SizesConfig:
    """`jaxdti transfer --protocol sizes`: a network on fingerprints, carried to families with few compounds."""

    targets: tuple[str, ...] = ()
    """families to transfer to; default: every one"""
    compounds: tuple[int, ...] = (2, 6, 12, 48, 96, 200, 400, 1000)
    """sizes of the balanced training sets; those a family is too small for are left out"""
    repeats: int = 5
    """training sets drawn of each size"""
    test_compounds: int = 300
    """of each balanced test set; a third of it where the family has fewer than 1,000 compounds"""
    fingerprint_bits: int = 2048
    """of ECFP4"""
    features: tuple[int, ...] = (1200, 300)
    """hidden widths of the network"""
    dropout: float = 0.1
    """in training only"""
    frozen_layers: int = 1
    """hidden layers that mode 2 keeps as they are"""
    learning_rate: float = 1e-3
    """on the target family; training.learning_rate is that on the sources"""
    epochs: int = 8
    """on the target family; training.epochs are those on the sources, at most"""
    batch_size: int = 64
    """on the target family"""
    updates: int = 20
    """more epochs for a small training set, until it has had so many updates"""

    def __post_init__(self):
        for name in ("repeats", "fingerprint_bits", "frozen_layers", "epochs", "batch_size", "updates"):
            _between(f"transfer.sizes.{name}", getattr(self, name), 1)
        _between("transfer.sizes.test_compounds", self.test_compounds, 12)
        _between("transfer.sizes.dropout", self.dropout, 0.0, 0.95)
        _between("transfer.sizes.learning_rate", self.learning_rate, 0)
        if not self.features or min(self.features) < 1:
            raise ValueError(f"transfer.sizes.features={self.features!r}: whole numbers above 0 are expected")
        if self.frozen_layers > len(self.features):
            raise ValueError(
                f"transfer.sizes.frozen_layers={self.frozen_layers!r}: there are {len(self.features)} hidden layers"
            )
        if not self.compounds or min(self.compounds) < 2 or any(size % 2 for size in self.compounds):
            raise ValueError(f"transfer.sizes.compounds={self.compounds!r}: even numbers from 2 on are expected")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How a trained model is carried to a small data set, by `jaxdti transfer`."""

    mode: str = "none"
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
    layer_decay: float = 1.0
    """full, feature: learning rate of a layer as a share of that of the layer above it"""
    scratch: bool = False
    """full, feature: also train from random weights, to compare with"""
    sizes: SizesConfig = field(default_factory=SizesConfig)

    def __post_init__(self):
        _choose("transfer.mode", self.mode, TRANSFER_MODES)
        _between("transfer.layer_decay", self.layer_decay, 0.0, 1.0)
        if self.unfreeze and self.mode != "full":
            raise ValueError(
                f"transfer.unfreeze={','.join(self.unfreeze)} needs transfer.mode=full, which trains all in the end, "
                f"found {self.mode}"
            )
        if self.mode == "feature" and not self.frozen:
            raise ValueError("transfer.frozen=(): transfer.mode=feature needs a frozen part, such as pooling")


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


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole tree. YAML files in ``configs/`` hold exactly these keys."""

    task: str = "classification"
    """classification | regression"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    response: ResponseConfig = field(default_factory=ResponseConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self):
        _choose("task", self.task, TASKS)
        if self.task == "regression" and self.adaptation.method not in ("none", "dann", "mmd", "coral"):
            raise ValueError(
                f"adaptation.method={self.adaptation.method} works with class predictions; task=regression takes dann, "
                "mmd or coral"
            )
        if self.training.distributed and self.adaptation.method != "none" and self.adaptation.source_only:
            raise ValueError(
                "training.distributed=true trains one run at a time: set adaptation.source_only=false, and train "
                "without adaptation in a run of its own"
            )
        if self.vectors.given and (self.adaptation.method != "none" or self.task != "classification"):
            raise ValueError(
                f"adaptation.method={self.adaptation.method}, task={self.task}: on feature vectors vectors.methods "
                "names the methods, and the task is classification"
            )
        if self.vectors.given:
            self._check_vectors()
        elif self.adaptation.method == "none" and self.adaptation.selection != "source":
            raise ValueError(f"adaptation.selection={self.adaptation.selection} needs an adaptation.method")
        adapts = self.adaptation.method != "none" or (self.vectors.given and self.vectors.methods != ("none",))
        if adapts and self.adaptation.start >= self.training.epochs:
            raise ValueError(
                f"adaptation.start={self.adaptation.start!r}: adaptation would never begin, as training.epochs="
                f"{self.training.epochs}; fewer epochs are expected, or a share below 1"
            )
        if self.transfer.mode != "none":
            self._check_transfer()
        for name, most in (("max_atoms", REFERENCE_ATOMS), ("max_residues", REFERENCE_RESIDUES)):
            if self.model.reference and (size := getattr(self.data, name)) > most:
                raise ValueError(
                    f"data.{name}={size}: model.reference=true pads to {most} as the published code does; at most that "
                    "many are expected"
                )
        if self.task == "regression" and (self.adaptation.target_entropy or self.adaptation.selection == "information"):
            raise ValueError(
                "adaptation.target_entropy and adaptation.selection=information work with class predictions, which "
                "task=regression has not"
            )
        if self.task == "regression" and self.training.class_weight:
            raise ValueError("training.class_weight=true weights classes, which task=regression has not")
        if self.task == "classification" and self.data.replicates != "keep":
            raise ValueError(
                f"data.replicates={self.data.replicates} is about measured values; task=classification keeps one row "
                "of a pair"
            )
        if self.task == "regression" and self.model.logits != 1:
            raise ValueError(
                f"model.logits={self.model.logits} is a classification head; task=regression needs model.logits=1"
            )

    def _check_vectors(self) -> None:
        """Refuses what a run on feature vectors would not heed."""
        idle = {
            f"data.{name}": getattr(self.data, name) for name in ("dataset", "train", "test", "target", "table")
        } | {
            "training.frozen": ",".join(self.training.frozen),
            "training.distributed": self.training.distributed,
            "training.chunk_steps": self.training.chunk_steps,
            "training.patience": self.training.patience if self.vectors.select == "last" else None,
            "adaptation.oracle": self.adaptation.oracle,
            "adaptation.selection": self.adaptation.selection if self.adaptation.selection != "source" else None,
        }
        if self.transfer.mode != "none":
            idle["vectors.methods"] = ",".join(self.vectors.methods) if self.vectors.methods != ("none",) else None
            idle["transfer.scratch"] = self.transfer.scratch
        if found := [f"{name}={value}" for name, value in idle.items() if value]:
            raise ValueError(
                f"{', '.join(found)}: without effect on feature vectors, so leave them out; the epoch is chosen by "
                f"vectors.select, found {self.vectors.select}"
            )

    def _check_transfer(self) -> None:
        mode = f"transfer.mode={self.transfer.mode}"
        if self.adaptation.method != "none" or self.training.frozen or self.training.distributed:
            raise ValueError(f"{mode} excludes adaptation.method, training.frozen and training.distributed")
        if self.transfer.unfreeze and self.training.patience is None:
            raise ValueError("transfer.unfreeze needs training.patience, which ends each stage")
        if self.vectors.given:
            if self.vectors.select not in ("last", "source"):
                raise ValueError(f"vectors.select={self.vectors.select}: {mode} takes last or source")
            return
        if self.transfer.mode == "shallow" and (self.task == "regression" or self.training.replicas > 1):
            raise ValueError(f"{mode} needs task=classification and training.replicas=1: no network is trained")


def config_fields() -> dict[str, Leaf]:
    """The leaves of the tree by path, such as ``training.epochs``, in the order of the classes."""
    return leaves_of(Config)


def config_sections() -> dict[str, str]:
    """The branches of the tree by path, such as ``data.planted``, with the first line of their description."""
    return branches_of(Config)


def load_config(path: Path | None, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a YAML file, or the default one, with some fields set anew.

    Args:
      path: YAML file with the keys of ``Config``; None for the defaults.
      overrides: flags as on the command line, such as ``--training.epochs=30`` (with or without the dashes).
      defaults: paths and values in place of the defaults, for keys that the file leaves out.

    Raises:
      DataError: no such file, not YAML, an unknown or repeated key, or a value of the wrong type or size.
    """
    source = str(path) if path else ""
    tree = read_yaml(path) if path else {}
    check_keys(Config, tree, source)
    for key, value in (defaults or {}).items():
        section, _, name = key.rpartition(".")
        if name not in (tree.get(section) or {} if section else tree):
            plant(tree, key, value)
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        check_keys(Config, plant({}, key, None), "the overrides")
        if key not in config_fields() or not equals:
            raise DataError(f"override {override!r}: KEY=VALUE is expected, such as training.epochs=30")
        plant(tree, key, value_of_text(config_fields()[key].kind, text, key))
    return config_from_dict(tree, f"{source} with the overrides" if path and overrides else source)


def config_from_dict(mapping: Mapping[str, Any], source: str = "") -> Config:
    """Builds the tree from nested mappings; what is left out keeps its default.

    Args:
      mapping: as ``config_to_dict`` gives it, or a part of that.
      source: where it comes from, for messages.

    Raises:
      DataError: an unknown key, or a value of the wrong type or size; the message names the key and the value.
    """
    check_keys(Config, mapping, source)
    try:
        return build(Config, mapping)
    except ValueError as error:
        raise DataError(f"{source}: {error}" if source else str(error)) from error


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries and lists, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def save_config(config: Config, path: Path) -> None:
    """Writes every field as YAML for ``load_config``; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
