"""`jaxdti transfer`."""

import argparse
from pathlib import Path
from typing import Any

from jaxdti.cli.options import Add, add_config_options, overrides
from jaxdti.cli.printing import listing_rejected, print_table
from jaxdti.cli.running import exit_code, has_vectors, list_beside
from jaxdti.cli.train import resume, train_pairs, train_vectors
from jaxdti.config import Config, config_to_dict, load_config
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "transfer",
        run,
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
    group = parser.add_argument_group("transfer")
    group.add_argument(
        "--protocol",
        choices=("sizes",),
        help="sizes: balanced training sets of 2 to 1,000 compounds; full fine-tuning (mode1), frozen lower layers "
        "(mode2) and shallow classifiers on frozen features (mode3), beside training without a source",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run directory if it is there")
    group.add_argument("--resume", metavar="DIR", type=Path, help="continue; takes no other argument")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """`jaxdti transfer SOURCE_RUN [CONFIG] --output RUN`, and `jaxdti transfer --protocol sizes`."""
    flags = overrides(options)
    if options.protocol:
        return _run_sizes(options, flags)
    if options.resume:
        if options.source or options.overwrite or flags:
            raise DataError("--resume RUN takes everything from the run; leave out SOURCE_RUN, CONFIG and other flags")
        return resume(options.resume)
    if not options.source:
        raise DataError("SOURCE_RUN is missing: the directory of a trained run, or --protocol sizes")
    if "output.directory" not in vars(options):
        raise DataError("--output RUN is missing")
    output = Path(vars(options)["output.directory"])
    if has_vectors(options.source):
        config = _vectors_config(options, flags)
        with listing_rejected(list_beside(output)):
            return train_vectors(output, config, options.overwrite, options.source)
    config = load_config(options.config, flags, _source_settings(options.source))
    with listing_rejected(list_beside(output)):
        return train_pairs(output, config, options.overwrite, options.source)


def _vectors_config(options: argparse.Namespace, flags: list[str]) -> Config:
    """What a network on feature vectors is carried to, with its own settings as defaults."""
    from jaxdti.inference.networks import transfer_settings

    config = load_config(options.config, flags, transfer_settings(options.source))
    if not config.vectors.given:
        raise DataError(
            f"{options.source}: a run on feature vectors; give the small data set with --vectors.source and "
            "--vectors.test"
        )
    return config


def _source_settings(run: Path) -> dict[str, Any]:
    """What a transferred run takes over from its source where nothing else is said: task, model, largest sizes."""
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run}: not a run directory; expected one written by `jaxdti train` or `jaxdti import`")
    tree = config_to_dict(load_config(run / "config.yaml"))
    sizes = {f"data.{name}": tree["data"][name] for name in ("max_atoms", "max_residues")}
    return {"task": tree["task"], **sizes, **{f"model.{name}": value for name, value in tree["model"].items()}}


def _run_sizes(options: argparse.Namespace, flags: list[str]) -> int:
    """`jaxdti transfer --protocol sizes CONFIG --output DIR` and `jaxdti transfer --protocol sizes --resume DIR`."""
    if options.config or options.overwrite:
        raise DataError(
            "--protocol sizes takes CONFIG and trains its sources itself; leave out SOURCE_RUN, --overwrite"
        )
    if options.resume:
        if options.source or flags:
            raise DataError("--resume DIR takes everything from there; leave out CONFIG and the other flags")
        return _transfer_sizes(options.resume)
    if not options.source and not any(flag.startswith("data.") for flag in flags):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/transfer_families.yaml, or set --data.dataset"
        )
    if "output.directory" not in vars(options):
        raise DataError("--output DIR is missing")
    # The only positional argument, which argparse takes for the first one.
    config, output = load_config(options.source, flags), Path(vars(options)["output.directory"])
    with listing_rejected(list_beside(output)):
        return _transfer_sizes(output, config)


def _transfer_sizes(output: Path, config: Config | None = None) -> int:
    """Begins the protocol, or goes on with that in ``output`` where there is no ``config``."""
    from jaxdti.studies import sizes

    def work() -> None:
        table = sizes.resume_sizes(output) if config is None else sizes.run_sizes(config, output)
        print_table("mean test AUROC over the target families, by training compounds", table.lines())
        for line in table.verdicts():
            print(line)
        print(f"written to {output / 'results.csv'} and {output / 'sizes.png'}")

    return exit_code(work, f"jaxdti transfer --protocol sizes --resume {output}")
