"""The values that a field takes, said once, by its type: ``Literal["sum", "mean"]`` or ``Annotated[int, Between(1)]``.

The text for the command line, the reading of YAML and the check of every instance all follow from that type.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

_UNIONS = (types.UnionType, typing.Union)  # int | None, and what Annotated[int, ...] | None becomes


class Between(NamedTuple):
    """Rule: a finite number from ``low`` to ``high``, both included."""

    low: float
    high: float = math.inf

    def check(self, path: str, value: float) -> None:
        """Raises ValueError, with the key, unless the value fits."""
        if not (self.low <= value <= self.high and math.isfinite(value)):
            wanted = f"at least {self.low}" if math.isinf(self.high) else f"between {self.low} and {self.high}"
            raise ValueError(f"{path}={value!r}: must be {wanted}")


class Fits(NamedTuple):
    """Rule: ``test`` of the value holds; ``expected`` says so in a message."""

    test: Callable[[Any], object]
    expected: str

    def check(self, path: str, value: Any) -> None:
        """Raises ValueError, with the key, unless the value fits."""
        if not self.test(value):
            raise ValueError(f"{path}={value!r}: {self.expected}")


DISTINCT = Fits(lambda values: len(set(values)) == len(values), "each only once")
Positive = Annotated[float, Fits(lambda value: 0 < value < math.inf, "must be above 0")]
NotNegative = Annotated[float, Between(0)]
Dropout = Annotated[float, Between(0.0, 0.95)]
Share = Annotated[float, Between(0.0, 1.0)]
Count = Annotated[int, Between(1)]
Seed = Annotated[int, Between(0)]
Widths = Annotated[
    tuple[int, ...],
    Fits(lambda values: values and min(values) >= 1, "one or more whole numbers above 0 are expected"),
]


class Section:
    """A part of the configuration; ``path`` is its own, such as ``data.planted``, and empty for the root.

    A dataclass below it checks its values when it is made. Its own ``__post_init__`` calls this one, and then relates
    fields to each other.
    """

    _prefix: ClassVar[str]

    def __init_subclass__(cls, path: str):
        cls._prefix = f"{path}." if path else ""

    def __post_init__(self):
        for name, hint in hints_of(type(self)).items():
            _check(hint, f"{self._prefix}{name}", getattr(self, name))


@functools.cache
def hints_of(section: type) -> dict[str, Any]:
    """Field of a dataclass -> its type, with the rules."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(section)}


@functools.cache
def kinds_of(section: type) -> dict[str, Any]:
    """Field of a dataclass -> its type without rules: str, int, float, bool, one of them or None, or a tuple."""
    return {name: _kind(hint) for name, hint in hints_of(section).items()}


def choices_of(hint: Any) -> tuple:
    """The values of a ``Literal``, alone, in a tuple, or beside None; () for any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return choices_of(get_args(hint)[0]) if get_args(hint) else ()


def _kind(hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return type(parts[0])
    if origin is tuple:
        return tuple[tuple(part if part is ... else _kind(part) for part in parts)]
    return _kind(parts[0]) | None if origin in _UNIONS else hint


def _check(hint: Any, path: str, value: Any) -> None:
    """Raises ValueError unless a value, which has the right type, obeys the rules of that type."""
    origin, parts = get_origin(hint), get_args(hint)
    if value is None or not parts:
        return
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{path}={value!r}: choose from {', '.join(map(str, parts))}")
        return
    for item in value if origin is tuple else (value,):
        _check(parts[0], path, item)
    if origin is Annotated:
        for rule in parts[1:]:
            rule.check(path, value)
