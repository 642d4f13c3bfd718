"""Replicas and batches spread over devices give the numbers of one device; what the host and the devices exchange."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from jaxdti.config import save_config
from jaxdti.data.pairs.load import load_data
from jaxdti.errors import DataError
from jaxdti.studies import pairs as run_module
from jaxdti.training import fit, streamed, supervised
from jaxdti.training.mesh import STATES, join_processes, make_mesh, put, take_replica

ROOT = Path(__file__).resolve().parents[2]

# Plain gradient descent with small steps: Adam turns rounding of vanishing gradients into whole steps.
SCRIPT = """
import json, re, sys
from functools import partial
from pathlib import Path
import jaxdti, jax, numpy as np, optax
jax.config.update("jax_default_matmul_precision", "highest")
from jax.sharding import Mesh
from jaxdti.config import load_config
from jaxdti.data.pairs.buckets import Shape, pair_batch
from jaxdti.data.pairs.device import host_features
from jaxdti.data.pairs.load import load_data
from jaxdti.errors import DataError
from jaxdti.training.mesh import BATCHES, REPLICATED, STATES, make_mesh, over_replicas, put, take_replica
from jaxdti.models.drugban import init_variables
from jaxdti.training.state import init_replicas
from jaxdti.training.step import make_chunk, make_train_step
from jaxdti.training.supervised import hyper_parameters, pair_objective

config = load_config(Path(sys.argv[1]))
data = load_data(config.data, config.task)
shape, tx = Shape(16, 16, 64), optax.with_extra_args_support(optax.sgd(1e-4))

def program(state, features, batches):
    step = make_train_step(pair_objective(config.model, config.task, features, shape), tx)
    return jax.vmap(make_chunk(step))(state, batches)

def run(replicas, mesh):
    init = partial(init_variables, config.model)
    state = init_replicas(init, tx, range(replicas), [hyper_parameters(config)] * replicas)
    state, features = put(state, mesh, STATES), put(host_features(data.store), mesh, REPLICATED)
    rng, losses, compiled = np.random.default_rng(0), [], None
    for _ in range(2):
        rows = np.stack([rng.permutation(44)[:16].reshape(2, 8) for _ in range(replicas)])
        rows[:, 1, 5:] = -1
        batches = put(pair_batch(data.table, rows), mesh, BATCHES)
        compiled = compiled or over_replicas(program, mesh).lower(state, features, batches).compile()
        state, metrics = compiled(state, features, batches)
        losses.append(jax.device_get(metrics["loss"]))
    taken = take_replica(state.params, replicas - 1, mesh)
    for mine, all_ in zip(jax.tree.leaves(taken), jax.tree.leaves(state.params)):
        np.testing.assert_array_equal(mine, np.asarray(all_)[-1])
    floats = [x for x in jax.tree.leaves(jax.device_get(state)) if x.dtype == np.float32]
    return floats, losses, compiled.as_text(), state

result = {}
for replicas in (2, 8):
    mesh = make_mesh(replicas, 8)
    alone = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh.axis_names)
    one, one_losses, _, _ = run(replicas, alone)
    many, many_losses, text, state = run(replicas, mesh)
    result[replicas] = {
        "mesh": dict(mesh.shape),
        "state": max(float(np.max(np.abs(a - b) / (1e-2 + np.abs(a)))) for a, b in zip(one, many) if a.size),
        "loss": float(np.max(np.abs(np.array(one_losses) - np.array(many_losses)))),
        "convolutions": sorted(set(re.findall(r"(f32\\[[0-9,]+\\])\\S* convolution\\(", text))),
        "of_state": sorted({shard.data.shape[0] for x in jax.tree.leaves(state) for shard in x.addressable_shards}),
    }
try:
    make_mesh(2, 6)
except DataError as error:
    result["refused"] = str(error)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def eight_devices(tiny_config, tmp_path_factory, compile_fast_and_once):
    path = tmp_path_factory.mktemp("eight") / "tiny.yaml"
    save_config(tiny_config(), path)
    flags = f"{compile_fast_and_once['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | compile_fast_and_once | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    environment |= {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("replicas, shape", [(2, (2, 4)), (8, (8, 1))])
def test_eight_devices_give_the_numbers_of_one(eight_devices, replicas, shape):
    """Dropout included, and BatchNorm over the whole batch."""
    found = eight_devices[str(replicas)]
    assert (found["mesh"]["replica"], found["mesh"]["data"]) == shape
    assert found["loss"] < 3e-6 and found["state"] < 3e-5


@pytest.mark.parametrize("replicas", [2, 8])
def test_each_device_convolves_its_own_replicas_and_pairs(eight_devices, replicas):
    """8 pairs of 64 residues and 8 channels; a kernel's gradient has the shape of a kernel."""
    pairs = replicas  # 8 pairs over 8 / replicas devices
    found = eight_devices[str(replicas)]
    data = {shape for shape in found["convolutions"] if "64" in shape}
    assert data == {f"f32[{pairs},64,8]"}
    assert found["of_state"] == [1]


def test_a_batch_that_does_not_divide_is_refused(eight_devices):
    assert eight_devices["refused"] == (
        "training.batch_size=6: must be a multiple of 4, the number of devices that share a batch "
        "(8 devices, training.replicas=2)"
    )


def test_one_device_takes_any_batch():
    mesh = make_mesh(3, 7)
    assert dict(mesh.shape) == {"replica": 1, "data": len(jax.devices())}
    tree = put({"x": np.arange(6.0).reshape(3, 2)}, mesh, STATES)
    np.testing.assert_array_equal(take_replica(tree, 2, mesh)["x"], [4.0, 5.0])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID must be set too"),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2 of JAX_NUM_PROCESSES=2: expected 0 to one less than the number of processes",
        ),
    ],
)
def test_incomplete_settings_of_processes_are_refused(monkeypatch, given, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message):
        join_processes()


@pytest.fixture(scope="module")
def contacts(tiny_config, tmp_path_factory):
    """``contacts(device_gib)``: what a run of 2 epochs in 2 buckets exchanges with its device, and what it leaves."""

    def run(device_gib: float, log):
        config = tiny_config(epochs=2, data={"device_gib": device_gib})
        dataset = load_data(config.data, config.task)
        counts = Counter()

        def counting(name, function):
            def counted(*arguments, **settings):
                counts[name] += 1
                return function(*arguments, **settings)

            return counted

        real_make, real_over, real_advance = run_module.make_scorer, streamed.over_replicas, streamed.Streamed.advance

        def guarded(executor, stopped):
            epoch = real_advance(executor, stopped)
            while True:
                with jax.transfer_guard("disallow"):
                    finished = next(epoch, None)
                if finished is None:
                    break
                yield finished
            left["state"] = jax.device_get(executor.arrays())

        def scorer(*arguments, **settings):
            score = real_make(*arguments, **settings)

            def allowed(*inner):
                with jax.transfer_guard("allow"):
                    return score(*inner)

            return allowed

        def over(program, mesh):
            lower = real_over(program, mesh).lower
            compile_ = lambda *arguments: counting("program", lower(*arguments).compile())
            return SimpleNamespace(lower=lambda *arguments: SimpleNamespace(compile=lambda: compile_(*arguments)))

        left = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streamed.Streamed, "advance", guarded)
            patch.setattr(run_module, "make_scorer", scorer)
            patch.setattr(streamed, "over_replicas", over)
            patch.setattr(streamed, "_CONTACT_SECONDS", 1e9)
            counted = ((streamed, "put"), (streamed, "to_host"), (fit, "to_host"), (streamed, "_collect"))
            for module, name in (*counted, (supervised, "pair_batch")):
                patch.setattr(module, name, counting(name, getattr(module, name)))
            with log.at_level("DEBUG", "jax._src.dispatch"):
                log.clear()
                run_module.fit_pairs([config], dataset, tmp_path_factory.mktemp("run"))
                messages = [record.getMessage() for record in log.records]
        found = (re.match(r"Finished XLA compilation of (?:jit\()?(\w+)", message) for message in messages)
        return SimpleNamespace(counts=counts, programs=Counter(m[1] for m in found if m), state=left["state"])

    return run


@pytest.mark.slow
def test_the_host_meets_the_device_once_a_chunk_and_at_the_epochs_end(contacts, caplog, capsys, fresh_programs):
    """On CPU the guard refuses implicit transfers to the device, on GPU those from it too."""
    resident, told = contacts(4.0, caplog), capsys.readouterr().err
    streamed = contacts(0.0, caplog)
    for found, puts in ((resident, 1), (streamed, 2)):
        chunks = found.counts["pair_batch"]
        assert chunks >= 12 and found.counts["program"] == chunks
        # One of the state at the start, and one of the flag of better epochs in each of the two.
        assert found.counts["put"] == 1 + puts * chunks + 2
        # The first bad step, the counters of the records, and the checkpoint with its number; and the result.
        assert found.counts["_collect"] == 2 and found.counts["to_host"] == 9
    chex.assert_trees_all_equal(streamed.state, resident.state)
    assert resident.programs["program"] == streamed.programs["program"] == 2
    # Beside training and scoring: the fresh state, its copy, one replica of it, the better of two epochs.
    named = ("program", "run", "score_groups")
    zeros = ("broadcast_in_dim", "convert_element_type")
    helpers = {name: count for name, count in resident.programs.items() if name not in (*named, *zeros)}
    assert sum(helpers.values()) <= 4, resident.programs
    # Training has a program a bucket; scoring an encoder of drugs and one of proteins, and one of pairs.
    compiled = sum(resident.programs[name] for name in named)
    assert compiled == sum(line.startswith("compiled ") for line in told.splitlines()) == 2 + 3
