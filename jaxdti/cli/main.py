"""The command line: arguments in, one call of a public function, results printed.

Nothing heavy is imported here, so that help and errors come at once; the commands import what they need.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence

from jaxdti import __version__
from jaxdti.cli import baselines, data, evaluate, imports, predict, response, sweep, train, transfer
from jaxdti.cli.options import Command, Parser
from jaxdti.errors import DataError
from jaxdti.memory import keep_freed_memory

USAGE_ERROR = 2  # also for input that the user has to mend
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
BROKEN_PIPE = 141  # 128 + SIGPIPE


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
        parent = group_of_data if words.startswith("data ") else group
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

    for command in (train, sweep, transfer, response, evaluate, predict, imports, baselines):
        command.add_options(add)
    parser = add(
        "data", None, "list, fetch, inspect and split datasets", "The published datasets, and tables of your own.", ""
    )
    group_of_data = parser.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND")
    data.add_options(add)
    return parsers
