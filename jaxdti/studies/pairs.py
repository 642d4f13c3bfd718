"""A training run: its directory, from the configuration to the summary."""

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from scipy.special import expit

from jaxdti.config import AdaptationConfig, Config, TransferConfig
from jaxdti.console import say
from jaxdti.data.pairs.buckets import Buckets
from jaxdti.data.pairs.device import DeviceFeatures, feature_bytes, host_features
from jaxdti.data.pairs.load import Dataset, describe_data, load_data
from jaxdti.data.pairs.splits import write_split
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.data.tables import write_table
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.evaluation.selection import deep_embedded_validation, importance_weights, prediction_information
from jaxdti.files import write_json
from jaxdti.inference.joint_features import JointFeatures, make_joint_features
from jaxdti.inference.scoring import MEMORY, buckets_for, make_scorer
from jaxdti.inference.trained import TrainedRun, load_run
from jaxdti.studies.report.pairs import SCRATCH, SOURCE_ONLY, Fitted, write_results
from jaxdti.studies.run_directory import (
    SOURCE_FOLDER,
    TABLE,
    Study,
    begin_study,
    continue_study,
    recorded,
    resumable_config,
    resume_study,
    run_study,
)
from jaxdti.studies.transfer.frozen import check_parts, transferred, unfreezing_stages
from jaxdti.studies.transfer.shallow import fit_shallow, linear_head
from jaxdti.studies.transfer.source import check_architecture, copy_network, evaluate_source
from jaxdti.training.adapted import adapted_pair_task, check_target
from jaxdti.training.compilation import keep_programs
from jaxdti.training.fit import fit
from jaxdti.training.mesh import REPLICATED, is_lead, local, make_mesh, put, take_replica
from jaxdti.training.run_folder import open_run
from jaxdti.training.step import chunk_steps
from jaxdti.training.supervised import Judge, pair_task, pair_trial, static_config, with_frozen
from jaxdti.training.task import Scorer, Task, Trial, Variables, label_scale

__all__ = ["Interrupted", "NonFiniteLoss", "resume", "train", "transfer"]

SOURCE_UNCHANGED = "the source itself"
STAGE_FOLDER = "stage_"  # folders of the runs before the last one of a gradual unfreezing, counted from 1


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
    return run_study(PairsStudy(table=table), recorded(config, output, table), output, overwrite=overwrite)


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
    if config.transfer.mode == "shallow":
        config = replace(config, model=linear_head(config.model))
    return run_study(PairsStudy(trained, table=table), recorded(config, output, table), output, overwrite=overwrite)


def resume(run: Path) -> dict[str, Any]:
    """Continues an interrupted run from its last checkpoint, or from its start where there is none yet.

    One that was killed before it recorded its data begins with those that its configuration names now.

    Raises:
      DataError: not a run directory, or the data are no longer those it began with.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    return resume_study(PairsStudy(), resumable_config(run), run)


@dataclass(frozen=True)
class PairsStudy(Study[Dataset, dict[str, Any]]):
    """Training on pairs, or a transfer to them; the run directory of ``train`` and ``transfer``."""

    source: TrainedRun | None = None  # copied into a new directory, where a transfer begins
    origin: str = SOURCE_UNCHANGED  # what the summary calls the network that a transfer starts from
    table: pa.Table | None = None  # what to train on, in place of the file ``data.table``

    def load(self, config: Config) -> Dataset:
        dataset = load_data(config.data, config.task, self.table)
        if config.transfer.mode == "none":
            check_target(config, dataset.parts)
        return dataset

    def begin(self, config: Config, folder: Path) -> None:
        if self.table is not None:
            write_table(self.table, folder / TABLE)
        if self.source is not None:
            copy_network(self.source, folder / SOURCE_FOLDER)
        super().begin(config, folder)

    def record(self, config: Config, data: Dataset, folder: Path) -> None:
        record_data(folder, data, config.data.split_seed)

    def sha256(self, data: Dataset) -> list[str]:
        return [describe_data(data)["sha256"]]

    def lines(self, data: Dataset) -> Sequence[str]:
        return data.lines

    def run(self, config: Config, data: Dataset, folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        if config.adaptation.method != "none" and config.adaptation.source_only:
            unadapted = AdaptationConfig(oracle=config.adaptation.oracle)
            _run_beside("without adaptation", replace(config, adaptation=unadapted), folder / SOURCE_ONLY, data)
            say(f"adapting with {config.adaptation.method}")
        if config.transfer.mode != "none":
            return _run_transfer(config, folder, data, started, self.origin)
        fitted = fit_pairs(single_configs(config), data, folder)
        return write_results(config, folder, data, fitted, started)


def record_data(folder: Path, dataset: Dataset, split_seed: int) -> None:
    """Writes split.json, data.json and rejected.csv (if any): what is trained on, and how it was found."""
    if dataset.report is not None and dataset.report.rejected:
        dataset.report.write_rejected(folder / "rejected.csv")
        say(f"rejected rows are listed in {folder / 'rejected.csv'}")
    write_split(folder / "split.json", dataset.parts, dataset.table, dataset.split, split_seed)
    write_json(folder / "data.json", describe_data(dataset))


def _run_transfer(config: Config, output: Path, dataset: Dataset, started: float, origin: str) -> dict[str, Any]:
    """Trains from the network in source/, and puts that and the one from random weights beside it."""
    source = load_run(output / SOURCE_FOLDER)
    if config.transfer.mode == "shallow":
        fitted, compared = fit_shallow(config, source, dataset)
        return write_results(config, output, dataset, fitted, started, compared)
    if config.transfer.scratch:
        _run_beside("from random weights", replace(config, transfer=TransferConfig()), output / SCRATCH, dataset)
        say(f"training from the source, mode {config.transfer.mode}")
    *earlier, last = unfreezing_stages(config)
    start, before = source, SOURCE_UNCHANGED
    for i, stage in enumerate(earlier, 1):
        (part,) = stage.transfer.frozen
        how = f"above {part}, stage {i} of {len(earlier) + 1}"
        start = _run_stage(how, stage, output / f"{STAGE_FOLDER}{i}", dataset, start, before)
        before = "the stage before"
    fitted = fit_pairs(single_configs(last), dataset, output, start)
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
    _run_inner(how, PairsStudy(source, origin), config, dataset, output)
    stage = load_run(output)
    if lost := config.training.replicas - len(stage.members):
        raise NonFiniteLoss(f"{output}: {lost} of {config.training.replicas} replicas failed; no further stage")
    return stage


def _run_beside(how: str, config: Config, output: Path, dataset: Dataset) -> None:
    """A run to compare with."""
    _run_inner(f"{how}, to compare with", PairsStudy(), config, dataset, output)


def _run_inner(how: str, study: PairsStudy, config: Config, dataset: Dataset, output: Path) -> None:
    """A run in a directory inside another one and without baselines, unless it is finished already."""
    if (output / "summary.json").is_file():
        return
    say(f"training {how}")
    config = replace(config, output=replace(config.output, baselines=False))
    if study.recorded_sha256(output) is None:
        begin_study(study, config, dataset, output)
    continue_study(study, config, dataset, output)


def single_configs(config: Config) -> list[Config]:
    """The configuration of each replica: seeds count up from the run's."""
    seeds = range(config.training.seed, config.training.seed + config.training.replicas)
    return [replace(config, training=replace(config.training, seed=seed, replicas=1)) for seed in seeds]


def fit_pairs(
    configs: Sequence[Config],
    dataset: Dataset,
    output: Path,
    source: TrainedRun | None = None,
    parts: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> Fitted:
    """Trains a network for each configuration together, with checkpoints and metrics under ``output``; continues what
    was begun there.

    They start from the network of ``source``, if there is one, or each from its own, as ``transfer`` of the
    configuration says.

    With ``training.distributed`` every process calls this; the first one alone writes and prints, all of them read.

    Args:
      configs: what may differ is what a trial traces, and seeds.
      parts: rows of each configuration, those of the dataset by default.

    Raises:
      DataError: the batch does not divide over the devices, or the processes have not joined.
      NonFiniteLoss, Interrupted: as ``train``.
    """
    config, table = configs[0], dataset.table
    training = config.training
    if training.distributed and not jax.distributed.is_initialized():
        raise DataError("training.distributed: call jaxdti.training.mesh.join_processes() before any other JAX call")
    keep_programs()
    tell = say if is_lead() else lambda line: None
    trials = [
        pair_trial(each, table, rows)
        for each, rows in zip(configs, parts or [dataset.parts] * len(configs), strict=True)
    ]
    if any(np.ptp(table.label[trial.rows["validation"]]) == 0 for trial in trials):
        tell(
            "warning: all validation labels are equal: no epoch can be chosen, so the weights of the last one are kept"
        )
    mesh = make_mesh(len(trials), training.batch_size)
    features, scored = _placed_features(config, dataset.store, mesh, tell)
    buckets = buckets_for(config.model, table, dataset.store, training.buckets, training.batch_size)
    tell(_describe_buckets(buckets))
    memory = MEMORY // 2  # training has its own beside it
    scorer = make_scorer(config.model, scored, table, buckets, training.batch_size, memory=memory)
    if source is None:
        task = make_task(config, trials, table, features, buckets, scorer)
    else:
        started, steps = time.perf_counter(), training.chunk_steps or chunk_steps()
        plain = pair_task(config, trials, table, features, buckets, scorer, steps)
        task = transferred(config, source.members, plain, trials, table, scored)
        if task.inputs is not features:
            tell(f"computed the outputs of the frozen part in {time.perf_counter() - started:.1f} s")
            task = replace(task, inputs=put(task.inputs, mesh, REPLICATED))
    joint = make_joint_features(config.model, scored, table, buckets, training.batch_size)
    selector = task.selector
    if config.adaptation.selection != "source":
        judge = target_judge(config, table, selector.scorer, joint)
        selector = replace(selector, judged=config.adaptation.selection, judge=judge)
    # A source's weights are constants of the program that draws fresh ones.
    task = replace(task, selector=selector, key=_task_key(config, trials, task.plan.buckets), keeps_init=source is None)
    with open_run(output, tensorboard=config.output.tensorboard) as run:
        result = fit(task, trials, training, run=run)
    networks = [take_replica(result.variables, i, mesh) for i in range(len(trials))]
    return Fitted(configs, trials, task.scored, selector.scorer, joint, networks, result.progress)


def _placed_features(
    config: Config, store: FeatureStore, mesh: Mesh, tell: Callable[[str], None]
) -> tuple[Any, DeviceFeatures | FeatureStore]:
    """The features as training and as scoring take them: on the devices, or on the host where they are too large."""
    size = feature_bytes(store) / 2**30
    if size > config.data.device_gib:
        tell(
            f"features ({size:.3g} GiB) are larger than data.device_gib={config.data.device_gib}: they stay on the "
            "host, and every program call gets its own"
        )
        return store, store
    features = put(host_features(store), mesh, REPLICATED)
    return features, local(features)


def make_task(
    config: Config, trials: Sequence[Trial], table: InteractionTable, features: Any, buckets: Buckets, scorer: Scorer
) -> Task:
    """Plain training, or the adaptation that the configuration asks for.

    Raises:
      DataError: there is nothing to adapt to, ``training.frozen`` names nothing or everything, or a transfer is asked
        for, which needs a source.
    """
    check_no_transfer(config)
    steps = config.training.chunk_steps or chunk_steps()
    if config.adaptation.method == "none":
        plain = pair_task(config, trials, table, features, buckets, scorer, steps)
        return with_frozen(plain, config.training.frozen)
    adapted = adapted_pair_task(config, trials, table, features, buckets, scorer, steps)
    return with_frozen(adapted, config.training.frozen, ("network",))


def _task_key(config: Config, trials: Sequence[Trial], buckets: Buckets) -> Hashable:
    """All that the task and its optimiser depend on, beside the arguments of their programs.

    Schedules count in steps: epochs, and how many pairs of train each bucket has, decide those of a run.
    """
    config = static_config(config)
    training, adaptation = config.training, config.adaptation
    training = replace(training, patience=None)
    adaptation = replace(adaptation, selection="source", source_only=False, oracle=False)
    counts = None
    if training.schedule == "constant" and not training.warmup_epochs and adaptation.method == "none":
        training = replace(training, epochs=1)
    else:
        counts = tuple(
            tuple(np.bincount(buckets.of_row[trial.rows["train"]], minlength=len(buckets.shapes)).tolist())
            for trial in trials
        )
    return replace(config, training=training, adaptation=adaptation), counts


def _describe_buckets(buckets: Buckets) -> str:
    shapes = ", ".join(f"{shape.atoms} x {shape.residues}" for shape in buckets.shapes)
    waste = "" if np.isnan(buckets.padding) else f"; {buckets.padding:.0%} of the work is padding"
    return f"batch shapes (atoms x residues): {shapes}{waste}"


_MOST_COMPARED = 2000  # pairs of each domain, to tell source from target by their features


def target_judge(config: Config, table: InteractionTable, scorer: Scorer, joint: JointFeatures) -> Judge:
    """What selects the epoch by ``adaptation.selection``: a number from target pairs, without their labels."""

    def information(trial: Trial, network: Callable[[str], Variables]) -> float:
        return prediction_information(expit(scorer(network("target_train"), trial.rows["target_train"])))

    def importance(trial: Trial, network: Callable[[str], Variables]) -> float:
        rows = trial.rows["validation"]
        score, label = np.asarray(scorer(network("validation"), rows), np.float64), table.label[rows]
        mean, sd = label_scale(trial, config.task)
        regression = config.task == "regression"
        loss = (score - (label - mean) / sd) ** 2 if regression else np.logaddexp(0.0, score * (1.0 - 2.0 * label))
        source, target = (joint(network(part), _sample(trial.rows[part])) for part in ("train", "target_train"))
        weight = importance_weights(source, target, joint(network("validation"), rows))
        return -deep_embedded_validation(loss, weight)

    return {"information": information, "importance": importance}[config.adaptation.selection]


def _sample(rows: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_COMPARED])
