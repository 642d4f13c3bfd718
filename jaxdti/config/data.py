"""Section ``data``: where pairs come from, and how they are split."""

from dataclasses import dataclass, field

from jaxdti.config.model import REFERENCE_ATOMS, REFERENCE_RESIDUES
from jaxdti.config.tree import _between, _choose

SPLITS = ("random", "cold_drug", "cold_protein", "cold_both", "scaffold", "cluster")


PLANTED_KINDS = ("in_domain", "cold", "shifted")


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
