"""A configuration from Python keywords: paths, sections, or the last part of a path where that is clear."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdti.config.root import Config, config_fields, config_from_dict, config_sections, config_to_dict
from jaxdti.config.tree import check_keys, nearest, plant
from jaxdti.errors import DataError

# Sections of other kinds of training, and of one dataset: a short name means a key of these only where no other has it.
_ELSEWHERE = ("vectors.", "response.", "transfer.sizes.", "data.planted.")


def config_with(base: Config, keys: Mapping[str, Any], first: str = "training") -> Config:
    """``base`` with some fields set anew.

    Args:
      keys: by path (``training.epochs``), by section with a mapping (``model``: {"dropout": 0.1}), or by the last part
        of a path (``epochs``), where only one section of those that concern pairs has it, or the section ``first``.

    Raises:
      DataError: an unknown or ambiguous key, with the nearest ones, or a value of the wrong type or size.
    """
    tree = config_to_dict(base)
    for name, value in keys.items():
        for path, leaf in _leaves(full_path(name, first), value):
            plant(tree, path, leaf)
    return config_from_dict(tree)


def full_path(name: str, first: str = "training") -> str:
    """The path of a key, or of a section, that ``name`` stands for (see ``config_with``)."""
    fields, sections = config_fields(), config_sections()
    if name in fields or name in sections:
        return name
    paths = [path for path in fields if path.rpartition(".")[2] == name]
    if f"{first}.{name}" in paths:
        return f"{first}.{name}"
    if f"training.{name}" in paths:
        return f"training.{name}"
    usual = [path for path in paths if not path.startswith(_ELSEWHERE)] or paths
    if len(usual) > 1:
        raise DataError(f"the key {name!r} could be {' or '.join(usual)}; write **{{{usual[0]!r}: ...}}")
    if usual:
        return usual[0]
    near = nearest(name, [*fields, *sections, *(path.rpartition(".")[2] for path in fields)])
    hint = f"; did you mean {near}?" if near else ""
    raise DataError(
        f"unknown key {name!r}{hint} (keys are those of the configuration, such as epochs or model.dropout)"
    )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The keys below a section, or the one of a leaf, with values as YAML would have them."""
    if path in config_fields():
        yield path, _plain(value)
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    section: Any = {} if value is None else value
    check_keys(Config, plant({}, path, section), "")
    for name, inner in section.items():
        yield from _leaves(f"{path}.{name}", inner)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
