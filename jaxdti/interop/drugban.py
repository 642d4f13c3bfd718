"""Weights of the published PyTorch DrugBAN, by their torch names, to and from this library's variables.

The published layers compute what ``ModelConfig(reference=True)`` computes; the mapping is one table of names and, where
the storage order differs, a transposition.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdti.config import ModelConfig
from jaxdti.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One array: its torch name, its collection and path here, and how torch's storage becomes ours."""

    torch: str
    collection: str  # params | batch_stats
    path: tuple[str, ...]
    convert: Callable[[np.ndarray], np.ndarray]
    invert: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


def _reshape(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.reshape(shape)


def drugban_entries(config: ModelConfig) -> list[Entry]:
    """Every array of the published model of this size."""
    entries: list[Entry] = []

    def add(torch: str, path: str, convert=_same, invert=None, collection="params") -> None:
        entries.append(Entry(torch, collection, tuple(path.split("/")), convert, invert or convert))

    def norm(torch: str, path: str) -> None:
        add(f"{torch}.weight", f"{path}/scale")
        add(f"{torch}.bias", f"{path}/bias")
        add(f"{torch}.running_mean", f"{path}/mean", collection="batch_stats")
        add(f"{torch}.running_var", f"{path}/var", collection="batch_stats")

    def linear(torch: str, path: str) -> None:
        add(f"{torch}.weight", f"{path}/dense/kernel", _transpose)
        add(f"{torch}.bias", f"{path}/dense/bias")

    add("drug_extractor.init_transform.weight", "atom_projection/dense/kernel", _transpose)
    for i in range(config.drug_layers):
        torch, path = f"drug_extractor.gnn.gnn_layers.{i}", f"graph_layers_{i}"
        add(f"{torch}.graph_conv.weight", f"{path}/message/kernel")
        add(f"{torch}.graph_conv.bias", f"{path}/message/bias")
        linear(f"{torch}.res_connection", f"{path}/residual")
        norm(f"{torch}.bn_layer", f"{path}/norm")

    add("protein_extractor.embedding.weight", "embedding/embedding")
    for i, _ in enumerate(config.protein_kernels):
        path = f"sequence_layers_{i}"
        # torch (out, in, k), Flax (k, in, out): reversing the axes is its own inverse.
        add(f"protein_extractor.conv{i + 1}.weight", f"{path}/conv/kernel", _transpose)
        add(f"protein_extractor.conv{i + 1}.bias", f"{path}/conv/bias")
        norm(f"protein_extractor.bn{i + 1}", f"{path}/norm")

    rank = config.joint_features * config.pool_size
    for torch, path in (("v_net", "drug_projection"), ("q_net", "protein_projection")):
        add(f"bcn.{torch}.main.1.weight_v", f"bilinear/{path}/kernel", _transpose)
        add(f"bcn.{torch}.main.1.weight_g", f"bilinear/{path}/gain", _reshape(()))
        add(f"bcn.{torch}.main.1.bias", f"bilinear/{path}/bias")
    add("bcn.h_mat_v", "bilinear/head_kernel", _reshape((config.heads, rank)), _reshape((1, config.heads, 1, rank)))
    add("bcn.h_mat_g", "bilinear/head_gain", _reshape(()))
    add("bcn.h_bias", "bilinear/head_bias", _reshape((config.heads,)), _reshape((1, config.heads, 1, 1)))
    norm("bcn.bn", "bilinear/norm")

    for i, _ in enumerate(config.decoder_features):
        linear(f"mlp_classifier.fc{i + 1}", f"decoder/hidden_{i}")
        norm(f"mlp_classifier.bn{i + 1}", f"decoder/norm_{i}")
    linear(f"mlp_classifier.fc{len(config.decoder_features) + 1}", "decoder/output")
    return entries


def from_torch(state: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """``{"params": ..., "batch_stats": ...}`` float32 from arrays by torch name.

    ``num_batches_tracked`` counters are ignored: torch's momentum is fixed here.

    Raises:
      DataError: listing every missing and every unknown name, or else every array that has another shape (both as
        torch stores it) or holds something else than finite numbers.
    """
    entries = drugban_entries(config)
    given = {name: np.asarray(x) for name, x in state.items() if not name.endswith("num_batches_tracked")}
    wanted = {entry.torch for entry in entries}
    missing, unknown = sorted(wanted - set(given)), sorted(set(given) - wanted)
    if missing or unknown:
        raise DataError(f"weights do not fit DrugBAN: missing {missing or 'none'}; unknown {unknown or 'none'}")
    shapes = _torch_shapes(config)
    faults = [fault for name, x in sorted(given.items()) if (fault := _fault(name, x, shapes[name]))]
    if faults:
        raise DataError(f"weights do not fit DrugBAN: {'; '.join(faults)}")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for entry in entries:
        node = variables[entry.collection]
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = np.array(entry.convert(given[entry.torch]), dtype=np.float32, order="C")
    return variables


def _fault(name: str, x: np.ndarray, shape: tuple[int, ...]) -> str:
    """What is wrong with the array ``name``, or nothing."""
    if x.shape != shape:
        return f"{name} has shape {x.shape}, expected {shape}"
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        return f"{name} has dtype {x.dtype}, expected numbers"
    return "" if np.isfinite(x).all() else f"{name} holds NaN or infinity"


def to_torch(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``."""
    state = {}
    for entry in drugban_entries(config):
        node = variables[entry.collection]
        for key in entry.path:
            node = node[key]
        state[entry.torch] = np.array(entry.invert(np.asarray(node)), order="C")
    return state


def _torch_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every array as torch stores it, by torch name."""
    import jax

    from jaxdti.models.drugban import init_variables

    shapes = jax.eval_shape(lambda: init_variables(config, 0))
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    ours = {(path[0].key, tuple(key.key for key in path[1:])): leaf.shape for path, leaf in flat}
    return {
        entry.torch: entry.invert(np.empty(ours[entry.collection, entry.path])).shape
        for entry in drugban_entries(config)
    }


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by torch name from an ``.npz`` or, when torch is installed, a ``.pth`` / ``.pt`` file.

    Raises:
      DataError: the file is missing, of another kind, or holds something else than arrays. No pickle is executed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected weights as .npz or .pth")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix not in (".pth", ".pt"):
        raise DataError(f"{path}: weights of kind {path.suffix!r}; expected .npz, .pth or .pt")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path}: reading a {path.suffix} file needs torch (pip install 'jaxdti[bench]')") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: not a weights-only torch file ({first})") from error
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise DataError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    return {name: tensor.float().numpy() for name, tensor in state.items()}


# What NumPy's and the standard library's readers raise for a damaged archive, whichever byte is wrong.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: NumPy leaves the file open when the archive is damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else None
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error})") from error
    if arrays is None:
        raise DataError(f"{path}: one array without a name; expected an .npz of arrays by torch name")
    if others := sorted(name for name, x in arrays.items() if not isinstance(x, np.ndarray)):
        raise DataError(f"{path}: {', '.join(others)} is not an array; expected an .npz of plain arrays")
    return arrays


def detect_config(state: Mapping[str, np.ndarray]) -> ModelConfig:
    """The reference configuration whose head has as many logits as these weights."""
    heads = [x.shape[0] for name, x in state.items() if name == "mlp_classifier.fc4.weight"]
    return ModelConfig(reference=True, logits=2 if heads == [2] else 1)
