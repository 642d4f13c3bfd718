"""Section ``vectors``: studies on feature vectors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxdti.config.adaptation import AdaptationMethod
from jaxdti.config.rules import DISTINCT, Between, Dropout, Fits, Section, Widths

Methods = Annotated[
    tuple[AdaptationMethod, ...],
    Fits(lambda methods: 0 < len(methods) == len(set(methods)), "one or more are expected, each only once"),
]


@dataclass(frozen=True, kw_only=True)
class VectorsConfig(Section, path="vectors"):
    """Networks on feature vectors with classes instead of pairs: methods of adaptation on several targets."""

    dataset: Literal["digits", "families", "planted"] | None = None
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
    fingerprint_bits: Annotated[int, Between(16)] | None = None
    """given tables hold SMILES (data.drug_column, or a usual name) instead of numbers: bits of their ECFP4"""
    tasks: Annotated[tuple[str, ...], DISTINCT] = ()
    """targets of the dataset to adapt to; default: all of them"""
    methods: Methods = ("none", "dann", "san")
    """to compare, of adaptation.method; the other keys of adaptation hold for all of them"""
    features: Widths = (256, 128)
    """hidden widths; adaptation aligns the last hidden layer"""
    dropout: Dropout = 0.0
    """behind every hidden layer"""
    validation: Annotated[float, Between(0.01, 0.5)] = 0.2
    """share of the source rows that validates"""
    select: Literal["last", "source", "information", "importance"] = "last"
    """epoch that is kept, never by a target label: last | source (best accuracy on the source's validation rows) |
    information (of the predictions on unlabelled target rows) | importance (validation loss, weighted towards the
    target)"""

    def __post_init__(self):
        super().__post_init__()
        given = [name for name in ("source", "target", "test") if getattr(self, name)]
        unadapted = self.methods == ("none",) and self.select in ("last", "source")
        wanted = {"source", "test"} if unadapted else {"source", "target", "test"}
        if given and (self.dataset or not wanted <= set(given)):
            raise ValueError(
                f"vectors.{given[0]}: name vectors.dataset, or give vectors.source, vectors.target and vectors.test; "
                "where neither vectors.methods nor vectors.select uses the target, it may be missing"
            )
        if self.fingerprint_bits is not None and self.dataset:
            raise ValueError(
                f"vectors.fingerprint_bits={self.fingerprint_bits}: is about given tables; "
                f"vectors.dataset={self.dataset} brings its own features"
            )

    @property
    def given(self) -> bool:
        """Whether there are feature vectors to train on."""
        return self.dataset is not None or self.source is not None
