"""Published weights: conversion, reading, and the recorded numbers of the published code within its tolerances."""

import csv
import io
import itertools
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from jaxdti import cli
from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, Config, ModelConfig
from jaxdti.data.molecules import featurize_batch
from jaxdti.data.pairs.buckets import PairBatch, Shape
from jaxdti.data.pairs.device import device_features
from jaxdti.data.pairs.sequences import encode_sequence
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.errors import DataError
from jaxdti.interop.drugban import detect_config, drugban_entries, from_torch, read_weights, to_torch
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.state import TrainState
from jaxdti.training.step import make_train_step
from jaxdti.training.supervised import hyper_parameters, pair_objective

PUBLISHED = ModelConfig(reference=True, dropout=0.0)
TINY = ModelConfig(
    drug_features=3, drug_layers=1, protein_features=4, protein_kernels=(2, 3), joint_features=2, decoder_features=(5,)
)
BATCH = 8  # of every program here: the 32 rows are scored in four
BETA1 = 0.9


# Conversion, on a network of a few numbers.


@pytest.fixture(scope="module")
def tiny_state():
    """A torch state dict of the size of ``TINY``, counters included, of distinct numbers."""
    rng = np.random.default_rng(0)
    shapes = {
        "drug_extractor.init_transform.weight": (3, 75),
        "drug_extractor.gnn.gnn_layers.0.graph_conv.weight": (3, 3),
        "drug_extractor.gnn.gnn_layers.0.graph_conv.bias": (3,),
        "drug_extractor.gnn.gnn_layers.0.res_connection.weight": (3, 3),
        "drug_extractor.gnn.gnn_layers.0.res_connection.bias": (3,),
        "protein_extractor.embedding.weight": (26, 4),
        "protein_extractor.conv1.weight": (4, 4, 2),
        "protein_extractor.conv1.bias": (4,),
        "protein_extractor.conv2.weight": (4, 4, 3),
        "protein_extractor.conv2.bias": (4,),
        "bcn.h_bias": (1, 2, 1, 1),
        "bcn.h_mat_g": (),
        "bcn.h_mat_v": (1, 2, 1, 6),
        "bcn.v_net.main.1.bias": (6,),
        "bcn.v_net.main.1.weight_g": (),
        "bcn.v_net.main.1.weight_v": (6, 3),
        "bcn.q_net.main.1.bias": (6,),
        "bcn.q_net.main.1.weight_g": (),
        "bcn.q_net.main.1.weight_v": (6, 4),
        "mlp_classifier.fc1.weight": (5, 2),
        "mlp_classifier.fc1.bias": (5,),
        "mlp_classifier.fc2.weight": (1, 5),
        "mlp_classifier.fc2.bias": (1,),
    }
    norms = {"drug_extractor.gnn.gnn_layers.0.bn_layer": 3, "protein_extractor.bn1": 4, "protein_extractor.bn2": 4}
    for name, width in (norms | {"bcn.bn": 2, "mlp_classifier.bn1": 5}).items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


TINY_REFERENCE = replace(TINY, reference=True)


def assert_same_arrays(got, expected):
    assert set(got) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].shape == array.shape, name


def without_counters(state):
    return {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}


def test_round_trip_and_orientation(tiny_state):
    variables = from_torch(tiny_state, TINY_REFERENCE)
    assert_same_arrays(to_torch(variables, TINY_REFERENCE), without_counters(tiny_state))
    params = variables["params"]
    # Linear layers are stored (out, in) there and (in, out) here; the graph convolution (in, out) on both sides.
    fc = tiny_state["mlp_classifier.fc1.weight"]
    np.testing.assert_array_equal(params["decoder"]["hidden_0"]["dense"]["kernel"], fc.T)
    graph = tiny_state["drug_extractor.gnn.gnn_layers.0.graph_conv.weight"]
    np.testing.assert_array_equal(params["graph_layers_0"]["message"]["kernel"], graph)
    conv = tiny_state["protein_extractor.conv2.weight"]
    np.testing.assert_array_equal(
        params["sequence_layers_1"]["conv"]["kernel"], np.moveaxis(conv, (0, 1, 2), (2, 1, 0))
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


def test_every_array_of_the_network_has_one_name(tiny_state):
    entries = drugban_entries(TINY_REFERENCE)
    assert len({entry.torch for entry in entries}) == len({(e.collection, e.path) for e in entries}) == len(entries)
    shapes = jax.tree.map(np.shape, from_torch(tiny_state, TINY_REFERENCE), is_leaf=lambda x: isinstance(x, np.ndarray))
    assert len(entries) == len(jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)))


def test_float64_weights_become_float32(tiny_state):
    wide = {name: x.astype(np.float64) for name, x in tiny_state.items()}
    assert_same_arrays(to_torch(from_torch(wide, TINY_REFERENCE), TINY_REFERENCE), without_counters(tiny_state))


def test_missing_and_unknown_names_are_all_listed(tiny_state):
    state = dict(tiny_state)
    for name in ("bcn.h_bias", "mlp_classifier.fc2.bias"):
        state[f"module.{name}"] = state.pop(name)
    with pytest.raises(DataError) as error:
        from_torch(state, TINY_REFERENCE)
    message = str(error.value)
    assert "missing ['bcn.h_bias', 'mlp_classifier.fc2.bias']" in message
    assert "unknown ['module.bcn.h_bias', 'module.mlp_classifier.fc2.bias']" in message
    assert "\n" not in message


def test_wrong_shapes_are_all_named_as_torch_stores_them(tiny_state):
    state = dict(tiny_state)
    state["mlp_classifier.fc1.weight"] = state["mlp_classifier.fc1.weight"].T
    state["bcn.h_mat_v"] = state["bcn.h_mat_v"].reshape(2, 6)
    with pytest.raises(DataError) as error:
        from_torch(state, TINY_REFERENCE)
    assert "mlp_classifier.fc1.weight has shape (2, 5), expected (5, 2)" in str(error.value)
    assert "bcn.h_mat_v has shape (2, 6), expected (1, 2, 1, 6)" in str(error.value)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.array(np.nan, np.float32), "holds NaN or infinity"),
        (np.array(np.inf), "holds NaN or infinity"),
        (np.array("1.0"), "has dtype <U3, expected numbers"),
        (np.array(True), "has dtype bool, expected numbers"),
    ],
)
def test_weights_that_are_not_finite_numbers_are_refused(tiny_state, bad, reason):
    with pytest.raises(DataError, match=f"bcn.h_mat_g {reason}"):
        from_torch(tiny_state | {"bcn.h_mat_g": bad}, TINY_REFERENCE)


def test_number_of_logits_is_detected():
    head = lambda width: {"mlp_classifier.fc4.weight": np.zeros((width, 128))}
    assert detect_config(head(1)) == ModelConfig(reference=True)
    assert detect_config(head(2)) == ModelConfig(reference=True, logits=2)


# Files.


def test_npz_is_read(tmp_path, tiny_state):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **tiny_state)
    assert_same_arrays(read_weights(path), tiny_state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent.npz", "no such file"), ("weights.txt", "weights of kind '.txt'; expected .npz, .pth or .pt")],
)
def test_wrong_files_are_named(tmp_path, name, reason):
    (tmp_path / "weights.txt").write_text("hello")
    with pytest.raises(DataError) as error:
        read_weights(tmp_path / name)
    assert name in str(error.value) and reason in str(error.value)


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was executed",)


def test_pickles_are_not_executed(tmp_path, capsys):
    path = tmp_path / "weights.npz"
    np.savez(path, ok=np.ones(2), bad=np.array([Bomb()], object))
    with pytest.raises(DataError, match=r"weights\.npz: not a readable \.npz of plain arrays"):
        read_weights(path)
    np.save(tmp_path / "bare.npy", np.array([Bomb()], object))
    (tmp_path / "bare.npy").rename(path)
    with pytest.raises(DataError, match=r"weights\.npz: not a readable \.npz"):
        read_weights(path)
    assert capsys.readouterr().out == ""


def test_other_content_under_the_name_npz_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    for content in (b"", b"PK\x03\x04", b"hello"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable"):
            read_weights(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match="one array without a name"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(DataError, match=r"notes\.txt is not an array"):
        read_weights(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz_gives_one_line_or_the_arrays(tmp_path, save):
    stream, path, rng = io.BytesIO(), tmp_path / "weights.npz", np.random.default_rng(0)
    save(stream, a=np.arange(300, dtype=np.float32), b=np.ones(5))
    whole, refused = stream.getvalue(), 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(damaged))]
        else:
            for _ in range(rng.integers(1, 6)):
                damaged[rng.integers(0, len(damaged))] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and "weights.npz" in str(error)
    assert refused > 100


def test_pth_needs_torch_or_is_read_with_it(tmp_path, tiny_state):
    torch = pytest.importorskip("torch", reason="reading a .pth needs torch")
    path = tmp_path / "weights.pth"
    torch.save({name: torch.from_numpy(x) for name, x in tiny_state.items()}, path)
    assert_same_arrays(read_weights(path), tiny_state)
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16)}, path)
    np.testing.assert_array_equal(read_weights(path)["a"], np.ones(2, np.float32))
    for content, reason in ((Bomb(), "not a weights-only torch file"), ([1.0], "expected a state dict of tensors")):
        torch.save(content, path)
        with pytest.raises(DataError, match=reason):
            read_weights(path)
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a weights-only torch file"):
        read_weights(path)


def test_pth_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"needs torch \(pip install 'jaxdti\[bench\]'\)"):
        read_weights(path)


# The recorded numbers of the published code.


@pytest.fixture(scope="module")
def recorded(reference_dir):
    """The recorded arrays, the published weights, and the 32 pairs as features on the device."""
    load = lambda name: dict(np.load(reference_dir / f"{name}.npz"))
    with (reference_dir / "drugban_rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drugs = featurize_batch([row["SMILES"] for row in rows])
    residues = [encode_sequence(row["Protein"])[:REFERENCE_RESIDUES] for row in rows]
    offsets = lambda counts: np.concatenate([[0], np.cumsum(counts)])
    store = FeatureStore(
        atom_offsets=offsets(drugs.atom_counts),
        atoms=drugs.atoms,
        bond_offsets=offsets(drugs.bond_counts),
        bonds=drugs.bonds,
        residue_offsets=offsets([len(x) for x in residues]),
        residues=np.concatenate(residues),
    )
    state = read_weights(reference_dir / "drugban_state.npz")
    return SimpleNamespace(
        state=state,
        variables=from_torch(state, PUBLISHED),
        features=device_features(store),
        shape=Shape(REFERENCE_ATOMS, int(drugs.bond_counts.max()), REFERENCE_RESIDUES),
        labels=np.array([float(row["Y"]) for row in rows], np.float32),
        eval=load("drugban_eval"),
        step=load("drugban_train_step"),
    )


def batch_of(recorded, start):
    rows = np.arange(start, start + BATCH, dtype=np.int32)
    return PairBatch(drug=rows, protein=rows, label=recorded.labels[rows], row_mask=np.ones(BATCH, bool))


@pytest.fixture(scope="module")
def evaluate(recorded):
    """``evaluate(variables, start)``: logits, joint vectors and both encoders' outputs of eight rows."""

    @jax.jit
    def forward(variables, batch):
        drugs = recorded.features.drugs(batch.drug, recorded.shape)
        proteins = recorded.features.proteins(batch.protein, recorded.shape)
        wanted = lambda module, method: module.name == "bilinear" or method in ("encode_drug", "encode_protein")
        logits, seen = DrugBAN(PUBLISHED).apply(
            variables, drugs, proteins, batch.row_mask, train=False, capture_intermediates=wanted
        )
        seen = seen["intermediates"]
        return {
            "logits": logits,
            "joint": seen["bilinear"]["__call__"][0],
            "drug": seen["encode_drug"][0][0],
            "protein": seen["encode_protein"][0][0],
        }

    return lambda variables, start: jax.device_get(forward(variables, batch_of(recorded, start)))


@pytest.fixture(scope="module")
def evaluated(recorded, evaluate):
    return [evaluate(recorded.variables, start) for start in range(0, 32, BATCH)]


def assert_close_to_largest(got, expected, share=2e-5):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("key", ["logits", "logits_float64"])
def test_evaluation_logits(recorded, evaluated, key):
    logits = np.concatenate([part["logits"] for part in evaluated])
    assert logits.shape == (32, 1)
    np.testing.assert_allclose(logits, recorded.eval[key], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_import_and_predict_from_the_command_line(reference_dir, recorded, tmp_path, capfd):
    lines = (reference_dir / "drugban_rows.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "pairs.csv").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    run, scores = tmp_path / "run", tmp_path / "scores.csv"
    assert cli.main(["import", str(reference_dir / "drugban_state.npz"), "--output", str(run)]) == 0
    assert cli.main(["predict", str(run), str(tmp_path / "pairs.csv"), "--output", str(scores)]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"2 rows; written to {scores}"
    assert "proteins cut at the end: 1" in err.splitlines()
    with scores.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    for name, key in (("score", "logits"), ("probability", "prob")):
        np.testing.assert_allclose([float(row[name]) for row in found], recorded.eval[key][:2, 0], rtol=0, atol=1e-5)


def test_joint_vectors_and_encoder_outputs(recorded, evaluated):
    assert_close_to_largest(np.concatenate([part["joint"] for part in evaluated]), recorded.eval["joint"])
    assert_close_to_largest(evaluated[0]["drug"][0], recorded.eval["drug_nodes_row0"])
    assert_close_to_largest(evaluated[0]["protein"][0], recorded.eval["protein_rows_row0"])


def test_attention_per_head_and_summed(recorded):
    @jax.jit
    def attend(variables, rows):
        drugs = recorded.features.drugs(rows, recorded.shape)
        proteins = recorded.features.proteins(rows, recorded.shape)
        of = lambda **options: DrugBAN(PUBLISHED).apply(variables, drugs, proteins, method="attention", **options)
        return of(per_head=True), of()

    heads, summed = attend(recorded.variables, np.arange(2, dtype=np.int32))
    expected = recorded.eval["attention"]
    for row, head in itertools.product(range(2), range(2)):
        assert_close_to_largest(np.asarray(heads)[row, head], expected[row, head])
    assert_close_to_largest(np.asarray(summed), expected.sum(1))


def test_conversion_of_the_published_weights(recorded):
    assert len(recorded.state) == 87
    assert detect_config(recorded.state) == ModelConfig(reference=True)
    assert_same_arrays(to_torch(recorded.variables, PUBLISHED), without_counters(recorded.state))


# One optimiser step of the published code on rows 0 to 7.


@pytest.fixture(scope="module")
def stepped(recorded, evaluate):
    """Our own training step, twice, with what can be seen of it; gradients from Adam's first moment."""
    objective = pair_objective(PUBLISHED, "classification", recorded.features, recorded.shape)
    tx = optax.adam(5e-5, b1=BETA1, b2=0.999, eps=1e-8)
    step = make_train_step(objective, tx)

    @jax.jit
    def run(state, batch):
        logits, _ = DrugBAN(PUBLISHED).apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            recorded.features.drugs(batch.drug, recorded.shape),
            recorded.features.proteins(batch.protein, recorded.shape),
            batch.row_mask,
            train=True,
            mutable="batch_stats",
            rngs={"dropout": state.rng},
        )
        return *step(state, batch), logits

    params, batch = recorded.variables["params"], batch_of(recorded, 0)
    before = TrainState(
        step=np.int32(0),
        params=params,
        batch_stats=recorded.variables["batch_stats"],
        opt_state=jax.device_get(tx.init(params)),
        rng=np.zeros(2, np.uint32),
        hyper=hyper_parameters(Config(model=PUBLISHED)),
        first_bad=np.int32(-1),
    )
    after, metrics, logits = run(before, batch)
    _, metrics_after, logits_after = run(after, batch)
    torch_names = lambda params: to_torch({"params": params, "batch_stats": after.batch_stats}, PUBLISHED)
    moment = jax.device_get(after.opt_state[0].mu)
    return SimpleNamespace(
        loss=metrics["loss"],
        logits=logits,
        gradient=torch_names(jax.tree.map(lambda m: m / (1 - BETA1), moment)),
        after=torch_names(after.params),
        loss_after=metrics_after["loss"],
        logits_after=logits_after,
        evaluated_after=evaluate({"params": after.params, "batch_stats": after.batch_stats}, 0)["logits"],
    )


@pytest.mark.slow
def test_step_loss_and_logits(recorded, stepped):
    for key in ("loss", "loss_float64"):
        np.testing.assert_allclose(stepped.loss, recorded.step[key], rtol=0, atol=5e-5)
    np.testing.assert_allclose(stepped.logits, recorded.step["logits"], rtol=0, atol=2e-3)


def test_step_gradient_norms(recorded, stepped):
    names = recorded.step["param_names"]
    trainable = {e.torch for e in drugban_entries(PUBLISHED) if e.collection == "params"}
    assert set(names) == trainable and len(names) == 57
    got = np.array([np.linalg.norm(stepped.gradient[name]) for name in names])
    np.testing.assert_allclose(got, recorded.step["grad_norm_float64"], rtol=5e-3)


def test_step_full_gradients(recorded, stepped):
    full = {key.removeprefix("grad/"): x for key, x in recorded.step.items() if key.startswith("grad/")}
    assert len(full) == 40
    for name, expected in full.items():
        got = stepped.gradient[name]
        assert got.shape == expected.shape
        assert np.linalg.norm(got - expected) <= 2e-2 * np.linalg.norm(expected), name


def test_step_running_statistics(recorded, stepped):
    after = {key.removeprefix("after/"): x for key, x in recorded.step.items() if key.startswith("after/")}
    assert len(after) == 20
    for name, expected in after.items():
        # Relative to what the step moved: 8/7 instead of 1 times the batch's variance would pass a looser check.
        moved = np.abs(expected - recorded.state[name]).max()
        np.testing.assert_allclose(stepped.after[name], expected, rtol=0, atol=2e-3 * moved, err_msg=name)


def test_step_adam_updates(recorded, stepped):
    names = recorded.step["param_names"]
    got = [np.linalg.norm(stepped.after[name] - recorded.state[name]) for name in names]
    np.testing.assert_allclose(got, recorded.step["adam_update_norm"], rtol=5e-2)


def test_after_the_step(recorded, stepped):
    np.testing.assert_allclose(stepped.loss_after, recorded.step["loss_after_step"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(stepped.logits_after, recorded.step["logits_after_step_train"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(stepped.evaluated_after, recorded.step["logits_after_step_eval"], rtol=0, atol=5e-4)
