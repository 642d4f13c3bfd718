"""No key of the configuration is dead: the package reads each of them, outside of the configuration itself."""

import ast
import dataclasses
import typing
from collections import defaultdict
from pathlib import Path

import jaxdti
from jaxdti.config import Config

# Read by ``getattr`` with names from a table, in jaxdti.data.pairs.load.
BY_NAME = {("DataConfig", name) for name in ("train", "validation", "test", "target")}


def config_classes(kind: type = Config) -> dict[str, type]:
    """The dataclasses of the tree by name."""
    below = [hint for hint in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(hint)]
    return {kind.__name__: kind} | {name: each for hint in below for name, each in config_classes(hint).items()}


KINDS = config_classes()
SECTIONS = {
    (kind.__name__, name): hint.__name__
    for kind in KINDS.values()
    for name, hint in typing.get_type_hints(kind).items()
    if dataclasses.is_dataclass(hint)
}


def fields_read(trees: list[ast.Module]) -> set[tuple[str, str]]:
    """(class, field) of every attribute that is read of an expression known to be of that class.

    Known are annotated parameters and attributes, results of annotated functions, sections such as ``x.training`` of
    anything, and names that these are assigned to, over a whole function or method. What is read of others does not
    count, so that a field with a common name is not taken for read because of another one.
    """
    named = lambda note: {node.id for node in ast.walk(note) if isinstance(node, ast.Name)} & KINDS.keys()
    attributes, results = defaultdict(set), defaultdict(set)
    for (kind, name), section in SECTIONS.items():
        if kind == "Config":
            attributes[name].add(section)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            results[node.name] |= named(node.returns)
            if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
                attributes[node.name] |= named(node.returns)
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    attributes[item.target.id] |= named(item.annotation)

    def kinds(node: ast.AST, known: dict[str, set[str]]) -> set[str]:
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.Attribute):
            above = kinds(node.value, known)
            return {SECTIONS[kind, node.attr] for kind in above if (kind, node.attr) in SECTIONS} or (
                set() if above else attributes[node.attr]
            )
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            return (
                kinds(node.args[0], known)
                if name == "replace" and node.args
                else ({name} & KINDS.keys()) | results[name]
            )
        return set()

    found = set()
    functions = [
        each
        for tree in trees
        for outer in tree.body
        for each in (outer.body if isinstance(outer, ast.ClassDef) else [outer])
    ]
    for function in functions:
        known: dict[str, set[str]] = defaultdict(set)
        for node in ast.walk(function):
            if isinstance(node, ast.arg) and node.annotation is not None:
                known[node.arg] |= named(node.annotation)
        for _ in range(2):  # an alias of an alias, defined further down
            for node in ast.walk(function):
                if not isinstance(node, (ast.Assign, ast.NamedExpr)):
                    continue
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                for name, value in zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]:
                    if isinstance(name, ast.Name):
                        known[name.id] |= kinds(value, known)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found |= {(kind, node.attr) for kind in kinds(node.value, known)}
    return found


def test_every_key_is_read():
    root = Path(jaxdti.__file__).parent
    files = [path for path in root.rglob("*.py") if root / "config" not in path.parents]
    read = fields_read([ast.parse(path.read_text(encoding="utf-8")) for path in files])
    fields = {(kind, field.name) for kind, each in KINDS.items() for field in dataclasses.fields(each)}
    assert sorted(fields - read - BY_NAME) == []
    assert not BY_NAME & read


def test_only_reads_of_the_class_count():
    text = """
def one(config: TrainingConfig, other):
    rate, same = config.learning_rate, other.training
    config.epochs = 3
    return other.weight_decay, same.seed, [replace(same, buckets=1).patience for _ in other.frozen]
"""
    names = {"learning_rate", "seed", "patience"}
    assert fields_read([ast.parse(text)]) == {("TrainingConfig", name) for name in names}
