"""A trained or imported run, read back for scoring."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdti.config import Config, load_config
from jaxdti.data.pairs.device import features_within
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.errors import DataError
from jaxdti.evaluation.calibration import Calibration
from jaxdti.files import write_json
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.models.drugban import init_variables
from jaxdti.training.checkpoints import load_weights
from jaxdti.training.compilation import keep_programs

_BATCH = 64
_BUCKETS = 6


@dataclass(frozen=True)
class Weights:
    """One trained model."""

    variables: dict[str, Any] = field(repr=False)  # the best epoch's "params" and "batch_stats"
    label_scale: tuple[float, float]  # (mean, sd) of the training affinities; (0, 1) for classification


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainedRun:
    """What scoring needs of a run directory."""

    config: Config
    members: tuple[Weights, ...]  # one, or the replicas of an ensemble
    calibration: Calibration
    calibrated: bool  # False for imported weights: plain sigmoid and threshold 0.5

    def __repr__(self) -> str:
        return f"<TrainedRun: {self.describe()}>"

    def describe(self) -> str:
        """Task, networks and parameters in a few words."""
        count = len(self.members)
        size = sum(leaf.size for leaf in jax.tree.leaves(self.members[0].variables["params"]))
        networks = f"{count} networks of {size:,} parameters each" if count > 1 else f"{size:,} parameters"
        return f"{self.config.task}, {networks}"

    def score_members(self, table: InteractionTable, store: FeatureStore) -> np.ndarray:
        """float64 [members, N]: the logit, or the affinity in the unit of the training labels, of every row."""
        if len(table) == 0:
            return np.zeros((len(self.members), 0))
        keep_programs()
        batch = min(_BATCH, len(table))
        buckets = buckets_for(self.config.model, table, store, _BUCKETS, batch)
        features = features_within(store, self.config.data.device_gib)
        scorer = make_scorer(self.config.model, features, table, buckets, batch)
        rows = np.arange(len(table))
        scores = [scorer(member.variables, rows).astype(np.float64) for member in self.members]
        scaled = [x * sd + mean for x, (mean, sd) in zip(scores, (m.label_scale for m in self.members), strict=True)]
        return np.stack(scaled)

    def score(self, table: InteractionTable, store: FeatureStore) -> np.ndarray:
        """float64 [N]: the mean of ``score_members``."""
        return self.score_members(table, store).mean(0)


def write_model_card(
    run: Path, task: str, label_scale: tuple[float, float], calibration: Calibration, *, calibrated: bool
) -> None:
    """Writes model.json: how raw outputs become scores and probabilities."""
    card = {
        "task": task,
        "label_scale": list(label_scale),
        "calibration": asdict(calibration),
        "calibrated": calibrated,
    }
    write_json(run / "model.json", card)


def load_run(run: str | Path) -> TrainedRun:
    """Reads a run directory; one with replicas becomes an ensemble.

    Raises:
      DataError: it is not one, not one on pairs, its training has not finished, or a file of it is damaged.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run}: not a run directory; expected one written by `jaxdti train` or `jaxdti import`")
    config = load_config(run / "config.yaml")
    if config.vectors.given:
        raise DataError(f"{run}: a run on feature vectors, not on pairs; `jaxdti predict` and `transfer` take it")
    if (run / "left_out.csv").is_file():
        raise DataError(
            f"{run}: a drug response run, not one on pairs; its results are in summary.json and results.csv"
        )
    if not (run / "model.json").is_file():
        raise DataError(f"{run}: training has not finished; continue with `jaxdti train --resume {run}`")
    label_scale, calibration, calibrated = _read_model_card(run / "model.json")
    if config.training.replicas > 1:
        folders = sorted((run / "replicas").glob("*/model.json"), key=lambda path: int(path.parent.name))
        members = tuple(weights for path in folders for weights in load_run(path.parent).members)
        if not members:
            raise DataError(f"{run / 'replicas'}: the weights of the {config.training.replicas} replicas are missing")
    else:
        like = jax.eval_shape(lambda: init_variables(config.model, 0))
        members = (Weights(load_weights(run / "weights", like), label_scale),)
    return TrainedRun(config=config, members=members, calibration=calibration, calibrated=calibrated)


def _read_model_card(path: Path) -> tuple[tuple[float, float], Calibration, bool]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        mean, sd = card["label_scale"]
        return (mean, sd), Calibration(**card["calibration"]), bool(card["calibrated"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from error
