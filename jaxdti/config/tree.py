"""A tree of frozen dataclasses as nested mappings: read from YAML strictly, described for the command line.

Nothing is coerced in silence, and every message names the key by its path, the value, and what is expected.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxdti.config.rules import choices_of, hints_of, kinds_of
from jaxdti.errors import DataError

_LARGEST = 2**63 - 1  # whole number, as arrays hold it
_LONGEST = 100  # letters of a value in a message


class Leaf(NamedTuple):
    """A field that holds a value."""

    kind: Any  # its type: str, int, float, bool, one of them or None, or a tuple of them
    default: Any
    help: str  # the text below the field
    choices: tuple = ()  # of a Literal


@functools.cache
def leaves_of(kind: type) -> dict[str, Leaf]:
    """The leaves below a dataclass by path, in the order of the fields."""
    return dict(_walk_leaves(kind, ""))


@functools.cache
def branches_of(kind: type) -> dict[str, str]:
    """The dataclasses below a dataclass by path, with the first line of their description."""
    return {path: (inner.__doc__ or "").partition("\n")[0].replace("``", "") for path, inner in _branches(kind, "")}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file gives an empty one.

    Raises:
      DataError: no such file, not YAML, not a mapping, or a key given twice.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; a YAML configuration is expected") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise DataError(f"{path}: {place}not a YAML configuration ({problem or type(error).__name__})") from error
    except ValueError as error:  # such as an impossible date
        raise DataError(f"{path}: not a YAML configuration ({error})") from error
    if tree is not None and not isinstance(tree, dict):
        raise DataError(f"{path}: {type(tree).__name__} found; a YAML mapping of configuration keys is expected")
    return tree or {}


def check_keys(kind: type, mapping: Any, source: str) -> None:
    """Compares the keys of nested mappings with the fields of a dataclass; an empty section may be None.

    Args:
      kind: the root of the tree.
      mapping: to check.
      source: where it comes from, for messages; may be empty.

    Raises:
      DataError: an unknown key, with the nearest valid path, or a value where a section is expected.
    """
    _check_keys(kind, kind, mapping, "", source)


def build(kind: type, mapping: Mapping[str, Any]) -> Any:
    """An instance of the dataclass from nested mappings with valid keys; what is left out keeps its default.

    Raises:
      ValueError: a value of the wrong type, or one that the dataclass refuses.
    """
    return _build(kind, mapping, "")


def plant(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Sets the value at a path such as ``training.epochs`` in nested dictionaries, in place, and returns the root."""
    *branches, leaf = path.split(".")
    node = tree
    for name in branches:
        if not isinstance(node.get(name), dict):  # an empty section is None in YAML
            node[name] = {}
        node = node[name]
    node[leaf] = value
    return tree


def value_of_text(kind: Any, text: str, path: str) -> Any:
    """A value of the command line as its type; lists are written 3,6,9 or [3, 6, 9], None is written null.

    Raises:
      DataError: not of that type; ``path`` names it in the message.
    """
    try:
        return _convert(kind, _parse(kind, text), path)
    except ValueError as error:
        raise DataError(str(error)) from error


def describe_type(kind: Any) -> str:
    """A type in words for a user who writes YAML."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return f"{describe_type(parts[0])} or null"
    if typing.get_origin(kind) is tuple:
        return f"list of {'' if parts[-1] is ... else f'{len(parts)} '}{names[parts[0]]}s"
    return names[kind]


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name or path that was probably meant, if one is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    same_end = [path for path in known if path.rpartition(".")[2] == name.rpartition(".")[2]]
    return (close or same_end or difflib.get_close_matches(name, known, n=1) or [None])[0]


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = []
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} occurs twice", problem_mark=key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)

    def construct_unambiguous(self, node: yaml.ScalarNode) -> Any:
        """A number, or the text where YAML 1.1 reads another number than people do: 010 as 8, 1:30 as 90."""
        text = self.construct_scalar(node)
        if ":" in text or re.match(r"[-+]?0[0-9_]+$", text):
            return text
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_unambiguous)


def _branches(kind: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, inner in kinds_of(kind).items():
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield f"{prefix}{name}", inner
            yield from _branches(inner, f"{prefix}{name}.")


def _walk_leaves(kind: type, prefix: str) -> Iterator[tuple[str, Leaf]]:
    kinds, texts = kinds_of(kind), _field_texts(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(kinds[item.name]):
            yield from _walk_leaves(kinds[item.name], f"{prefix}{item.name}.")
        else:
            choices = choices_of(hints_of(kind)[item.name])
            text = texts.get(item.name, "").replace("{choices}", " | ".join(map(str, choices)))
            yield f"{prefix}{item.name}", Leaf(kinds[item.name], item.default, text, choices)


def _field_texts(kind: type) -> dict[str, str]:
    """Field name -> the text below it in the source, which Python itself does not keep."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for item, below in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[item.target.id] = str(below.value.value)
    return texts


def _check_keys(root: type, kind: type, mapping: Any, prefix: str, source: str) -> None:
    kinds = kinds_of(kind)
    if not isinstance(mapping, Mapping):
        where = f"{source}: " if source else ""
        path = prefix.rstrip(".")
        raise DataError(
            f"{where}{path}={mapping!r}: a section is expected, with keys such as {prefix}{next(iter(kinds))}"
        )
    for name, value in mapping.items():
        if name not in kinds:
            raise DataError(_unknown_key(root, f"{prefix}{name}", source))
        if dataclasses.is_dataclass(kinds[name]) and value is not None:
            _check_keys(root, kinds[name], value, f"{prefix}{name}.", source)


def _unknown_key(root: type, path: str, source: str) -> str:
    where = f" in {source}" if source else ""
    near = nearest(path, [*leaves_of(root), *branches_of(root)])
    hint = f"did you mean {near}?" if near else f"choose from {', '.join(kinds_of(root))}"
    return f"unknown key {path if path.isprintable() else repr(path)}{where}; {hint}"


def _build(kind: Any, mapping: Mapping[str, Any] | None, prefix: str) -> Any:
    kinds = kinds_of(kind)
    values = {}
    for name, value in (mapping or {}).items():
        if dataclasses.is_dataclass(kinds[name]):
            values[name] = _build(kinds[name], value, f"{prefix}{name}.")
        else:
            values[name] = _convert(kinds[name], value, f"{prefix}{name}")
    return kind(**values)


def _parse(kind: Any, text: str) -> Any:
    if isinstance(kind, types.UnionType):
        return None if text == "null" else _parse(typing.get_args(kind)[0], text)
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple and not text.lstrip().startswith("["):
        text = f"[{text}]"
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: an impossible date
        return text


def _convert(kind: Any, value: Any, path: str) -> Any:
    try:
        return _cast(kind, value)
    except OverflowError:
        raise ValueError(f"{path}={_shown(value)}: too large a number") from None
    except (TypeError, ValueError):
        raise ValueError(f"{path}={_shown(value)}: {describe_type(kind)} expected") from None


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _cast(kind: Any, value: Any) -> Any:
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _cast(parts[0], value)
    if typing.get_origin(kind) is tuple:
        if parts[-1] is ... and isinstance(value, (int, float, str)):
            value = (value,)  # one alone, as on the command line
        if not isinstance(value, (list, tuple)) or (parts[-1] is not ... and len(value) != len(parts)):
            raise TypeError
        return tuple(_cast(parts[0], item) for item in value)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = float(value)  # YAML 1.1 takes 5e-5, without a point, for text
    if kind is int and isinstance(value, int) and abs(value) > _LARGEST:
        raise OverflowError
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError
    return value
