"""Transfer of trained networks on feature vectors to a small table, in the three modes of Dalkıran et al. 2023.

- ``full``: all weights go on learning (mode 1), or layer by layer from the top (``transfer.unfreeze``);
- ``feature``: the lowest hidden layers stay, with stored BatchNorm statistics and no dropout, and what they give is
  computed once (mode 2);
- ``shallow``: a logistic regression, an SVM and a random forest on the last hidden layer (mode 3).

Beside them stand ``scratch``, the same network from random weights on the same rows, and ``source``, the networks as
they are, where their classes are those of the table.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdti.config import Config, TransferConfig
from jaxdti.data.vectors.domains import VectorDomains
from jaxdti.errors import DataError
from jaxdti.inference.networks import VectorNetworks
from jaxdti.models.fnn import FNN, depth, init_fnn, parts_of, split, take_layers
from jaxdti.studies.transfer.classifiers import logistic_regressions, random_forest, support_vectors
from jaxdti.training.fit import fit
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.partition import select
from jaxdti.training.progress import Progress
from jaxdti.training.replicas import predict_vectors
from jaxdti.training.supervised import row_task
from jaxdti.training.task import FitResult, Trial

STAGE_RATE = 0.1  # learning rate of a stage of unfreezing, as a share of that of the one before it
SCRATCH, SOURCE = "scratch", "source"
SHALLOW = ("shallow_logistic", "shallow_svm", "shallow_forest")
_OUTPUT = "output"
_ABSENT = -1e9  # score of a class that no training row has

Variables = dict[str, Any]


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
    stages = stages_of(config.transfer, source)
    if any(below >= above for above, below in zip(stages, stages[1:], strict=False)):
        raise DataError(
            f"transfer.unfreeze={','.join(config.transfer.unfreeze)}: each stage freezes fewer layers than the one "
            "before it, such as up_to_2,up_to_1"
        )
    fresh = _selected(source, config.transfer.fresh, "transfer.fresh")
    frozen = {f"{kind}_{i}" for i in range(stages[0]) for kind in ("hidden", "norm")}
    if both := sorted(path[0] for path in fresh if path[0] in frozen):
        raise DataError(f"transfer.frozen or transfer.unfreeze, and transfer.fresh, both name {both[0]}")


def stages_of(transfer: TransferConfig, source: VectorNetworks) -> list[int]:
    """How many of the lowest hidden layers stay frozen in each training: one, or the stages of the unfreezing.

    Raises:
      DataError: a name is that of no layers, or of others than the lowest.
    """
    if transfer.mode == "feature":
        return [_lowest(source, transfer.frozen, "transfer.frozen")]
    return [*(_lowest(source, (part,), "transfer.unfreeze") for part in transfer.unfreeze), 0]


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
    plain = partial(row_task, batch_size=config.training.batch_size, select=select_epoch)
    if method == SCRATCH:
        task = plain(model, _fresh(model, source.inputs), domains.features, trials)
        with open_run(SCRATCH) as run:
            return model, fit(task, trials, config.training, run=run, progress=progress)
    started = start(config.transfer, source, domains.classes, [trial.seed for trial in trials])
    decay, result = config.transfer.layer_decay, None
    for i, layers in enumerate(stages_of(config.transfer, source)):
        slower = [_slower(trial, STAGE_RATE**i) for trial in trials]
        upper, features = model, domains.features
        if layers:
            lower, upper = split(model, layers)
            # What is frozen is the source's in every stage, so it is computed once for each network of the source.
            features = predict_vectors(lower, take_layers(source.variables, lower), domains.features)
            features = features[0] if len(source) == 1 else features[_networks_of(source, len(trials))]
        task = plain(upper, _fresh(upper, features.shape[-1]), features, slower)
        decayed = partial(make_optimizer, share_of=partial(_layer_scale, upper, decay))
        task = replace(task, optimizer=decayed, key=(task.key, "layer_decay", decay))
        with open_run(f"stage_{i + 1}") as run:
            begun = take_layers(started, upper)
            result = fit(task, slower, config.training, run=run, start=begun, progress=progress)
        started = {kind: {**started[kind], **result.variables[kind]} for kind in started}
        result = replace(result, variables=started)
    assert result is not None
    return model, result


def _slower(trial: Trial, factor: float) -> Trial:
    return replace(trial, hyper={**trial.hyper, "learning_rate": trial.hyper["learning_rate"] * factor})


def start(transfer: TransferConfig, source: VectorNetworks, classes: Sequence[str], seeds: Sequence[int]) -> Variables:
    """The source's weights for each seed, [R, ...], with fresh ones for what ``transfer.fresh`` names, and for the
    output layer where the classes are not the source's."""
    patterns = transfer.fresh if tuple(classes) == source.classes else (*transfer.fresh, _OUTPUT)
    fresh = _selected(source, patterns, "transfer.fresh")
    model = FNN(source.model.features, outputs=len(classes))
    kept = for_each(source, len(seeds))
    anew = jax.vmap(partial(init_fnn, model, source.inputs))(jnp.asarray(seeds))
    params = flatten_dict(kept["params"]) | {path: flatten_dict(anew["params"])[path] for path in fresh}
    whole = {name for name in kept["batch_stats"] if {(name, "scale"), (name, "bias")} <= fresh}
    statistics = kept["batch_stats"] | {name: anew["batch_stats"][name] for name in whole}
    return {"params": unflatten_dict(params), "batch_stats": statistics}


def for_each(source: VectorNetworks, replicas: int) -> Variables:
    """The source's own weights for each replica, [R, ...]."""
    own = _networks_of(source, replicas)
    return jax.tree.map(lambda x: jnp.asarray(x)[own], source.variables)


def _networks_of(source: VectorNetworks, replicas: int) -> np.ndarray:
    """Which network each replica starts from, int64 [R]: their seeds follow one another, target by target."""
    return np.arange(replicas) % len(source)


def shallow_scores(
    method: str,
    source: VectorNetworks,
    domains: VectorDomains,
    trials: Sequence[Trial],
    parts: Sequence[Mapping[str, np.ndarray]],
) -> list[dict[str, np.ndarray]]:
    """Scores float32 [rows, K] of the validation and test rows of each trial, one class against the others, by a
    classifier on the last hidden layer of the source's network; far below all others for classes that ``train`` lacks.
    """
    lower = split(source.model, len(source.model.features))[0]
    hidden = predict_vectors(lower, take_layers(source.variables, lower), domains.features)
    networks = _networks_of(source, len(trials)).tolist()
    found = []
    for i, trial, own in zip(networks, trials, parts, strict=True):
        train = trial.rows["train"]
        x, label = hidden[i], trial.label[train]
        asked = np.concatenate([own["validation"], own["test"]])
        scores = np.full((len(asked), len(domains.classes)), _ABSENT, np.float32)
        for k in np.unique(label).astype(int):
            one = (label == k).astype(np.float32)
            scores[:, k] = _one_against_others(method, x[train], one, x[asked], trial.seed)
        cut = len(own["validation"])
        found.append({"validation": scores[:cut], "test": scores[cut:]})
    return found


def _one_against_others(method: str, x: np.ndarray, label: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    if np.ptp(label) == 0:  # one class alone in train
        return np.full(len(asked), label[0])
    if method == "shallow_svm":
        return support_vectors(x, label, asked)
    if method == "shallow_forest":
        return random_forest(x, label, asked, seed)
    w, b = logistic_regressions(x, label[None], np.ones((1, len(label))), np.ones(1))
    return asked @ w[0] + b[0]


def _fresh(model: FNN, inputs: int):
    return _initialiser(model, inputs)  # pyright: ignore[reportArgumentType] (a module is hashable)


@lru_cache(maxsize=32)  # one function for equal models, so that programs are compiled once
def _initialiser(model: FNN, inputs: int):
    return partial(init_fnn, model, inputs)


def _layer_scale(model: FNN, decay: float, path: tuple[str, ...]) -> float:
    return decay ** depth(model, path)
