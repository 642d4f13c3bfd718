"""What a training is made of: trials, what a group of trials shares, and what comes of them."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from jaxdti.config import TrainingConfig
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.progress import Progress

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}
Scorer = Callable[[Variables, np.ndarray], np.ndarray]  # network, rows -> scores float32 [N]
Hyper = dict[str, np.ndarray]
_NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model to train: its rows and labels, its seed, and what may differ inside one program."""

    rows: Mapping[str, np.ndarray]  # part -> int64 rows: "train", and "validation", "target_train", "test" if any
    label: np.ndarray  # float [N], of every row of the data; NaN where there is none
    seed: int = 0  # of the initial weights, the order of the rows and the dropout
    epochs: int | None = None  # fewer than the others
    class_weight: bool = False  # weight classes inversely to their frequency in "train"
    hyper: Mapping[str, Any] = field(default_factory=dict)  # float or float [...]: learning_rate, weight_decay, ...

    def part(self, name: str) -> np.ndarray:
        """The rows of a part; none where the trial does not have it."""
        return self.rows.get(name, _NO_ROWS)

    def last_epoch(self, epochs: int) -> int:
        """How many epochs it trains of a training of ``epochs``."""
        return epochs if self.epochs is None else min(self.epochs, epochs)


class Selected(NamedTuple):
    """How good a trial is after an epoch."""

    value: float  # larger is better
    record: dict[str, float]  # metrics of the epoch by name


class Selector(Protocol):
    """Which epoch of a trial is kept, decided on the host between two epochs."""

    @property
    def name(self) -> str:
        """Of the value, in the record."""
        ...

    def __call__(self, network: Callable[[str], Variables], trial: Trial) -> Selected:
        """Scores the trial; ``network(part)`` scores that part.

        Raises:
          NonFiniteLoss: scores are not finite.
        """
        ...


class Refresh(NamedTuple):
    """When and how ``hyper["target_classes"]`` is set to the mean prediction over the target."""

    # (all variables of a trial, inputs, rows of its target) -> what changes in ``hyper``; a streamed training calls it
    # on the host, a resident one traces it, with rows int32 [T] that end in -1
    classes: Callable[[Variables, Any, Any], dict[str, Any]]
    steps: int | None = None  # after so many steps within an epoch too, not only at its start


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What trials that train together share."""

    init: Callable[[Any], Variables]  # fresh variables from a seed, with "frozen" if any; vmappable
    inputs: Any  # what objectives read: a pytree on the device, or a store on the host (streamed training only)
    objective: Callable[..., Any]  # (inputs) -> Objective; on pairs (inputs, shape, distinct proteins or None)
    plan: Any  # ``plans.BucketPlan`` streams batches, ``plans.EvenPlan`` trains whole epochs in one program
    hyper: Callable[[Trial], Hyper]  # what the programs trace, float32
    selector: Any  # ``Selector``; for an ``EvenPlan`` a ``selection.TracedSelector``, or None: the last epoch is kept
    scored: Callable[[Variables, str], Variables]  # from what a trial trains: the network that scores a part
    optimizer: Callable[[TrainingConfig, int], optax.GradientTransformation] = make_optimizer  # config, steps an epoch
    refresh: Refresh | None = None
    describe: Callable[[np.ndarray], str] = lambda rows: ", ".join(f"row {row}" for row in rows)  # for messages
    own_inputs: bool = False  # whether ``inputs`` has an axis 0 of trials; ``EvenPlan`` only
    key: Hashable = None  # all that its programs depend on beside their arguments; None: they are not kept
    keeps_init: bool = True  # whether ``key`` covers ``init`` too


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Trained models, stacked on axis 0."""

    variables: Variables  # of the best epoch of each, or of its last one without a selector
    progress: Progress
    best_epoch: np.ndarray  # int [R], counted from 1; 0 where no epoch was finished
    best_value: np.ndarray  # float32 [R]; NaN without a selector
    first_bad: np.ndarray  # int [R]; step whose loss or gradient was not finite, -1 where there is none
    loss: np.ndarray  # float32 [R, epochs], mean over the training rows; NaN where a trial did not train
    value: np.ndarray  # float32 [R, epochs], of the selector; likewise
    label_scale: np.ndarray  # float32 [R, 2]; a regression network predicts (label - mean) / sd


def label_scale(trial: Trial, kind: str) -> tuple[float, float]:
    """(mean, sd) of the training labels of a regression, else (0, 1): networks predict (label - mean) / sd."""
    if kind == "classification":
        return 0.0, 1.0
    label = trial.label[trial.rows["train"]].astype(np.float64)
    return float(label.mean()), float(label.std()) or 1.0


def class_weights(trial: Trial, classes: int = 2) -> tuple[float, ...]:
    """Loss factors of the classes, inversely to their frequency in train, of mean 1 over its rows; 1 if not asked for,
    and for a class that train does not have."""
    weights = np.ones(classes)
    if trial.class_weight:
        label = np.asarray(trial.label[trial.rows["train"]]).astype(np.int64)
        counts = np.bincount(label, minlength=classes)
        weights = np.where(counts > 0, len(label) / (np.sum(counts > 0) * np.maximum(counts, 1)), 1.0)
    return tuple(weights.tolist())


def traced_hyper(trial: Trial, kind: str, outputs: int) -> Hyper:
    """What differs between trials of one program, float32, of a network with so many outputs."""
    values = {
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "class_weights": class_weights(trial, max(outputs, 2)) if kind == "classification" else (1.0, 1.0),
        "label_scale": label_scale(trial, kind),
    }
    return {name: np.asarray(value, np.float32) for name, value in (values | dict(trial.hyper)).items()}


def take(tree: Any, which: int | slice | np.ndarray) -> Any:
    """One of what is stacked on axis 0, some, or all of them."""
    return jax.tree.map(lambda leaf: leaf[which], tree)
