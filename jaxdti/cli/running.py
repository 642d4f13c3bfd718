"""What the commands that train share: how they end, and what is beside a run directory."""

import sys
from collections.abc import Callable
from pathlib import Path

from jaxdti.config import load_config
from jaxdti.errors import Interrupted, NonFiniteLoss

NON_FINITE = 3  # exit code


def exit_code(work: Callable[[], int | None], continue_with: str, *, silent: bool = False) -> int:
    """Runs ``work`` and returns its exit code, 0 for None.

    Args:
      work: trains, and prints the results.
      continue_with: the command that goes on after a signal; it is told then.
      silent: whether nothing is printed here, as by all processes but the first.
    """
    say = lambda line: None if silent else print(line, file=sys.stderr)
    try:
        return work() or 0
    except Interrupted as stop:
        say(f"saved; continue with: {continue_with}")
        return 128 + stop.signal
    except NonFiniteLoss as error:
        say(f"jaxdti: error: {error}")
        return NON_FINITE


def has_vectors(run: Path) -> bool:
    """Whether a directory is a run on feature vectors, or a folder of networks in one."""
    if (run / "network.json").is_file():
        return True
    return (run / "config.yaml").is_file() and load_config(run / "config.yaml").vectors.given


def list_beside(output: Path) -> Path:
    """Where the rejected rows of a run directory that is not begun are listed; "." has no name of its own."""
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / f"{named.name}.rejected.csv"
