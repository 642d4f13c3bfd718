"""A trained or imported run, read back for scoring."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdti.config import Config, load_config
from jaxdti.data.interactions import DataError, FeatureStore, InteractionTable
from jaxdti.data.named import write_json
from jaxdti.evaluation.calibration import Calibration
from jaxdti.inference.scoring import buckets_for, make_scorer
from jaxdti.training.checkpoints import load_weights
from jaxdti.training.features import device_features
from jaxdti.training.state import init_variables

_BATCH = 64
_BUCKETS = 6


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What scoring needs of a run directory."""

    config: Config
    variables: dict[str, Any]  # the best epoch's "params" and "batch_stats"
    label_scale: tuple[float, float]  # (mean, sd) of the training affinities; (0, 1) for classification
    calibration: Calibration
    calibrated: bool  # False for imported weights: plain sigmoid and threshold 0.5

    def score(self, table: InteractionTable, store: FeatureStore) -> np.ndarray:
        """float64 [N]: the logit, or the affinity in the unit of the training labels, of every row of ``table``."""
        if len(table) == 0:
            return np.zeros(0)
        batch = min(_BATCH, len(table))
        buckets = buckets_for(self.config.model, table, store, _BUCKETS, batch)
        scorer = make_scorer(self.config.model, device_features(store), table, buckets, batch)
        mean, sd = self.label_scale
        return scorer(self.variables, np.arange(len(table))).astype(np.float64) * sd + mean


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


def load_run(run: Path) -> TrainedRun:
    """Reads a run directory.

    Raises:
      DataError: it is not one, its training has not finished, or a file of it is damaged.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run}: not a run directory; expected one written by `jaxdti train` or `jaxdti import`")
    if not (run / "model.json").is_file():
        raise DataError(f"{run}: training has not finished; continue with `jaxdti train --resume {run}`")
    config = load_config(run / "config.yaml")
    try:
        card = json.loads((run / "model.json").read_text(encoding="utf-8"))
        mean, sd = card["label_scale"]
        calibration, calibrated = Calibration(**card["calibration"]), bool(card["calibrated"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run / 'model.json'}: damaged ({type(error).__name__}: {error})") from error
    like = jax.eval_shape(lambda: init_variables(config.model, 0))
    return TrainedRun(
        config=config,
        variables=load_weights(run / "weights", like),
        label_scale=(mean, sd),
        calibration=calibration,
        calibrated=calibrated,
    )
