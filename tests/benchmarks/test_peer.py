"""The PyTorch peer: the recorded numbers of the published code, its features, and its own process."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the peer needs torch (the bench extra)")

import harness  # noqa: E402  after the skip: peer imports torch
import peer  # noqa: E402

ATOL = 1e-5  # of the evaluation logits, which span 0.087 to 0.354
TRAIN_ROWS = 8
SALT = peer.Pair("[Na+].CC(=O)[O-]", "MKTAYIAKQR", 1.0)
RING = peer.Pair("c1ccccc1O", "MSTNPKPQRKTKRNTNRRPQDVKFPGG", 0.0)


@pytest.fixture(scope="module")
def recorded(reference_dir):
    """The recorded arrays and the 32 pairs."""
    load = lambda name: dict(np.load(reference_dir / f"{name}.npz"))
    with (reference_dir / "drugban_rows.csv").open(newline="", encoding="utf-8") as file:
        pairs = [peer.Pair(row["SMILES"], row["Protein"].upper(), float(row["Y"])) for row in csv.DictReader(file)]
    return SimpleNamespace(
        pairs=pairs,
        state=load("drugban_state"),
        features=load("drugban_features_row0"),
        eval=load("drugban_eval"),
        step=load("drugban_train_step"),
    )


def published(recorded):
    """A network with the published weights; every dropout off, as in the recorded step."""
    model = peer.PeerDrugBAN()
    state = {name: torch.from_numpy(np.asarray(array)) for name, array in recorded.state.items()}
    model.load_state_dict(state, strict=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batch_of(pairs):
    return peer.collate([peer.featurise(pair) for pair in pairs])


# Features.


def test_features_equal_the_published_ones(recorded):
    features = [peer.featurise(pair) for pair in recorded.pairs]
    stacked = lambda name: np.stack([getattr(x, name).numpy() for x in features])
    np.testing.assert_array_equal(stacked("atoms"), recorded.features["atom_features_all32"])
    np.testing.assert_array_equal(stacked("letters"), recorded.features["protein_ids_all32"])
    np.testing.assert_array_equal([len(x.source) for x in features], recorded.features["num_edges_all32"])


def test_edges_equal_the_published_ones(recorded):
    features = peer.featurise(recorded.pairs[0])
    edges = lambda source, target: sorted(zip(np.asarray(source).tolist(), np.asarray(target).tolist(), strict=True))
    expected = edges(recorded.features["edge_src"], recorded.features["edge_dst"])
    assert edges(features.source, features.target) == expected


def test_edges_of_a_batch_stay_within_their_molecule():
    batch, alone = batch_of([SALT, RING]), batch_of([RING])
    second = batch.source >= peer.ATOMS
    np.testing.assert_array_equal(batch.target >= peer.ATOMS, second)
    np.testing.assert_array_equal(batch.source[second] - peer.ATOMS, alone.source)
    np.testing.assert_array_equal(batch.target[second] - peer.ATOMS, alone.target)
    degree = np.bincount(batch.target, minlength=2 * peer.ATOMS)
    # Sodium has its two self-loops only, acetate's carbonyl carbon three bonds more; a virtual node has one.
    assert sorted(degree[:5]) == [2, 3, 3, 3, 5] and (degree[5:290] == 1).all()


@pytest.mark.parametrize("smiles", ["not a molecule", "C" * 291])
def test_molecules_that_do_not_fit_are_named(smiles):
    with pytest.raises(ValueError, match=f"'{smiles[:9]}.* is not a molecule of at most 290 atoms"):
        peer.featurise(peer.Pair(smiles, "MK", 0.0))


# The network in evaluation.


@pytest.mark.slow
@pytest.mark.parametrize("key", ["logits", "logits_float64"])
def test_evaluation_logits(recorded, key):
    model = published(recorded).eval()
    with torch.no_grad():
        logits = torch.cat([model(batch_of(recorded.pairs[i : i + 8])) for i in range(0, 32, 8)])
    np.testing.assert_allclose(logits.numpy(), recorded.eval[key], rtol=0, atol=ATOL)


def test_attention_maps_and_encoders(recorded):
    model = published(recorded).eval()
    batch = batch_of(recorded.pairs[:2])
    with torch.no_grad():
        drug = model.drug_extractor(batch.atoms, batch.source, batch.target)
        protein = model.protein_extractor(batch.letters)
        maps = model.bcn.maps(model.bcn.v_net(drug), model.bcn.q_net(protein))
    for got, key in ((maps, "attention"), (drug[0], "drug_nodes_row0"), (protein[0], "protein_rows_row0")):
        expected = recorded.eval[key]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=key)


def test_evaluate_gives_every_pair_in_order(recorded):
    loader = peer.PairLoader(recorded.pairs, 12, train=False)
    probabilities, labels = peer.evaluate(published(recorded), loader)
    np.testing.assert_allclose(probabilities, recorded.eval["prob"].ravel(), rtol=0, atol=ATOL)
    np.testing.assert_array_equal(labels, recorded.eval["labels"])


# One optimiser step.


@pytest.fixture(scope="module")
def stepped(recorded):
    """The network before and after one step, with the gradients."""
    model = published(recorded)
    loss = peer.train_step(model, peer.make_optimizer(model), batch_of(recorded.pairs[:TRAIN_ROWS]))
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return SimpleNamespace(model=model, loss=loss, gradients=gradients)


def test_step_loss(recorded, stepped):
    np.testing.assert_allclose(stepped.loss, recorded.step["loss_float64"], rtol=0, atol=5e-5)


def test_step_gradients(recorded, stepped):
    names = recorded.step["param_names"].tolist()
    assert set(names) == set(stepped.gradients) and len(names) == 57
    norms = [np.linalg.norm(stepped.gradients[name]) for name in names]
    np.testing.assert_allclose(norms, recorded.step["grad_norm_float64"], rtol=5e-3)
    full = {key.removeprefix("grad/"): x for key, x in recorded.step.items() if key.startswith("grad/")}
    for name, expected in full.items():
        assert np.linalg.norm(stepped.gradients[name] - expected) <= 2e-2 * np.linalg.norm(expected), name


def test_step_moves_weights_and_statistics(recorded, stepped):
    after = {name: x.detach().numpy() for name, x in stepped.model.state_dict().items()}
    moved = [np.linalg.norm(after[name] - recorded.state[name]) for name in recorded.step["param_names"]]
    np.testing.assert_allclose(moved, recorded.step["adam_update_norm"], rtol=5e-2)
    statistics = {key.removeprefix("after/"): x for key, x in recorded.step.items() if key.startswith("after/")}
    assert len(statistics) == 20
    for name, expected in statistics.items():
        distance = np.abs(expected - recorded.state[name]).max()
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-3 * distance, err_msg=name)


# Loading.


def test_cached_features_are_computed_once(monkeypatch):
    computed = []
    featurise = peer.featurise
    monkeypatch.setattr(peer, "featurise", lambda pair: computed.append(pair) or featurise(pair))
    for cached, expected in ((True, 2), (False, 4)):
        computed.clear()
        loader = peer.PairLoader([SALT, RING], 2, train=False, cached=cached)
        first, second = list(loader), list(loader)
        assert len(computed) == expected
        for one, other in zip(first[0], second[0], strict=True):
            np.testing.assert_array_equal(one, other)


def test_training_batches_are_full_and_shuffled():
    pairs = [RING._replace(label=float(i)) for i in range(11)]
    torch.manual_seed(0)
    loader = peer.PairLoader(pairs, 4, train=True, cached=True)
    epochs = [torch.cat([batch.labels for batch in loader]).tolist() for _ in range(2)]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8]
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


# The process.


def test_state_dict_is_read_by_the_converter():
    from jaxdti.config import ModelConfig
    from jaxdti.interop.drugban import from_torch

    state = {name: x.numpy() for name, x in peer.PeerDrugBAN().state_dict().items()}
    variables = from_torch(state, ModelConfig(reference=True))
    np.testing.assert_array_equal(
        variables["params"]["bilinear"]["head_kernel"], state["bcn.h_mat_v"].reshape(peer.HEADS, peer.RANK)
    )


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_the_process_measures_what_it_was_asked(task):
    got = harness.run_peer(
        task, rows=5, malloc="tuned", dataset="planted", batch=2, cached=task == "evaluate", workers=1
    )
    assert got["rows"] == 6 and got["malloc"] == "tuned" and got["torch"] == torch.__version__
    assert got["samples_per_second"] == pytest.approx(got["rows"] / got["seconds"])
    assert got["peak_host_bytes"] > 100e6 and got["peak_device_bytes"] is None
    assert got["threads"] >= 1
