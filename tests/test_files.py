import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdti.files import atomic, load_arrays, save_arrays, write_csv, write_json

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".tmp"
        with atomic(path) as other:  # as another thread may
            assert other != temporary
            other.write_text("between")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_before_the_first_byte_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), atomic(tmp_path / "a.txt"):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    script = """
import os, signal, sys
from pathlib import Path
from jaxdti.files import atomic
with atomic(Path(sys.argv[1])) as temporary, temporary.open("w") as file:
    file.write("half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script, str(path)], env=environment).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert [other.suffix for other in tmp_path.iterdir() if other != path] == [".tmp"]
    write_json(path, [1])  # what is left is in nobody's way
    assert path.read_text() == "[1]"


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_arrays_come_back_in_their_structure(tmp_path):
    tree = {"b": np.arange(3), "a": [np.float32(2), np.ones((2, 2))]}
    path = tmp_path / "new" / "a.npz"
    save_arrays(path, tree, epoch=4)
    back = load_arrays(path, tree)
    np.testing.assert_array_equal(back["b"], tree["b"])
    np.testing.assert_array_equal(back["a"][1], tree["a"][1])
    with np.load(path) as stored:
        assert stored["epoch"] == 4
    assert list(path.parent.iterdir()) == [path]


def test_csv_has_an_empty_cell_for_nan(tmp_path):
    write_csv(tmp_path / "a.csv", [{"name": "x", "value": 0.5}, {"name": "y", "value": float("nan")}])
    assert (tmp_path / "a.csv").read_text() == "name,value\nx,0.5\ny,\n"
