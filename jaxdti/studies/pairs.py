"""A training run: its directory, from the configuration to the summary."""

import json
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from scipy.special import expit

from jaxdti.config import AdaptationConfig, Config, TransferConfig, save_config
from jaxdti.console import say
from jaxdti.data.pairs.buckets import Buckets, plan_epoch
from jaxdti.data.pairs.device import feature_bytes, host_features
from jaxdti.data.pairs.load import Dataset, describe_data, load_data
from jaxdti.data.pairs.splits import write_split
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.data.tables import write_table
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.evaluation.selection import deep_embedded_validation, importance_weights, prediction_information
from jaxdti.files import write_json
from jaxdti.inference.joint_features import JointFeatures, make_joint_features
from jaxdti.inference.scoring import MEMORY, buckets_for, make_scorer
from jaxdti.inference.trained import TrainedRun, load_run
from jaxdti.studies.report.pairs import SCRATCH, SOURCE_ONLY, Fitted, write_results
from jaxdti.studies.run_directory import (
    SOURCE,
    TABLE,
    check_directory,
    check_unchanged,
    describe_environment,
    new_directory,
    recorded,
    resumable_config,
)
from jaxdti.studies.transfer.frozen import check_architecture, check_parts, transferred, unfreezing_stages
from jaxdti.studies.transfer.shallow import copy_network, evaluate_source, fit_shallow, linear_head
from jaxdti.training.adapted import adapted, check_target
from jaxdti.training.checkpoints import open_checkpoints
from jaxdti.training.compilation import keep_programs
from jaxdti.training.fit import fit
from jaxdti.training.mesh import REPLICATED, is_lead, local, make_mesh, put, take_replica
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.progress import Member, Progress, Reporter, RunReporter, restored_progress
from jaxdti.training.state import init_replicas
from jaxdti.training.step import chunk_steps
from jaxdti.training.supervised import (
    class_weights,
    hyper_parameters,
    label_scale,
    static_config,
    supervised,
    with_frozen,
)
from jaxdti.training.task import Judge, Method, Replica, Scorer, Variables

__all__ = ["Interrupted", "NonFiniteLoss", "resume", "train", "transfer"]

ITSELF = "the source itself"
STAGE = "stage_"  # folders of the runs before the last one of a gradual unfreezing, counted from 1


def train(config: Config, output: Path, *, overwrite: bool = False, table: pa.Table | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes a run directory; returns its summary.

    ``table`` is split as the file ``data.table`` would be, and kept in the directory, so that the run can be resumed.

    The directory holds config.yaml, environment.json, data.json, split.json, rejected.csv (if any), checkpoints/,
    metrics.jsonl, tensorboard/, weights/, model.json, predictions.parquet, baselines.json and summary.json. With
    ``training.replicas`` above 1, replicas/0, replicas/1, ... hold the weights and results of each, and the run itself
    those of their ensemble.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      NonFiniteLoss, Interrupted: see ``jaxdti.training.fit.fit``; the run can be resumed after ``Interrupted``.
    """
    check_no_transfer(config)
    check_directory(output, overwrite)
    config = recorded(config, output, table)
    dataset = load_data(config.data, config.task, table)  # before anything is deleted or created: it may be unfit
    check_target(config, dataset.parts)
    _begin(config, output, dataset, table=table)
    return _run(config, output, dataset)


def check_no_transfer(config: Config) -> None:
    """Raises DataError where the configuration asks for what ``jaxdti transfer`` does."""
    if config.transfer.mode != "none":
        raise DataError(f"transfer.mode={config.transfer.mode} needs a trained model: jaxdti transfer SOURCE_RUN ...")


def transfer(
    source: Path, config: Config, output: Path, *, overwrite: bool = False, table: pa.Table | None = None
) -> dict[str, Any]:
    """Carries the network of the run ``source`` to other data, as ``config.transfer`` says; returns the summary.

    Writes a run directory as ``train`` does, with the source's network in source/, so that it can be resumed without
    the source, with ``transfer.scratch`` the run from random weights in scratch/, and with ``transfer.unfreeze`` those
    of the earlier stages in stage_1/, stage_2/, ...

    A source with replicas starts as many replicas, each from its own, in mode full; other modes take one network.

    Raises:
      DataError: as ``train``; or the source is not trained, of another architecture, or an ensemble that does not suit
        the mode or ``training.replicas``; or the names of what is frozen or fresh do not suit it.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    if config.transfer.mode == "none":
        raise DataError("transfer.mode=none: choose from full, feature, shallow")
    trained = load_run(source)
    networks = len(trained.members)
    each = config.transfer.mode == "full" and not config.transfer.unfreeze and config.training.replicas == networks
    if networks > 1 and not each:
        raise DataError(
            f"{source}: an ensemble of {networks} networks; name one of them, such as {source}/replicas/0, or start "
            f"each replica from its own with transfer.mode=full, training.replicas={networks} and no transfer.unfreeze"
        )
    check_architecture(trained.config.task, trained.config.model, config)
    check_parts(config, trained.members[0].variables["params"])
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise DataError(f"{output}: holds the source run; give another --output")
    check_directory(output, overwrite)
    config = recorded(config, output, table)
    dataset = load_data(config.data, config.task, table)
    if config.transfer.mode == "shallow":
        config = replace(config, model=linear_head(config.model))
    _begin(config, output, dataset, trained, table)
    return _run(config, output, dataset)


def resume(run: Path) -> dict[str, Any]:
    """Continues an interrupted run from its last checkpoint, or from its start where there is none yet.

    One that was killed before it recorded its data begins with those that its configuration names now.

    Raises:
      DataError: not a run directory, or the data are no longer those it began with.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    config = resumable_config(run)
    dataset = load_data(config.data, config.task)
    check_unchanged(run, describe_data(dataset)["sha256"], lambda: record_data(run, dataset, config.data.split_seed))
    return _run(config, run, dataset)


def _begin(
    config: Config, output: Path, dataset: Dataset, source: TrainedRun | None = None, table: pa.Table | None = None
) -> None:
    """A new directory with all that resuming needs."""
    with new_directory(output):
        if table is not None:
            write_table(table, output / TABLE)
        if source is not None:
            copy_network(source, output / SOURCE)
        save_config(config, output / "config.yaml")
        record_data(output, dataset, config.data.split_seed)


def record_data(folder: Path, dataset: Dataset, split_seed: int) -> None:
    """Writes split.json, data.json and rejected.csv (if any): what is trained on, and how it was found."""
    if dataset.report is not None and dataset.report.rejected:
        dataset.report.write_rejected(folder / "rejected.csv")
        say(f"rejected rows are listed in {folder / 'rejected.csv'}")
    write_split(folder / "split.json", dataset.parts, dataset.table, dataset.split, split_seed)
    write_json(folder / "data.json", describe_data(dataset))


def _run(config: Config, output: Path, dataset: Dataset, origin: str = ITSELF) -> dict[str, Any]:
    """Everything after the data: build, restore, fit, evaluate, write. ``origin`` names what a transfer starts from."""
    started = time.perf_counter()
    for line in dataset.lines:
        say(line)
    write_json(output / "environment.json", describe_environment())
    if config.adaptation.method != "none" and config.adaptation.source_only:
        unadapted = AdaptationConfig(oracle=config.adaptation.oracle)
        _run_beside("without adaptation", replace(config, adaptation=unadapted), output / SOURCE_ONLY, dataset)
        say(f"adapting with {config.adaptation.method}")
    if config.transfer.mode != "none":
        return _run_transfer(config, output, dataset, started, origin)
    replicas = [Replica(alone, dataset.parts) for alone in single_configs(config)]
    fitted = fit_replicas(replicas, dataset, output)
    return write_results(config, output, dataset, fitted, started)


def _run_transfer(config: Config, output: Path, dataset: Dataset, started: float, origin: str) -> dict[str, Any]:
    """Trains from the network in source/, and puts that and the one from random weights beside it."""
    source = load_run(output / SOURCE)
    if config.transfer.mode == "shallow":
        fitted, compared = fit_shallow(config, source, dataset)
        return write_results(config, output, dataset, fitted, started, compared)
    if config.transfer.scratch:
        _run_beside("from random weights", replace(config, transfer=TransferConfig()), output / SCRATCH, dataset)
        say(f"training from the source, mode {config.transfer.mode}")
    *earlier, last = unfreezing_stages(config)
    start, before = source, ITSELF
    for i, stage in enumerate(earlier, 1):
        (part,) = stage.transfer.frozen
        how = f"above {part}, stage {i} of {len(earlier) + 1}"
        start = _run_stage(how, stage, output / f"{STAGE}{i}", dataset, start, before)
        before = "the stage before"
    fitted = fit_replicas([Replica(alone, dataset.parts) for alone in single_configs(last)], dataset, output, start)
    compared = {origin: evaluate_source(config, dataset, fitted.scorer, source)}
    if config.transfer.scratch:
        scratch = json.loads((output / SCRATCH / "summary.json").read_text(encoding="utf-8"))
        compared["DrugBAN from scratch"] = {part: scratch[part] for part in ("test", "validation")}
    return write_results(config, output, dataset, fitted, started, compared)


def _run_stage(how: str, config: Config, output: Path, dataset: Dataset, source: TrainedRun, origin: str) -> TrainedRun:
    """The best networks of a stage that starts from ``source``, named ``origin``.

    Raises:
      NonFiniteLoss: one of its replicas failed, so that the next stage cannot start from all of them.
    """
    _run_inner(how, config, output, dataset, source, origin)
    found = load_run(output)
    if lost := config.training.replicas - len(found.members):
        raise NonFiniteLoss(f"{output}: {lost} of {config.training.replicas} replicas failed; no further stage")
    return found


def _run_beside(how: str, config: Config, output: Path, dataset: Dataset) -> None:
    """A run to compare with."""
    _run_inner(f"{how}, to compare with", config, output, dataset)


def _run_inner(
    how: str, config: Config, output: Path, dataset: Dataset, source: TrainedRun | None = None, origin: str = ITSELF
) -> None:
    """A run in a directory of its own and without baselines, unless it stands there already."""
    if (output / "summary.json").is_file():
        return
    say(f"training {how}")
    config = replace(config, output=replace(config.output, baselines=False))
    if not (output / "data.json").is_file():
        _begin(config, output, dataset, source)
    _run(config, output, dataset, origin)


def single_configs(config: Config) -> list[Config]:
    """The configuration of each replica: seeds count up from the run's."""
    seeds = range(config.training.seed, config.training.seed + config.training.replicas)
    return [replace(config, training=replace(config.training, seed=seed, replicas=1)) for seed in seeds]


def fit_replicas(
    replicas: Sequence[Replica], dataset: Dataset, output: Path, source: TrainedRun | None = None
) -> Fitted:
    """Trains the replicas together, with checkpoints and metrics under ``output``; continues what was begun there.

    They start from the network of ``source``, if there is one, or each from its own, as ``transfer`` of the
    configuration says.

    With ``training.distributed`` every process calls this; the first one alone writes and prints, all of them read.

    Raises:
      DataError: the batch does not divide over the devices, or the processes have not joined.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    config, table = replicas[0].config, dataset.table
    training = config.training
    if training.distributed and not jax.distributed.is_initialized():
        raise DataError("training.distributed: call jaxdti.training.mesh.join_processes() before any other JAX call")
    keep_programs()
    tell = say if is_lead() else lambda line: None
    if any(np.ptp(table.label[replica.parts["validation"]]) == 0 for replica in replicas):
        tell(
            "warning: all validation labels are equal: no epoch can be chosen, so the weights of the last one are kept"
        )
    mesh = make_mesh(len(replicas), training.batch_size)
    size = feature_bytes(dataset.store) / 2**30
    if size > config.data.device_gib:
        tell(
            f"features ({size:.3g} GiB) are larger than data.device_gib={config.data.device_gib}: they stay on the "
            "host, and every program call gets its own"
        )
        features = scored = dataset.store
    else:
        features = put(host_features(dataset.store), mesh, REPLICATED)
        scored = local(features)
    buckets = padded = buckets_for(config.model, table, dataset.store, training.buckets, training.batch_size)
    tell(_describe_buckets(buckets))
    memory = MEMORY // 2  # training has its own beside it
    scorer = make_scorer(config.model, scored, table, buckets, training.batch_size, memory=memory)
    if source is None:
        method = make_method(replicas, table, buckets)
    else:
        started = time.perf_counter()
        scale, steps = label_scale(table, replicas[0]), training.chunk_steps or chunk_steps()
        method = transferred(source.members, replicas, table, scored, buckets, scale, steps)
        if method.inputs is not None:
            tell(f"computed the outputs of the frozen part in {time.perf_counter() - started:.1f} s")
            features = put(method.inputs, mesh, REPLICATED)
    buckets, scorer = method.buckets or buckets, method.scorer or scorer
    joint = make_joint_features(config.model, scored, table, padded, training.batch_size)
    if config.adaptation.selection != "source":
        method = replace(method, judge=target_judge(config, table, scorer, joint))
    tx = make_optimizer(training, steps_per_epoch(replicas[0], buckets), method.rate_of, method.share_of)
    hyper = [hyper_parameters(r.config, class_weights(table, r), label_scale(table, r)) for r in replicas]
    method = replace(method, key=_method_key(replicas, buckets))
    seeds = [r.config.training.seed for r in replicas]
    # A source's weights are constants of the program.
    state = init_replicas(method.init, tx, seeds, hyper, method.key if source is None else None)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # one program, not one for each shape
    best = copy(state.variables)
    progress = Progress([Member() for _ in replicas])
    with open_checkpoints(output / "checkpoints") as checkpoints:
        if checkpoints.latest() is not None:
            state, best, saved = checkpoints.restore(state, best)
            progress = restored_progress(saved)
            tell(f"resuming after epoch {progress.epoch}, chunk {progress.chunk}")
        with _reporting(output, progress, config) as report:
            _, best, progress = fit(
                replicas, method, table, features, buckets, scorer, tx, state, best, progress, checkpoints, report
            )
    members = [take_replica(best, i, mesh) for i in range(len(replicas))]
    return Fitted(replicas, method, scorer, joint, members, progress)


def make_method(replicas: Sequence[Replica], table: InteractionTable, buckets: Buckets) -> Method:
    """Plain training, or the adaptation that the configuration asks for.

    Raises:
      DataError: there is nothing to adapt to, ``training.frozen`` names nothing or everything, or a transfer is asked
        for, which needs a source.
    """
    check_no_transfer(replicas[0].config)
    config = replicas[0].config
    steps = config.training.chunk_steps or chunk_steps()
    if config.adaptation.method == "none":
        return with_frozen(supervised(replicas, table, buckets, steps), config.training.frozen)
    return with_frozen(adapted(replicas, table, buckets, steps), config.training.frozen, ("network",))


def _method_key(replicas: Sequence[Replica], buckets: Buckets) -> Hashable:
    """All that the method and its optimiser depend on, beside the arguments of their programs.

    Schedules count in steps: epochs, and how many pairs of train each bucket has, decide those of a run.
    """
    config = static_config(replicas[0].config)
    training, adaptation = config.training, config.adaptation
    training = replace(training, patience=None)
    adaptation = replace(adaptation, selection="source", source_only=False, oracle=False)
    counts = None
    if training.schedule == "constant" and not training.warmup_epochs and adaptation.method == "none":
        training = replace(training, epochs=1)
    else:
        counts = tuple(
            tuple(np.bincount(buckets.of_row[r.parts["train"]], minlength=len(buckets.shapes)).tolist())
            for r in replicas
        )
    return replace(config, training=training, adaptation=adaptation), counts


@contextmanager
def _reporting(output: Path, progress: Progress, config: Config) -> Iterator[Reporter]:
    """The reporter of the first process; those of the others are silent."""
    if not is_lead():
        silent = lambda *_: None
        yield Reporter(update=silent, epoch=silent, failed=silent, compiled=silent)
        return
    histories = [member.history for member in progress.members]
    with RunReporter(output, histories, config.training.epochs, config.output.tensorboard) as report:
        yield report.reporter()


def steps_per_epoch(replica: Replica, buckets: Buckets) -> int:
    """Updates of one epoch; the learning rate's schedule counts in them."""
    chunks = plan_epoch([replica.parts["train"]], buckets, replica.config.training.batch_size, 1, seeds=[0], epoch=0)
    return len(chunks)


def _describe_buckets(buckets: Buckets) -> str:
    shapes = ", ".join(f"{shape.atoms} x {shape.residues}" for shape in buckets.shapes)
    waste = "" if np.isnan(buckets.padding) else f"; {buckets.padding:.0%} of the work is padding"
    return f"batch shapes (atoms x residues): {shapes}{waste}"


_MOST_COMPARED = 2000  # pairs of each domain, to tell source from target by their features


def target_judge(config: Config, table: InteractionTable, scorer: Scorer, joint: JointFeatures) -> Judge:
    """What selects the epoch by ``adaptation.selection``: a number from target pairs, without their labels."""

    def information(replica: Replica, network: Callable[[str], Variables]) -> float:
        return prediction_information(expit(scorer(network("target_train"), replica.parts["target_train"])))

    def importance(replica: Replica, network: Callable[[str], Variables]) -> float:
        rows = replica.parts["validation"]
        score, label = np.asarray(scorer(network("validation"), rows), np.float64), table.label[rows]
        mean, sd = label_scale(table, replica)
        regression = config.task == "regression"
        loss = (score - (label - mean) / sd) ** 2 if regression else np.logaddexp(0.0, score * (1.0 - 2.0 * label))
        source, target = (joint(network(part), _sample(replica.parts[part])) for part in ("train", "target_train"))
        weight = importance_weights(source, target, joint(network("validation"), rows))
        return -deep_embedded_validation(loss, weight)

    return {"information": information, "importance": importance}[config.adaptation.selection]


def _sample(rows: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_COMPARED])
