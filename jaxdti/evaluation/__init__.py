"""Metrics and their intervals."""

from typing import TYPE_CHECKING

from jaxdti.lazy import lazy

if TYPE_CHECKING:
    from jaxdti.evaluation import metrics
    from jaxdti.evaluation.intervals import bootstrap_interval

__all__ = ["bootstrap_interval", "metrics"]

__getattr__, __dir__ = lazy(__name__, {"jaxdti.evaluation.intervals": ("bootstrap_interval",)}, ("metrics",))
