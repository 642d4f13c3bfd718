"""Expression profiles of two domains and the drug responses of their samples: read, checked and matched.

Source samples are cell lines, target samples patients. Nothing is dropped in silence: what does not take part is
counted in the lines for the user and listed, with the reason, in ``Study.left_out``.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExpressionTable:
    """N samples and G genes, each named once."""

    samples: np.ndarray  # str objects [N]
    genes: np.ndarray  # str objects [G]
    values: np.ndarray  # float32 [N, G], finite


@dataclass(frozen=True)
class ResponseTable:
    """R records of one sample and one drug; not more than one of each pair."""

    sample: np.ndarray  # str objects [R]
    drug: np.ndarray  # str objects [R]
    value: np.ndarray  # float64 [R], finite: ln IC50 or AUC (low = sensitive), or 1 = responds and 0 = does not
