"""The files in configs/: each loads, names its own command, and suits its dataset."""

import re
from pathlib import Path

import pytest

from jaxdti.config import load_config
from jaxdti.data.registry import EMBEDDED, get_dataset

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_the_promised_files_are_there():
    assert {path.stem for path in FILES} >= {
        "drugban_demo",
        "drugban_human_random",
        "drugban_human_cold",
        "drugban_bindingdb_random",
        "drugban_biosnap_random",
        "drugban_davis",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_and_suits_its_dataset(path):
    config = load_config(path)
    if config.vectors.given:
        return
    if path.stem.startswith("codeae_"):
        assert config.response.dataset
        return
    assert config.data.dataset
    task = "classification" if config.data.dataset == EMBEDDED else get_dataset(config.data.dataset).task
    assert config.task == task


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_header_gives_the_command_and_the_measured_result(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"jaxdti (train|transfer|response) .*configs/{path.name}", header)
    assert "Measured" in header
