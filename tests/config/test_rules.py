"""What the type of a field says: choices, bounds and other rules."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from jaxdti.config import Config, ModelConfig, config_fields
from jaxdti.config.rules import DISTINCT, Between, Count, Section, Share, Widths, choices_of, kinds_of


@dataclass(frozen=True, kw_only=True)
class Example(Section, path="some.example"):
    kind: Literal["one", "two"] = "one"
    kinds: Annotated[tuple[Literal["a", "b"], ...], DISTINCT] = ()
    few: Annotated[tuple[Count, ...], DISTINCT] = ()
    share: Share = 0.5
    limit: Annotated[float, Between(2)] | None = None
    number: Literal[1, 2] | None = None
    widths: Widths = (3,)
    name: str | None = None


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "three"}, "kind='three': choose from one, two"),
        ({"kinds": ("a", "c")}, "kinds='c': choose from a, b"),
        ({"kinds": ("a", "a")}, "kinds=('a', 'a'): each only once"),
        ({"few": (1, 0)}, "few=0: must be at least 1"),
        ({"share": 1.5}, "share=1.5: must be between 0.0 and 1.0"),
        ({"share": float("nan")}, "share=nan: must be between 0.0 and 1.0"),
        ({"limit": 1}, "limit=1: must be at least 2"),
        ({"limit": float("inf")}, "limit=inf: must be at least 2"),
        ({"number": 3}, "number=3: choose from 1, 2"),
        ({"widths": ()}, "widths=(): one or more whole numbers above 0 are expected"),
    ],
)
def test_a_value_against_the_rules_of_its_type_is_refused_with_its_key(values, message):
    with pytest.raises(ValueError) as caught:
        Example(**values)
    assert str(caught.value) == f"some.example.{message}"


def test_what_the_rules_allow_is_taken():
    Example(kind="two", kinds=("b", "a"), few=(2, 1), share=1.0, limit=2, number=2, widths=(1, 1), name="x")
    Example(limit=None, number=None)


def test_types_are_those_without_rules():
    assert kinds_of(Example) == {
        "kind": str,
        "kinds": tuple[str, ...],
        "few": tuple[int, ...],
        "share": float,
        "limit": float | None,
        "number": int | None,
        "widths": tuple[int, ...],
        "name": str | None,
    }


def test_choices_of_a_literal_in_any_place():
    hints = typing.get_type_hints(Example, include_extras=True)
    found = {item.name: choices_of(hints[item.name]) for item in dataclasses.fields(Example)}
    assert found.pop("kind") == ("one", "two") and found.pop("kinds") == ("a", "b") and found.pop("number") == (1, 2)
    assert set(found.values()) == {()}


def test_a_section_is_checked_however_it_is_made():
    with pytest.raises(ValueError, match="model.pool='max': choose from sum, mean, sqrt"):
        ModelConfig(pool="max")
    with pytest.raises(ValueError, match="task='ranking'"):
        dataclasses.replace(Config(), task="ranking")


def test_help_names_every_choice():
    for path, leaf in config_fields().items():
        if path != "vectors.methods":  # those of adaptation.method
            assert all(str(choice) in leaf.help for choice in leaf.choices), path
        assert "{" not in leaf.help
    assert config_fields()["training.optimizer"].help.startswith("adam | adamw")
