"""A grid or random search: settings that one program can train together are its replicas, others wait their turn."""

import json
import math
import os
import shutil
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import yaml

from jaxdti.config import Config, config_from_dict, config_to_dict, save_config
from jaxdti.config.tree import read_yaml
from jaxdti.console import say
from jaxdti.data.pairs.buckets import PairBatch, Shape, pair_batch, pair_cost
from jaxdti.data.pairs.device import DeviceFeatures, device_features
from jaxdti.data.pairs.load import Dataset, describe_data, load_data
from jaxdti.data.pairs.splits import table_identity
from jaxdti.data.tables import write_table
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.evaluation.part import INTERVALS, json_ready
from jaxdti.files import atomic, write_json
from jaxdti.inference.scoring import buckets_for
from jaxdti.studies.grid import combinations, describe_setting, draw, parse_grid, setting_config, show_value
from jaxdti.studies.pairs import fit_pairs, make_task, record_data
from jaxdti.studies.report.pairs import score_baselines, write_member
from jaxdti.studies.run_directory import Study, not_resumable, resume_study, run_study
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.plans import BucketPlan
from jaxdti.training.state import init_replicas
from jaxdti.training.step import make_chunk, make_train_step
from jaxdti.training.supervised import SELECTION, hyper_parameters, pair_trial, static_config
from jaxdti.training.task import Task

__all__ = ["Interrupted", "SweepResults", "replicas_that_fit", "resume_sweep", "sweep", "sweep_table"]

_MOST_ON_CPU = 8  # more at once are no faster there, and the program grows with them


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What sweep.yaml holds, and all that resuming needs."""

    config: Config  # what the settings share
    grid: list[str]  # KEY=VALUES as given
    random: int | None  # settings drawn, None for all combinations
    random_seed: int
    settings: list[dict[str, Any]]  # swept key -> value
    groups: list[list[int]]  # numbers of the settings that train together
    data: list[str]  # SHA-256 of each distinct split


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """What a sweep found."""

    task: str
    keys: list[str]  # swept
    rows: list[dict[str, Any]]  # those of results.csv
    baselines: dict[int, dict[str, Any]]  # number of the first setting of each distinct split -> test metrics by name

    def ranked(self) -> list[dict[str, Any]]:
        """The rows, best validation score first; settings without one, and those that failed, last."""
        name = f"validation_{SELECTION[self.task]}"  # never a test score
        return sorted(self.rows, key=lambda row: (bool(row["failed"]), row[name] is None, -(row[name] or 0.0)))


def sweep(
    config: Config,
    grid: Sequence[str],
    output: Path,
    *,
    random: int | None = None,
    random_seed: int = 0,
    together: int | None = None,
) -> SweepResults:
    """Trains every setting of a grid and writes a run directory for each.

    ``output`` then holds sweep.yaml, environment.json, results.csv (a row a setting), settings/0, settings/1, ... (run
    directories), data/0, ... (split.json, data.json, rejected.csv if any, and baselines.json of each distinct split)
    and groups/0, ... (metrics.jsonl, TensorBoard events and, of the group under way, checkpoints).

    Args:
      config: what the settings share.
      grid: KEY=V1,V2,... or, with ``random``, KEY=LOW..HIGH; see ``jaxdti.studies.grid.parse_grid``.
      output: a directory that does not exist yet or is empty.
      random: so many settings are drawn instead of all combinations, by ``random_seed``.
      together: most settings trained at once; default: what fits the device's memory (see
        ``replicas_that_fit``), on CPU at most 8.

    Raises:
      DataError: the grid, a setting or the data are unfit, or ``output`` exists.
      Interrupted: a signal arrived; the sweep can be resumed.
    """
    if config.training.replicas > 1:
        raise DataError(
            f"training.replicas={config.training.replicas}: every setting of a sweep is one model; set it to 1 and "
            f"sweep training.seed, such as --grid training.seed=0,1,2"
        )
    if together is not None and together < 1:
        raise DataError(f"--together {together}: at least 1 is expected")
    choices = parse_grid(grid)
    settings = combinations(choices) if random is None else draw(choices, random, random_seed)
    study = SweepStudy(grid=list(grid), random=random, random_seed=random_seed, settings=settings, together=together)
    return run_study(study, config, output, overwrite=None)


def resume_sweep(output: Path) -> SweepResults:
    """Continues an interrupted sweep; finished settings are not trained again.

    Raises:
      DataError: not a sweep, or the data are no longer those it began with.
      Interrupted: as ``sweep``.
    """
    plan = _read_plan(output)
    study = SweepStudy(
        grid=plan.grid, random=plan.random, random_seed=plan.random_seed, settings=plan.settings, plan=plan
    )
    return resume_study(study, plan.config, output)


@dataclass(frozen=True, kw_only=True)
class SweepData:
    """What the settings are trained on."""

    configs: list[Config]  # of each setting
    datasets: list[Dataset]  # the distinct splits
    of_setting: list[int]  # index into ``datasets`` of each setting
    plan: SweepPlan


@dataclass(frozen=True, kw_only=True)
class SweepStudy(Study[SweepData, SweepResults]):
    """A sweep as a run: sweep.yaml holds its configuration and what identifies its data. See ``sweep``."""

    noun = "sweep"
    grid: list[str]
    random: int | None
    random_seed: int
    settings: list[dict[str, Any]]
    together: int | None = None
    plan: SweepPlan | None = None  # of a sweep that is resumed

    def load(self, config: Config) -> SweepData:
        configs = [setting_config(config, setting) for setting in self.settings]
        datasets, of_setting = _load(configs)
        plan = self.plan or SweepPlan(
            config=config,
            grid=self.grid,
            random=self.random,
            random_seed=self.random_seed,
            settings=self.settings,
            groups=plan_groups(configs, datasets, of_setting, self.together),
            data=[describe_data(dataset)["sha256"] for dataset in datasets],
        )
        return SweepData(configs=configs, datasets=datasets, of_setting=of_setting, plan=plan)

    def begin(self, config: Config, folder: Path) -> None:
        """Nothing: sweep.yaml holds the configuration, too."""

    def record(self, config: Config, data: SweepData, folder: Path) -> None:
        _save_plan(data.plan, folder / "sweep.yaml")

    def sha256(self, data: SweepData) -> list[str]:
        return [describe_data(dataset)["sha256"] for dataset in data.datasets]

    def recorded_sha256(self, folder: Path) -> list[str]:
        return _read_plan(folder).data

    def lines(self, data: SweepData) -> Sequence[str]:
        return [line for dataset in data.datasets for line in dataset.lines]

    def run(self, config: Config, data: SweepData, folder: Path) -> SweepResults:
        plan = data.plan
        for number, dataset in enumerate(data.datasets):
            (folder / "data" / str(number)).mkdir(parents=True, exist_ok=True)
            first = data.configs[data.of_setting.index(number)]
            record_data(folder / "data" / str(number), dataset, first.data.split_seed)
        rows = []
        for number, group in enumerate(plan.groups):
            if not all((_folder(folder, i) / "summary.json").is_file() for i in group):
                say(f"group {number + 1} of {len(plan.groups)}: {len(group)} of {len(plan.settings)} settings")
                for place, i in enumerate(group):
                    say(f"  replica {place} is setting {i}: {describe_setting(plan.settings[i])}")
                _train_group(data, folder, number)
            shutil.rmtree(folder / "groups" / str(number) / "checkpoints", ignore_errors=True)
            rows = [_row(folder, i, data.configs[i]) for done in plan.groups[: number + 1] for i in done]
            rows.sort(key=lambda row: row["setting"])
            _write_rows(rows, folder / "results.csv")
        baselines = _baselines(data, folder) if config.output.baselines else {}
        return SweepResults(task=config.task, keys=list(plan.settings[0]), rows=rows, baselines=baselines)


def plan_groups(
    configs: Sequence[Config], datasets: Sequence[Dataset], of_setting: Sequence[int], together: int | None
) -> list[list[int]]:
    """Numbers of the settings that train together, at most ``together`` at once, or as many as memory holds."""
    groups = []
    for members in group_settings(configs, datasets, of_setting):
        most = together
        if most is None:
            most = 1 if len(members) == 1 else replicas_that_fit(configs[members[0]], datasets[of_setting[members[0]]])
            if jax.default_backend() == "cpu":
                most = min(most, _MOST_ON_CPU)
        groups += equal_parts(members, most)
    return groups


def group_settings(
    configs: Sequence[Config], datasets: Sequence[Dataset], of_setting: Sequence[int]
) -> list[list[int]]:
    """Numbers of the settings that can be replicas of one program, in their order.

    Their ``static_config`` is the same, and their table; where the learning rate has a schedule, also its length.

    Args:
      of_setting: index into ``datasets`` of each setting.
    """
    lengths: dict[tuple[Config, int], int] = {}
    groups: dict[Hashable, list[int]] = {}
    for i, (config, data) in enumerate(zip(configs, of_setting, strict=True)):
        static = static_config(config)
        if (static, data) not in lengths:
            lengths[static, data] = _scheduled_steps(config, datasets[data])
        groups.setdefault((static, id(datasets[data].table), lengths[static, data]), []).append(i)
    return list(groups.values())


def equal_parts(members: Sequence[int], most: int) -> list[list[int]]:
    """As few parts as have at most ``most`` members, of nearly equal size, so that compiled programs repeat."""
    return [part.tolist() for part in np.array_split(np.asarray(members), math.ceil(len(members) / most))]


def replicas_that_fit(config: Config, dataset: Dataset) -> int:
    """How many replicas of ``config`` train together in the memory of one device; at least 1.

    The training program of the largest batch shape is compiled for one and for two replicas, and the memory of more is
    extrapolated from that.

    Raises:
      DataError: the device does not tell how much memory it has.
    """
    training = config.training
    features = device_features(dataset.store)
    buckets = buckets_for(config.model, dataset.table, dataset.store, training.buckets, training.batch_size)
    shape = max(buckets.shapes, key=lambda shape: float(pair_cost(shape.atoms, shape.residues)))
    trial = pair_trial(config, dataset.table, dataset.parts)
    unscored: Any = None  # nothing is scored here
    task = make_task(config, [trial], dataset.table, features, buckets, unscored)
    one, two = (_program_bytes(task, config, features, shape, replicas) for replicas in (1, 2))
    budget = _memory_budget() - sum(array.nbytes for array in jax.tree.leaves(features))
    fitting = replicas_within(one, two, budget)
    mib = lambda size: f"{size / 2**20:,.0f} MiB"
    say(f"{fitting} settings fit together: one takes {mib(one)}, two {mib(two)}, and there are {mib(budget)} for them")
    return fitting


def replicas_within(one: int, two: int, budget: int) -> int:
    """The most replicas within ``budget`` bytes when one and two of them take so much; at least 1.

    Each further one takes what the second one added, but no less than half of two: the program of a single replica may
    have another form and another size.
    """
    each = max(two - one, -(-two // 2))
    return 1 if budget < two else 2 + (budget - two) // each


def sweep_table(results: SweepResults) -> list[tuple[str, ...]]:
    """Rows of text to print, the header first: settings from the best validation score on, then the baselines."""
    chosen = SELECTION[results.task]
    first, second = INTERVALS[results.task]
    header = ("setting", *results.keys, "best epoch", f"validation {chosen}", f"test {first}", f"test {second}")
    table = [tuple(name.replace("_", " ") if name not in results.keys else name for name in header)]
    number = lambda value: "" if value is None else f"{value:.4f}"
    for row in results.ranked():
        values = (show_value(row[key]) for key in results.keys)
        if row["failed"]:
            table.append((str(row["setting"]), *values, "failed", "", "", ""))
        else:
            scores = (row[f"validation_{chosen}"], row[f"test_{first}"], row[f"test_{second}"])
            table.append((str(row["setting"]), *values, str(row["best_epoch"]), *map(number, scores)))
    blanks = [""] * len(results.keys)
    for setting, baselines in results.baselines.items():
        place = f" (data of setting {setting})" if len(results.baselines) > 1 else ""
        for name, metrics in baselines.items():
            table.append((f"{name}{place}", *blanks, "", "", number(metrics[first]), number(metrics[second])))
    return table


def _load(configs: Sequence[Config]) -> tuple[list[Dataset], list[int]]:
    """The distinct splits that the settings ask for, and which one each has.

    Data that differ in ``data.split_seed`` or ``data.split_file`` alone share one table, if it is the same indeed.
    """
    distinct = list(dict.fromkeys(config.data for config in configs))
    families: dict[Any, list[Dataset]] = {}
    datasets = []
    for data in distinct:
        dataset = load_data(data, configs[0].task)
        family = families.setdefault(replace(data, split_seed=0, split_file=None), [])
        if family and _same_rows(family[0], dataset):
            dataset = replace(dataset, table=family[0].table, store=family[0].store)
        family.append(dataset)
        datasets.append(dataset)
    return datasets, [distinct.index(config.data) for config in configs]


def _same_rows(a: Dataset, b: Dataset) -> bool:
    return np.array_equal(a.table.label, b.table.label) and table_identity(a.table) == table_identity(b.table)


def _scheduled_steps(config: Config, dataset: Dataset) -> int:
    """Updates of an epoch if the learning rate or the adaptation's strength depends on them, otherwise 0."""
    training = config.training
    if training.schedule == "constant" and training.warmup_epochs == 0 and config.adaptation.method == "none":
        return 0
    buckets = buckets_for(config.model, dataset.table, dataset.store, training.buckets, training.batch_size)
    trial = pair_trial(config, dataset.table, dataset.parts)
    return BucketPlan([trial], buckets, training.batch_size, 1, partial(pair_batch, dataset.table)).steps_per_epoch


def _program_bytes(task: Task, config: Config, features: DeviceFeatures, shape: Shape, replicas: int) -> int:
    """Device memory of one call of the training program beside the features: arguments, results and intermediates.

    The results take the place of the arguments; counted all the same, they stand for the copy of the best weights.
    """
    tx = make_optimizer(config.training, 1)
    batch = (replicas, *task.plan.epoch(0)[0].rows.shape[1:])
    of_type = lambda dtype: jax.ShapeDtypeStruct(batch, dtype)
    batches = PairBatch(of_type(jnp.int32), of_type(jnp.int32), of_type(jnp.float32), of_type(jnp.bool_))  # pyright: ignore[reportArgumentType]
    seeds, hyper = [0] * replicas, [hyper_parameters(config)] * replicas
    state = jax.eval_shape(lambda: init_replicas(task.init, tx, seeds, hyper))

    def program(state, features, batches):
        step = make_train_step(task.objective(features, shape, None), tx)
        return jax.vmap(make_chunk(step))(state, batches)

    memory = jax.jit(program, donate_argnums=0).lower(state, features, batches).compile().memory_analysis()
    if memory is None:
        raise DataError("the compiler does not tell how much memory a program takes; give --together N")
    shared = sum(array.nbytes for array in jax.tree.leaves(features))
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes - shared


def _memory_budget() -> int:
    """Bytes for training: half of the physical memory on CPU, 90 % of what JAX may take elsewhere."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        raise DataError(f"{device.device_kind} does not tell how much memory it has; give --together N")
    return int(0.9 * memory["bytes_limit"])


def _baselines(data: SweepData, output: Path) -> dict[int, dict[str, Any]]:
    """Of each distinct split, by the number of its first setting; computed once."""
    baselines = {}
    for number, dataset in enumerate(data.datasets):
        path = output / "data" / str(number) / "baselines.json"
        if not path.is_file():
            write_json(path, score_baselines(data.plan.config, dataset))
        baselines[data.of_setting.index(number)] = json.loads(path.read_text(encoding="utf-8"))
    return baselines


def _train_group(data: SweepData, output: Path, number: int) -> None:
    """Trains the settings of a group and writes the directory of each; its summary comes last."""
    plan, group, folder = data.plan, data.plan.groups[number], output / "groups" / str(number)
    configs, datasets = [data.configs[i] for i in group], [data.datasets[data.of_setting[i]] for i in group]
    dataset, parts = datasets[0], [dataset.parts for dataset in datasets]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fitted = fit_pairs(configs, dataset, folder, parts=parts)
    except NonFiniteLoss as error:
        say(f"every setting of the group failed: {error}")
        together = f"all {len(group)} settings of its group failed; of the last: " if len(group) > 1 else ""
        for i, config in zip(group, configs, strict=True):
            _write_summary(output, i, config, {"failed": f"{together}{error}"}, plan.settings[i])
        return
    for place, (i, config) in enumerate(zip(group, configs, strict=True)):
        if reason := fitted.progress.members[place].failed:
            _write_summary(output, i, config, {"failed": reason}, plan.settings[i])
            continue
        _folder(output, i).mkdir(parents=True, exist_ok=True)
        metrics = write_member(_folder(output, i), dataset, fitted, place)
        _write_summary(output, i, config, metrics, plan.settings[i])


def _write_summary(output: Path, i: int, config: Config, metrics: dict[str, Any], setting: dict[str, Any]) -> None:
    _folder(output, i).mkdir(parents=True, exist_ok=True)
    save_config(config, _folder(output, i) / "config.yaml")
    write_json(_folder(output, i) / "summary.json", json_ready({"setting": i, "values": setting} | metrics))


def _folder(output: Path, setting: int) -> Path:
    return output / "settings" / str(setting)


def _row(output: Path, i: int, config: Config) -> dict[str, Any]:
    """The row of results.csv of a setting that has been trained."""
    summary = json.loads((_folder(output, i) / "summary.json").read_text(encoding="utf-8"))
    scores = {
        f"{part}_{metric}": summary.get(part, {}).get(metric)
        for part in ("validation", "test")
        for metric in INTERVALS[config.task]
    }
    return {
        "setting": i,
        **summary["values"],
        "seed": config.training.seed,
        "best_epoch": summary.get("best_epoch"),
        "epochs": summary.get("epochs"),
        **scores,
        "failed": summary.get("failed"),
        "directory": f"settings/{i}",
    }


def _write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    text = lambda value: None if value is None else repr(value) if isinstance(value, float) else show_value(value)
    columns = {name: pa.array([text(row[name]) for row in rows], pa.string()) for name in rows[0]}
    write_table(pa.table(columns), path)


def _save_plan(plan: SweepPlan, path: Path) -> None:
    """The file appears whole or not at all."""
    plain = json.loads(json.dumps(asdict(plan) | {"config": config_to_dict(plan.config)}))  # tuples become lists
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def _read_plan(output: Path) -> SweepPlan:
    path = output / "sweep.yaml"
    if not path.is_file():
        raise not_resumable(output, "sweep", path.name)
    tree = read_yaml(path)
    try:
        tree["config"] = config_from_dict(tree["config"], str(path))
        return SweepPlan(**tree)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from error
