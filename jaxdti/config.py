"""The one configuration tree: frozen dataclasses, read from YAML, every field overridable on the command line."""

from dataclasses import dataclass, field

TASKS = ("classification", "regression")
SPLITS = ("given", "random", "cold_drug", "cold_protein", "cold_both", "scaffold")
POOLS = ("sum", "mean", "sqrt")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
PLANTED_KINDS = ("in_domain", "cold", "shifted")


def _choose(path: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{path}={value!r}: choose from {', '.join(map(str, choices))}")


def _between(path: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        raise ValueError(f"{path}={value!r}: must lie between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """The embedded synthetic dataset, used when ``data.dataset`` is ``planted``."""

    kind: str = "in_domain"  # in_domain | cold | shifted
    drugs: int = 1200  # distinct molecules
    proteins: int = 1500  # distinct sequences
    pairs: int = 6000  # rows over all parts
    positive: float = 0.5  # share of positive labels before noise
    noise: float = 0.03  # probability that a label is flipped
    seed: int = 0

    def __post_init__(self):
        _choose("data.planted.kind", self.kind, PLANTED_KINDS)
        _between("data.planted.drugs", self.drugs, 20)
        _between("data.planted.proteins", self.proteins, 10)
        _between("data.planted.pairs", self.pairs, 100, self.drugs * self.proteins)
        _between("data.planted.positive", self.positive, 0.05, 0.95)
        _between("data.planted.noise", self.noise, 0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from: a named dataset, three given files, or one table that is split here."""

    dataset: str | None = None  # a name of `jaxdti data list`, such as human/random, or planted
    train: str | None = None  # given split: path of the training table
    validation: str | None = None  # given split: path of the validation table
    test: str | None = None  # given split: path of the test table
    table: str | None = None  # one table of pairs, split here by `split`
    drugs: str | None = None  # relational layout: table of drug key and SMILES
    proteins: str | None = None  # relational layout: table of protein key and sequence
    drug_column: str | None = None  # found among the usual names when not given
    protein_column: str | None = None
    label_column: str | None = None
    split: str = "random"  # random | cold_drug | cold_protein | cold_both | scaffold (for `table`)
    split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)  # train, validation, test
    split_seed: int = 0
    split_file: str | None = None  # reuse the indices that `jaxdti data split` wrote
    max_atoms: int = 290  # drugs with more heavy atoms are rejected
    max_residues: int = 1200  # longer proteins are cut at the end
    max_rejected: float = 0.05  # error when a larger share of the rows is rejected
    replicates: str = "keep"  # regression, same pair measured again: keep | mean
    cache_dir: str | None = None  # features; default: the user cache directory
    planted: PlantedConfig = field(default_factory=PlantedConfig)

    def __post_init__(self):
        _choose("data.split", self.split, SPLITS)
        _choose("data.replicates", self.replicates, ("keep", "mean"))
        _between("data.max_atoms", self.max_atoms, 1, 1000)
        _between("data.max_residues", self.max_residues, 9, 10_000)
        _between("data.max_rejected", self.max_rejected, 0.0, 1.0)
        if len(self.split_fractions) != 3 or abs(sum(self.split_fractions) - 1) > 1e-6 or min(self.split_fractions) < 0:
            raise ValueError(f"data.split_fractions={self.split_fractions!r}: three shares that sum to 1 are expected")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """DrugBAN's architecture; the defaults are the paper's sizes."""

    drug_features: int = 128  # width of the molecular GCN
    drug_layers: int = 3
    protein_features: int = 128  # width of the protein CNN
    protein_kernels: tuple[int, ...] = (3, 6, 9)
    joint_features: int = 256  # width of the pooled pair vector
    pool_size: int = 3  # sum-pooling window after the attention; the attention's rank is joint * pool
    heads: int = 2
    decoder_features: tuple[int, ...] = (512, 512, 128)
    logits: int = 1  # 1, or 2 with score = logit[1] - logit[0]
    pool: str = "sqrt"  # joint vector divided by 1 (sum), atoms * residues (mean) or their square root (sqrt)
    dropout: float = 0.2  # on the inputs of the two attention projections
    dtype: str = "float32"  # compute dtype: float32 | bfloat16; parameters and reductions stay float32
    reference: bool = False  # reproduce the published code, faults included, to check numbers against its weights

    def __post_init__(self):
        _choose("model.pool", self.pool, POOLS)
        _choose("model.dtype", self.dtype, DTYPES)
        _choose("model.logits", self.logits, (1, 2))
        _between("model.dropout", self.dropout, 0.0, 0.95)
        for name in ("drug_features", "drug_layers", "protein_features", "joint_features", "pool_size", "heads"):
            _between(f"model.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    epochs: int = 100
    batch_size: int = 64  # pairs a step
    learning_rate: float = 5e-5
    optimizer: str = "adam"  # adam | adamw
    weight_decay: float = 0.0  # decoupled, with adamw
    schedule: str = "constant"  # constant | cosine (to zero at the last step)
    warmup_epochs: float = 0.0  # linear warm-up from zero
    clip_norm: float | None = None  # global gradient norm
    class_weight: bool = False  # weight classes inversely to their frequency in train
    patience: int | None = None  # stop after so many epochs without a better validation score
    seed: int = 0
    buckets: int = 6  # distinct batch shapes at most
    chunk_steps: int = 16  # steps between two contacts with the host

    def __post_init__(self):
        _choose("training.optimizer", self.optimizer, OPTIMIZERS)
        _choose("training.schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "buckets", "chunk_steps"):
            _between(f"training.{name}", getattr(self, name), 1)
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            _between(f"training.{name}", getattr(self, name), 0.0)
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("training.weight_decay needs training.optimizer=adamw")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    directory: str | None = None  # run directory; default: runs/<config name>
    baselines: bool = True  # score the similarity and scikit-learn baselines on the same split
    tensorboard: bool = True
    bootstrap: int = 1000  # resamples for the 95 % intervals


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole tree. YAML files in ``configs/`` hold exactly these keys."""

    task: str = "classification"  # classification | regression
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self):
        _choose("task", self.task, TASKS)
        if self.task == "regression" and self.model.logits != 1:
            raise ValueError("model.logits=2 is a classification head; regression needs model.logits=1")
