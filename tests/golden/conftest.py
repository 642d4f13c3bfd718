"""Small runs from the command line, and the numbers that their directories hold.

Nothing here knows the modules of the library: what is compared are the files that a user finds.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest
import yaml

from jaxdti.cli import main

HERE = Path(__file__).resolve().parent
WRITE = "JAXDTI_GOLDEN_WRITE"  # write the expected numbers instead of comparing with them, see make.py
EXACT = "JAXDTI_GOLDEN_EXACT"  # compare all numbers, at 1e-6: for one machine and one set of versions

Measures = dict[str, list[Any]]  # "kind/name" -> numbers, or texts where the kind is "names"

PAIRS = {"train": "tables/train.csv", "validation": "tables/validation.csv", "test": "tables/test.csv"}
MODEL = {
    "drug_features": 8,
    "drug_layers": 1,
    "protein_features": 8,
    "protein_kernels": [3],
    "joint_features": 8,
    "pool_size": 1,
    "decoder_features": [16],
    "dropout": 0.1,
}
TRAINING = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-4, "buckets": 1, "chunk_steps": 1}
OUTPUT = {"baselines": False, "tensorboard": False, "bootstrap": 20}
OTHER = {
    "data": {"train": "tables/other_train.csv", "validation": "tables/validation.csv", "test": "tables/other_test.csv"},
    "model": MODEL,
    "training": TRAINING | {"epochs": 2},
    "output": OUTPUT,
}
# The decoder alone learns, so the steps may be larger; in one epoch, as the scores would hardly tell two apart.
FEATURE = ["--transfer.mode=feature", "--training.epochs=1", "--training.batch_size=4", "--training.learning_rate=1e-3"]
# name -> (arguments before the configuration, the configuration, arguments after it, the run that it starts from)
CASES: dict[str, tuple[list[str], dict[str, Any], list[str], str | None]] = {
    "pairs": (["train"], {"data": PAIRS, "model": MODEL, "training": TRAINING, "output": OUTPUT}, [], None),
    "pairs_cdan": (
        ["train"],
        {
            "data": PAIRS | {"target": "tables/target.csv"},
            "model": MODEL | {"logits": 2},
            "training": TRAINING | {"seed": 2},
            "adaptation": {
                "method": "cdan",
                "start": 0.0,
                "discriminator_features": [8],
                "source_only": False,
                "target_entropy": 0.1,
            },
            "output": OUTPUT,
        },
        [],
        None,
    ),
    "vectors_san": (
        ["train"],
        {
            "vectors": {
                **{part: f"tables/vectors_{part}.csv" for part in ("source", "target", "test")},
                "methods": ["none", "san"],
                "features": [8, 6],
            },
            "training": {"epochs": 6, "batch_size": 16, "learning_rate": 3e-4, "replicas": 2},
            "adaptation": {"discriminator_features": [4]},
            "output": {"baselines": False},
        },
        [],
        None,
    ),
    "transfer_full": (["transfer", "pairs"], OTHER, ["--transfer.mode=full"], "pairs"),
    "transfer_feature": (["transfer", "pairs"], OTHER, FEATURE, "pairs"),
    "transfer_shallow": (["transfer", "pairs"], OTHER, ["--transfer.mode=shallow"], "pairs"),
    "response": (
        ["response"],
        {
            "response": {
                "dataset": "planted-expression",
                "methods": ["ae", "codeae_base", "codeae_adv"],
                "baselines": ["elastic_net"],
                "folds": 3,
                "planted": {"genes": 60, "shared": 3, "private": 1, "source": 75, "target": 64, "drugs": 2},
                "pretraining": {
                    "widths": [8],
                    "latent": 4,
                    "epochs": [2],
                    "adversarial_epochs": [1],
                    "batch_size": 32,
                    "critic_steps": 2,
                    "learning_rate": [3e-4],
                },
                "heads": {
                    "widths": [4],
                    "epochs": 2,
                    "patience": 1,
                    "batch_size": 32,
                    "unfreeze": 1,
                    "learning_rate": 3e-4,
                },
            },
            "output": {"bootstrap": 20},
        },
        [],
        None,
    ),
    "transfer_sizes": (
        ["transfer", "--protocol", "sizes"],
        {
            "data": {name: f"tables/families_{name}.csv" for name in ("drugs", "proteins")}
            | {"table": "tables/families_pairs.csv"},
            "training": {"epochs": 1, "batch_size": 4, "learning_rate": 3e-4},
            "transfer": {
                "sizes": {
                    "targets": ["a"],
                    "compounds": [4, 20],
                    "repeats": 2,
                    "test_compounds": 36,
                    "fingerprint_bits": 32,
                    "features": [12, 6],
                    "batch_size": 8,
                    "learning_rate": 1e-4,
                    "epochs": 2,
                    "updates": 4,
                }
            },
            "output": {"bootstrap": 20},
        },
        [],
        None,
    ),
}
# Of the summary: what a clock or a path decides; and metrics that jump where the order of two scores turns.
_UNSTABLE = ("seconds", "samples_per_second", "total_seconds")
_RANKS = ("auroc", "auprc")
_SMOOTH = ("brier",)
_COUNTS = ("epochs", "best_epoch")


@pytest.fixture(scope="module", autouse=True)
def fast(compile_fast_and_once):
    """Every test here is mostly compilation."""


@pytest.fixture(scope="session")
def same_draws():
    """Skips where JAX draws other random numbers, from which other weights begin."""
    drawn = np.asarray(jax.random.normal(jax.random.PRNGKey(0), (3,)))
    if not np.allclose(drawn, (1.6226422, 2.0252647, -0.43359444), rtol=1e-5):
        pytest.skip(f"jax {jax.__version__} draws other random numbers than the ones that the runs began with")


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A working directory with the tables, as the configurations name them."""
    shutil.copytree(HERE / "tables", tmp_path / "tables")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Callable[[str], Path]:
    """``runs(case)``: the directory of the finished run, made when first asked for."""
    folder, finished = tmp_path_factory.mktemp("golden"), {}
    shutil.copytree(HERE / "tables", folder / "tables")

    def run(case: str) -> Path:
        if case not in finished:
            before, config, after, source = CASES[case]
            if source is not None:
                run(source)
            (folder / f"{case}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                assert main([*before, f"{case}.yaml", *after, "--output", case]) == 0
            finished[case] = folder / case
        return finished[case]

    return run


@pytest.fixture(scope="session")
def golden(runs) -> SimpleNamespace:
    """What the tests of this folder share: the runs, what is measured of them, and the comparison."""
    return SimpleNamespace(
        cases=tuple(CASES),
        runs=runs,
        measure=lambda case: _measures(runs(case)),
        check=check,
        main=main,
        scores=_scores,
        arrays=_arrays,
        here=HERE,
    )


def check(file: Path, found: Measures, tolerances: dict[str, float]) -> None:
    """Compares with the numbers of a file, or writes them.

    Args:
      file: JSON of an earlier ``found``.
      found: "kind/name" -> numbers.
      tolerances: kind -> largest difference; kinds that are left out are compared in the exact mode alone.
    """
    if os.environ.get(WRITE):
        file.parent.mkdir(exist_ok=True)
        lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()]
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    expected = json.loads(file.read_text(encoding="utf-8"))
    assert list(found) == list(expected)
    exact, wrong = bool(os.environ.get(EXACT)), []
    for name, values in found.items():
        kind = name.partition("/")[0]
        if kind == "names":
            assert values == expected[name], name
        elif exact or kind in tolerances:
            assert len(values) == len(expected[name]), name
            mine, theirs = (np.array(given, np.float64) for given in (values, expected[name]))
            tolerance = 1e-6 if exact else tolerances[kind]
            if not np.allclose(mine, theirs, rtol=0, atol=tolerance, equal_nan=True):
                wrong.append(f"{name} by {np.nanmax(np.abs(mine - theirs)):.3g}, allowed {tolerance:g}")
    assert not wrong, f"{file.stem} differs: {'; '.join(wrong)}"


def _measures(run: Path) -> Measures:
    """All that is measured of the directory of a run."""
    found: Measures = {"names/files": sorted(path.name for path in run.iterdir())}
    if (run / "predictions.parquet").is_file():
        found |= _scores(run / "predictions.parquet")
    if (run / "metrics.jsonl").is_file():
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in records[0]:
            if name not in _UNSTABLE:
                kind = "losses" if "loss" in name else "ranks" if name.endswith(_RANKS) else "counts"
                found[f"{kind}/{name}"] = [_short(record[name]) for record in records]
    if (run / "summary.json").is_file():
        found |= _summary(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    for table in sorted([*run.glob("results.csv"), *run.glob("means.csv")]):
        found |= _results(table)
    for folder in sorted(run.rglob("weights")):
        found |= _weights(run, folder)
    for file in sorted(run.glob("networks/*/*/network.json")):
        found |= _classes(run, file.parent)
    for file in sorted(run.rglob("*.npz")):
        found |= _arrays(run, file)
    return found


def _scores(file: Path) -> Measures:
    """The columns of numbers of a table of scores."""
    table = pq.read_table(file)
    numbers = [name for name in table.column_names if str(table.schema.field(name).type) in ("double", "float")]
    found: Measures = {"names/columns": table.column_names}
    return found | {f"scores/{name}": [_short(value) for value in table[name].to_pylist()] for name in numbers}


def _summary(tree: dict[str, Any]) -> Measures:
    """The numbers of a summary: one entry for each branch and kind."""
    found: Measures = {}
    for path, value in _leaves(tree, ()):
        name = path[-1] if not path[-1].isdigit() else path[-2]
        if name in _UNSTABLE or isinstance(value, str):
            continue
        kind = "ranks" if name in _RANKS else "scores" if name in _SMOOTH else "counts" if name in _COUNTS else "rest"
        found.setdefault(f"{kind}/summary", []).append(_short(value))
    return found


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict | list):
        for name, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(inner, (*path, str(name)))
    else:
        yield path, tree


def _results(file: Path) -> Measures:
    """A table of results: its texts, and its numbers column by column."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found: Measures = {}
    for name in rows[0]:
        cells = [row[name] for row in rows]
        try:
            numbers = [_short(float(cell)) if cell else None for cell in cells]
        except ValueError:
            found[f"names/{file.name}/{name}"] = cells
        else:
            found[f"{'ranks' if name in _RANKS else 'rest'}/{file.name}/{name}"] = numbers
    return found


def _weights(run: Path, folder: Path) -> Measures:
    """Norm of each stored array, in the order of their names."""
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder))
    norms = {jax.tree_util.keystr(path, simple=True, separator="/"): _norm(leaf) for path, leaf in leaves}
    where = folder.relative_to(run).as_posix()
    return {f"names/{where}": sorted(norms), f"weights/{where}": [norms[name] for name in sorted(norms)]}


def _classes(run: Path, folder: Path) -> Measures:
    """Probabilities of the classes of the test rows, by stored networks on feature vectors."""
    scores = run.parent / f"{run.name}_{folder.parent.name}.parquet"
    assert main(["predict", str(folder), str(run.parent / "tables" / "vectors_test.csv"), "--output", str(scores)]) == 0
    found = _scores(scores)
    return {
        f"scores/{folder.parent.name}/{name.partition('/')[2]}": values
        for name, values in found.items()
        if "probability" in name
    }


def _arrays(run: Path, file: Path) -> Measures:
    """Scores one by one; of other arrays the norms."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in sorted(stored.files) if name not in ("_seconds", "seconds")}
    where = file.relative_to(run).as_posix()
    if file.parent.name == "scores":
        kind = lambda name: next((kind for kind in ("forest", "svm") if kind in name), "scores")
        return {f"{kind(name)}/{where}/{name}": list(map(_short, array.ravel())) for name, array in arrays.items()}
    return {f"names/{where}": list(arrays), f"weights/{where}": [_norm(array) for array in arrays.values()]}


def _norm(array: Any) -> float:
    return _short(float(np.linalg.norm(np.asarray(array, np.float64))))


def _short(value: Any) -> Any:
    """Nine significant digits, one more than float32 tells apart."""
    return value if value is None or isinstance(value, bool | int) else float(f"{float(value):.9g}")
