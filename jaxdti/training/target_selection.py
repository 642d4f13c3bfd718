"""Which epoch of a network on feature vectors is kept: by the source's validation rows, or by the target."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdti.adaptation.domains import SOURCE, TARGET, class_probabilities
from jaxdti.config import AdaptationConfig
from jaxdti.models.fnn import FNN, hidden_and_logits
from jaxdti.training.adapted import network_of
from jaxdti.training.objective import binding_loss
from jaxdti.training.selection import (
    SelectionRows,
    TracedSelector,
    masked_deep_embedded_validation,
    masked_importance_weights,
    masked_information,
)
from jaxdti.training.supervised import metric
from jaxdti.training.task import Variables

TARGET_SELECTIONS = ("information", "importance")
_MOST_COMPARED = 2000  # rows of each domain, to tell source from target by their features


def row_selector(
    model: FNN,
    adaptation: AdaptationConfig,
    select: str,
) -> TracedSelector:
    """The selector that ``select`` names: "accuracy", ..., of the source's validation, or "information",
    "importance" of the target."""
    if select in TARGET_SELECTIONS:
        return TargetSelector(model, adaptation, select)
    return metric(model, "classification", select, _source_network(adaptation))


@lru_cache  # one function for equal settings, so that selectors are equal
def _source_network(adaptation: AdaptationConfig) -> Callable[[Variables], Variables] | None:
    if adaptation.method == "none":
        return None
    return partial(network_of, domain=SOURCE if adaptation.batchnorm == "separate" else None)


@dataclass(frozen=True)
class TargetSelector:
    """How good a network is on the target, told without a target label; equal ones share programs.

    "information" is that of the predictions on all target rows (``masked_information``), "importance" minus the
    cross-entropy of the source's validation rows, weighted towards the target by a classifier of the domain on at most
    2,000 training rows and 2,000 target rows (``masked_deep_embedded_validation``). Rows of each domain go through the
    network as at test time.
    """

    model: FNN
    adaptation: AdaptationConfig
    formula: str

    needs = frozenset({"validation", "target_train"})

    @property
    def name(self) -> str:
        return f"selection_{self.formula}"

    def __call__(self, variables: Variables, inputs: Any, rows: SelectionRows, hyper: dict[str, Array]) -> Array:
        formula = {"information": self._information, "importance": self._importance}[self.formula]
        return formula(variables, inputs, rows)

    def _outputs(self, variables: Variables, features: Array, rows: Array, domain: int) -> tuple[Array, Array, Array]:
        """Hidden features, logits and mask of rows, -1 where there is none."""
        if self.adaptation.method != "none":
            variables = network_of(variables, domain if self.adaptation.batchnorm == "separate" else None)
        mask = rows >= 0
        return *hidden_and_logits(self.model, variables, features[jnp.maximum(rows, 0)], mask)[0], mask

    def _information(self, variables: Variables, features: Array, rows: SelectionRows) -> Array:
        assert rows.target is not None
        _, logits, mask = self._outputs(variables, features, rows.target, TARGET)
        return masked_information(class_probabilities(logits), mask)

    def _importance(self, variables: Variables, features: Array, rows: SelectionRows) -> Array:
        assert rows.source is not None and rows.target is not None
        source, _, source_mask = self._outputs(variables, features, rows.source[:_MOST_COMPARED], SOURCE)
        target, _, target_mask = self._outputs(variables, features, rows.target[:_MOST_COMPARED], TARGET)
        held = jnp.where(rows.validation.row_mask, rows.validation.row, -1)
        points, logits, mask = self._outputs(variables, features, held, SOURCE)
        weight = masked_importance_weights(source, source_mask, target, target_mask, points)
        return -masked_deep_embedded_validation(binding_loss(logits, rows.validation.label, mask), weight, mask)
