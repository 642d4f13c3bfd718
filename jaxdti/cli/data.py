"""The commands `jaxdti data list`, `fetch`, `inspect` and `split`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdti.cli.options import Add, add_reading_options, share
from jaxdti.cli.printing import check_place, is_table, listing_rejected, print_table
from jaxdti.config import SPLITS, Config, DataConfig, config_from_dict
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError

if TYPE_CHECKING:
    from jaxdti.data.pairs.validation import ReadReport

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def add_options(add: Add) -> None:
    """Adds the commands to the parsers."""
    add(
        "data list",
        list_,
        "show the named datasets",
        "Show the named datasets: task, rows, and where they are or how to get them.\n"
        "They are looked for under JAXDTI_DATA and in the user cache.",
        "JAXDTI_DATA=path/to/data jaxdti data list",
    )
    parser = add(
        "data fetch",
        fetch,
        "download a named dataset",
        "Download a dataset that has public files; a broken download is continued when repeated.\n"
        "The content is checked by SHA-256 before a file gets its name.",
        "jaxdti data fetch human/random",
    )
    parser.add_argument("name", metavar="NAME", help="see `jaxdti data list`")
    parser.add_argument("--to", metavar="DIR", type=Path, help="data folder (default: in the user cache)")

    parser = add(
        "data inspect",
        inspect,
        "check tables and show what is in them",
        "Read and check a named dataset, or tables of your own, and show sizes, labels, lengths and rejected rows.\n"
        "Of several tables (train, validation, test) it also shows what they share.",
        "jaxdti data inspect train.csv test.csv --rejected rejected.csv",
    )
    parser.add_argument("sources", metavar="NAME|TABLE", nargs="+", help="a named dataset, or one or more tables")
    add_reading_options(parser)
    parser.add_argument("--rejected", metavar="FILE", type=Path, help="write the rejected rows as CSV")

    parser = add(
        "data split",
        split,
        "split a table and keep the row indices",
        "Split a table into train, validation and test, and write the row indices for --data.split_file.\n"
        "No pair (or drug, protein, scaffold, cluster, as --kind says) stands in two parts.",
        "jaxdti data split pairs.csv --kind cold_drug --fractions 0.7 0.1 0.2 --seed 0 --output split.json\n"
        "  jaxdti data split pairs.csv --kind cluster --threshold 0.5 --target-share 0.4 --output split.json\n"
        "  jaxdti data split biosnap/random --kind cluster --published --output split.json\n"
        "  jaxdti train --data.table pairs.csv --data.split_file split.json --output runs/mine",
    )
    parser.add_argument("source", metavar="TABLE|NAME", help="a table, or a named dataset without a published split")
    parser.add_argument("--kind", choices=SPLITS, default="random", help="what is kept apart (default: random)")
    parser.add_argument(
        "--fractions",
        metavar=("TRAIN", "VALIDATION", "TEST"),
        nargs=3,
        type=float,
        default=(0.7, 0.1, 0.2),
        help="shares of the rows (default: 0.7 0.1 0.2); with --kind cluster VALIDATION of the source rows and TEST "
        "of the target rows, whose rest is the unlabelled target_train",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the split (default: 0)")
    clusters = parser.add_argument_group("--kind cluster (train on some clusters, test on pairs of the others)")
    clusters.add_argument(
        "--threshold",
        metavar="D",
        type=share,
        help="largest distance that joins two drugs (ECFP4, Jaccard) or two proteins (3-mers, cosine); default: 0.5",
    )
    clusters.add_argument(
        "--target-share",
        metavar="SHARE",
        type=share,
        help="of the drug clusters, and of the protein clusters, that are the target domain (default: 0.4)",
    )
    clusters.add_argument(
        "--published",
        action="store_true",
        help="repeat the published draw, for biosnap/random and bindingdb/random (needs the files of both "
        "bindingdb/random and bindingdb/cluster)",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSON file to write")
    add_reading_options(parser)


def list_(options: argparse.Namespace) -> int:
    """`jaxdti data list`."""
    from jaxdti.data.named import list_datasets

    rows = [(row.name, row.task, row.rows, row.where) for row in list_datasets()]
    print_table("named datasets", [("name", "task", "rows", "where"), *rows])
    return 0


def fetch(options: argparse.Namespace) -> int:
    """`jaxdti data fetch NAME [--to DIR]`."""
    from jaxdti.data.fetch import fetch as fetch_dataset

    for path in fetch_dataset(options.name, options.to, progress=_progress_line()):
        print(path)
    if options.to:
        print(f"to use it: export JAXDTI_DATA={options.to}")
    return 0


def _progress_line() -> Callable[[str, int, int | None], None] | None:
    """One line on the terminal that is written over; None where standard error is not one."""
    if not sys.stderr.isatty():
        return None

    def show(name: str, size: int, total: int | None) -> None:
        share = f" of {total / 1e6:.1f}" if total else ""
        end = "\n" if size == total else ""
        print(f"\r{name}: {size / 1e6:.1f}{share} MB ", end=end, file=sys.stderr, flush=True)

    return show


def inspect(options: argparse.Namespace) -> int:
    """`jaxdti data inspect NAME|TABLE…`: nothing is refused for its rejected rows, they are what one looks for."""
    from jaxdti.data.pairs.leaks import leak_report

    if options.rejected:
        check_place(options.rejected)
    with listing_rejected(options.rejected or Path("rejected.csv")):
        table, report, parts, notes = _read_sources(options)
    for line in [*(report.lines() if report else ()), *notes, *_origin(options.sources[0])]:
        print(line)
    limit = DataConfig().max_rejected
    if report and len(report.rejected) > limit * sum(report.read.values()):
        print(f"warning: more than {limit:.0%} of the rows are rejected; training refuses them (data.max_rejected)")
    print_table("labels", _label_rows(table, parts, options.task or _task(options.sources[0])))
    print_table("sizes of the distinct entities", _size_rows(table))
    if len(parts) > 1:
        for line in leak_report(table, parts).lines():
            print(line)
    if options.rejected:
        if report is None:
            raise DataError("--rejected: the embedded dataset has no rejected rows")
        _write_rejected(report, options.rejected)
    return 0


def _origin(source: str) -> list[str]:
    """Where a named dataset comes from, and its terms."""
    from jaxdti.data.named import EMBEDDED, get_dataset

    if is_table(source) or source == EMBEDDED:
        return []
    dataset = get_dataset(source)
    return [f"source: {dataset.source}", f"licence: {dataset.licence}"]


def split(options: argparse.Namespace) -> int:
    """`jaxdti data split TABLE|NAME --kind KIND --output FILE`."""
    settings = {
        "split": options.kind,
        "split_fractions": list(options.fractions),
        "split_seed": options.seed,
        **_clustering(options),
        **_reading(options),
    }
    if is_table(options.source):
        settings["table"] = options.source
    else:
        if not options.published:
            _check_unsplit(options.source)
        settings["dataset"] = options.source
    config = _config(settings, options.task or _task(options.source))
    check_place(options.output)
    from jaxdti.data.pairs.load import load_data, load_published_clusters
    from jaxdti.data.pairs.splits import write_split

    with listing_rejected(options.output.parent / "rejected.csv"):
        data = (load_published_clusters if options.published else load_data)(config.data, config.task)
    write_split(options.output, data.parts, data.table, options.kind, options.seed)
    for line in data.lines:
        print(line)
    source = f"--data.dataset {options.source}" if "dataset" in settings else f"--data.table {options.source}"
    print(f"written to {options.output}; use it with {source} --data.split_file {options.output}")
    return 0


def _clustering(options: argparse.Namespace) -> dict:
    """The settings of ``DataConfig`` for a split by cluster, as far as they are given."""
    given = [name for name in ("threshold", "target_share") if getattr(options, name) is not None]
    given = [f"--{name.replace('_', '-')}" for name in given] + ["--published"] * options.published
    if given and options.kind != "cluster":
        raise DataError(f"{' and '.join(given)}: only with --kind cluster, found --kind {options.kind}")
    if options.published and len(given) > 1:
        raise DataError(f"--published: the published recipe settles this; leave {' and '.join(given[:-1])} out")
    if options.published and is_table(options.source):
        raise DataError(f"--published: the name of a dataset is expected, found the table {options.source}")
    settings = {"cluster_threshold": options.threshold, "target_share": options.target_share}
    return {name: value for name, value in settings.items() if value is not None}


def _check_unsplit(name: str) -> None:
    """Only a dataset without a published split takes another one."""
    from jaxdti.data.named import EMBEDDED, get_dataset

    if name == EMBEDDED:
        raise DataError(f"{name}: the embedded dataset makes its own parts; choose them with --data.planted.kind")
    dataset = get_dataset(name)
    if len(dataset.rows) > 1:
        raise DataError(
            f"dataset {name}: has a published split ({', '.join(dataset.rows)}); "
            "to split it otherwise, give one file of its pairs as TABLE"
        )


def _task(source: str) -> str:
    from jaxdti.data.named import EMBEDDED, get_dataset

    return "classification" if is_table(source) or source == EMBEDDED else get_dataset(source).task


def _reading(options: argparse.Namespace) -> dict:
    """The settings of ``DataConfig`` that say how to read a table."""
    names = ("drug_column", "protein_column", "label_column", "drugs", "proteins")
    return {name: str(getattr(options, name)) for name in names if getattr(options, name) is not None}


def _config(data: dict, task: str) -> Config:
    return config_from_dict({"task": task, "data": data})


Sources = tuple[InteractionTable, "ReadReport | None", dict[str, np.ndarray], list[str]]


def _read_sources(options: argparse.Namespace) -> Sources:
    """Table, report, rows of each part, and notes."""
    sources, task = options.sources, options.task
    data = _config({**_reading(options), "max_rejected": 1.0}, task or "classification").data
    if all(is_table(source) for source in sources):
        return _read_parts(data, _part_names(sources), task or "classification", [])
    if len(sources) > 1:
        raise DataError(f"{', '.join(sources)}: give the name of one dataset, or tables only")
    return _read_named(sources[0], data, task)


def _read_parts(data: DataConfig, files: dict[str, Path], task: str, notes: list[str]) -> Sources:
    from jaxdti.data.pairs.validation import load_interactions

    loaded = load_interactions(data, files, task)
    parts = {name: np.flatnonzero(loaded.table.part == name) for name in files}
    return loaded.table, loaded.report, parts, notes


def _read_named(name: str, data: DataConfig, task: str | None) -> Sources:
    from jaxdti.data.named import EMBEDDED, dataset_parts, settings_to_read
    from jaxdti.data.pairs.load import load_data

    if name == EMBEDDED:
        planted = load_data(replace(data, dataset=name), task or "classification")
        return planted.table, None, planted.parts, planted.lines
    files = dataset_parts(name)
    notes, data = [files.note] if files.note else [], settings_to_read(files, data)
    if files.parts:
        return _read_parts(data, files.parts, task or files.task, notes)
    assert files.pairs is not None
    table, report, parts, notes = _read_parts(data, {"table": files.pairs}, task or files.task, notes)
    if files.part_column:
        parts = _column_parts(files, table)
    return table, report, parts, notes


def _column_parts(files, table: InteractionTable) -> dict[str, np.ndarray]:
    import pyarrow as pa

    from jaxdti.data.named import part_of_rows
    from jaxdti.data.tables import read_table

    column = read_table(files.pairs, [files.part_column])[files.part_column].cast(pa.string())
    part = part_of_rows(files, {files.part_column: column.to_numpy(zero_copy_only=False)})[table.row]
    return {name: np.flatnonzero(part == name) for name in files.part_names}


def _part_names(sources: list[str]) -> dict[str, Path]:
    """Parts are called after their files, train.csv.gz is train; after the whole path where that is not enough."""
    from jaxdti.data.tables import table_name

    names = [table_name(Path(source)) for source in sources]
    names = names if len(set(names)) == len(names) else sources
    if len(set(names)) < len(names):
        raise DataError(f"{', '.join(sources)}: a table is given twice")
    return dict(zip(names, map(Path, sources), strict=True))


def _label_rows(table: InteractionTable, parts: dict[str, np.ndarray], task: str) -> list[tuple[str, ...]]:
    counts = {name: (rows, np.unique(table.drug[rows]), np.unique(table.protein[rows])) for name, rows in parts.items()}
    sizes = [
        (name, f"{len(rows):,}", f"{len(drugs):,}", f"{len(proteins):,}")
        for name, (rows, drugs, proteins) in counts.items()
    ]
    labels = [label[~np.isnan(label)] for label in (table.label[rows] for rows in parts.values())]
    if task == "classification":
        header, cells = ("positive",), [(f"{np.mean(label):.1%}" if len(label) else "",) for label in labels]
    else:
        header = ("lowest", "median", "mean", "highest", "standard deviation")
        measures = (np.min, np.median, np.mean, np.max, np.std)
        cells = [tuple(f"{measure(label):.3f}" if len(label) else "" for measure in measures) for label in labels]
    return [("part", "rows", "drugs", "proteins", *header), *(a + b for a, b in zip(sizes, cells, strict=True))]


def _size_rows(table: InteractionTable) -> list[tuple[str, ...]]:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        atoms = [Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in table.drugs]
    residues = [len(sequence) for sequence in table.proteins]
    header = ("", "lowest", *(f"{percent} %" for percent in PERCENTILES[1:-1]), "highest")
    rows = [("heavy atoms of a drug", atoms), ("residues of a protein", residues)]
    return [header, *((name, *(f"{value:g}" for value in np.percentile(sizes, PERCENTILES))) for name, sizes in rows)]


def _write_rejected(report: "ReadReport", path: Path) -> None:
    try:
        report.write_rejected(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    print(f"rejected rows written to {path}")
