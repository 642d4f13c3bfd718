"""`jaxdti predict`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxdti.cli.options import Add, add_column_options, given
from jaxdti.cli.printing import UNCALIBRATED, check_place, write_scores
from jaxdti.cli.running import has_vectors
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "predict",
        run,
        "score the pairs of a table, or one pair",
        "Score the pairs of TABLE with a trained RUN: one output row per input row, in order, all columns kept.\n"
        "SCORES gains `score`, `probability` (classification) and `error` (why a row has no score).",
        "jaxdti predict runs/human_random pairs.csv --output scores.csv\n"
        '  jaxdti predict runs/human_random --smiles "CCO" --sequence MKTAYIAKQRQISFVKSHFSRQ',
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory written by `jaxdti train` or `jaxdti import`")
    parser.add_argument("table", metavar="TABLE", nargs="?", type=Path, help="CSV, TSV or Parquet")
    parser.add_argument("--output", metavar="SCORES", type=Path, help="CSV, TSV (also .gz, .zst) or Parquet")
    add_column_options(parser, label=False)
    pair = parser.add_argument_group("one pair instead of a table")
    pair.add_argument("--smiles", metavar="SMILES", help="of the drug")
    pair.add_argument("--sequence", metavar="SEQUENCE", help="of the protein")


def run(options: argparse.Namespace) -> int:
    """`jaxdti predict RUN TABLE --output SCORES` and `jaxdti predict RUN --smiles SMILES --sequence SEQUENCE`."""
    if options.smiles is not None or options.sequence is not None:
        return _predict_pair(options)
    if options.table is None or options.output is None:
        raise DataError("predict needs TABLE and --output SCORES, or --smiles SMILES and --sequence SEQUENCE")
    from jaxdti.data.tables import check_output

    check_output(options.output)
    check_place(options.output)
    if options.output.exists() and options.table.exists() and options.output.samefile(options.table):
        raise DataError(f"{options.output}: SCORES would overwrite TABLE; give another name")
    if has_vectors(options.run):
        return _predict_rows(options)
    from jaxdti.inference.predict import predict as predict_run
    from jaxdti.inference.trained import load_run

    settings = given(options, "drug_column", "protein_column", "drugs", "proteins")
    trained = load_run(options.run)
    scores = predict_run(trained, options.table, **settings)
    write_scores(scores, options.output)
    _tell_uncalibrated(trained)
    return 0


def _predict_rows(options: argparse.Namespace) -> int:
    from jaxdti.inference.networks import predict_rows

    if surplus := given(options, "protein_column", "drugs", "proteins"):
        raise DataError(f"{options.run}: a run on feature vectors; leave out --{min(surplus).replace('_', '-')}")
    write_scores(predict_rows(options.run, options.table, **given(options, "drug_column")), options.output)
    return 0


def _tell_uncalibrated(trained: Any) -> None:
    """On standard error: scores that are read by a program stay alone."""
    if trained.config.task == "classification" and not trained.calibrated:
        print(UNCALIBRATED, file=sys.stderr)


def _predict_pair(options: argparse.Namespace) -> int:
    if options.smiles is None or options.sequence is None:
        raise DataError("one pair needs both --smiles and --sequence")
    if surplus := given(options, "table", "output", "drug_column", "protein_column", "drugs", "proteins"):
        names = ", ".join(f"--{name.replace('_', '-')}" if name != "table" else "TABLE" for name in surplus)
        raise DataError(f"--smiles and --sequence score one pair and print it; leave out {names}")
    import pyarrow as pa

    from jaxdti.inference.predict import predict as predict_run
    from jaxdti.inference.trained import load_run

    pair = pa.table({"SMILES": [options.smiles], "Protein": [options.sequence]})
    trained = load_run(options.run)
    row = predict_run(trained, pair).to_pylist()[0]
    if row["error"]:
        raise DataError(row["error"])
    for name in ("score", "score_sd", "probability"):
        if row.get(name) is not None:
            print(f"{name} {row[name]:.6g}")
    _tell_uncalibrated(trained)
    return 0
