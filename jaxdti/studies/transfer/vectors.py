"""Transfer of trained networks on feature vectors to a small table, in the three modes of Dalkıran et al. 2023.

- ``full``: all weights go on learning (mode 1), or layer by layer from the top (``transfer.unfreeze``);
- ``feature``: the lowest hidden layers stay, with stored BatchNorm statistics and no dropout, and what they give is
  computed once (mode 2);
- ``shallow``: a logistic regression, an SVM and a random forest on the last hidden layer (mode 3; see ``shallow``).

Beside them stand ``scratch``, the same network from random weights on the same rows, and ``source``, the networks as
they are, where their classes are those of the table.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.config import Config, TrainingConfig, TransferConfig
from jaxdti.data.vectors.domains import VectorDomains
from jaxdti.errors import DataError
from jaxdti.inference.networks import VectorNetworks
from jaxdti.models.fnn import FNN, depth, init_fnn, parts_of, split, take_layers
from jaxdti.studies.transfer.classifiers import CLASSIFIERS
from jaxdti.studies.transfer.modes import layer_scale, stages, with_fresh
from jaxdti.training.fit import Run, fit
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.partition import select
from jaxdti.training.progress import Progress
from jaxdti.training.replicas import predict_vectors
from jaxdti.training.supervised import row_task
from jaxdti.training.task import FitResult, Trial, Variables

SCRATCH, SOURCE = "scratch", "source"
SHALLOW = tuple(f"shallow_{name}" for name in CLASSIFIERS)
_OUTPUT = "output"


def transfer_methods(config: Config, network: VectorNetworks, classes: Sequence[str]) -> tuple[str, ...]:
    """What a transfer run measures, in order."""
    source = (SOURCE,) if set(classes) <= set(network.classes) else ()
    mode = config.transfer.mode
    return (SCRATCH, *source, *(SHALLOW if mode == "shallow" else (mode,)))


def check_transfer(config: Config, source: VectorNetworks, domains: VectorDomains) -> None:
    """Raises DataError unless the networks suit the table, the seeds and what is frozen, fresh and unfrozen."""
    seeds, bits = config.training.replicas, source.space and source.space.fingerprint_bits
    compared = [
        ("vectors.features", list(source.model.features), list(config.vectors.features)),
        ("vectors.fingerprint_bits", bits, config.vectors.fingerprint_bits or bits),
        ("length of a feature vector", source.inputs, domains.features.shape[1]),
    ]
    if different := [f"{name} {there}, here {here}" for name, there, here in compared if there != here]:
        raise DataError(f"the source run is of another architecture: {'; '.join(different)}")
    if len(source) not in (1, seeds):
        raise DataError(
            f"the source holds {len(source)} networks, one for each seed; training.replicas={len(source)} starts each "
            f"replica from its own, found {seeds}"
        )
    frozen_layers = stages_of(config.transfer, source)
    if any(below >= above for above, below in zip(frozen_layers, frozen_layers[1:], strict=False)):
        raise DataError(
            f"transfer.unfreeze={','.join(config.transfer.unfreeze)}: each stage freezes fewer layers than the one "
            "before it, such as up_to_2,up_to_1"
        )
    fresh = _selected(source, config.transfer.fresh, "transfer.fresh")
    frozen = {f"{kind}_{i}" for i in range(frozen_layers[0]) for kind in ("hidden", "norm")}
    if both := sorted(path[0] for path in fresh if path[0] in frozen):
        raise DataError(f"transfer.frozen or transfer.unfreeze, and transfer.fresh, both name {both[0]}")


def stages_of(transfer: TransferConfig, source: VectorNetworks) -> list[int]:
    """How many of the lowest hidden layers stay frozen in each training: one, or the stages of the unfreezing.

    Raises:
      DataError: a name is that of no layers, or of others than the lowest.
    """
    none_frozen = lambda stage: not stage.frozen and transfer.mode != "feature"
    return [0 if none_frozen(stage) else _lowest(source, stage.frozen, stage.key) for stage in stages(transfer)]


def _lowest(source: VectorNetworks, patterns: Sequence[str], key: str) -> int:
    chosen = {path[0] for path in _selected(source, patterns, key)}
    for layers, part in enumerate(parts_of(source.model).values(), 1):
        if chosen == set(part):
            return layers
    if _OUTPUT in chosen and len(chosen) > len(source.model.features) * 2:
        raise DataError(f"{key}={','.join(patterns)}: nothing is left to train")
    raise DataError(
        f"{key}={','.join(patterns)}: on feature vectors the lowest layers freeze together, such as "
        f"{', '.join(parts_of(source.model))}"
    )


def _selected(source: VectorNetworks, patterns: Sequence[str], key: str) -> frozenset[tuple[str, ...]]:
    return select(source.variables["params"], patterns, parts_of(source.model), key)


def in_classes_of(domains: VectorDomains, network: VectorNetworks) -> VectorDomains:
    """The domains with their labels as numbers of the network's classes, if it has them all; else as they are."""
    if not set(domains.classes) <= set(network.classes):
        return domains
    number = np.array([*(network.classes.index(name) for name in domains.classes), -1])
    return replace(domains, label=number[domains.label], classes=network.classes)


def fit_transfer(
    config: Config,
    source: VectorNetworks,
    domains: VectorDomains,
    trials: Sequence[Trial],
    method: str,
    select_epoch: str | None,
    progress: Callable[[Progress], None] | None = None,
    open_run: Callable[[str], Any] = lambda name: nullcontext(),
) -> tuple[FNN, FitResult]:
    """The networks that ``method`` makes of the source for each trial, and the course of their training.

    ``scratch`` begins with random weights; ``full`` and ``feature`` go on as ``transfer`` of the configuration says. In
    stages each one begins with the best weights of the one before, at a tenth of its learning rate.

    Args:
      domains: labels are numbers of ``domains.classes``; others than the source's make a fresh output layer.
      open_run: name of a stage -> where its training is kept, as a context; by default nothing is.
    """
    model = FNN(source.model.features, outputs=len(domains.classes))
    train = partial(fit_above, model, config=config.training, select=select_epoch, progress=progress)
    if method == SCRATCH:
        with open_run(SCRATCH) as run:
            return model, train(0, domains.features, trials, run=run)
    variables = start(config.transfer, source, domains.classes, [trial.seed for trial in trials])
    networks, result = networks_of(source.variables, len(trials)), None
    for i, (stage, layers) in enumerate(zip(stages(config.transfer), stages_of(config.transfer, source), strict=True)):
        slower, features = [_slower(trial, stage.rate) for trial in trials], domains.features
        if layers:
            # What is frozen is the source's in every stage, so it is computed once for each network of the source.
            features = hidden_outputs(source.model, source.variables, layers, domains.features)
            features = features[0] if len(source) == 1 else features[networks]
        with open_run(f"stage_{i + 1}") as run:
            result = train(layers, features, slower, start=variables, decay=config.transfer.layer_decay, run=run)
        variables = {kind: {**variables[kind], **result.variables[kind]} for kind in variables}
        result = replace(result, variables=variables)
    assert result is not None
    return model, result


def fit_above(
    model: FNN,
    layers: int,
    features: Array | np.ndarray,
    trials: Sequence[Trial],
    config: TrainingConfig,
    *,
    start: Variables | None = None,
    decay: float = 1.0,
    select: str | None = None,
    run: Run | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Trains what is above the ``layers`` lowest hidden layers; all of the network if 0.

    Args:
      features: what these layers give (see ``hidden_outputs``), or the inputs; [N, F], or [R, N, F] of each trial.
      start: of the whole network, [R, ...]; None: random weights.
      decay: learning rate of a layer, as a share of that of the one above it.
      select, run, progress: as for ``row_task`` and ``fit``.

    Returns:
      the result, with the variables of what has trained.
    """
    upper = split(model, layers)[1] if layers else model
    fresh = _fresh(upper, features.shape[-1])
    task = row_task(upper, fresh, features, trials, config.batch_size, select=select)
    decayed = partial(make_optimizer, share_of=partial(layer_scale, depth, upper, decay))
    task = replace(task, optimizer=decayed, key=(task.key, "layer_decay", decay))
    begun = None if start is None else take_layers(start, upper)
    return fit(task, trials, config, run=run, start=begun, progress=progress)


def hidden_outputs(
    model: FNN,
    variables: Variables,
    layers: int,
    features: Array | np.ndarray,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """What the ``layers`` lowest hidden layers of S networks give at test time: float32 [S, N, width].

    Args:
      variables: stacked on axis 0.
      rows: int, the rows of ``features`` to compute; all by default.
    """
    lower = split(model, layers)[0]
    return predict_vectors(lower, take_layers(variables, lower), features, rows)


def _slower(trial: Trial, rate: float) -> Trial:
    return replace(trial, hyper={**trial.hyper, "learning_rate": trial.hyper["learning_rate"] * rate})


def start(transfer: TransferConfig, source: VectorNetworks, classes: Sequence[str], seeds: Sequence[int]) -> Variables:
    """The source's weights for each seed, [R, ...], with fresh ones for what ``transfer.fresh`` names, and for the
    output layer where the classes are not the source's."""
    patterns = transfer.fresh if tuple(classes) == source.classes else (*transfer.fresh, _OUTPUT)
    fresh = _selected(source, patterns, "transfer.fresh")
    model = FNN(source.model.features, outputs=len(classes))
    anew = jax.vmap(partial(init_fnn, model, source.inputs))(jnp.asarray(seeds))
    return with_fresh(for_each(source.variables, len(seeds)), anew, fresh)


def for_each(variables: Variables, trials: int) -> Variables:
    """The weights of S networks for each trial: [S, ...] -> [R, ...]."""
    networks = networks_of(variables, trials)
    return jax.tree.map(lambda x: jnp.asarray(x)[networks], variables)


def networks_of(variables: Variables, trials: int) -> np.ndarray:
    """Which of S networks each trial starts from, int64 [R]: their seeds follow one another, target by target."""
    return np.arange(trials) % len(jax.tree.leaves(variables)[0])


def _fresh(model: FNN, inputs: int):
    return _initialiser(model, inputs)  # pyright: ignore[reportArgumentType] (a module is hashable)


@lru_cache(maxsize=32)  # one function for equal models, so that programs are compiled once
def _initialiser(model: FNN, inputs: int):
    return partial(init_fnn, model, inputs)
