"""What the commands' options share: the parser, and flags for the configuration and for columns of tables."""

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jaxdti.config import TASKS, config_fields, config_sections
from jaxdti.config.tree import describe_type, nearest
from jaxdti.errors import DataError

ALIASES = {
    "training.epochs": "--epochs",
    "training.batch_size": "--batch-size",
    "training.seed": "--seed",
    "training.learning_rate": "--learning-rate",
    "output.directory": "--output",
}

Command = Callable[[argparse.Namespace], int]


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


Add = Callable[..., Parser]  # a command by words, function, summary, description, example; gives its parser


def add_run_options(parser: Parser) -> None:
    """CONFIG, --resume and --overwrite."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="YAML file, see configs/")
    group = parser.add_argument_group("run")
    group.add_argument(
        "--resume", metavar="RUN", type=Path, help="continue an interrupted run; takes no other argument"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run directory if it is there")


def share(text: str) -> float:
    """A share between 0 and 1, for argparse."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} found, a share between 0 and 1 expected")
    return share


def add_column_options(parser: Parser, label: bool) -> None:
    """Columns of a table of pairs, and the tables that its keys are found in; of labels too if ``label``."""
    columns = parser.add_argument_group("columns (found among the usual names when not given)")
    columns.add_argument("--drug-column", metavar="NAME", help="column of SMILES")
    columns.add_argument("--protein-column", metavar="NAME", help="column of protein sequences")
    if label:
        columns.add_argument("--label-column", metavar="NAME", help="column of labels")
    sides = parser.add_argument_group("relational layout (TABLE holds keys)")
    sides.add_argument("--drugs", metavar="TABLE", help="table of drug key and SMILES")
    sides.add_argument("--proteins", metavar="TABLE", help="table of protein key and sequence")


def add_reading_options(parser: Parser) -> None:
    """How a table of labelled pairs is read."""
    parser.add_argument("--task", choices=TASKS, help="of the labels (default: classification, or the dataset's)")
    add_column_options(parser, label=True)


def add_config_options(parser: Parser, *only: str) -> None:
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


def overrides(options: argparse.Namespace) -> list[str]:
    """The flags of the configuration that were given, as KEY=VALUE."""
    return [f"{path}={value}" for path, value in vars(options).items() if path in config_fields()]


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that were given."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
