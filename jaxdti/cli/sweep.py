"""`jaxdti sweep`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxdti.cli.options import Add, add_config_options, given, overrides
from jaxdti.cli.printing import listing_rejected, print_table
from jaxdti.cli.running import NON_FINITE, exit_code, list_beside
from jaxdti.config import Config, load_config
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "sweep",
        run,
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
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """`jaxdti sweep CONFIG --grid KEY=VALUES --output DIR` and `jaxdti sweep --resume DIR`."""
    flags, settings = overrides(options), given(options, "random", "random_seed", "together")
    if options.resume:
        if options.config or options.grid or settings or flags:
            raise DataError("--resume DIR takes everything from the sweep; leave out CONFIG and the other flags")
        return _sweep(options.resume)
    if not options.config and not any(flag.startswith("data.") for flag in flags):
        raise DataError("CONFIG is missing: name a YAML file such as configs/drugban_demo.yaml, or set --data.table")
    if "output.directory" not in vars(options):
        raise DataError("--output DIR is missing")
    if "random_seed" in settings and "random" not in settings:
        raise DataError("--random-seed is that of --random N, which is missing")
    config = load_config(options.config, flags)
    output = Path(vars(options)["output.directory"])
    from jaxdti.studies.grid import parse_grid

    grid = parse_grid(options.grid)  # a mistake shows before JAX is loaded
    if twice := [flag for flag in flags if flag.partition("=")[0] in grid]:
        raise DataError(f"--{twice[0]} and --grid both set the same key; leave out one")
    with listing_rejected(list_beside(output)):
        return _sweep(output, config, options.grid, **settings)


def _sweep(output: Path, config: Config | None = None, grid: list[str] | None = None, **settings: Any) -> int:
    """Begins a sweep, or goes on with that in ``output`` where there is no ``config``."""
    from jaxdti.studies import sweep as study

    def work() -> int:
        if config is None:
            results = study.resume_sweep(output)
        else:
            results = study.sweep(config, grid or [], output, **settings)
        print_table("settings, best validation score first", study.sweep_table(results))
        best = results.ranked()[0]
        if best["failed"]:
            print(f"jaxdti: error: every setting failed; the reasons are in {output / 'results.csv'}", file=sys.stderr)
            return NON_FINITE
        print(f"best by validation: setting {best['setting']}, in {output / best['directory']}")
        print(f"written to {output / 'results.csv'}")
        return 0

    return exit_code(work, f"jaxdti sweep --resume {output}")
