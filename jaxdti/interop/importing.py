"""From a file of published weights to a run directory that predicts."""

from pathlib import Path

from jaxdti.config import Config, save_config
from jaxdti.errors import DataError
from jaxdti.evaluation.calibration import Calibration
from jaxdti.inference.trained import write_model_card
from jaxdti.interop.drugban import detect_config, from_torch, read_weights
from jaxdti.training.checkpoints import save_weights


def import_weights(weights: Path, output: Path) -> None:
    """Writes a run directory that reproduces the published PyTorch DrugBAN with these weights.

    The run uses ``model.reference``: the published behaviour, faults included. Its probability is the plain sigmoid and
    its threshold 0.5, as nothing was fitted on validation data; model.json says so.

    Raises:
      DataError: the file is not weights of DrugBAN, or ``output`` exists already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: already exists; give another --output")
    state = read_weights(weights)
    model = detect_config(state)
    variables = from_torch(state, model)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot create the run directory ({error.strerror or error})") from error
    save_config(Config(model=model), output / "config.yaml")
    save_weights(output / "weights", variables)
    write_model_card(output, "classification", (0.0, 1.0), Calibration(), calibrated=False)
