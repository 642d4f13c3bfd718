"""`jaxdti baselines`."""

import argparse
import sys
from pathlib import Path

from jaxdti.cli.options import Add, add_config_options, overrides
from jaxdti.cli.printing import check_place, is_table, listing_rejected, print_table
from jaxdti.config import load_config
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "baselines",
        run,
        "score simple models on a dataset",
        "Fit similarity scores, a random forest and a linear model, and print their test metrics.\n"
        "The data are a dataset of `jaxdti data list`, given files, or a table that is split here.",
        "jaxdti baselines human/random\n"
        "  jaxdti baselines train.csv validation.csv test.csv\n"
        "  jaxdti baselines pairs.csv --data.split cold_drug --output baselines.json",
        usage="jaxdti baselines [NAME|TABLES] [--task TASK] [--data.KEY VALUE ...] [--output FILE.json]",
    )
    parser.add_argument(
        "sources",
        metavar="NAME|TABLES",
        nargs="*",
        help="a dataset, such as human/random, or a table to split, or two (train, test), or three (train, "
        "validation, test)",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the metrics as JSON")
    add_config_options(parser, "data")


def run(options: argparse.Namespace) -> int:
    """`jaxdti baselines NAME|TABLES`, or with the flags of the section ``data``."""
    flags = overrides(options)
    if options.sources:
        flags = _named(options.sources, flags)
    config = load_config(None, flags)
    if options.output:
        check_place(options.output)
    from jaxdti.data.pairs.load import load_data

    with listing_rejected((options.output.parent if options.output else Path()) / "rejected.csv"):
        data = load_data(config.data, config.task)
    for line in data.lines:
        print(line)
    from jaxdti.evaluation.baselines import baseline_table, evaluate_baselines
    from jaxdti.evaluation.part import json_ready
    from jaxdti.files import write_json

    results = evaluate_baselines(
        data.table,
        data.parts["train"],
        data.parts["validation"],
        data.parts["test"],
        task=config.task,
        bootstrap=config.output.bootstrap,
        progress=lambda name, seconds: print(f"{name}: {seconds:.1f} s", file=sys.stderr),
    )
    print_table("baselines on the test part", baseline_table(results, config.task))
    if data.ceiling is not None:
        print(f"Bayes ceiling: test AUROC {data.ceiling:.3f}")
    if options.output:
        write_json(options.output, json_ready(results))
        print(f"written to {options.output}")
    return 0


def _named(sources: list[str], flags: list[str]) -> list[str]:
    """The flags with one to three tables, or with a named dataset; its task unless another is given."""
    from jaxdti.data.named import EMBEDDED, get_dataset

    naming = tuple(f"data.{key}=" for key in ("dataset", "train", "validation", "test", "table"))
    if conflict := [text for text in flags if text.startswith(naming)]:
        raise DataError(f"{sources[0]} and --{conflict[0].partition('=')[0]} both name the data; leave out one")
    if all(map(is_table, sources)):
        parts = {1: ("table",), 2: ("train", "test"), 3: ("train", "validation", "test")}.get(len(sources))
        if parts is None:
            raise DataError(
                f"{len(sources)} tables found; one to split, two (train, test) or three (train, validation, test) "
                "expected"
            )
        return [f"data.{part}={source}" for part, source in zip(parts, sources, strict=True)] + flags
    if len(sources) > 1:
        raise DataError(f"{', '.join(sources)}: give the name of one dataset, or tables only")
    task = "classification" if sources[0] == EMBEDDED else get_dataset(sources[0]).task
    return [f"data.dataset={sources[0]}", f"task={task}", *flags]
