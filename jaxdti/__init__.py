"""Drug-protein interaction prediction when training and test data come from different distributions.

    import jaxdti

    model = jaxdti.train("pairs.csv", epochs=20, output="runs/mine")  # or a DataFrame, a dict
    scores = jaxdti.load("runs/mine").predict(frame)

Importing the package is cheap: JAX, RDKit and scikit-learn are loaded by what uses them. ``jaxdti.api`` says what a
table is.
"""

from typing import TYPE_CHECKING

from jaxdti.lazy import lazy
from jaxdti.versions import avoid_faulty_fusion, check_jax_version

if TYPE_CHECKING:  # for type checkers and editors; below for Python
    from jaxdti import adaptation, evaluation, layers, models
    from jaxdti.api import evaluate, predict, resume, sweep, train, transfer
    from jaxdti.config import Config, load_config
    from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
    from jaxdti.inference.model import Model, load
    from jaxdti.inference.trained import load_run
    from jaxdti.training.fit import fit
    from jaxdti.training.task import Task, Trial

__version__ = "0.1.0"

__all__ = [
    "Config",
    "DataError",
    "Interrupted",
    "Model",
    "NonFiniteLoss",
    "Task",
    "Trial",
    "adaptation",
    "evaluate",
    "evaluation",
    "fit",
    "layers",
    "load",
    "load_config",
    "load_run",
    "models",
    "predict",
    "resume",
    "sweep",
    "train",
    "transfer",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "jaxdti.api": ("evaluate", "predict", "resume", "sweep", "train", "transfer"),
        "jaxdti.config": ("Config", "load_config"),
        "jaxdti.errors": ("DataError", "Interrupted", "NonFiniteLoss"),
        "jaxdti.inference.model": ("Model", "load"),
        "jaxdti.inference.trained": ("load_run",),
        "jaxdti.training.fit": ("fit",),
        "jaxdti.training.task": ("Task", "Trial"),
    },
    modules=("adaptation", "evaluation", "layers", "models"),
)

check_jax_version()
avoid_faulty_fusion()
