"""The transfer modes of Dalkıran et al. 2023: what is the same for DrugBAN on pairs and FNN on feature vectors.

- ``full`` (mode 1): all weights go on learning, or part by part from the top (``transfer.unfreeze``);
- ``feature`` (mode 2): a part stays, with stored BatchNorm statistics and no dropout, so that what it gives is computed
  once; the rest goes on learning;
- ``shallow`` (mode 3): nothing of the network learns; classifiers do, on its last hidden layer.

A training of modes 1 and 2 is a ``Stage``, or several of them one after the other. What is frozen, and what it gives,
is in ``frozen`` for DrugBAN and in ``vectors`` for FNN; mode 3 is in ``shallow``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdti.config import TransferConfig
from jaxdti.training.partition import Path
from jaxdti.training.task import Variables

STAGE_RATE = 0.1  # learning rate of a stage of unfreezing, as a share of that of the one before it


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a transfer."""

    frozen: tuple[str, ...]  # names of the parts that stay
    fresh: tuple[str, ...]  # names of what begins with random weights
    rate: float  # learning rate, as a share of the configured one
    key: str  # of the configuration, that names ``frozen``


def stages(transfer: TransferConfig) -> list[Stage]:
    """The trainings of a transfer: one, or with ``transfer.unfreeze`` above each of its parts and then all.

    The first one alone begins with what is fresh; each other one begins with the best weights of the one before it.
    """
    if transfer.mode == "feature":
        return [Stage(frozen=transfer.frozen, fresh=transfer.fresh, rate=1.0, key="transfer.frozen")]
    parts = [*((part,) for part in transfer.unfreeze), ()]
    return [
        Stage(
            frozen=part,
            fresh=transfer.fresh if i == 0 else (),
            rate=STAGE_RATE**i,
            key="transfer.unfreeze",
        )
        for i, part in enumerate(parts)
    ]


def layer_scale(depth: Callable[[Any, Path], int], model: Any, decay: float, path: Path) -> float:
    """What the learning rate of a parameter is multiplied with: ``decay`` for each layer between it and the logits.

    Args:
      depth: (model, path) -> number of these layers.
    """
    return decay ** depth(model, path)


def with_fresh(source: Variables, anew: Variables, fresh: frozenset[Path]) -> Variables:
    """The source's network with the parameters ``fresh`` of another one of the same architecture.

    A BatchNorm all of whose parameters are fresh has the statistics of the other one, too.
    """
    whole = whole_modules(source["params"], fresh)
    statistics = flatten_dict(source["batch_stats"])
    statistics |= {path: x for path, x in flatten_dict(anew["batch_stats"]).items() if path[:-1] in whole}
    params, others = flatten_dict(source["params"]), flatten_dict(anew["params"])
    params |= {path: others[path] for path in fresh}
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}


def whole_modules(params: dict[str, Any], chosen: frozenset[Path]) -> frozenset[Path]:
    """The modules, by path, all of whose parameters are chosen."""
    prefixes = lambda paths: {path[:size] for path in paths for size in range(len(path))}
    every = flatten_dict(params).keys()
    return frozenset(prefixes(chosen) - prefixes(every - chosen))
