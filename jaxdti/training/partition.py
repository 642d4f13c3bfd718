"""Which parameters a training leaves as they are: patterns of their paths, and trees of parameters cut in two."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdti.errors import DataError

Path = tuple[str, ...]  # of a parameter, such as ("decoder", "norm_0", "scale")


def select(
    params: Mapping[str, Any], patterns: Sequence[str], groups: Mapping[str, Sequence[str]], key: str
) -> frozenset[Path]:
    """The paths of all parameters that a pattern names.

    A pattern is a path, or the beginning of one, with ``*`` and ``?`` within its names: ``decoder`` and
    ``sequence_layers_*`` are modules with everything below them, ``decoder/norm_?/scale`` are single parameters.

    Args:
      params: nested dictionaries with the parameters.
      groups: names that stand for several patterns.
      key: of the configuration, for messages.

    Raises:
      DataError: a pattern names nothing.
    """
    paths = flatten_dict(dict(params)).keys()
    chosen: set[Path] = set()
    for pattern in patterns:
        named = {path for path in paths for part in groups.get(pattern, (pattern,)) if _begins(path, part)}
        if not named:
            raise DataError(
                f"{key}: {pattern!r} names no parameter; groups: {', '.join(groups)}; modules: {', '.join(params)}; or "
                "further down, with * and ? within names"
            )
        chosen |= named
    return frozenset(chosen)


def _begins(path: Path, pattern: str) -> bool:
    names = pattern.split("/")
    return len(names) <= len(path) and all(map(fnmatchcase, path, names))


def partition(tree: Mapping[str, Any], chosen: frozenset[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree without the ``chosen`` leaves, and these alone; branches that hold nothing are left out."""
    flat = flatten_dict(dict(tree))
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(rest), unflatten_dict({path: leaf for path, leaf in flat.items() if path in chosen})


def merge(tree: Any, other: Any) -> Any:
    """Both parts of ``partition`` as one tree again."""
    if not other:
        return tree
    joined = {name: merge(tree[name], other[name]) if name in tree else other[name] for name in other}
    return {**tree, **joined}
