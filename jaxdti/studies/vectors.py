"""A run on feature vectors: methods of adaptation compared on the target domains of a dataset."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxdti.config import Config
from jaxdti.console import say
from jaxdti.data.tables import write_table
from jaxdti.data.vectors.digits import load_digit_domains
from jaxdti.data.vectors.domains import VectorDomains, read_domains
from jaxdti.data.vectors.family_domains import load_family_domains
from jaxdti.data.vectors.planted import load_planted_domains
from jaxdti.errors import DataError, Interrupted
from jaxdti.evaluation.vector_baselines import VECTOR_BASELINES
from jaxdti.files import write_json
from jaxdti.inference.networks import VectorNetworks, load_networks, save_networks
from jaxdti.studies.pairs import check_no_transfer
from jaxdti.studies.report.domains import (
    Row,
    database_lines,
    domain_lines,
    draw_tasks,
    paired_differences,
    summarise_domains,
    verdicts,
    write_domain_results,
)
from jaxdti.studies.run_directory import (
    SOURCE_FOLDER,
    Study,
    interruptible,
    resumable_config,
    resume_study,
    run_study,
)
from jaxdti.studies.transfer.vectors import check_transfer, in_classes_of, transfer_methods
from jaxdti.studies.vector_methods import METHODS, baseline_rows, train_method, transfer_rows

__all__ = ["Interrupted", "resume_vectors", "train_vectors", "transfer_vectors"]


def train_vectors(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains ``training.replicas`` networks for every method and task, and writes what they reach on the target.

    All networks of a method train in one program. ``output`` gets config.yaml, environment.json, data.json, methods/
    (what each finished method reached, to resume from; in METHOD/ metrics.jsonl, a record a network
    and epoch, and the checkpoints of a training under way), networks/METHOD/TASK/ (the weights), results.csv (a row a
    network), summary.json, accuracy.png and domains/TASK.png (features of source validation and target test rows in the
    first seed's networks).

    Returns:
      ``results``, one entry for each task and method (see ``summarise_domains``), ``differences`` (see
      ``paired_differences``), and ``lines``, ``database_lines`` and ``verdicts``, what is printed.

    Raises:
      DataError: the data are unfit, or ``output`` exists and is not to be overwritten.
      Interrupted: a signal arrived; ``resume_vectors`` goes on.
    """
    check_no_transfer(config)
    return run_study(VectorsStudy(), config, output, overwrite=overwrite)


def transfer_vectors(source: Path, config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Carries the networks of the run ``source`` to other data, as ``config.transfer`` says.

    Writes and returns what ``train_vectors`` does, with the source's networks in source/; see
    ``jaxdti.studies.transfer.vectors``.

    Raises:
      DataError: as ``train_vectors``; or the source is not trained or of another architecture, or the names of what is
        frozen or fresh do not suit it.
      Interrupted: as ``train_vectors``.
    """
    if config.transfer.mode == "none":
        raise DataError("transfer.mode=none: choose from full, feature, shallow")
    networks = load_networks(source)
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise DataError(f"{output}: holds the source run; give another --output")
    return run_study(VectorsStudy(networks), config, output, overwrite=overwrite)


def resume_vectors(run: Path) -> dict[str, Any]:
    """Continues an interrupted run: the method under way from its last checkpoint; what is finished stays as it is.

    Raises:
      DataError: not such a run, or the data are no longer those it began with.
      Interrupted: as ``train_vectors``.
    """
    config = resumable_config(run)
    networks = None if config.transfer.mode == "none" else load_networks(run / SOURCE_FOLDER)
    return resume_study(VectorsStudy(networks), config, run)


@dataclass(frozen=True)
class VectorsStudy(Study[VectorDomains, dict[str, Any]]):
    """Training on feature vectors, or a transfer to them; see ``train_vectors``."""

    source: VectorNetworks | None = None  # the networks that a transfer begins with

    def load(self, config: Config) -> VectorDomains:
        domains = load_domains(config, seeds_of(config), self.source)
        if self.source is not None:
            check_transfer(config, self.source, domains)
        return domains

    def begin(self, config: Config, folder: Path) -> None:
        if self.source is not None:
            save_networks(folder / SOURCE_FOLDER, self.source)
        super().begin(config, folder)

    def sha256(self, data: VectorDomains) -> list[str]:
        """Of the features, the labels and the parts of every task."""
        total = hashlib.sha256(data.features.tobytes() + data.label.tobytes())
        for task, draws in data.tasks.items():
            for parts in draws:
                for part, rows in parts.items():
                    total.update(f"{task} {part} ".encode() + rows.tobytes())
        return [total.hexdigest()]

    def lines(self, data: VectorDomains) -> Sequence[str]:
        if self.source is None or self.source.classes == data.classes:
            return data.lines
        theirs, ours = ", ".join(self.source.classes), ", ".join(data.classes)
        return [
            *data.lines,
            f"the source's classes are {theirs}, here {ours}: the output layer begins with random weights",
        ]

    def run(self, config: Config, data: VectorDomains, folder: Path) -> dict[str, Any]:
        started, seeds = time.perf_counter(), seeds_of(config)
        methods = config.vectors.methods
        if self.source is not None:
            methods = transfer_methods(config, self.source, data.classes)
        rows: list[Row] = []
        pictures: list[pa.Table] = []
        with interruptible() as check:
            for method in (*methods, *(VECTOR_BASELINES if config.output.baselines else ())):
                file = folder / METHODS / f"{method}.json"
                if not file.is_file():
                    self._run_method(config, data, method, folder, check)
                    check()
                rows += json.loads(file.read_text(encoding="utf-8"))  # Python's JSON keeps floats to the bit, and NaN
                if (picture := file.with_suffix(".parquet")).is_file():
                    pictures.append(pq.read_table(picture))
        if pictures:
            first = [row for row in rows if row["seed"] == seeds[0]]
            draw_tasks(pa.concat_tables(pictures), first, folder / "domains")
        facts = {"seconds": round(time.perf_counter() - started, 1), "seeds": list(seeds), "tasks": list(data.tasks)}
        return report_domains(folder, rows, facts, classes=len(data.classes))

    def _run_method(
        self, config: Config, domains: VectorDomains, method: str, folder: Path, check: Callable[..., None]
    ) -> None:
        """Trains or fits one method. Its rows are kept as soon as all its networks are measured."""
        begun, seeds, file = time.perf_counter(), seeds_of(config), folder / METHODS / f"{method}.json"
        if method in VECTOR_BASELINES:
            rows = baseline_rows(method, domains, seeds)
        elif self.source is not None:
            rows = transfer_rows(config, self.source, domains, method, seeds, folder, check)
        else:
            adaptation = replace(config.adaptation, method=method)
            rows, points = train_method(config, domains, adaptation, seeds, folder, check)
            file.parent.mkdir(exist_ok=True)
            write_table(points, file.with_suffix(".parquet"))  # before the rows: they say that the method is finished
        write_json(file, rows)
        for checkpoints in sorted((folder / METHODS / method).glob("**/checkpoints")):
            shutil.rmtree(checkpoints)
        say(f"{method}: {len(rows)} models, {time.perf_counter() - begun:.0f} s")


def seeds_of(config: Config) -> range:
    """Of the replicas: they count up from the run's."""
    return range(config.training.seed, config.training.seed + config.training.replicas)


def report_domains(folder: Path, rows: Sequence[Row], facts: dict[str, Any], classes: int) -> dict[str, Any]:
    """Writes results.csv, summary.json and accuracy.png; returns what ``train_vectors`` does."""
    summary, differences = summarise_domains(rows), paired_differences(rows)
    write_domain_results(folder, rows, summary, facts | {"differences": differences})
    printed = {
        "lines": domain_lines(summary),
        "auroc_lines": domain_lines(summary, "target_auroc") if classes == 2 else [],
        "database_lines": database_lines(summary),
        "verdicts": verdicts(summary, differences),
    }
    return facts | {"results": summary, "differences": differences} | printed


def load_domains(config: Config, seeds: Sequence[int], networks: VectorNetworks | None = None) -> VectorDomains:
    """The feature vectors that the section ``vectors`` names, as trained ``networks`` take them if there are some.

    Raises:
      DataError: they are unfit.
    """
    vectors = config.vectors
    how = {"validation": vectors.validation, "seeds": seeds}
    if vectors.dataset == "digits":
        domains = load_digit_domains(vectors.tasks, **how)
    elif vectors.dataset == "families":
        domains = load_family_domains(config.data, vectors.tasks, **how)
    elif vectors.dataset == "planted":
        domains = load_planted_domains(vectors.tasks, **how)
    else:
        domains = _read_tables(config, networks, how)
    return domains if networks is None else in_classes_of(domains, networks)


def _read_tables(config: Config, networks: VectorNetworks | None, how: dict[str, Any]) -> VectorDomains:
    vectors = config.vectors
    if vectors.tasks:
        raise DataError("vectors.tasks chooses among the targets of vectors.dataset; given tables are one target")
    if networks is not None and networks.space is None:
        raise DataError("the source was trained on vectors that are those of no table; name vectors.dataset")
    assert vectors.source and vectors.test
    return read_domains(
        Path(vectors.source),
        Path(vectors.target) if vectors.target else None,
        Path(vectors.test),
        **how,
        label_column=vectors.label_column,
        fingerprint_bits=vectors.fingerprint_bits,
        drug_column=config.data.drug_column,
        space=networks.space if networks is not None else None,
    )
