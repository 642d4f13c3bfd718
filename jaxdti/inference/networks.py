"""Trained networks on feature vectors: the folders that hold them, and scores of the rows of a table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from scipy.special import softmax

from jaxdti.data.tables import read_table
from jaxdti.data.vectors.domains import FeatureSpace
from jaxdti.errors import DataError
from jaxdti.files import write_json
from jaxdti.inference.predict import make_room
from jaxdti.models.fnn import FNN, init_fnn
from jaxdti.training.checkpoints import load_weights, save_weights
from jaxdti.training.replicas import predict_vectors

NETWORKS = "networks"  # folder of a run: METHOD/TASK/ of each
_CARD = "network.json"
_ROWS = 65_536  # of a table that are feature vectors at once


@dataclass(frozen=True, kw_only=True)
class VectorNetworks:
    """S networks that differ in their seed."""

    model: FNN  # with a logit for each class
    variables: dict[str, Any]  # "params" and "batch_stats", stacked on axis 0: [S, ...]
    classes: tuple[str, ...]  # [K]
    inputs: int  # length of a feature vector
    space: FeatureSpace | None  # None: the vectors are those of no table

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.variables)[0])


def save_networks(folder: Path, networks: VectorNetworks) -> None:
    """Writes weights/ and then network.json, so that a folder with the latter is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "weights", networks.variables)
    card = {
        "hidden": list(networks.model.features),
        "classes": list(networks.classes),
        "inputs": networks.inputs,
        "networks": len(networks),
        "space": None if networks.space is None else asdict(networks.space),
    }
    write_json(folder / _CARD, card)


def load_networks(run: Path) -> VectorNetworks:
    """Reads the networks of a run on feature vectors: of RUN where it has those of one method and task, or of RUN's
    folder networks/METHOD/TASK.

    Raises:
      DataError: there are none, or several; or a file of them is damaged.
    """
    folder = _folder(run)
    model, space, card = _read_card(folder)
    one = jax.eval_shape(lambda: init_fnn(model, card["inputs"], 0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((card["networks"], *x.shape), x.dtype), one)
    return VectorNetworks(
        model=model,
        variables=load_weights(folder / "weights", like),
        classes=tuple(card["classes"]),
        inputs=card["inputs"],
        space=space,
    )


def transfer_settings(run: Path) -> dict[str, Any]:
    """Keys of the configuration that a transfer takes over from the networks of ``run``, without reading the weights.

    Raises:
      DataError: as ``load_networks``.
    """
    model, space, card = _read_card(_folder(run))
    settings = {
        "vectors.features": list(model.features),
        "vectors.methods": ["none"],
        "training.replicas": card["networks"],
        "transfer.frozen": ["up_to_1"],
    }
    if space is not None and space.fingerprint_bits:
        settings["vectors.fingerprint_bits"] = space.fingerprint_bits
    return settings


def _folder(run: Path) -> Path:
    if (run / _CARD).is_file():
        return run
    found = sorted(path.parent for path in (run / NETWORKS).glob(f"*/*/{_CARD}"))
    if not found:
        raise DataError(f"{run}: no trained networks here; expected a run on feature vectors that has finished")
    if len(found) > 1:
        shown = ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
        raise DataError(f"{run}: networks of {len(found)} methods and targets; name one of {shown}")
    return found[0]


def _read_card(folder: Path) -> tuple[FNN, FeatureSpace | None, dict[str, Any]]:
    path = folder / _CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        model = FNN(tuple(card["hidden"]), outputs=len(card["classes"]))
        card["inputs"], card["networks"], space = int(card["inputs"]), int(card["networks"]), card["space"]
        if space is not None:
            lists = ("columns", "mean", "deviation")
            space = FeatureSpace(**space | {name: tuple(space[name]) for name in lists})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    return model, space, card


def predict_rows(run: Path, table: Path, *, drug_column: str | None = None) -> pa.Table:
    """Classes of the rows of a table by trained networks on feature vectors.

    Args:
      run: as for ``load_networks``.
      table: CSV, TSV or Parquet with the columns that the networks were trained on.
      drug_column: that of the SMILES, for networks on fingerprints; found among the usual names when None.

    Returns:
      Every row and column of the table in order, with ``class``, ``probability_CLASS`` for each class (the mean over
      the networks of their softmax), ``probability_sd`` (the networks' spread for the class, if there are several) and
      ``error`` (empty where the row is valid; elsewhere the others are null). Input columns of these names stay, as
      ``class_input`` and so on, which is said.

    Raises:
      DataError: the run or the table cannot be read.
    """
    networks = load_networks(run)
    if networks.space is None:
        raise DataError(f"{run}: trained on vectors that are those of no table, so it cannot score one")
    columns = read_table(table)
    asked, faults, parts = columns.select(networks.space.wanted(table, drug_column)), [], []
    for first in range(0, columns.num_rows, _ROWS):
        features, wrong = networks.space.read_rows(asked.slice(first, _ROWS), table)
        parts.append(predict_vectors(networks.model, networks.variables, features))
        faults += wrong
    each = softmax(np.concatenate(parts, 1).astype(np.float64), axis=-1)  # [S, N, K]
    mean, called = each.mean(0), each.mean(0).argmax(-1)
    invalid = np.array([bool(fault) for fault in faults])
    added = {"class": pa.array([networks.classes[k] for k in called], mask=invalid)}
    for k, name in enumerate(networks.classes):
        added[f"probability_{name}"] = pa.array(mean[:, k], mask=invalid)
    if len(networks) > 1:
        added["probability_sd"] = pa.array(each.std(0)[np.arange(len(called)), called], mask=invalid)
    added["error"] = pa.array(faults, pa.string())
    result = make_room(columns, added)
    for name, column in added.items():
        result = result.append_column(name, column)
    return result
