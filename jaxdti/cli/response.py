"""`jaxdti response`."""

import argparse
from pathlib import Path

from jaxdti.cli.options import Add, add_config_options, add_run_options, overrides
from jaxdti.cli.running import exit_code
from jaxdti.config import load_config
from jaxdti.errors import DataError


def add_options(add: Add) -> None:
    """Adds the command to the parsers."""
    parser = add(
        "response",
        run,
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
    add_run_options(parser)
    add_config_options(parser, "response", "output.directory", "output.bootstrap")


def run(options: argparse.Namespace) -> int:
    """`jaxdti response CONFIG [--output RUN]` and `jaxdti response --resume RUN`."""
    flags = overrides(options)
    if options.resume and (options.config or options.overwrite or flags):
        raise DataError("--resume RUN takes everything from the run; leave out CONFIG and the other flags")
    named = ("response.dataset=", "response.source_expression=")
    if not options.resume and not options.config and not any(flag.startswith(named) for flag in flags):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/codeae_planted.yaml, or set --response.dataset, "
            "or --response.source_expression, --response.target_expression and --response.source_response"
        )
    config = None if options.resume else load_config(options.config, flags)
    if config and not options.config and not config.output.directory:
        raise DataError("--output RUN is missing; without CONFIG the run has no name of its own")
    from jaxdti.studies.response import run as study

    output = Path(options.resume or (config and config.output.directory) or Path("runs") / options.config.stem)

    def work() -> None:
        if config is None:
            study.resume_response(output)
        else:
            study.respond(config, output, overwrite=options.overwrite)

    return exit_code(work, f"jaxdti response --resume {output}")
