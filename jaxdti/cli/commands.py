"""The commands that train, evaluate, predict, import and compare: each calls one public function."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxdti.cli.printing import _metric_rows, _write_scores, check_place, is_table, listing_rejected, print_table
from jaxdti.config import config_fields, config_to_dict, load_config
from jaxdti.errors import DataError

NON_FINITE = 3
UNCALIBRATED = "imported weights: probabilities are the plain sigmoid, the threshold is 0.5; nothing was fitted to data"


def train(options: argparse.Namespace) -> int:
    """`jaxdti train CONFIG [--output RUN]` and `jaxdti train --resume RUN`."""
    overrides = _overrides(options)
    if options.resume:
        if options.config or options.overwrite or overrides:
            raise DataError("--resume RUN takes everything from the run; leave out CONFIG and the other flags")
        if _has_vectors(options.resume):
            return _train_vectors(options.resume)
        return _guarded_train(options.resume, resuming=True)
    if not options.config and not any(override.startswith(("data.", "vectors.")) for override in overrides):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/drugban_demo.yaml, or set --data.dataset, "
            "--data.train and --data.test, or --data.table"
        )
    config = load_config(options.config, overrides)
    if not options.config and not config.output.directory:
        raise DataError("--output RUN is missing; without CONFIG the run has no name of its own")
    output = Path(config.output.directory or Path("runs") / options.config.stem)
    if config.vectors.given:
        return _train_vectors(output, config, options.overwrite)
    with listing_rejected(_list_beside(output)):
        return _guarded_train(output, config=config, overwrite=options.overwrite)


def _has_vectors(run: Path) -> bool:
    """Whether a directory is a run on feature vectors, or a folder of networks in one."""
    if (run / "network.json").is_file():
        return True
    return (run / "config.yaml").is_file() and load_config(run / "config.yaml").vectors.given


def _train_vectors(output: Path, config: Any = None, overwrite: bool = False, source: Path | None = None) -> int:
    """Trains as ``config`` says, from the networks of ``source`` if given, or goes on with what ``output`` holds."""
    from jaxdti.studies import vectors as running

    try:
        with listing_rejected(_list_beside(output)):
            if config is None:
                found = running.resume_vectors(output)
            elif source is not None:
                found = running.transfer_vectors(source, config, output, overwrite=overwrite)
            else:
                found = running.train_vectors(config, output, overwrite=overwrite)
    except running.Interrupted as stop:
        command = "train" if source is None else "transfer"
        print(f"saved; continue with: jaxdti {command} --resume {output}", file=sys.stderr)
        return 128 + stop.signal
    seeds = len(found["seeds"])
    over = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    print_table(f"accuracy on target test rows, {over}", found["lines"])
    if found["auroc_lines"]:
        print_table(f"AUROC on target test rows, {over}", found["auroc_lines"])
    if found["database_lines"]:
        print_table(f"the same by database, mean over the targets, {over}", found["database_lines"])
    for line in found["verdicts"]:
        print(line)
    picture = ", domains/" if (output / "domains").is_dir() else ""
    print(f"written to {output / 'results.csv'}, summary.json{picture} and accuracy.png")
    if failed := sum(row["failed"] for row in found["results"] if row["task"] != "mean"):
        print(f"* {failed} networks failed with a loss that was not finite, and are left out", file=sys.stderr)
        return NON_FINITE
    return 0


def _guarded_train(run: Path, *, resuming: bool = False, **settings: Any) -> int:
    from jaxdti.studies import pairs as training
    from jaxdti.training.mesh import joined_processes

    config = settings.get("config")
    if resuming and (run / "config.yaml").is_file():  # without it, ``resume`` says what is wrong
        config = load_config(run / "config.yaml")
    with joined_processes(config is not None and config.training.distributed) as lead:
        tell = lambda line: print(line, file=sys.stderr) if lead else None
        try:
            if not lead:
                _train_along(config, run)
            elif resuming:
                training.resume(run)
            elif "source" in settings:
                training.transfer(settings["source"], settings["config"], run, overwrite=settings["overwrite"])
            else:
                training.train(settings["config"], run, overwrite=settings["overwrite"])
        except training.Interrupted as stop:
            tell(f"saved; continue with: jaxdti train --resume {run}")
            return 128 + stop.signal
        except training.NonFiniteLoss as error:
            tell(f"jaxdti: error: {error}")
            return NON_FINITE
    return 0


def _train_along(config: Any, run: Path) -> None:
    """The part of all processes but the first, which alone evaluates and writes."""
    from jaxdti.data.pairs.load import load_data
    from jaxdti.studies.pairs import fit_pairs, single_configs

    dataset = load_data(config.data, config.task)
    fit_pairs(single_configs(config), dataset, run)


def sweep(options: argparse.Namespace) -> int:
    """`jaxdti sweep CONFIG --grid KEY=VALUES --output DIR` and `jaxdti sweep --resume DIR`."""
    overrides, given = _overrides(options), _given(options, "random", "random_seed", "together")
    if options.resume:
        if options.config or options.grid or given or overrides:
            raise DataError("--resume DIR takes everything from the sweep; leave out CONFIG and the other flags")
        return _guarded_sweep(options.resume, resuming=True)
    if not options.config and not any(override.startswith("data.") for override in overrides):
        raise DataError("CONFIG is missing: name a YAML file such as configs/drugban_demo.yaml, or set --data.table")
    if "output.directory" not in vars(options):
        raise DataError("--output DIR is missing")
    if "random_seed" in given and "random" not in given:
        raise DataError("--random-seed is that of --random N, which is missing")
    config = load_config(options.config, overrides)
    output = Path(vars(options)["output.directory"])
    from jaxdti.studies.grid import parse_grid

    grid = parse_grid(options.grid)  # a mistake shows before JAX is loaded
    if twice := [override for override in overrides if override.partition("=")[0] in grid]:
        raise DataError(f"--{twice[0]} and --grid both set the same key; leave out one")
    with listing_rejected(_list_beside(output)):
        return _guarded_sweep(output, config=config, grid=options.grid, **given)


def _guarded_sweep(output: Path, *, resuming: bool = False, **settings: Any) -> int:
    from jaxdti.studies import sweep as sweeping

    try:
        if resuming:
            results = sweeping.resume_sweep(output)
        else:
            results = sweeping.sweep(settings.pop("config"), settings.pop("grid"), output, **settings)
    except sweeping.Interrupted as stop:
        print(f"saved; continue with: jaxdti sweep --resume {output}", file=sys.stderr)
        return 128 + stop.signal
    print_table("settings, best validation score first", sweeping.sweep_table(results))
    best = results.ranked()[0]
    if best["failed"]:
        print(f"jaxdti: error: every setting failed; the reasons are in {output / 'results.csv'}", file=sys.stderr)
        return NON_FINITE
    print(f"best by validation: setting {best['setting']}, in {output / best['directory']}")
    print(f"written to {output / 'results.csv'}")
    return 0


def transfer(options: argparse.Namespace) -> int:
    """`jaxdti transfer SOURCE_RUN [CONFIG] --output RUN`, and `jaxdti transfer --protocol sizes`."""
    overrides = _overrides(options)
    if options.protocol:
        return _transfer_sizes(options, overrides)
    if options.resume:
        if options.source or options.overwrite or overrides:
            raise DataError("--resume RUN takes everything from the run; leave out SOURCE_RUN, CONFIG and other flags")
        if _has_vectors(options.resume):
            return _train_vectors(options.resume)
        return _guarded_train(options.resume, resuming=True)
    if not options.source:
        raise DataError("SOURCE_RUN is missing: the directory of a trained run, or --protocol sizes")
    if "output.directory" not in vars(options):
        raise DataError("--output RUN is missing")
    output = Path(vars(options)["output.directory"])
    if _has_vectors(options.source):
        from jaxdti.inference.networks import transfer_settings

        config = load_config(options.config, overrides, transfer_settings(options.source))
        if not config.vectors.given:
            raise DataError(
                f"{options.source}: a run on feature vectors; give the small data set with --vectors.source and "
                "--vectors.test"
            )
        return _train_vectors(output, config, options.overwrite, options.source)
    config = load_config(options.config, overrides, _source_settings(options.source))
    with listing_rejected(_list_beside(output)):
        return _guarded_train(output, source=options.source, config=config, overwrite=options.overwrite)


def _source_settings(run: Path) -> dict[str, Any]:
    """What a transferred run takes over from its source where nothing else is said: task, model, largest sizes."""
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run}: not a run directory; expected one written by `jaxdti train` or `jaxdti import`")
    tree = config_to_dict(load_config(run / "config.yaml"))
    sizes = {f"data.{name}": tree["data"][name] for name in ("max_atoms", "max_residues")}
    return {"task": tree["task"], **sizes, **{f"model.{name}": value for name, value in tree["model"].items()}}


def _transfer_sizes(options: argparse.Namespace, overrides: list[str]) -> int:
    """`jaxdti transfer --protocol sizes CONFIG --output DIR` and `jaxdti transfer --protocol sizes --resume DIR`."""
    if options.config or options.overwrite:
        raise DataError(
            "--protocol sizes takes CONFIG and trains its sources itself; leave out SOURCE_RUN, --overwrite"
        )
    if options.resume:
        if options.source or overrides:
            raise DataError("--resume DIR takes everything from there; leave out CONFIG and the other flags")
        return _guarded_transfer(options.resume)
    if not options.source and not any(override.startswith("data.") for override in overrides):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/transfer_families.yaml, or set --data.dataset"
        )
    if "output.directory" not in vars(options):
        raise DataError("--output DIR is missing")
    # The only positional argument, which argparse takes for the first one.
    config, output = load_config(options.source, overrides), Path(vars(options)["output.directory"])
    with listing_rejected(_list_beside(output)):
        return _guarded_transfer(output, config)


def _guarded_transfer(output: Path, config: Any = None) -> int:
    from jaxdti.studies import sizes as protocol

    try:
        table = protocol.resume_sizes(output) if config is None else protocol.run_sizes(config, output)
    except protocol.Interrupted as stop:
        print(f"saved; continue with: jaxdti transfer --protocol sizes --resume {output}", file=sys.stderr)
        return 128 + stop.signal
    except protocol.NonFiniteLoss as error:
        print(f"jaxdti: error: {error}", file=sys.stderr)
        return NON_FINITE
    print_table("mean test AUROC over the target families, by training compounds", table.lines())
    for line in table.verdicts():
        print(line)
    print(f"written to {output / 'results.csv'} and {output / 'sizes.png'}")
    return 0


def response(options: argparse.Namespace) -> int:
    """`jaxdti response CONFIG [--output RUN]` and `jaxdti response --resume RUN`."""
    overrides = _overrides(options)
    if options.resume and (options.config or options.overwrite or overrides):
        raise DataError("--resume RUN takes everything from the run; leave out CONFIG and the other flags")
    given = ("response.dataset=", "response.source_expression=")
    if not options.resume and not options.config and not any(text.startswith(given) for text in overrides):
        raise DataError(
            "CONFIG is missing: name a YAML file such as configs/codeae_planted.yaml, or set --response.dataset, "
            "or --response.source_expression, --response.target_expression and --response.source_response"
        )
    config = None if options.resume else load_config(options.config, overrides)
    if config and not options.config and not config.output.directory:
        raise DataError("--output RUN is missing; without CONFIG the run has no name of its own")
    from jaxdti.studies.response import run as running

    run = options.resume
    try:
        if config is None:
            running.resume_response(run)
        else:
            run = Path(config.output.directory or Path("runs") / options.config.stem)
            running.respond(config, run, overwrite=options.overwrite)
    except running.Interrupted as stop:
        print(f"saved; continue with: jaxdti response --resume {run}", file=sys.stderr)
        return 128 + stop.signal
    except running.NonFiniteLoss as error:
        print(f"jaxdti: error: {error}", file=sys.stderr)
        return NON_FINITE
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """`jaxdti evaluate RUN TABLE [--output DIR] [--overwrite]`."""
    from jaxdti.data.tables import table_name
    from jaxdti.inference.evaluate import evaluate as evaluate_run

    settings = _given(options, "drug_column", "protein_column", "label_column", "drugs", "proteins", "max_rejected")
    folder, name = options.output or Path(), table_name(options.table)
    with listing_rejected(folder / f"{name}_rejected.csv"):
        metrics = evaluate_run(options.run, options.table, options.output, overwrite=options.overwrite, **settings)
    print_table(str(options.table), _metric_rows(metrics))
    if repeated := metrics.get("rows_trained_on"):
        rows = metrics["pairs"]
        print(f"warning: {repeated:,} of {rows:,} rows repeat a pair that the run was trained on", file=sys.stderr)
    if reason := metrics.get("rows_not_checked"):
        print(f"rows that the run was trained on could not be looked for: {reason}", file=sys.stderr)
    if metrics.get("calibrated") is False:
        print(UNCALIBRATED)
    print(f"written to {folder / name}_metrics.json and {folder / name}_scores.csv")
    return 0


def predict(options: argparse.Namespace) -> int:
    """`jaxdti predict RUN TABLE --output SCORES` and `jaxdti predict RUN --smiles SMILES --sequence SEQUENCE`."""
    if options.smiles is not None or options.sequence is not None:
        return _predict_pair(options)
    if options.table is None or options.output is None:
        raise DataError("predict needs TABLE and --output SCORES, or --smiles SMILES and --sequence SEQUENCE")
    from jaxdti.data.tables import check_output

    check_output(options.output)
    check_place(options.output)
    if options.output.exists() and options.table.exists() and options.output.samefile(options.table):
        raise DataError(f"{options.output}: SCORES would overwrite TABLE; give another name")
    if _has_vectors(options.run):
        return _predict_rows(options)
    from jaxdti.inference.predict import predict as predict_run
    from jaxdti.inference.trained import load_run

    settings = _given(options, "drug_column", "protein_column", "drugs", "proteins")
    trained = load_run(options.run)
    scores = predict_run(trained, options.table, **settings)
    _write_scores(scores, options.output)
    _tell_uncalibrated(trained)
    return 0


def _predict_rows(options: argparse.Namespace) -> int:
    from jaxdti.inference.networks import predict_rows

    if surplus := _given(options, "protein_column", "drugs", "proteins"):
        raise DataError(f"{options.run}: a run on feature vectors; leave out --{min(surplus).replace('_', '-')}")
    _write_scores(predict_rows(options.run, options.table, **_given(options, "drug_column")), options.output)
    return 0


def _tell_uncalibrated(trained: Any) -> None:
    """On standard error: scores that are read by a program stay alone."""
    if trained.config.task == "classification" and not trained.calibrated:
        print(UNCALIBRATED, file=sys.stderr)


def _predict_pair(options: argparse.Namespace) -> int:
    if options.smiles is None or options.sequence is None:
        raise DataError("one pair needs both --smiles and --sequence")
    if surplus := _given(options, "table", "output", "drug_column", "protein_column", "drugs", "proteins"):
        names = ", ".join(f"--{name.replace('_', '-')}" if name != "table" else "TABLE" for name in surplus)
        raise DataError(f"--smiles and --sequence score one pair and print it; leave out {names}")
    import pyarrow as pa

    from jaxdti.inference.predict import predict as predict_run
    from jaxdti.inference.trained import load_run

    pair = pa.table({"SMILES": [options.smiles], "Protein": [options.sequence]})
    trained = load_run(options.run)
    row = predict_run(trained, pair).to_pylist()[0]
    if row["error"]:
        raise DataError(row["error"])
    for name in ("score", "score_sd", "probability"):
        if row.get(name) is not None:
            print(f"{name} {row[name]:.6g}")
    _tell_uncalibrated(trained)
    return 0


def import_weights(options: argparse.Namespace) -> int:
    """`jaxdti import WEIGHTS --output RUN`."""
    from jaxdti.interop.importing import import_weights as import_run

    import_run(options.weights, options.output)
    print(f"written to {options.output}")
    print(UNCALIBRATED)
    return 0


def baselines(options: argparse.Namespace) -> int:
    """`jaxdti baselines NAME|TABLES`, or with the flags of the section ``data``."""
    overrides = _overrides(options)
    if options.sources:
        overrides = _named(options.sources, overrides)
    config = load_config(None, overrides)
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


def _named(sources: list[str], overrides: list[str]) -> list[str]:
    """The flags with one to three tables, or with a named dataset; its task unless another is given."""
    from jaxdti.data.named import EMBEDDED, get_dataset

    naming = tuple(f"data.{key}=" for key in ("dataset", "train", "validation", "test", "table"))
    if conflict := [text for text in overrides if text.startswith(naming)]:
        raise DataError(f"{sources[0]} and --{conflict[0].partition('=')[0]} both name the data; leave out one")
    if all(map(is_table, sources)):
        parts = {1: ("table",), 2: ("train", "test"), 3: ("train", "validation", "test")}.get(len(sources))
        if parts is None:
            raise DataError(
                f"{len(sources)} tables found; one to split, two (train, test) or three (train, validation, test) "
                "expected"
            )
        return [f"data.{part}={source}" for part, source in zip(parts, sources, strict=True)] + overrides
    if len(sources) > 1:
        raise DataError(f"{', '.join(sources)}: give the name of one dataset, or tables only")
    task = "classification" if sources[0] == EMBEDDED else get_dataset(sources[0]).task
    return [f"data.dataset={sources[0]}", f"task={task}", *overrides]


def _overrides(options: argparse.Namespace) -> list[str]:
    """The flags of the configuration that were given, as KEY=VALUE."""
    return [f"{path}={value}" for path, value in vars(options).items() if path in config_fields()]


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _list_beside(output: Path) -> Path:
    """Where the rejected rows of a run directory that is not begun are listed; "." has no name of its own."""
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / f"{named.name}.rejected.csv"
