"""The published datasets: what each holds, under which terms, and where its public files are."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxdti.errors import DataError

DRUGBAN = "peizhenbai/DrugBAN/9923f8c99959e00263103ff9ac61ba0eaccc8e02/datasets"
DEEPDTA = "hkmztrk/DeepDTA/a546a8433a6822e958f36171c4356ad6f414d623/data"
EMBEDDED = "planted"


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One public file: where it is, where it goes, and the SHA-256 of its content when that is known."""

    source: str  # owner/repository/commit/path
    target: str  # path below the data folder
    sha256: str | None = None  # None: recorded when first there, checked afterwards


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """One named dataset. Flat files hold SMILES, Protein and the label; relational ones keys into two more tables."""

    task: str = "classification"
    files: Mapping[str, str]  # part, or pairs/drugs/proteins -> path below the data folder, without .csv or .csv.gz
    rows: Mapping[str, int]  # published data rows by part
    label_column: str = "Y"
    part_column: str | None = None  # relational: the column of ``pairs`` that tells the part
    part_of: Mapping[str, str] = field(default_factory=dict)  # value of that column -> part
    licence: str
    source: str
    note: str = ""
    upstream: tuple[Upstream, ...] = ()  # what `jaxdti data fetch` downloads; empty: no public file of this form


# SHA-256 of the files of the DrugBAN repository, where known.
_PUBLISHED = {
    "human/random/train": "51e78ef52bb872079d20b813aacea8649970efd32db0d853a2bdfc12913d300b",
    "human/random/val": "652584cf3fda217c7d730a9b6e9fa1bb46c8441626b72c3d980f5561e8f17a5c",
    "human/random/test": "b8d9664fc15e3bbc6abf6a82cc1e12ba512c33d31f06baf25b95786911d4f005",
    "human/cold/train": "7def0986f9af4c73590876cfb3c2862496a86d8d488a6032bebb1f10200871e2",
    "human/cold/val": "b0e1f7afc39b6350aa1c1860a9a5e1ef59828f839f3f1442baa6e6709154866e",
    "human/cold/test": "5eb907a42158b3c5aabf5b816ebcb98fa5f9506ec9299f8f65cbf3ec91eaef21",
    "biosnap/random/train": "b8e2b46e49767522f7bdce69cfda9ae60e1e2806a1fc1810300a01c1b109040b",
    "biosnap/random/val": "9bb93a08f6f726fd4414f2e0d968d0623b931ca6210eeaac6aeb2ea5a9a57696",
    "biosnap/random/test": "27cd0e8fce7225540a5fda9744b8990ffc60b2c0bec206b4b33255026b08b6d1",
    "biosnap/cluster/source_train": "a6538d7e114fa0a114562b4b83cdd1199b3a54d329bbef626f03e05a6a4d0a0c",
    "biosnap/cluster/target_train": "597b982d4df0478dc13d8f168a05d36da75cceca2c3abffd5e25f8c751625e22",
    "biosnap/cluster/target_test": "4f02b57226df0bc62356f9f40d0af66a1978d07b58bfb7219bacc824acf84c83",
    "bindingdb/random_drugban/val": "03a1ea71d3db5293f2af00c90860ae2e6c628b8503f6ea4fcd7807e00f1782f7",
    "bindingdb/cluster/target_test": "fd6ff594ba9a970d67c163441c538b8aa2fb3d567eba136bec74e60d9fad24c0",
    "bindingdb/sample/train": "d8119f3fc41a10051a0d9118950737ff921c0cb7bf20bc08276eaebc8a1e3150",
    "bindingdb/sample/val": "7df6a3b6d1b6bc8d6675b3cc79900b2a921755081e382a65e8796951c78d8e5f",
    "bindingdb/sample/test": "9d77e781140bff5217a631ed344fe8a2eec8b0d337c9d863732755b13251c83b",
}
_FLAT = {"train": "train", "validation": "val", "test": "test"}
_CLUSTER = {"train": "source_train", "target_train": "target_train", "test": "target_test"}
_CLUSTER_NOTE = "train is the source domain, target_train and test the target domain; hold validation out of train"


def _given(
    name: str, rows: tuple[int, int, int], licence: str, source: str, folder: str | None = None, note: str = ""
) -> NamedDataset:
    """A split given as three flat files; ``folder`` is theirs in the DrugBAN repository when they come from there."""
    stems = _CLUSTER if name.endswith("/cluster") else _FLAT
    files = {part: f"{name}/{stem}" for part, stem in stems.items()}
    upstream = tuple(
        Upstream(
            source=f"{DRUGBAN}/{folder}/{stem}.csv", target=f"{name}/{stem}.csv", sha256=_PUBLISHED.get(files[part])
        )
        for part, stem in stems.items()
        if folder
    )
    return NamedDataset(
        files=files,
        rows=dict(zip(files, rows, strict=True)),
        licence=licence,
        source=source,
        note=note or (_CLUSTER_NOTE if stems is _CLUSTER else ""),
        upstream=upstream,
    )


def _deepdta(name: str, rows: tuple[int, int, int], label: str, licence: str) -> NamedDataset:
    """A set of DeepDTA in its setting 1: the first training fold serves as validation, the other four train."""
    files = ("ligands_can.txt", "ligands_iso.txt", "proteins.txt", "Y")
    folds = ("folds/train_fold_setting1.txt", "folds/test_fold_setting1.txt")
    return NamedDataset(
        task="regression",
        files={"pairs": f"{name}/affinity", "drugs": f"{name}/drugs", "proteins": f"{name}/proteins"},
        rows=dict(zip(_FLAT, rows, strict=True)),
        label_column=label,
        part_column="fold",
        part_of={**{f"train{fold}": "train" for fold in (1, 2, 3, 4)}, "train0": "validation", "test": "test"},
        licence=licence,
        source="hkmztrk/DeepDTA @ a546a84",
        note="DeepDTA's setting 1: its test fold, its training fold 0 as validation, folds 1 to 4 train",
        upstream=tuple(
            Upstream(source=f"{DEEPDTA}/{name}/{file}", target=f"{name}/upstream/{Path(file).name}")
            for file in files + folds
        ),
    )


def _family(
    name: str, rows: Mapping[str, int], licence: str, source: str, note: str, label_column: str | None = None
) -> NamedDataset:
    """A relational set of ``families``; with several parts they stand in its column ``split``."""
    return NamedDataset(
        task="regression" if label_column else "classification",
        files={table: f"families/{name}/{table}" for table in ("pairs", "drugs", "proteins")},
        rows=rows,
        label_column=label_column or "Y",
        part_column="split" if len(rows) > 1 else None,
        part_of={part: part for part in rows} if len(rows) > 1 else {},
        licence=licence,
        source=source,
        note=note,
    )


_MIT = "MIT (DrugBAN)"
_BIOSNAP = "MIT (DrugBAN); derives from DrugBank, CC BY-NC 4.0"
_BINDINGDB = "records of BindingDB, CC BY 3.0 US; those from ChEMBL CC BY-SA 3.0"
_MLANDTI = "CMACH508/MlanDTI @ b816a6f"
_AT = "peizhenbai/DrugBAN @ 9923f8c"
_TRANSFORMERCPI = ("Apache-2.0", "lifanchen-simm/transformerCPI @ 1726d17")
_DTIAM = ("Apache-2.0", "CSUBioGroup/DTIAM @ 2b72b2d")
_REVERSAL = "the test part is a label-reversal set; hold validation out of train"
_POSITIVES = "positives only: negatives have to be sampled"
_OWN_PARTITION = "MlanDTI's partition; DrugBAN's own is bindingdb/random_drugban"
_KD_ROWS = {
    "train": 8778,
    "test": 3811,
    "estrogen_receptor": 4,
    "gpcr": 2554,
    "ion_channel": 366,
    "receptor_tyrosine_kinase": 2306,
}

DATASETS: dict[str, NamedDataset] = {
    "human/random": _given("human/random", (4197, 600, 1200), _MIT, _AT, "human/random"),
    "human/cold": _given("human/cold", (3453, 155, 311), _MIT, _AT, "human/cold"),
    "human/cluster": _given("human/cluster", (2202, 725, 192), _MIT, _MLANDTI),
    "biosnap/random": _given("biosnap/random", (19224, 2747, 5493), _BIOSNAP, _AT, "biosnap/random"),
    "biosnap/cluster": _given("biosnap/cluster", (9766, 3628, 907), _BIOSNAP, _AT, "biosnap/cluster"),
    "biosnap/cold": _given("biosnap/cold", (13420, 735, 1715), _BIOSNAP, _MLANDTI),
    "bindingdb/random": _given(
        "bindingdb/random", (34439, 4920, 9840), _BINDINGDB, _MLANDTI, note=f"{_OWN_PARTITION}, do not mix them"
    ),
    "bindingdb/random_drugban": _given(
        "bindingdb/random_drugban", (34439, 4920, 9840), _BINDINGDB, _AT, "bindingdb/random"
    ),
    "bindingdb/cluster": _given("bindingdb/cluster", (14928, 7114, 1779), _BINDINGDB, _AT, "bindingdb/cluster"),
    "bindingdb/cold": _given("bindingdb/cold", (22137, 1561, 3643), _BINDINGDB, _MLANDTI),
    "bindingdb/sample": _given("bindingdb/sample", (172, 25, 49), _BINDINGDB, _AT, "bindingdb_sample/random"),
    "davis": _deepdta("davis", (20036, 5010, 5010), "pKd", "no licence file (DeepDTA); Davis et al. 2011"),
    "kiba": _deepdta(
        "kiba", (78836, 19709, 19709), "kiba_score", "no licence file (DeepDTA); Tang et al. 2014, He et al. 2017"
    ),
    "families/dti_six": _family(
        "dti_six",
        {"table": 39557},
        f"{_BIOSNAP}; {_BINDINGDB}",
        "bindingdb and biosnap",
        "no published split; the proteins carry a family",
    ),
    "families/gpcr": _family("gpcr", {"train": 13806, "test": 1537}, *_TRANSFORMERCPI, _REVERSAL),
    "families/kinase": _family("kinase", {"train": 91552, "test": 19685}, *_TRANSFORMERCPI, _REVERSAL),
    "families/bindingdb_kd": _family(
        "bindingdb_kd",
        _KD_ROWS,
        f"no licence file (BACPI); {_BINDINGDB}",
        "CSUBioGroup/BACPI @ d08f252",
        "the four protein classes held out of train are parts of their own; hold validation out of train",
        "pKd",
    ),
    "families/dude": _family(
        "dude",
        {"table": 136327},
        "MIT (ConPLex); DUD-E, free to use",
        "samsledje/ConPLex_dev @ 6e7e277",
        "no published split of the pairs; five sampled decoys an active, presumed inactive",
    ),
    "families/yamanishi_08": _family("yamanishi_08", {"table": 5127}, *_DTIAM, _POSITIVES),
    "families/moa_activation": _family("moa_activation", {"table": 1913}, *_DTIAM, _POSITIVES),
    "families/moa_inhibition": _family("moa_inhibition", {"table": 21055}, *_DTIAM, _POSITIVES),
}


def get_dataset(name: str) -> NamedDataset:
    """The entry of that name.

    Raises:
      DataError: no such name (the nearest ones are given), or the embedded dataset, which has no files.
    """
    if name == EMBEDDED:
        raise DataError(f"{EMBEDDED}: embedded dataset, generated on the fly; it has no files")
    if name not in DATASETS:
        names = [*DATASETS, EMBEDDED]
        near = [known for known in names if len(name) > 2 and name in known] or difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"
        raise DataError(f"dataset {name!r}: no such name; {hint}")
    return DATASETS[name]
