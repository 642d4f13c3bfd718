"""A drug response run: its directory, from the tables to predictions for every patient."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jaxdti.config import Config, ResponseConfig, load_config
from jaxdti.console import say
from jaxdti.data.expression.study import ResponseData, load_study
from jaxdti.data.tables import write_table
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.evaluation.domain_gap import domain_accuracy
from jaxdti.files import write_json
from jaxdti.models.autoencoders import normalise
from jaxdti.models.response_head import encoder_output
from jaxdti.studies.report.response import write_response_results
from jaxdti.studies.response.entries import baseline_entries, method_entries
from jaxdti.studies.response.pretraining import ADVERSARIAL, BASE, Snapshot, pretrain, settings_of
from jaxdti.studies.run_directory import StopCheck, Study, interruptible, resume_study, run_study
from jaxdti.training.codeae import SEPARATING, Profiles
from jaxdti.training.compilation import keep_programs

__all__ = ["Interrupted", "NonFiniteLoss", "respond", "resume_response"]


def respond(config: Config, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Pre-trains, trains classifiers and baselines, evaluates, and writes a run directory; returns its summary.

    The directory holds config.yaml, environment.json, data.json, left_out.csv, pretraining/ and stages/ (to resume
    from), summary.json, results.csv, predictions.parquet, embeddings/ and embeddings.png.

    Raises:
      DataError: the data are unfit, ``output`` exists and is not to be overwritten, or a key would be ignored.
      NonFiniteLoss: all settings of a method have failed, or no method is left.
      Interrupted: a signal arrived; ``resume_response`` goes on.
    """
    if not config.output.baselines:
        raise DataError("output.baselines=false: name the baselines in response.baselines, [] for none")
    return run_study(ResponseStudy(), config, output, overwrite=overwrite)


def resume_response(run: Path) -> dict[str, Any]:
    """Continues an interrupted run; what is finished is not trained again.

    Raises:
      DataError: not such a run, or the data are no longer those it began with.
      NonFiniteLoss, Interrupted: as ``respond``.
    """
    recorded = (run / "data.json").is_file()
    if not (run / "config.yaml").is_file() or (recorded and not (run / "left_out.csv").is_file()):
        raise DataError(f"{run}: not a drug response run; expected a directory with config.yaml and left_out.csv")
    return resume_study(ResponseStudy(), load_config(run / "config.yaml"), run)


class ResponseStudy(Study[ResponseData, dict[str, Any]]):
    """Pre-training and classifiers of drug response; see ``respond``."""

    def load(self, config: Config) -> ResponseData:
        data = load_study(config.response)
        if "adae" in config.response.methods and not data.confounder_names:
            raise DataError("response.methods: adae needs a known confounder; name a table with response.confounders")
        return data

    def record(self, config: Config, data: ResponseData, folder: Path) -> None:
        columns = {name: [getattr(item, name) for item in data.left_out] for name in ("what", "name", "reason")}
        write_table(pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), folder / "left_out.csv")
        (sha256,) = self.sha256(data)
        write_json(folder / "data.json", {"sha256": sha256, "drugs": list(data.drugs), "summary": data.lines})

    def sha256(self, data: ResponseData) -> list[str]:
        return [data.identity()]

    def lines(self, data: ResponseData) -> Sequence[str]:
        return data.lines

    def run(self, config: Config, data: ResponseData, folder: Path) -> dict[str, Any]:
        started, response = time.perf_counter(), config.response
        if data.left_out:
            say(f"what takes no part is listed in {folder / 'left_out.csv'}")
        keep_programs()
        for name in ("pretraining", "stages", "embeddings"):
            (folder / name).mkdir(exist_ok=True)
        with interruptible() as check:
            entries = baseline_entries(response, data, folder / "stages", check)
            snapshots = pretrain_all(response, data, folder / "pretraining", check)
            for method in response.methods:
                entries += method_entries(response, data, method, snapshots[method], folder / "stages", check)
            if not entries:
                raise NonFiniteLoss("no method is left: of each, every setting of a seed has failed")
            codes = {method: domain_codes(data, snapshots[method][-1], method) for method in response.methods}
        codes = {method: domains for method, domains in codes.items() if len(domains[0]["shared"])}
        accuracy = {method: domain_accuracies(*domains) for method, domains in codes.items()}
        seconds = time.perf_counter() - started
        return write_response_results(config, folder, data, entries, codes, accuracy, seconds)


def pretrain_all(
    config: ResponseConfig, study: ResponseData, folder: Path, check: StopCheck
) -> dict[str, list[Snapshot]]:
    """Method -> its snapshots; codeae_adv goes on from codeae_base, which is pre-trained even if nobody asks for it."""
    count = lambda x, rows: np.full(rows, -1, np.int32) if x is None else x
    profiles = Profiles(
        jnp.asarray(study.source),
        jnp.asarray(study.target),
        jnp.asarray(count(study.source_confounder, len(study.source))),
        jnp.asarray(count(study.target_confounder, len(study.target))),
    )
    methods = [m for m in config.methods if m != ADVERSARIAL]
    if ADVERSARIAL in config.methods:
        methods += [ADVERSARIAL] if BASE in methods else [BASE, ADVERSARIAL]
    snapshots: dict[str, list[Snapshot]] = {}
    rows = _target_rows(study)
    for method in methods:
        start = snapshots[BASE] if method == ADVERSARIAL else ()
        snapshots[method] = pretrain(
            settings_of(method, config),
            profiles,
            rows,
            len(study.confounder_names),
            config.pretraining,
            folder,
            check.received,
            say,
            start,
        )
    return snapshots


def _target_rows(study: ResponseData) -> dict[str, np.ndarray]:
    """Protocol -> rows of the target profiles that pre-training sees."""
    return {"transductive": np.arange(len(study.target)), "inductive": np.flatnonzero(~study.labelled)}


Domain = dict[str, np.ndarray]  # kind of code -> float32 [models, samples, D]


def domain_codes(study: ResponseData, snapshot: Snapshot, method: str) -> tuple[Domain, Domain]:
    """Codes of source and target by the last snapshot: shared; private and joined if there are any.

    Settings that have failed, or whose encoders give no finite output, have no row.
    """
    x, y = jnp.asarray(study.source), jnp.asarray(study.target)
    names = {"shared": ("encoder", "encoder")}
    if method in SEPARATING:
        names["private"] = ("private_source", "private_target")
    domains: tuple[Domain, Domain] = ({}, {})
    left = snapshot.failed < 0
    for kind, encoders in names.items():
        for domain, inputs, encoder in zip(domains, (x, y), encoders, strict=True):
            outputs = jax.lax.map(lambda p, inputs=inputs: encoder_output(p, inputs), snapshot.params[encoder])
            domain[kind] = np.asarray(jnp.split(outputs, 2, -1)[0] if method == "vae" else normalise(outputs))
            left = left & np.isfinite(outputs).all((1, 2))
    for domain in domains:
        for kind, values in domain.items():
            domain[kind] = values[left]
        if "private" in domain:
            domain["joined"] = np.concatenate([domain["private"], domain["shared"]], -1)
    return domains


def domain_accuracies(source: Domain, target: Domain) -> dict[str, list[float]]:
    """Kind of code -> accuracy of a domain classifier for each setting that is left."""
    return {kind: [domain_accuracy(a, b) for a, b in zip(source[kind], target[kind], strict=True)] for kind in source}
