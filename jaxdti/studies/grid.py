"""The settings of a sweep: values or ranges of configuration keys, combined or drawn.

Nothing heavy is imported, so that a mistake in the command line shows at once.
"""

import itertools
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdti.config import Config, config_fields, config_from_dict, config_to_dict
from jaxdti.config.tree import check_keys, plant, value_of_text
from jaxdti.errors import DataError

_LOGARITHMIC_FROM = 10  # a range of floats that spans at least this factor is drawn on a logarithmic scale


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; of whole numbers where ``whole``."""

    low: float
    high: float
    whole: bool


Grid = dict[str, tuple | Range]  # the values of each swept key, by its path


def parse_grid(texts: Sequence[str]) -> Grid:
    """Reads KEY=V1,V2,... and, for keys that hold a number, KEY=LOW..HIGH.

    The values of a key that holds a list are lists in brackets: model.protein_kernels=[3,6,9],[3,5,7].

    Raises:
      DataError: no text at all, an unknown, repeated or unsuitable key, or values that are missing, repeated, of the
        wrong type or, in a range, the wrong way round.
    """
    if not texts:
        raise DataError("--grid is missing: name at least one key, such as --grid training.learning_rate=1e-4,5e-5")
    grid: Grid = {}
    for text in texts:
        path, equals, values = text.partition("=")
        check_keys(Config, plant({}, path, None), "--grid")
        if path not in config_fields() or not equals:
            raise DataError(f"--grid {text}: KEY=V1,V2,... is expected, such as training.learning_rate=1e-4,5e-5")
        if path in grid:
            raise DataError(f"--grid {path} is given twice; write its values in one list")
        if reason := _unsuitable(path):
            raise DataError(f"--grid {path}: {reason}")
        grid[path] = _values(path, values)
    return grid


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """All combinations of the values, the last key varying fastest.

    Raises:
      DataError: a key has a range, of which there is no end.
    """
    values = []
    for path, choices in grid.items():
        if isinstance(choices, Range):
            raise DataError(f"--grid {path}: a range needs --random N, which draws from it; or list the values")
        values.append(choices)
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*values)]


def draw(grid: Grid, count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` different settings drawn at random; a function of its arguments alone.

    A list gives each value with the same probability. A range of floats above 0 whose ends differ by a factor of ten or
    more is drawn uniformly in the logarithm, any other uniformly.

    Raises:
      DataError: there are fewer different settings.
    """
    if count < 1 or seed < 0:
        raise DataError(f"--random {count} --random-seed {seed}: at least 1, and a seed of at least 0, are expected")
    there = math.prod(_size(choices) for choices in grid.values())
    if count > there:
        raise DataError(f"--random {count}: the grid has only {there} different settings")
    generator = np.random.default_rng(seed)
    found: dict[tuple, dict[str, Any]] = {}
    while len(found) < count:
        setting = {path: _drawn(choices, generator) for path, choices in grid.items()}
        found.setdefault(tuple(setting.values()), setting)
    return list(found.values())


def setting_config(config: Config, setting: dict[str, Any]) -> Config:
    """The configuration of a single run with these values, which names no directory.

    Raises:
      DataError: the configuration refuses a value, or the values together.
    """
    tree = config_to_dict(config)
    for path, value in ({"output.directory": None} | setting).items():
        plant(tree, path, value)
    return config_from_dict(tree, f"the setting {describe_setting(setting)}")


def describe_setting(setting: dict[str, Any]) -> str:
    """``training.learning_rate=0.0001 model.dropout=0.1``, numbers to six digits."""
    return " ".join(f"{path}={show_value(value)}" for path, value in setting.items())


def show_value(value: Any) -> str:
    """As YAML writes it, numbers to six digits."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _unsuitable(path: str) -> str:
    """Why this key cannot be swept; empty when it can."""
    if path == "task":
        return "scores of different tasks cannot be compared"
    if path.startswith("output."):
        return "changes nothing about the model"
    if path.startswith(("transfer.", "vectors.", "response.")):
        return "changes nothing about a sweep, which trains on pairs, from random weights"
    if path == "training.replicas":
        return "every setting is one model; sweep training.seed, such as --grid training.seed=0,1,2"
    return ""


def _values(path: str, text: str) -> tuple | Range:
    kind = config_fields()[path].kind
    base = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
    if base in (int, float) and ".." in text:
        return _range(path, text, whole=base is int)
    if typing.get_origin(base) is tuple:
        parts = re.findall(r"\[[^\[\]]*\]", text)
        if ",".join(parts) != re.sub(r"\]\s*,\s*\[", "],[", text.strip()):
            raise DataError(f"--grid {path}={text}: lists in brackets are expected, such as {path}=[3,6,9],[3,5,7]")
    else:
        parts = [part.strip() for part in text.split(",")]
    if not all(parts) or not parts:
        raise DataError(f"--grid {path}={text}: a value is missing; {path}=V1,V2,... is expected")
    values = [value_of_text(kind, part, path) for part in parts]
    for i, value in enumerate(values):
        if value in values[:i]:
            raise DataError(f"--grid {path}={text}: {show_value(value)} stands there twice")
    return tuple(values)


def _range(path: str, text: str, whole: bool) -> Range:
    low, high = (value_of_text(int if whole else float, part.strip(), path) for part in text.split("..", 1))
    if not low < high:
        raise DataError(f"--grid {path}={text}: LOW..HIGH is expected with LOW below HIGH")
    return Range(low, high, whole)


def _size(choices: tuple | Range) -> float:
    """How many different values there are."""
    if isinstance(choices, tuple):
        return len(choices)
    return choices.high - choices.low + 1 if choices.whole else math.inf


def _drawn(choices: tuple | Range, generator: np.random.Generator) -> Any:
    if isinstance(choices, tuple):
        return choices[generator.integers(len(choices))]
    low, high = choices.low, choices.high
    if choices.whole:
        return int(generator.integers(int(low), int(high), endpoint=True))
    if low > 0 and high / low >= _LOGARITHMIC_FROM:
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
    return float(generator.uniform(low, high))
