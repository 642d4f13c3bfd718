"""The public Python API: tables of every kind, models, errors, and an import that stays cheap."""

import importlib
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

import jaxdti
from jaxdti.config.keywords import config_with, full_path
from jaxdti.data.frames import as_arrow
from jaxdti.data.tables import write_table
from jaxdti.inference.predict import predict as predict_file
from tests.conftest import MODEL, _pairs

pytestmark = pytest.mark.usefixtures("compile_fast_and_once")
NAMES = ("SMILES", "Protein", "Y", "affinity")
COLUMNS = {name: list(values) for name, values in zip(NAMES, zip(*_pairs(), strict=True), strict=True)}
TINY = {
    "model": MODEL,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "buckets": 1,
    "chunk_steps": 1,
    "baselines": False,
    "tensorboard": False,
    "bootstrap": 20,
}


def pandas_frame():
    return pd.DataFrame(COLUMNS, index=[f"row {i}" for i in range(80)])


KINDS = {"pandas": pandas_frame, "polars": lambda: pl.DataFrame(COLUMNS), "arrow": lambda: pa.table(COLUMNS)}
KINDS["dict"] = lambda: COLUMNS | {"Y": np.array(COLUMNS["Y"])}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Trained on a pandas frame, once for all tests; its directory is named by a str."""
    return jaxdti.train(pandas_frame(), output=str(tmp_path_factory.mktemp("runs") / "mine"), split="cold_drug", **TINY)


@pytest.fixture(scope="module")
def expected(model):
    """The scores of the command line's function, from a file."""
    return predict_file(model.run, pa.table(COLUMNS))


def test_import_is_cheap_and_names_are_there():
    heavy = "jax", "rdkit", "pyarrow", "numpy", "sklearn", "pandas", "polars"
    code = f"import sys, jaxdti; dir(jaxdti); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    for package in (jaxdti, jaxdti.models, jaxdti.layers, jaxdti.adaptation, jaxdti.evaluation):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
    importlib.import_module("jaxdti.adaptation.mmd")  # a module of the same name must not take the function's place
    assert callable(jaxdti.adaptation.mmd) and callable(jaxdti.adaptation.coral) and callable(jaxdti.adaptation.mcc)
    assert not hasattr(jaxdti, "no_such_name")
    assert (Path(jaxdti.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_repr_is_short(model):
    assert len(repr(model)) < 250 and len(repr(model.run)) < 120
    assert all(part in repr(model) for part in ("classification", "runs", "parameters", "test AUROC"))


def test_training_keeps_the_table(model):
    kept = parquet.read_table(model.directory / "table.parquet")
    assert kept.to_pydict() == COLUMNS
    assert model.config.data.table == str(model.directory / "table.parquet")
    before = model.summary["test"]["auroc"]
    again = jaxdti.resume(str(model.directory))  # the table is found unchanged, and nothing is left to train
    assert again.summary["test"]["auroc"] == before


def test_splits_are_those_of_a_file(model, tmp_path):
    from jaxdti.data.pairs.load import describe_data, load_data

    write_table(pa.table(COLUMNS), tmp_path / "pairs.csv")
    config = config_with(jaxdti.Config(), {"table": tmp_path / "pairs.csv", "split": "cold_drug"})
    of_frame = load_data(model.config.data, "classification", as_arrow(pandas_frame()))
    assert describe_data(load_data(config.data, "classification"))["sha256"] == describe_data(of_frame)["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predict_gives_back_the_kind(model, expected, kind):
    source = KINDS[kind]()
    scores = jaxdti.predict(str(model.directory), source)
    assert type(scores) is type(source)
    assert list(scores.keys() if kind == "dict" else scores.columns if kind != "arrow" else scores.column_names) == [
        *NAMES,
        "score",
        "probability",
        "error",
    ]
    np.testing.assert_allclose(np.asarray(scores["score"]), expected["score"], rtol=1e-6)
    if kind == "pandas":
        assert scores.index.equals(source.index) and scores["Y"].dtype == source["Y"].dtype
        assert list(source.columns) == list(NAMES)  # the input is not altered


def test_predict_of_paths_and_streams(model, expected, tmp_path):
    write_table(pa.table(COLUMNS), tmp_path / "pairs.csv")
    for source in (str(tmp_path / "pairs.csv"), tmp_path / "pairs.csv", pa.table(COLUMNS).to_reader()):
        scores = model.predict(source)
        assert isinstance(scores, pa.Table)
        np.testing.assert_allclose(scores["score"], expected["score"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_invalid_rows_are_marked(model, kind):
    columns = {"SMILES": ["CCO", "nonsense", None], "Protein": ["MKTAYIAK"] * 3, "score": [1.0, 2.0, 3.0]}
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table, "dict": dict}[kind]
    scores = model.predict(make(columns))
    values = np.array(
        [np.nan if x is None else x for x in scores["score"].to_pylist()] if kind == "arrow" else scores["score"], float
    )
    assert np.isfinite(values).tolist() == [True, False, False]
    assert list(map(str, scores["error"]))[0] == "" and "SMILES" in str(scores["error"][1])
    assert list(map(float, map(str, scores["score_input"]))) == [1, 2, 3]
    vectors = model.embed(make(columns))
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, False]


def test_polars_categories_and_foreign_objects(model, expected):
    frame = pl.DataFrame(COLUMNS).with_columns(pl.col("SMILES").cast(pl.Categorical))
    np.testing.assert_allclose(model.predict(frame)["score"], expected["score"], rtol=1e-6)
    scores = model.predict(pandas_frame().assign(molecule=[object() for _ in range(80)]))
    np.testing.assert_allclose(scores["score"], expected["score"], rtol=1e-6)


def test_evaluate(model, tmp_path):
    metrics = model.evaluate(pandas_frame())
    assert metrics["pairs"] == 80 and metrics["rows_trained_on"] > 40 and 0 <= metrics["auroc"] <= 1
    write_table(pa.table(COLUMNS), tmp_path / "pairs.csv")
    assert jaxdti.evaluate(str(model.directory), str(tmp_path / "pairs.csv"), str(tmp_path / "out")) == metrics
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pairs_metrics.json", "pairs_scores.csv"]
    with pytest.raises(jaxdti.DataError, match="already exists"):
        jaxdti.evaluate(model, tmp_path / "pairs.csv", tmp_path / "out")


@pytest.mark.slow
def test_embed(model):
    vectors = model.embed(pandas_frame())
    assert vectors.shape == (80, 8) and vectors.dtype == np.float32
    logits = model.module.apply(
        model.variables, vectors, np.ones(80, bool), method=lambda net, x, mask: net.decoder(x, mask, train=False)
    )
    np.testing.assert_allclose(np.asarray(logits)[:, 0], model.predict(COLUMNS)["score"], rtol=1e-4, atol=1e-5)

    drugs = model.embed(drugs=["CCO", "c1ccccc1", "CCO", "nonsense"])
    assert drugs.shape == (4, 8) and np.isnan(drugs[3]).all()
    np.testing.assert_array_equal(drugs[0], drugs[2])
    proteins = model.embed(proteins=pd.Series(["MKTAYIAK", "MKT"]))
    batch = model.featurize({"SMILES": ["CCO", "c1ccccc1"], "Protein": ["MKTAYIAK", "MKT"]})
    for found, encode, entity in ((drugs, "encode_drug", batch.drug), (proteins, "encode_protein", batch.protein)):
        states, mask = model.module.apply(model.variables, entity, batch.row_mask, method=encode)
        mean = (np.asarray(states) * np.asarray(mask)[..., None]).sum(1) / np.asarray(mask).sum(1)[:, None]
        np.testing.assert_allclose(found[:2], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_from_a_table_to_a_gradient(model, expected):
    frame = pandas_frame()
    batch, labels = model.featurize(frame), jnp.asarray(frame["Y"].to_numpy(), jnp.float32)

    def loss(params):
        logits = model.module.apply({**model.variables, "params": params}, *batch, train=False)
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(where=batch.row_mask)

    gradient = jax.jit(jax.grad(loss))(model.variables["params"])
    assert optax.tree.norm(gradient) > 0
    logits = jax.jit(lambda variables: model.module.apply(variables, *batch, train=False))(model.variables)
    np.testing.assert_allclose(logits[:, 0], expected["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_own_training_loop(model):
    batch, labels = model.featurize(COLUMNS), jnp.asarray(COLUMNS["Y"], jnp.float32)
    module, tx = jaxdti.models.DrugBAN(model.config.model), optax.adam(3e-3)
    variables = jax.jit(lambda key: module.init(key, *batch, train=False))(jax.random.key(0))
    params, stats, state = variables["params"], variables["batch_stats"], tx.init(variables["params"])

    def loss(params, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, moved = module.apply(variables, *batch, train=True, mutable=["batch_stats"])
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), moved["batch_stats"]

    step, losses = jax.jit(jax.value_and_grad(loss, has_aux=True)), []
    for _ in range(15):
        (value, stats), gradient = step(params, stats)
        updates, state = tx.update(gradient, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_temporary_directory_lives_as_long_as_the_model():
    model = jaxdti.train(COLUMNS, replicas=2, **TINY | {"epochs": 1})
    place = model.directory
    assert (place / "summary.json").is_file() and "2 networks" in repr(model)
    with pytest.raises(jaxdti.DataError, match=r"variables: .* model\.members\[0\]"):
        _ = model.variables
    with pytest.raises(jaxdti.DataError, match=r"embed: .* model\.members\[0\]"):
        model.embed(COLUMNS)
    first, second = model.members
    scores = [member.predict(COLUMNS)["score"] for member in (first, second)]
    np.testing.assert_allclose(np.mean(scores, axis=0), model.predict(COLUMNS)["score"], rtol=1e-6)
    assert first.members == (first,) and first.embed(COLUMNS).shape == (80, 8)
    del model
    assert not place.exists()


@pytest.mark.slow
def test_transfer(model, tmp_path):
    settings = {name: value for name, value in TINY.items() if name != "model"} | {"epochs": 1}
    moved = jaxdti.transfer(
        str(model.directory), pl.DataFrame(COLUMNS), output=tmp_path / "moved", mode="full", **settings
    )
    assert moved.config.model == model.config.model and (tmp_path / "moved" / "table.parquet").is_file()
    with pytest.raises(jaxdti.DataError, match="choose from full"):
        jaxdti.transfer(model, COLUMNS)


@pytest.mark.parametrize(
    "table, message",
    [
        (["CCO"], "list found; expected a path"),
        (None, "NoneType found"),
        (pl.DataFrame(COLUMNS).lazy(), "call its collect"),
        (pd.DataFrame({"SMILES": [], "Protein": []}), "no data rows"),
        ({}, "no data rows"),
        ({"SMILES": ["CCO"]}, "no protein .* column; columns found: 'SMILES'"),
        ({"SMILES": "CCO", "Protein": "MKT"}, "column 'SMILES' is of type str"),
        ({"SMILES": ["CCO"], "Protein": ["M", "K"]}, "'Protein' has 2 values, column 'SMILES' has 1"),
        ({"SMILES": np.zeros((2, 2)), "Protein": ["M", "K"]}, r"shape \(2, 2\)"),
        (pd.DataFrame([["CCO", "M", "K"]], columns=["SMILES", "Protein", "Protein"]), "occurs twice"),
        (pd.Series(["CCO"]), "holds no columns|found; expected"),
        ("absent.csv", "absent.csv: no such file"),
    ],
)
def test_unfit_tables(model, table, message):
    with pytest.raises(jaxdti.DataError, match=message):
        model.predict(table)


def test_other_errors(model, tmp_path):
    def fails(message, function, *args, **kwargs):
        with pytest.raises(jaxdti.DataError, match=message):
            function(*args, **kwargs)

    fails("not a run directory", jaxdti.load, str(tmp_path / "absent"))
    fails("int found; a path is expected", jaxdti.load, 3)
    fails("no column 'nope'", model.predict, COLUMNS, drug_column="nope")
    fails("unknown key 'drug_colum'; did you mean drug_column", model.predict, COLUMNS, drug_colum="SMILES")
    fails("nothing given", model.embed)
    fails("drugs is of type str", model.embed, drugs="CCO")
    fails("no valid row among 1", model.featurize, {"SMILES": ["nonsense"], "Protein": ["MKT"]})
    fails("empty label", model.evaluate, pandas_frame().assign(Y=np.nan))
    fails("unknown key 'epoch'; did you mean epochs", jaxdti.train, COLUMNS, epoch=3)
    fails("training.epochs='many'", jaxdti.train, COLUMNS, epochs="many")
    fails("already exists", jaxdti.train, COLUMNS, output=model.directory)
    fails("data.table=x.csv is set, and a table is given", jaxdti.train, COLUMNS, **{"data.table": "x.csv"})
    fails("no complete data named", jaxdti.train)
    fails("on feature vectors", jaxdti.train, vectors={"dataset": "digits"})
    fails("a drug response configuration", jaxdti.train, **{"response.dataset": "gdsc_tcga"})
    fails("unknown key", jaxdti.sweep, {}, {"learning_rte": [1e-3]}, tmp_path / "sweep")
    (tmp_path / "response").mkdir()
    jaxdti.config.save_config(jaxdti.Config(), tmp_path / "response" / "config.yaml")
    (tmp_path / "response" / "left_out.csv").write_text("")
    fails("a drug response run", jaxdti.load, tmp_path / "response")


def test_keywords():
    config = config_with(
        jaxdti.Config(),
        {"epochs": 3, "seed": np.int64(4), "model": {"dropout": 0.1}, "cache_dir": Path("x"), "training.patience": 2},
    )
    assert (config.training.epochs, config.training.seed, config.training.patience) == (3, 4, 2)
    assert (config.model.dropout, config.data.cache_dir) == (0.1, "x")
    assert full_path("frozen") == "training.frozen" and full_path("frozen", "transfer") == "transfer.frozen"
    with pytest.raises(jaxdti.DataError, match="widths' could be response.pretraining.widths or"):
        full_path("widths")


def test_sweep_takes_lists_and_text(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jaxdti.studies.sweep.sweep", lambda *args, **kwargs: calls.append((args, kwargs)))
    jaxdti.sweep({"table": "pairs.csv"}, {"learning_rate": [1e-4, 5e-5], "model.dropout": "0..0.5"}, "out", random=3)
    (config, grid, output), settings = calls[0]
    assert grid == ["training.learning_rate=0.0001,5e-05", "model.dropout=0..0.5"]
    assert config.data.table == "pairs.csv" and output == Path("out") and settings["random"] == 3
