"""Section ``vectors``: studies on feature vectors."""

from dataclasses import dataclass

from jaxdti.config.adaptation import ADAPTATION_METHODS
from jaxdti.config.tree import _between, _choose

VECTOR_DATASETS = ("digits", "families", "planted")


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
