"""The run that a transfer to pairs starts from: whether it suits, its copy in the new run, and how good it is there."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdti.config import Config, ModelConfig, save_config
from jaxdti.data.pairs.load import Dataset
from jaxdti.errors import DataError
from jaxdti.inference.trained import TrainedRun, write_model_card
from jaxdti.studies.report.pairs import SCORED_PARTS, evaluate_parts
from jaxdti.training.checkpoints import save_weights
from jaxdti.training.task import Scorer

_MAY_DIFFER = ("dropout", "dtype")  # fields of the model that leave the weights what they are


def check_architecture(task: str, model: ModelConfig, config: Config) -> None:
    """Raises DataError unless weights of ``model`` fit the configuration; the message lists every difference."""
    names = [item.name for item in fields(ModelConfig) if item.name not in _MAY_DIFFER]
    pairs = [("task", task, config.task)]
    pairs += [(f"model.{name}", getattr(model, name), getattr(config.model, name)) for name in names]
    if different := [f"{name} {there!r}, here {here!r}" for name, there, here in pairs if there != here]:
        raise DataError(f"the source run is of another architecture: {'; '.join(different)}")


def copy_network(run: TrainedRun, output: Path) -> None:
    """Writes the network of a run, or those of its replicas, as a run of its own, for scoring."""
    output.mkdir(parents=True)
    first, *others = run.members
    config = replace(run.config, training=replace(run.config.training, replicas=len(run.members)))
    save_config(config, output / "config.yaml")
    scale = (0.0, 1.0) if others else first.label_scale
    write_model_card(output, run.config.task, scale, run.calibration, calibrated=run.calibrated)
    if not others:
        save_weights(output / "weights", first.variables)
        return
    for i, member in enumerate(run.members):
        copy_network(replace(run, members=(member,)), output / "replicas" / str(i))


def evaluate_source(config: Config, dataset: Dataset, scorer: Scorer, source: TrainedRun) -> dict[str, Any]:
    """Metrics by part of the source as it is, with its own calibration and label scales; replicas by their mean."""

    def score(part: str) -> np.ndarray:
        scored = [(scorer(one.variables, dataset.parts[part]), one.label_scale) for one in source.members]
        return np.mean([x.astype(np.float64) * sd + mean for x, (mean, sd) in scored], axis=0)

    scores = {part: score(part) for part in SCORED_PARTS}
    return evaluate_parts(config, dataset, dataset.parts, scores, source.calibration)
