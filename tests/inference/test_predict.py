"""Scores beside the columns of a table, whatever these are called."""

import numpy as np
import pyarrow as pa
import pytest

from jaxdti.config import Config
from jaxdti.evaluation.calibration import Calibration
from jaxdti.inference.predict import predict
from jaxdti.inference.trained import TrainedRun


@pytest.fixture
def trained(monkeypatch):
    """An ensemble that gives every pair the scores 1 and 3."""
    scores = lambda self, table, store: np.repeat([[1.0], [3.0]], len(table), axis=1)
    monkeypatch.setattr(TrainedRun, "score_members", scores)
    return TrainedRun(config=Config(), members=(), calibration=Calibration(), calibrated=True)


def test_columns_called_like_those_of_a_prediction_are_kept_under_other_names(trained, capsys):
    given = {"SMILES": ["CCO", "C1CC"], "Protein": ["MKTAYIAKQRQISFVKSHFSRQ"] * 2}
    given |= {"score": [7.5, 8.5], "score_input": ["a", "b"], "error": ["x", ""]}
    found = predict(trained, pa.table(given)).to_pydict()
    assert list(found) == [
        *("SMILES", "Protein", "score_input_input", "score_input", "error_input"),
        *("score", "score_sd", "probability", "error"),
    ]
    assert found["score_input_input"] == given["score"] and found["score_input"] == given["score_input"]
    assert found["error_input"] == given["error"]
    assert found["score"] == [2.0, None] and found["score_sd"] == [1.0, None] and found["error"][0] == ""
    assert capsys.readouterr().err.splitlines() == [
        "rows rejected: 1 (1 SMILES cannot be read)",
        "the input column score is kept as score_input_input",
        "the input column error is kept as error_input",
    ]


def test_what_was_altered_is_told_and_the_error_of_a_single_pair_is_not_told_twice(trained, capsys):
    predict(trained, pa.table({"SMILES": ["CCO"], "Protein": ["MKTAYIAKQRQISFVKSHFSR1"]}))
    assert capsys.readouterr().err == "unknown residues set to X: 1 in 1 proteins\n"
    found = predict(trained, pa.table({"SMILES": ["C1CC"], "Protein": ["MKTAYIAKQRQISFVKSHFSRQ"]}))
    assert found["error"].to_pylist()[0].startswith("SMILES: ") and capsys.readouterr().err == ""
