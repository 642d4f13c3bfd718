"""`jaxdti train`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxdti.cli.options import Add, add_config_options, add_run_options, overrides
from jaxdti.cli.printing import listing_rejected, print_table
from jaxdti.cli.running import NON_FINITE, exit_code, has_vectors, list_beside
from jaxdti.config import Config, load_config
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "train",
        run,
        "train and evaluate a model",
        "Train a model as CONFIG says, and evaluate it on the test part beside simple baselines.\n"
        "Every key of the configuration is a flag; a flag wins over CONFIG, and CONFIG over the default.",
        "jaxdti train configs/drugban_human_random.yaml --epochs 5 --output runs/short\n"
        "  jaxdti train --data.table pairs.csv --data.split cold_drug --output runs/mine\n"
        "  jaxdti train --resume runs/short",
        usage="jaxdti train CONFIG [--output RUN] [--overwrite] [--KEY VALUE ...]\n       jaxdti train --resume RUN",
    )
    add_run_options(parser)
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """`jaxdti train CONFIG [--output RUN]` and `jaxdti train --resume RUN`."""
    flags = overrides(options)
    if options.resume:
        if options.config or options.overwrite or flags:
            raise DataError("--resume RUN takes everything from the run; leave out CONFIG and the other flags")
        return resume(options.resume)
    if not options.config and not any(flag.startswith(("data.", "vectors.")) for flag in flags):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/drugban_demo.yaml, or set --data.dataset, "
            "--data.train and --data.test, or --data.table"
        )
    config = load_config(options.config, flags)
    if not options.config and not config.output.directory:
        raise DataError("--output RUN is missing; without CONFIG the run has no name of its own")
    output = Path(config.output.directory or Path("runs") / options.config.stem)
    with listing_rejected(list_beside(output)):
        if config.vectors.given:
            return train_vectors(output, config, options.overwrite)
        return train_pairs(output, config, options.overwrite)


def resume(run: Path) -> int:
    """Goes on with a run on pairs or on feature vectors."""
    if not has_vectors(run):
        return train_pairs(run)
    with listing_rejected(list_beside(run)):
        return train_vectors(run)


def train_pairs(output: Path, config: Config | None = None, overwrite: bool = False, source: Path | None = None) -> int:
    """Trains as ``config`` says, from the network of ``source`` if given, or goes on with what ``output`` holds."""
    from jaxdti.studies import pairs
    from jaxdti.training.mesh import joined_processes

    known = config
    if config is None and (output / "config.yaml").is_file():  # without it, ``resume`` says what is wrong
        known = load_config(output / "config.yaml")
    with joined_processes(known is not None and known.training.distributed) as lead:

        def work() -> None:
            if not lead:
                _train_along(known, output)
            elif config is None:
                pairs.resume(output)
            elif source is None:
                pairs.train(config, output, overwrite=overwrite)
            else:
                pairs.transfer(source, config, output, overwrite=overwrite)

        return exit_code(work, f"jaxdti train --resume {output}", silent=not lead)


def _train_along(config: Any, run: Path) -> None:
    """The part of all processes but the first, which alone evaluates and writes."""
    from jaxdti.data.pairs.load import load_data
    from jaxdti.studies.pairs import fit_pairs, single_configs

    dataset = load_data(config.data, config.task)
    fit_pairs(single_configs(config), dataset, run)


def train_vectors(
    output: Path, config: Config | None = None, overwrite: bool = False, source: Path | None = None
) -> int:
    """As ``train_pairs``, on feature vectors."""
    from jaxdti.studies import vectors

    def work() -> int:
        if config is None:
            return _print_vectors(vectors.resume_vectors(output), output)
        if source is None:
            return _print_vectors(vectors.train_vectors(config, output, overwrite=overwrite), output)
        return _print_vectors(vectors.transfer_vectors(source, config, output, overwrite=overwrite), output)

    return exit_code(work, f"jaxdti {'transfer' if source else 'train'} --resume {output}")


def _print_vectors(summary: dict[str, Any], output: Path) -> int:
    """Prints the results on feature vectors; 3 if a network failed."""
    seeds = len(summary["seeds"])
    over = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    print_table(f"accuracy on target test rows, {over}", summary["lines"])
    if summary["auroc_lines"]:
        print_table(f"AUROC on target test rows, {over}", summary["auroc_lines"])
    if summary["database_lines"]:
        print_table(f"the same by database, mean over the targets, {over}", summary["database_lines"])
    for line in summary["verdicts"]:
        print(line)
    picture = ", domains/" if (output / "domains").is_dir() else ""
    print(f"written to {output / 'results.csv'}, summary.json{picture} and accuracy.png")
    if failed := sum(row["failed"] for row in summary["results"] if row["task"] != "mean"):
        print(f"* {failed} networks failed with a loss that was not finite, and are left out", file=sys.stderr)
        return NON_FINITE
    return 0
