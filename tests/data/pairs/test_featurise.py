"""Features of distinct entities and their cache: order, concurrency, damage, read-only places."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxdti.data.molecules import featurize_batch, featurize_molecule
from jaxdti.data.pairs import featurise as features
from jaxdti.data.pairs.featurise import build_store, encode_sequences, featurize_smiles
from jaxdti.data.pairs.sequences import encode_sequence
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.files import user_cache_dir

SMILES = ["CCO", "nonsense", "c1ccccc1", "[Zn]", "OCC", "CC(=O)[O-].[Na+]"]


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "features").iterdir())


def no_work(*args):
    raise AssertionError("computed again although the cache has it")


def pairs_of(drugs, proteins) -> InteractionTable:
    count = max(len(drugs), len(proteins))
    return InteractionTable(
        drugs=np.array(drugs, object),
        proteins=np.array(proteins, object),
        drug=(np.arange(count) % len(drugs)).astype(np.int32),
        protein=(np.arange(count) % len(proteins)).astype(np.int32),
        label=np.zeros(count, np.float32),
        part=np.full(count, "table", object),
        row=np.arange(count),
    )


def check_molecules(found, smiles):
    assert found.smiles.tolist() == list(smiles)
    for i, text in enumerate(smiles):
        atoms = found.atoms[found.atom_offsets[i] : found.atom_offsets[i + 1]]
        bonds = found.bonds[found.bond_offsets[i] : found.bond_offsets[i + 1]]
        try:
            canonical, expected_atoms, expected_bonds = featurize_molecule(text)
        except ValueError as error:
            assert found.error[i] == " ".join(str(error).split()) and len(atoms) == len(bonds) == 0
            continue
        assert found.canonical[i] == canonical and found.error[i] == ""
        np.testing.assert_array_equal(atoms, expected_atoms)
        np.testing.assert_array_equal(bonds, expected_bonds)


def test_computed_once_then_memory_mapped(tmp_path, monkeypatch):
    check_molecules(featurize_smiles(SMILES, tmp_path), SMILES)
    monkeypatch.setattr(features, "_molecule_arrays", no_work)
    again = featurize_smiles(SMILES, tmp_path)
    check_molecules(again, SMILES)
    assert isinstance(again.atoms, np.memmap) and again.atoms.dtype == np.int8
    assert [entry.name.split("-")[0] for entry in entries(tmp_path)] == ["molecules"]  # and no temporary one


@pytest.fixture
def slow_parent(monkeypatch):
    """One molecule a chunk, and a parent that leaves the workers time to start; holds how many chunks it did."""
    did = []

    def slow(smiles):
        did.append(smiles)
        time.sleep(0.1)
        return featurize_batch(smiles)

    monkeypatch.setattr(features, "CHUNK", 1)
    monkeypatch.setattr(features, "featurize_batch", slow)
    return did


@pytest.mark.slow
def test_many_processes_give_the_same_as_one(tmp_path, slow_parent):
    smiles = [*SMILES, *("C" * n for n in range(3, 300))]
    check_molecules(featurize_smiles(smiles, tmp_path, workers=3), smiles)
    assert 0 < len(slow_parent) < len(smiles)  # the parent did its share and the workers theirs


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit(3)", "worker died with exit code 3"),  # before it is ready
        ("import sys, pickle; pickle.dump(True, sys.stdout.buffer); sys.exit(3)", "worker died with exit code 3"),
        ("print('no pickle')", "worker died"),
        ("import sys, pickle; pickle.dump(True, sys.stdout.buffer); pickle.dump(7, sys.stdout.buffer)", "iterable"),
    ],
)
def test_a_broken_worker_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, slow_parent, script, reason):
    broken = tmp_path / "broken.py"
    broken.write_text(script)
    monkeypatch.setattr(features.molecules_module, "__file__", str(broken))
    with pytest.raises((RuntimeError, TypeError), match=reason):
        featurize_smiles(["C" * n for n in range(1, 300)], tmp_path, workers=2)
    assert not (tmp_path / "features").exists()


def test_a_worker_that_never_gets_ready_is_not_waited_for(tmp_path, monkeypatch):
    sleeping = tmp_path / "sleeping.py"
    sleeping.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(features.molecules_module, "__file__", str(sleeping))
    monkeypatch.setattr(features, "CHUNK", 2)
    check_molecules(featurize_smiles(SMILES, tmp_path, workers=2), SMILES)


def test_key_depends_on_strings_order_and_versions(tmp_path, monkeypatch):
    for smiles in (["C", "CC"], ["CC", "C"], ["CCC"]):
        featurize_smiles(smiles, tmp_path)
    assert len(entries(tmp_path)) == 3
    monkeypatch.setattr(features, "FEATURISER_VERSION", -1)
    featurize_smiles(["CCC"], tmp_path)
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no sums", "bad sums", "empty directory"])
def test_a_damaged_entry_is_rebuilt(tmp_path, damage, monkeypatch):
    featurize_smiles(SMILES, tmp_path)
    (entry,) = entries(tmp_path)
    atoms = entry / "atoms.npy"
    if damage == "truncate":
        os.truncate(atoms, atoms.stat().st_size - 3)
    elif damage == "flip":
        atoms.write_bytes(atoms.read_bytes()[:-1] + b"\x55")
    elif damage == "remove":
        atoms.unlink()
    elif damage == "no sums":
        (entry / "checksums.json").unlink()
    elif damage == "bad sums":
        (entry / "checksums.json").write_text(json.dumps({"atoms": 1})[:-4])
    else:
        for file in entry.iterdir():
            file.unlink()
    check_molecules(featurize_smiles(SMILES, tmp_path), SMILES)
    assert entries(tmp_path) == [entry]
    monkeypatch.setattr(features, "_molecule_arrays", no_work)
    check_molecules(featurize_smiles(SMILES, tmp_path), SMILES)


def test_ctrl_c_reaches_no_worker(tmp_path, monkeypatch, slow_parent):
    groups, real = [], subprocess.Popen

    def started(*arguments, **settings):
        process = real(*arguments, **settings)
        groups.append(os.getpgid(process.pid))
        return process

    monkeypatch.setattr(subprocess, "Popen", started)
    featurize_smiles(["C" * n for n in range(1, 5)], tmp_path, workers=2)
    assert len(groups) == 1 and groups[0] != os.getpgrp()


def test_two_processes_may_fill_the_cache_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jaxdti.data.pairs.featurise import featurize_smiles\n"
        "smiles = ['C' * n for n in range(1, 30)]\n"
        "for i in range(8):\n"
        "    found = featurize_smiles(smiles[i:], Path(sys.argv[1]))\n"
        "    assert found.atom_counts.tolist() == list(range(i + 1, 30))\n"
    )
    root = Path(features.__file__).parents[3]
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(entries(tmp_path)) == 8


def test_threads_may_fill_one_entry_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: featurize_smiles(SMILES, tmp_path), range(8)):
            check_molecules(found, SMILES)
    assert len(entries(tmp_path)) == 1


def test_an_unwritable_cache_warns_once_and_goes_on(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where a directory has to be: unwritable for every user, root included
    for _ in range(2):
        check_molecules(featurize_smiles(SMILES, blocked), SMILES)
    assert capsys.readouterr().err.count("features are not cached") == 1


def test_cache_location(monkeypatch):
    monkeypatch.setenv("JAXDTI_CACHE", "/a/b")
    assert user_cache_dir() == Path("/a/b")
    monkeypatch.delenv("JAXDTI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert user_cache_dir() == Path("/c/jaxdti")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_dir() == Path.home() / ".cache" / "jaxdti"


def test_nothing_to_featurise(tmp_path):
    for _ in range(2):  # computed, then from the cache
        found = featurize_smiles([], tmp_path)
        assert found.atom_offsets.tolist() == [0] and found.atoms.shape == (0, 8)
        offsets, codes = encode_sequences([], tmp_path)
        assert offsets.tolist() == [0] and len(codes) == 0


def test_residues_are_cached_uncut(tmp_path, monkeypatch):
    sequences = ["ACDEF", "M" * 2000]
    encode_sequences(sequences, tmp_path)
    monkeypatch.setattr(features, "_residue_arrays", no_work)
    offsets, codes = encode_sequences(sequences, tmp_path)
    assert offsets.tolist() == [0, 5, 2005]
    np.testing.assert_array_equal(codes[:5], encode_sequence("ACDEF"))


def test_store_follows_the_table_and_cuts_proteins(tmp_path):
    molecules = featurize_smiles(SMILES, tmp_path)
    table = pairs_of(["c1ccccc1", "CCO"], ["ACDEFGHIKL", "MK"])
    store = build_store(table, molecules, 4, tmp_path)
    assert store.atom_counts.tolist() == [6, 3] and store.bond_counts.tolist() == [6, 2]
    np.testing.assert_array_equal(store.atoms[6:], featurize_molecule("CCO")[1])
    np.testing.assert_array_equal(store.bonds[6:], featurize_molecule("CCO")[2])
    assert store.residue_counts.tolist() == [4, 2]
    np.testing.assert_array_equal(store.residues, encode_sequence("ACDEMK"))
    assert (store.atoms.dtype, store.bonds.dtype, store.residues.dtype) == (np.int8, np.int16, np.uint8)


def test_store_of_all_molecules_stays_memory_mapped(tmp_path):
    smiles = ["CCO", "C"]
    store = build_store(pairs_of(smiles, ["MK"]), featurize_smiles(smiles, tmp_path), 1200, tmp_path)
    assert isinstance(store.atoms, np.memmap) and isinstance(store.residues, np.memmap)


def test_progress_is_shown_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 1)
    featurize_smiles(SMILES, tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "Featurising molecules" in err
