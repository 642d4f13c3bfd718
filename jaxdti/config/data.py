"""Section ``data``: where pairs come from, and how they are split."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from jaxdti.config.model import REFERENCE_ATOMS, REFERENCE_RESIDUES
from jaxdti.config.rules import Between, Fits, NotNegative, Section, Seed, Share

Split = Literal["random", "cold_drug", "cold_protein", "cold_both", "scaffold", "cluster"]
SPLITS: tuple[str, ...] = get_args(Split)
PlantedKind = Literal["in_domain", "cold", "shifted"]
PLANTED_KINDS: tuple[str, ...] = get_args(PlantedKind)

Shares = Annotated[
    tuple[float, float, float],
    Fits(
        lambda shares: len(shares) == 3 and abs(sum(shares) - 1) <= 1e-6 and min(shares) >= 0,
        "three shares that sum to 1 are expected",
    ),
]


@dataclass(frozen=True, kw_only=True)
class PlantedConfig(Section, path="data.planted"):
    """The embedded synthetic dataset, used when ``data.dataset`` is ``planted``."""

    kind: PlantedKind = "in_domain"
    """{choices}"""
    drugs: Annotated[int, Between(20)] = 1200
    """distinct molecules"""
    proteins: Annotated[int, Between(10)] = 1500
    """distinct sequences"""
    pairs: int = 6000
    """rows over all parts"""
    positive: Annotated[float, Between(0.05, 0.95)] = 0.5
    """share of positive labels before noise"""
    noise: Annotated[float, Between(0.0, 0.5)] = 0.03
    """probability that a label is flipped"""
    seed: Seed = 0
    """of the generator"""

    def __post_init__(self):
        super().__post_init__()
        Between(100, self.drugs * self.proteins).check("data.planted.pairs", self.pairs)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, path="data"):
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
    split: Split = "random"
    """{choices}, for data.table"""
    split_fractions: Shares = (0.7, 0.1, 0.2)
    """shares of train, validation and test; cluster: of validation in the source, of test in the target"""
    cluster_threshold: Share = 0.5
    """cluster: largest distance that joins two drugs (ECFP4, Jaccard) or two proteins (3-mers, cosine)"""
    target_share: Share = 0.4
    """cluster: share of the drug clusters, and of the protein clusters, that are the target domain"""
    split_seed: Seed = 0
    """of the split"""
    split_file: str | None = None
    """reuse the indices that `jaxdti data split` wrote"""
    max_atoms: Annotated[int, Between(1, 1000)] = REFERENCE_ATOMS
    """drugs with more heavy atoms are rejected"""
    max_residues: Annotated[int, Between(9, 10_000)] = REFERENCE_RESIDUES
    """longer proteins are cut at the end"""
    max_rejected: Share = 0.05
    """error when a larger share of the rows is rejected"""
    replicates: Literal["keep", "mean"] = "keep"
    """regression, same pair measured again: {choices}"""
    cache_dir: str | None = None
    """features; default: the user cache directory"""
    device_gib: NotNegative = 4.0
    """features larger than this stay on the host, and every program call gets its own"""
    planted: PlantedConfig = field(default_factory=PlantedConfig)
