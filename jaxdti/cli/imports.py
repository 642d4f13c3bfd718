"""`jaxdti import`."""

import argparse
from pathlib import Path

from jaxdti.cli.options import Add
from jaxdti.cli.printing import UNCALIBRATED


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "import",
        run,
        "turn published DrugBAN weights into a run",
        "Convert published PyTorch weights of DrugBAN into a run that predicts and evaluates.\n"
        "Reads .npz, and .pth when torch is installed; unknown or missing names are refused.",
        "jaxdti import best_model.pth --output runs/published",
    )
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help=".npz, or .pth when torch is installed")
    parser.add_argument("--output", metavar="RUN", type=Path, required=True, help="run directory to write")


def run(options: argparse.Namespace) -> int:
    """`jaxdti import WEIGHTS --output RUN`."""
    from jaxdti.interop.importing import import_weights

    import_weights(options.weights, options.output)
    print(f"written to {options.output}")
    print(UNCALIBRATED)
    return 0
