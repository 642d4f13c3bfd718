"""Section ``response``: drug response from cell lines to patients."""

import math
from dataclasses import dataclass, field

from jaxdti.config.tree import _between, _choose

RESPONSE_DATASETS = ("planted-expression", "gdsc_tcga", "tcrp_sorafenib")


_OF_RESPONSE_DATASETS = (  # keys that each of them brings values of its own for
    *("source_expression", "target_expression", "source_response", "target_response"),
    *("source_value_column", "target_value_column", "date_column", "group_column"),
)


RESPONSE_METHODS = ("ae", "dae", "vae", "codeae_base", "codeae_mmd", "codeae_adv", "dsn_dann", "coral", "adae")


RESPONSE_BASELINES = ("elastic_net", "random_forest", "mlp")


RESPONSE_KINDS = ("continuous", "binary")


PROTOCOLS = ("transductive", "inductive")


ERRORS = ("squared", "absolute", "euclidean", "elastic")


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
