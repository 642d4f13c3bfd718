"""The command line: arguments in, one call of a public function, results printed.

Nothing heavy is imported here, so that help and errors come at once; the commands import what they need.
"""

import argparse
import atexit
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdti import __version__
from jaxdti.cli import commands
from jaxdti.cli import data as commands_data
from jaxdti.config import SPLITS, TASKS, config_fields, config_sections
from jaxdti.config.tree import describe_type, nearest
from jaxdti.errors import DataError
from jaxdti.memory import keep_freed_memory

USAGE_ERROR = 2  # also for input that the user has to mend
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
BROKEN_PIPE = 141  # 128 + SIGPIPE

ALIASES = {
    "training.epochs": "--epochs",
    "training.batch_size": "--batch-size",
    "training.seed": "--seed",
    "training.learning_rate": "--learning-rate",
    "output.directory": "--output",
}

Command = Callable[[argparse.Namespace], int]


class Terminated(BaseException):
    """SIGTERM arrived where nothing waits for it."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated


def _stopped(how: str, code: int, own_process: bool) -> int:
    print(f"jaxdti: {how}", file=sys.stderr)
    if own_process:
        # Python's usual end crashes where JAX was stopped while it traced or compiled (jax 0.10, CPU).
        sys.stdout.flush()
        atexit.register(os._exit, code)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code; without arguments prints the help and returns 2."""
    if arguments is None:
        keep_freed_memory()
    main_thread = threading.current_thread() is threading.main_thread()
    # What is half-written can be removed, unlike with the system's own way of ending a process.
    previous = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except DataError as error:
        print(f"jaxdti: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED, arguments is None)
    except Terminated:
        return _stopped("terminated", TERMINATED, arguments is None)
    except BrokenPipeError:  # an OSError too, so before it
        # Whoever read the output has left. Nothing may be flushed into the closed pipe when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:  # such as a folder that may not be read, or a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"jaxdti: error: {where}{error.strerror or error}", file=sys.stderr)
        return USAGE_ERROR
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    parsers = make_parsers()
    words = next((size for size in (2, 1) if " ".join(arguments[:size]) in parsers and len(arguments) >= size), 0)
    parser = parsers[" ".join(arguments[:words])]
    command: Command | None = parser.get_default("command")
    if command is None:  # a group of commands
        if len(arguments) == words:
            parser.print_help(sys.stderr)
            return USAGE_ERROR
        parser.parse_args(arguments[words:])  # ends with the help, the version, or an error
        raise AssertionError("a group of commands parsed without a command")
    # Intermixed, as `predict RUN --output SCORES TABLE` would otherwise lose its optional TABLE.
    return command(parser.parse_intermixed_args(arguments[words:]))


class Parser(argparse.ArgumentParser):
    """Raises DataError instead of leaving, with the nearest option for an unknown one; no abbreviations."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            near = nearest(match[1].lstrip("-"), [text.lstrip("-") for text in self._option_string_actions])
            message = f"unknown option {match[1]}" + (f"; did you mean --{near}?" if near else "")
        elif match := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = match[2].replace("'", "").split(", ")
            near = nearest(match[1], known)
            hint = f"did you mean {near}?" if near else f"choose from {', '.join(known)}"
            message = f"unknown command {match[1]!r}; {hint}"
        raise DataError(f"{message} (see `{self.prog} --help`)")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps descriptions and examples as they are written; more room for the names of options."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size().columns, 110))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--training.epochs, --epochs N`: the metavar once."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, (action.dest or '').upper())}"


def make_parsers() -> dict[str, Parser]:
    """The parser of each command by its words, such as "data split"; those of groups under "" and "data"."""
    root = Parser(
        prog="jaxdti",
        description="Drug-protein interactions: from a table of SMILES, sequences and labels to a trained,\n"
        "evaluated model that scores new pairs.",
        epilog="first steps:\n"
        "  jaxdti train configs/drugban_demo.yaml --output runs/demo\n"
        '  jaxdti predict runs/demo --smiles "CC(=O)Oc1ccccc1C(=O)O" --sequence MKTAYIAKQRQISFVKSHFSRQ\n'
        "\nEach command explains itself: jaxdti COMMAND --help",
    )
    root.add_argument("--version", action="version", version=f"jaxdti {__version__}")
    group = root.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND")
    parsers = {"": root}

    def add(words: str, command: Command | None, summary: str, description: str, example: str, **settings) -> Parser:
        parent = data if words.startswith("data ") else group
        parsers[words] = parent.add_parser(
            words.split()[-1],
            help=summary,
            description=description,
            epilog=f"example:\n  {example}" if example else None,
            prog=f"jaxdti {words}",
            **settings,
        )
        parsers[words].set_defaults(command=command)
        return parsers[words]

    _train_options(add)
    _sweep_options(add)
    _transfer_options(add)
    _response_options(add)
    _evaluate_options(add)
    _predict_options(add)
    _import_options(add)
    _baselines_options(add)
    parser = add(
        "data", None, "list, fetch, inspect and split datasets", "The published datasets, and tables of your own.", ""
    )
    data = parser.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND")
    _data_options(add)
    return parsers


def _train_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "train",
        commands.train,
        "train and evaluate a model",
        "Train a model as CONFIG says, and evaluate it on the test part beside simple baselines.\n"
        "Every key of the configuration is a flag; a flag wins over CONFIG, and CONFIG over the default.",
        "jaxdti train configs/drugban_human_random.yaml --epochs 5 --output runs/short\n"
        "  jaxdti train --data.table pairs.csv --data.split cold_drug --output runs/mine\n"
        "  jaxdti train --resume runs/short",
        usage="jaxdti train CONFIG [--output RUN] [--overwrite] [--KEY VALUE ...]\n       jaxdti train --resume RUN",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="YAML file, see configs/")
    run = parser.add_argument_group("run")
    run.add_argument("--resume", metavar="RUN", type=Path, help="continue an interrupted run; takes no other argument")
    run.add_argument("--overwrite", action="store_true", help="replace the run directory if it is there")
    _add_config_options(parser)


def _sweep_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "sweep",
        commands.sweep,
        "train many settings at once and compare them",
        "Train every setting of a grid, as many at once as one program can hold, and rank them by validation score.\n"
        "CONFIG and the flags give what the settings share; DIR/settings/N is the run directory of setting N.",
        "jaxdti sweep configs/drugban_demo.yaml --grid training.learning_rate=1e-4,5e-5 \\\n"
        "    --grid model.dropout=0.1,0.3 --output sweeps/grid\n"
        "  jaxdti sweep configs/drugban_demo.yaml --grid training.learning_rate=1e-5..1e-3 \\\n"
        "    --grid model.protein_kernels=[3,6,9],[3,5,7] --random 20 --output sweeps/random\n"
        "  jaxdti sweep --resume sweeps/random",
        usage="jaxdti sweep CONFIG --grid KEY=VALUES [--grid ...] [--random N] --output DIR [--KEY VALUE ...]\n"
        "       jaxdti sweep --resume DIR",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="YAML file, see configs/")
    search = parser.add_argument_group("sweep")
    search.add_argument(
        "--grid",
        metavar="KEY=VALUES",
        action="append",
        default=[],
        help="values of a key: V1,V2,...; of a list: [3,6,9],[3,5,7]; with --random also LOW..HIGH, logarithmic where "
        "the key is no whole number and HIGH at least 10 times LOW; once for each key; all combinations are trained",
    )
    search.add_argument("--random", metavar="N", type=int, help="draw N different settings instead")
    search.add_argument("--random-seed", metavar="N", type=int, help="of the draw (default: 0)")
    search.add_argument("--together", metavar="N", type=int, help="most settings at once (default: what memory allows)")
    search.add_argument("--resume", metavar="DIR", type=Path, help="continue a sweep; takes no other argument")
    _add_config_options(parser)


def _transfer_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "transfer",
        commands.transfer,
        "carry a trained network to a small data set",
        "Take the network of SOURCE_RUN to the data of CONFIG and the flags, in one of three modes (--transfer.mode).\n"
        "With --protocol sizes: measure what a source family of proteins brings to a family with few compounds.",
        "jaxdti transfer runs/human_random --transfer.mode feature --data.table mine.csv --output runs/mine\n"
        "  jaxdti transfer runs/human_random --transfer.mode full --transfer.fresh decoder \\\n"
        "    --data.train train.csv --data.test test.csv --output runs/mine\n"
        "  jaxdti transfer runs/human_random --transfer.mode full --transfer.unfreeze pooling,encoders \\\n"
        "    --training.patience 5 --data.table mine.csv --output runs/gradual\n"
        "  jaxdti transfer --resume runs/mine\n"
        "  jaxdti transfer --protocol sizes configs/transfer_families.yaml --output transfers/families\n"
        "  jaxdti transfer --protocol sizes --data.dataset families/dti_six \\\n"
        "    --transfer.sizes.targets nuclear_receptor --transfer.sizes.compounds 2,12,48 --output transfers/small\n"
        "  jaxdti transfer --protocol sizes --resume transfers/families",
        usage="jaxdti transfer SOURCE_RUN [CONFIG] --transfer.mode MODE --output RUN [--overwrite] [--KEY VALUE ...]\n"
        "       jaxdti transfer --resume RUN\n"
        "       jaxdti transfer --protocol sizes CONFIG --output DIR [--KEY VALUE ...]\n"
        "       jaxdti transfer --protocol sizes --resume DIR",
    )
    parser.add_argument("source", metavar="SOURCE_RUN", nargs="?", type=Path, help="directory of a trained run")
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="YAML file, see configs/")
    run = parser.add_argument_group("transfer")
    run.add_argument(
        "--protocol",
        choices=("sizes",),
        help="sizes: balanced training sets of 2 to 1,000 compounds; full fine-tuning (mode1), frozen lower layers "
        "(mode2) and shallow classifiers on frozen features (mode3), beside training without a source",
    )
    run.add_argument("--overwrite", action="store_true", help="replace the run directory if it is there")
    run.add_argument("--resume", metavar="DIR", type=Path, help="continue; takes no other argument")
    _add_config_options(parser)


def _response_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "response",
        commands.response,
        "carry drug response from cell lines to patients",
        "Pre-train autoencoders on the expression of both domains, train classifiers of the source responses on their\n"
        "codes, and score every target sample, beside models of the raw genes. A flag wins over CONFIG.",
        "jaxdti response configs/codeae_planted.yaml --output runs/planted\n"
        "  jaxdti response --response.source_expression lines.csv --response.target_expression patients.csv \\\n"
        "    --response.source_response ic50.csv --response.target_response clinical.csv --output runs/mine\n"
        "  jaxdti response --resume runs/mine",
        usage="jaxdti response CONFIG [--output RUN] [--overwrite] [--KEY VALUE ...]\n"
        "       jaxdti response --resume RUN",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="YAML file, see configs/")
    run = parser.add_argument_group("run")
    run.add_argument("--resume", metavar="RUN", type=Path, help="continue an interrupted run; takes no other argument")
    run.add_argument("--overwrite", action="store_true", help="replace the run directory if it is there")
    _add_config_options(parser, "response", "output.directory", "output.bootstrap")


def _evaluate_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "evaluate",
        commands.evaluate,
        "measure a trained model on a labelled table",
        "Score the labelled pairs of TABLE with a trained RUN and print the metrics.\n"
        "Writes NAME_metrics.json, NAME_scores.csv and, if any, NAME_rejected.csv, NAME being that of TABLE.",
        "jaxdti evaluate runs/human_random pairs.csv --output results",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory written by `jaxdti train` or `jaxdti import`")
    parser.add_argument("table", metavar="TABLE", type=Path, help="CSV, TSV or Parquet with SMILES, sequence and label")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the current directory)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier evaluation")
    _add_column_options(parser, label=True)
    parser.add_argument(
        "--max-rejected", metavar="SHARE", type=_share, help="error when a larger share of the rows is rejected"
    )


def _predict_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "predict",
        commands.predict,
        "score the pairs of a table, or one pair",
        "Score the pairs of TABLE with a trained RUN: one output row per input row, in order, all columns kept.\n"
        "SCORES gains `score`, `probability` (classification) and `error` (why a row has no score).",
        "jaxdti predict runs/human_random pairs.csv --output scores.csv\n"
        '  jaxdti predict runs/human_random --smiles "CCO" --sequence MKTAYIAKQRQISFVKSHFSRQ',
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory written by `jaxdti train` or `jaxdti import`")
    parser.add_argument("table", metavar="TABLE", nargs="?", type=Path, help="CSV, TSV or Parquet")
    parser.add_argument("--output", metavar="SCORES", type=Path, help="CSV, TSV (also .gz, .zst) or Parquet")
    _add_column_options(parser, label=False)
    pair = parser.add_argument_group("one pair instead of a table")
    pair.add_argument("--smiles", metavar="SMILES", help="of the drug")
    pair.add_argument("--sequence", metavar="SEQUENCE", help="of the protein")


def _import_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "import",
        commands.import_weights,
        "turn published DrugBAN weights into a run",
        "Convert published PyTorch weights of DrugBAN into a run that predicts and evaluates.\n"
        "Reads .npz, and .pth when torch is installed; unknown or missing names are refused.",
        "jaxdti import best_model.pth --output runs/published",
    )
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help=".npz, or .pth when torch is installed")
    parser.add_argument("--output", metavar="RUN", type=Path, required=True, help="run directory to write")


def _baselines_options(add: Callable[..., Parser]) -> None:
    parser = add(
        "baselines",
        commands.baselines,
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
    _add_config_options(parser, "data")


def _data_options(add: Callable[..., Parser]) -> None:
    add(
        "data list",
        commands_data.list_,
        "show the named datasets",
        "Show the named datasets: task, rows, and where they are or how to get them.\n"
        "They are looked for under JAXDTI_DATA and in the user cache.",
        "JAXDTI_DATA=path/to/data jaxdti data list",
    )
    parser = add(
        "data fetch",
        commands_data.fetch,
        "download a named dataset",
        "Download a dataset that has public files; a broken download is continued when repeated.\n"
        "The content is checked by SHA-256 before a file gets its name.",
        "jaxdti data fetch human/random",
    )
    parser.add_argument("name", metavar="NAME", help="see `jaxdti data list`")
    parser.add_argument("--to", metavar="DIR", type=Path, help="data folder (default: in the user cache)")

    parser = add(
        "data inspect",
        commands_data.inspect,
        "check tables and show what is in them",
        "Read and check a named dataset, or tables of your own, and show sizes, labels, lengths and rejected rows.\n"
        "Of several tables (train, validation, test) it also shows what they share.",
        "jaxdti data inspect train.csv test.csv --rejected rejected.csv",
    )
    parser.add_argument("sources", metavar="NAME|TABLE", nargs="+", help="a named dataset, or one or more tables")
    _add_reading_options(parser)
    parser.add_argument("--rejected", metavar="FILE", type=Path, help="write the rejected rows as CSV")

    parser = add(
        "data split",
        commands_data.split,
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
        type=_share,
        help="largest distance that joins two drugs (ECFP4, Jaccard) or two proteins (3-mers, cosine); default: 0.5",
    )
    clusters.add_argument(
        "--target-share",
        metavar="SHARE",
        type=_share,
        help="of the drug clusters, and of the protein clusters, that are the target domain (default: 0.4)",
    )
    clusters.add_argument(
        "--published",
        action="store_true",
        help="repeat the published draw, for biosnap/random and bindingdb/random (needs the files of both "
        "bindingdb/random and bindingdb/cluster)",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSON file to write")
    _add_reading_options(parser)


def _share(text: str) -> float:
    """A share between 0 and 1, for argparse."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} found, a share between 0 and 1 expected")
    return share


def _add_column_options(parser: argparse._ActionsContainer, label: bool) -> None:
    columns = parser.add_argument_group("columns (found among the usual names when not given)")
    columns.add_argument("--drug-column", metavar="NAME", help="column of SMILES")
    columns.add_argument("--protein-column", metavar="NAME", help="column of protein sequences")
    if label:
        columns.add_argument("--label-column", metavar="NAME", help="column of labels")
    sides = parser.add_argument_group("relational layout (TABLE holds keys)")
    sides.add_argument("--drugs", metavar="TABLE", help="table of drug key and SMILES")
    sides.add_argument("--proteins", metavar="TABLE", help="table of protein key and sequence")


def _add_reading_options(parser: Parser) -> None:
    parser.add_argument("--task", choices=TASKS, help="of the labels (default: classification, or the dataset's)")
    _add_column_options(parser, label=True)


def _add_config_options(parser: Parser, *only: str) -> None:
    """A flag for each key of the configuration, grouped by section; ``only`` these, by default all but ``response``.

    ``only`` names sections, or single keys of one. The task stands with the pairs it is about: with all sections, and
    with ``data``.
    """
    top = lambda path: path.partition(".")[0]
    wanted = lambda path: top(path) in only or path in only if only else top(path) != "response"
    groups = {"": parser.add_argument_group("task")} if not only or "data" in only else {}
    for path, description in config_sections().items():
        if wanted(path) or path in map(top, only):
            groups[path] = parser.add_argument_group(path, description)
    for path, leaf in config_fields().items():
        section, _, name = path.rpartition(".")
        if section in groups and (not section or wanted(path)):
            default = ",".join(map(str, leaf.default)) if isinstance(leaf.default, tuple) else leaf.default
            default = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
            groups[section].add_argument(
                f"--{path}",
                *([ALIASES[path]] if path in ALIASES and "data" not in only else []),
                dest=path,
                metavar=name.upper(),
                default=argparse.SUPPRESS,
                help=f"{leaf.help} ({describe_type(leaf.kind)}; default {default})".replace("%", "%%"),
            )
