"""Section ``response``: drug response from cell lines to patients."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from jaxdti.config.rules import (
    DISTINCT,
    Between,
    Count,
    Dropout,
    Fits,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    Widths,
)

Kind = Literal["continuous", "binary"]
Method = Literal["ae", "dae", "vae", "codeae_base", "codeae_mmd", "codeae_adv", "dsn_dann", "coral", "adae"]
Baseline = Literal["elastic_net", "random_forest", "mlp"]
Protocol = Literal["transductive", "inductive"]
SOME_PROTOCOL = Fits(bool, f"choose from {', '.join(get_args(Protocol))}")

SOME = Fits(bool, "one or more numbers are expected")
Numbers = Annotated[tuple[NotNegative, ...], SOME]
Rising = Annotated[
    tuple[int, ...],
    Fits(
        lambda values: values and min(values) >= 1 and list(values) == sorted(set(values)),
        "one or more whole numbers above 0, each larger than the one before, are expected",
    ),
]

_OF_DATASETS = (  # keys that each dataset brings values of its own for
    *("source_expression", "target_expression", "source_response", "target_response"),
    *("source_value_column", "target_value_column", "date_column", "group_column"),
)


@dataclass(frozen=True, kw_only=True)
class PlantedExpressionConfig(Section, path="response.planted"):
    """The embedded cell lines and patients, used when ``response.dataset`` is ``planted-expression``."""

    genes: int = 240
    """columns of both expression tables"""
    source: Annotated[int, Between(50)] = 500
    """cell lines, all with responses"""
    target: Annotated[int, Between(50)] = 1000
    """patients"""
    labelled: Share = 0.5
    """share of the patients with responses"""
    drugs: Count = 4
    """drugs, each with its own response signal"""
    shared: Annotated[int, Between(3)] = 8
    """factors that both domains have; responses depend on three of them"""
    private: int = 6
    """factors of each domain alone"""
    shift: NotNegative = 1.5
    """strength of the private factors, 1 being that of a shared one"""
    confounding: NotNegative = 0.5
    """effect of private factors and of the known confounder on the source response, 1 being that of the signal"""
    noise: NotNegative = 0.5
    """standard deviation of the noise of a gene, and of the source response"""
    seed: Seed = 0
    """of the generator"""

    def __post_init__(self):
        super().__post_init__()
        Between(1, self.shared).check("response.planted.private", self.private)
        Between(12 * self.shared + 16 * self.private + 8).check("response.planted.genes", self.genes)


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(Section, path="response.pretraining"):
    """The autoencoders, trained without any response; a setting for each combination of the lists."""

    widths: Widths = (512, 256)
    """hidden layers of the encoders; decoders mirror them"""
    latent: Annotated[int, Between(2)] = 128
    """width of a code"""
    epochs: Rising = (100,)
    """passes over the larger domain; all but the longest are snapshots of one run"""
    adversarial_epochs: Rising = (50,)
    """codeae_adv: further passes with the critic, after each of epochs; likewise"""
    batch_size: Count = 64
    """samples a step of each domain"""
    learning_rate: Numbers = (1e-3,)
    """AdamW; 1e-4 in the paper"""
    adversarial_learning_rate: Numbers = (1e-4,)
    """codeae_adv: RMSprop, of both players"""
    dropout: Annotated[tuple[Dropout, ...], SOME] = (0.1,)
    """in encoders, decoders and the critic"""
    weight_decay: NotNegative = 0.0
    """decoupled"""
    reconstruction: Literal["squared", "absolute", "euclidean", "elastic"] = "squared"
    """{choices}"""
    orthogonality: Numbers = (1.0,)
    """weight of mean((S^T P)^2)"""
    alignment: Numbers = (1.0,)
    """weight of MMD, CORAL, the reversed classifier, the critic or the confounder's adversary"""
    divergence: NotNegative = 0.01
    """vae: weight of the KL divergence, which is a sum over the code, against the mean error over genes"""
    corruption: Share = 0.2
    """dae: share of the values set to 0"""
    critic_steps: Count = 5
    """updates of the critic, each on a batch of its own, for one of the autoencoder"""
    gradient_penalty: NotNegative = 10.0
    """weight of (|gradient| - 1)^2"""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Section, path="response.heads"):
    """The classifiers of responses, one for each drug, fold and pre-trained encoder."""

    widths: tuple[Count, ...] = (64, 32, 16)
    """hidden layers"""
    epochs: Count = 100
    """passes over the training folds at most, before an encoder layer is unfrozen and after each"""
    patience: Count = 10
    """epochs without a lower validation loss that end such a phase"""
    batch_size: Count = 64
    """samples a step"""
    learning_rate: NotNegative = 1e-3
    """AdamW, with the encoder frozen"""
    weight_decay: NotNegative = 1e-4
    """decoupled"""
    dropout: Dropout = 0.1
    """behind every hidden layer"""
    unfreeze: Annotated[int, Between(0)] = 0
    """encoder layers, from the code down, that are trained too, one more after each plateau"""
    decay: Share = 0.1
    """of the learning rate with every layer that is unfrozen"""


@dataclass(frozen=True, kw_only=True)
class ResponseConfig(Section, path="response"):
    """Drug response that carries over from cell lines (source) to patients (target)."""

    dataset: Literal["planted-expression", "gdsc_tcga", "tcrp_sorafenib"] | None = None
    """{choices}, each with tables and kinds of its own; null: the tables below"""
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
    source_kind: Kind = "continuous"
    """continuous (ln IC50 or AUC: low = responds) | binary (1 = responds)"""
    target_kind: Kind = "binary"
    """binary (1 = responds) | continuous (low = responds; measured by rank correlation)"""
    thresholds: str | None = None
    """table of drug and threshold: a lower source response is label 1; default: the median of the training folds"""
    confounders: str | None = None
    """table of sample and a category (sex, batch, subtype) for adae, of samples of both domains"""
    confounder_column: str | None = None
    """column of the category; default: the one beside the samples"""
    log: bool = False
    """log(1 + x) of the expression"""
    scale: Literal["domain", "source", "none"] = "domain"
    """mean 0 and deviation 1 of each gene: in each domain (domain), by those of the source (source), or none"""
    clip: Positive | None = 10.0
    """largest size of a scaled value; null for no limit"""
    drugs: tuple[str, ...] = ()
    """drugs to model; default: all that have responses in both domains"""
    methods: Annotated[tuple[Method, ...], DISTINCT] = tuple(method for method in get_args(Method) if method != "adae")
    """{choices}"""
    baselines: Annotated[tuple[Baseline, ...], DISTINCT] = ("elastic_net", "random_forest", "mlp")
    """on raw genes, same folds: {choices}"""
    protocols: Annotated[tuple[Protocol, ...], DISTINCT, SOME_PROTOCOL] = ("transductive",)
    """pre-training sees all target samples (transductive), or none with a response (inductive); where
    inductive is among them, those without a response alone give the target's scale and tell its constant genes"""
    folds: Annotated[int, Between(2, 20)] = 5
    """of the source samples of a drug; one validates, the others train"""
    seeds: Count = 1
    """whole repetitions: pre-training, folds and classifiers"""
    seed: int = 0
    """the first of them"""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    planted: PlantedExpressionConfig = field(default_factory=PlantedExpressionConfig)

    def __post_init__(self):
        super().__post_init__()
        if not self.methods and not self.baselines:
            raise ValueError("response.methods=() and response.baselines=(): nothing to do")
        Between(0, 2**31 - 1 - self.seeds).check("response.seed", self.seed)
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
        own = _OF_DATASETS
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
