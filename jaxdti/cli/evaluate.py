"""`jaxdti evaluate`."""

import argparse
import sys
from pathlib import Path

from jaxdti.cli.options import Add, add_column_options, given, share
from jaxdti.cli.printing import UNCALIBRATED, listing_rejected, metric_rows, print_table


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "evaluate",
        run,
        "measure a trained model on a labelled table",
        "Score the labelled pairs of TABLE with a trained RUN and print the metrics.\n"
        "Writes NAME_metrics.json, NAME_scores.csv and, if any, NAME_rejected.csv, NAME being that of TABLE.",
        "jaxdti evaluate runs/human_random pairs.csv --output results",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory written by `jaxdti train` or `jaxdti import`")
    parser.add_argument("table", metavar="TABLE", type=Path, help="CSV, TSV or Parquet with SMILES, sequence and label")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the current directory)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier evaluation")
    add_column_options(parser, label=True)
    parser.add_argument(
        "--max-rejected", metavar="SHARE", type=share, help="error when a larger share of the rows is rejected"
    )


def run(options: argparse.Namespace) -> int:
    """`jaxdti evaluate RUN TABLE [--output DIR] [--overwrite]`."""
    from jaxdti.data.tables import table_name
    from jaxdti.inference.evaluate import evaluate as evaluate_run

    settings = given(options, "drug_column", "protein_column", "label_column", "drugs", "proteins", "max_rejected")
    folder, name = options.output or Path(), table_name(options.table)
    with listing_rejected(folder / f"{name}_rejected.csv"):
        metrics = evaluate_run(options.run, options.table, options.output, overwrite=options.overwrite, **settings)
    print_table(str(options.table), metric_rows(metrics))
    if repeated := metrics.get("rows_trained_on"):
        rows = metrics["pairs"]
        print(f"warning: {repeated:,} of {rows:,} rows repeat a pair that the run was trained on", file=sys.stderr)
    if reason := metrics.get("rows_not_checked"):
        print(f"cannot check for rows seen in training: {reason}", file=sys.stderr)
    if metrics.get("calibrated") is False:
        print(UNCALIBRATED)
    print(f"written to {folder / name}_metrics.json and {folder / name}_scores.csv")
    return 0
