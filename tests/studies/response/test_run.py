"""`jaxdti response` end to end on the embedded study: what it writes, its exit codes, interruption and resumption."""

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from jaxdti import cli
from jaxdti.config import Config, OutputConfig, PlantedExpressionConfig, ResponseConfig
from jaxdti.data.expression.study import load_study
from jaxdti.errors import DataError
from jaxdti.evaluation import expression_baselines as evaluation
from jaxdti.studies.response import entries
from jaxdti.studies.response import pretraining as response_pretraining
from jaxdti.studies.response import run as response_run
from jaxdti.studies.response.heads import HeadFit
from jaxdti.studies.response.pretraining import Snapshot, settings_of
from jaxdti.studies.run_directory import StopCheck

SETTINGS = """
response:
  dataset: planted-expression
  methods: [ae, codeae_adv]
  protocols: [transductive, inductive]
  seeds: 2
  folds: 3
  planted: {genes: 216, source: 75, target: 64, drugs: 2}
  pretraining: {widths: [8], latent: 4, epochs: [1, 2], adversarial_epochs: [1], batch_size: 32, critic_steps: 1}
  heads: {widths: [4], epochs: 2, patience: 1, batch_size: 32, unfreeze: 1}
output: {bootstrap: 20}
"""
METHODS = ("ae", "codeae_adv")


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """The baselines are tested elsewhere; a whole forest takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_TREES", 5)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("response")
    (folder / "study.yaml").write_text(SETTINGS)
    code = cli.main(["response", str(folder / "study.yaml"), "--output", str(folder / "run")])
    return code, folder / "run"


@pytest.mark.slow
def test_it_succeeds_and_writes_what_it_promises(run):
    code, output = run
    assert code == 0
    names = {path.name for path in output.iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "data.json", "left_out.csv", "summary.json", "results.csv"),
        *("predictions.parquet", "embeddings", "embeddings.png", "pretraining", "stages"),
    }
    assert (output / "embeddings.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output.glob("pretraining/*_state.npz"))


def test_the_summary_has_every_method_protocol_and_drug(run):
    summary = json.loads((run[1] / "summary.json").read_text())
    found = {(entry["method"], entry["protocol"]) for entry in summary["methods"]}
    pretrained = {(method, protocol) for method in METHODS for protocol in ("transductive", "inductive")}
    assert found == pretrained | {(name, "none") for name in ("elastic_net", "random_forest", "mlp")}
    for entry in summary["methods"]:
        assert set(entry["drugs"]) == {"drug 0", "drug 1"} and len(entry["mean_auroc_seeds"]) == 2
        for metrics in entry["drugs"].values():
            low, high = metrics["auroc_ci"]
            assert low <= metrics["auroc"] <= high and metrics["samples"] == 32
            assert 0 <= metrics["validation_auroc"] <= 1
        assert entry["mean_auroc"] == pytest.approx(np.mean(entry["mean_auroc_seeds"]))
        assert entry["mean_auroc_together"] == pytest.approx(np.mean([d["auroc"] for d in entry["drugs"].values()]))
    chosen = summary["methods"][-1]["drugs"]["drug 0"]["selected"]
    assert [one["epochs"] in (1, 2) for one in chosen] == [True, True]
    assert set(summary["domain_accuracy"]["codeae_adv"]) == {"shared", "private", "joined"}
    assert set(summary["domain_accuracy"]["ae"]) == {"shared"} and 0.8 < summary["ceiling_auroc"]["drug 0"] <= 1


def test_predictions_cover_every_patient_and_are_the_mean_that_was_measured(run):
    rows = pyarrow.parquet.read_table(run[1] / "predictions.parquet").to_pylist()
    assert len(rows) == (2 * 2 + 3) * 2 * 64
    assert all(0 < row["score"] < 1 and row["score_sd"] >= 0 for row in rows)
    chosen = [r for r in rows if (r["method"], r["protocol"], r["drug"]) == ("ae", "inductive", "drug 1")]
    positive = [r["score"] for r in chosen if r["response"] == 1]
    negative = [r["score"] for r in chosen if r["response"] == 0]
    auroc = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    summary = json.loads((run[1] / "summary.json").read_text())
    (entry,) = [e for e in summary["methods"] if (e["method"], e["protocol"]) == ("ae", "inductive")]
    assert entry["drugs"]["drug 1"]["auroc"] == pytest.approx(auroc)
    with open(run[1] / "results.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 7 * 2


def test_embeddings_name_sample_and_domain(run):
    rows = pyarrow.parquet.read_table(run[1] / "embeddings" / "codeae_adv.parquet").to_pylist()
    assert [row["domain"] for row in rows] == ["source"] * 75 + ["target"] * 64
    assert np.linalg.norm(rows[0]["shared"]) == pytest.approx(1, rel=1e-4) and len(rows[0]["private"]) == 4


@pytest.mark.slow
def test_the_table_is_printed(run, capsys):
    code = cli.main(["response", "--resume", str(run[1])])  # everything is finished: it only evaluates again
    out = capsys.readouterr().out
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert {line[0] for line in lines if line} >= {*METHODS, "elastic_net", "random_forest", "mlp"}
    assert "the truth itself: mean AUROC" in out and f"written to {run[1]}" in out


@pytest.mark.slow
@pytest.mark.bitwise
def test_an_interrupted_run_is_resumed_to_the_same_predictions(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.yaml").write_text(SETTINGS)
    whole = response_pretraining.plan_batches
    calls = []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    monkeypatch.setattr(response_pretraining, "plan_batches", interrupting)
    output = str(tmp_path / "run")
    assert cli.main(["response", str(tmp_path / "study.yaml"), "--output", output]) == 143
    assert f"saved; continue with: jaxdti response --resume {output}" in capsys.readouterr().err
    assert cli.main(["response", "--resume", output]) == 0
    monkeypatch.undo()
    one, other = (pyarrow.parquet.read_table(f"{path}/predictions.parquet") for path in (output, run[1]))
    assert one.equals(other)


def test_a_run_whose_data_changed_is_refused(run, tmp_path, capsys):
    output = run[1]
    data = output / "data.json"
    text = data.read_text()
    try:
        data.write_text(text.replace('"sha256": "', '"sha256": "0'))
        assert cli.main(["response", "--resume", str(output)]) == 2
    finally:
        data.write_text(text)
    assert "the data changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["response"], "CONFIG is missing: name a YAML file such as configs/codeae_planted.yaml"),
        (["response", "--response.dataset=planted-expression"], "--output RUN is missing"),
        (["response", "--response.dataset=gdsc_tcga", "--response.source_kind=binary", "--output=o"], "is continuous"),
        (["response", "--response.dataset=planted-expression", "--output.tensorboard=false"], "--output.tensorboard"),
        (["response", "--resume", "absent"], "absent: not a drug response run"),
        (["response", "x.yaml", "--resume", "absent"], "--resume RUN takes everything from the run"),
        (
            ["response", "--response.dataset=none", "--output=o"],
            "response.dataset='none': choose from planted-expression",
        ),
        (["response", "--response.source_expression=x.csv", "--output=o"], "response.target_expression is missing"),
        (
            ["response", "--response.dataset=planted-expression", "--response.methods=bae", "--output=o"],
            "response.methods='bae': choose from ae, dae, vae",
        ),
        (
            ["response", "--response.dataset=planted-expression", "--response.planted.labelled=1.0"]
            + ["--response.protocols=inductive", "--response.baselines=[]", "--output=o"],
            "response.protocols: inductive: 1000 of 1000 target samples have a response; the scale of the genes needs",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("jaxdti: error: ") and message in err


def test_a_run_killed_before_its_data_were_recorded_is_resumed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(response_run.ResponseStudy, "run", lambda *_: {})
    (tmp_path / "config.yaml").write_bytes((run[1] / "config.yaml").read_bytes())
    response_run.resume_response(tmp_path)
    for name in ("data.json", "left_out.csv"):
        assert (tmp_path / name).read_bytes() == (run[1] / name).read_bytes()
    (tmp_path / "left_out.csv").unlink()
    with pytest.raises(DataError, match="not a drug response run"):
        response_run.resume_response(tmp_path)


def test_a_directory_that_is_there_is_not_overwritten_unasked(run, capsys):
    arguments = ["response", "--response.dataset=planted-expression", "--output", str(run[1])]
    assert cli.main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def test_divergence_is_exit_code_3(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(SETTINGS)
    flags = ["--response.methods=ae", "--response.baselines=[]", "--response.pretraining.learning_rate=1e30"]
    assert cli.main(["response", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "run"), *flags]) == 3
    assert "ae: the loss of every setting became non-finite" in capsys.readouterr().err


SMALL = ResponseConfig(
    dataset="planted-expression",
    planted=PlantedExpressionConfig(genes=216, source=50, target=60, drugs=2),
    methods=("ae",),
    folds=3,
)


def test_settings_that_failed_have_no_codes():
    """Their weights may be so large that a domain classifier would end the run."""
    study = load_study(SMALL)
    kernel = np.random.default_rng(0).normal(size=(4, 216, 3)).astype(np.float32)
    kernel[1], kernel[2] = 1e38, np.nan
    params = {"encoder": {"output": {"dense": {"kernel": kernel, "bias": np.zeros((4, 3), np.float32)}}}}
    settings = settings_of("ae", ResponseConfig(seeds=4))
    snapshot = Snapshot(method="ae", settings=settings, epochs=1, params=params, failed=np.array([-1, 3, -1, -1]))
    source, target = response_run.domain_codes(study, snapshot, "ae")
    assert source["shared"].shape == (2, 50, 3) and target["shared"].shape == (2, 60, 3)
    assert len(response_run.domain_accuracies(source, target)["shared"]) == 2
    expected = response_run.domain_codes(study, replace(snapshot, failed=np.array([5, 5, 5, -1])), "ae")[0]
    np.testing.assert_array_equal(source["shared"][1:], expected["shared"])


def test_a_classifier_that_diverged_is_not_selected_for_its_drug():
    study, rng = load_study(SMALL), np.random.default_rng(0)
    numbers = {name: np.zeros((2, 2, 3)) for name in ("validation_loss", "epochs", "unfrozen", "failed")}
    fit = HeadFit(source=rng.random((2, 2, 3, 50)), target=rng.random((2, 2, 3, 60)), **numbers)
    owners = [(settings_of("ae", SMALL)[0], epochs) for epochs in (1, 2)]
    select = lambda: entries.select_models(SMALL, study, fit, owners, "transductive", 0)
    untouched = [one["epochs"] for one in select().settings]
    fit.target[0, 1, 2] = np.nan
    assert [one["epochs"] for one in select().settings] == [untouched[0], 2]
    fit.source[0, 1, 1] = np.nan
    fit.validation_loss[0, 0, 2] = np.nan  # its scores are finite: those of the weights before the first epoch
    assert [one["epochs"] for one in select().settings] == [2, 2]
    fit.target[1, 0] = np.nan
    assert select() is None


@pytest.mark.slow
def test_a_baseline_that_diverged_is_left_out(tmp_path, capsys):
    heads = replace(SMALL.heads, learning_rate=1e30, epochs=2)
    study = load_study(SMALL)
    assert (
        entries.baseline_entries(replace(SMALL, baselines=("mlp",), heads=heads), study, tmp_path, StopCheck([])) == []
    )
    assert "mlp: left out, a classifier has diverged" in capsys.readouterr().err


def test_no_method_left_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(response_run, "pretrain_all", lambda *_: {"ae": []})
    monkeypatch.setattr(response_run, "method_entries", lambda *_: [])
    config = Config(response=replace(SMALL, baselines=()))
    with pytest.raises(response_run.NonFiniteLoss, match="no method is left: of each, every setting of a seed"):
        response_run.respond(config, tmp_path / "run")


def test_a_key_that_would_be_ignored_is_an_error(tmp_path):
    config = Config(response=SMALL, output=OutputConfig(baselines=False))
    with pytest.raises(DataError, match="output.baselines=false: name the baselines in response.baselines"):
        response_run.respond(config, tmp_path / "run")


def test_a_run_that_ends_before_it_begins_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(response_run, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        response_run.respond(Config(response=SMALL), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elastic_net", "random_forest"])
def test_a_signal_is_heard_within_a_baseline_and_finished_seeds_are_kept(name, tmp_path, monkeypatch):
    config = replace(SMALL, seeds=2, baselines=(name,), planted=replace(SMALL.planted, drugs=1))
    study, fits, signals = load_study(config), 0, StopCheck([])
    monkeypatch.setattr(evaluation, "_TREES", 2)
    a_seed = 3 if name == "random_forest" else len(evaluation._PENALTIES)

    def check():
        nonlocal fits
        fits += 1
        signals()
        if fits == a_seed + 1:  # within the second
            signals.received.append(15)

    with pytest.raises(response_run.Interrupted):
        entries.baseline_entries(config, study, tmp_path, check)
    assert fits == a_seed + 2 and [path.name for path in tmp_path.iterdir()] == [f"raw_{name}_0.npz"]
    (resumed,) = entries.baseline_entries(config, study, tmp_path, StopCheck([]))
    (tmp_path / "whole").mkdir()
    (whole,) = entries.baseline_entries(config, study, tmp_path / "whole", StopCheck([]))
    np.testing.assert_array_equal(resumed.target, whole.target)


@pytest.mark.parametrize("responders", [20, 0], ids=["enough patients", "too few"])
def test_results_within_groups_have_a_table_of_their_own(responders, tmp_path):
    rng = np.random.default_rng(0)
    values = {side: [",".join(map(str, row)) for row in rng.normal(size=(80, 3))] for side in ("line", "patient")}
    groups = ["lung"] * 50 + ["skin"] * 30
    tables = {
        "line": ["sample,A,B,C", *(f"line{i},{row}" for i, row in enumerate(values["line"]))],
        "patient": [
            "sample,A,B,C,cancer",
            *(
                f"patient{i},{row},{group}"
                for i, (row, group) in enumerate(zip(values["patient"], groups, strict=True))
            ),
        ],
        "ic50": ["sample,drug,ic50", *(f"line{i},d,{row.split(',')[0]}" for i, row in enumerate(values["line"]))],
        "clinic": ["sample,drug,response", *(f"patient{i},d,{int(i < responders)}" for i in range(60))],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    names = ("source_expression", "target_expression", "source_response", "target_response")
    arguments = [f"--response.{name}={tmp_path / table}.csv" for name, table in zip(names, tables, strict=True)]
    arguments += [
        "--response.group_column=cancer",
        "--response.methods=[]",
        "--response.baselines=[elastic_net]",
        "--output.bootstrap=20",
    ]
    assert cli.main(["response", *arguments, "--output", str(tmp_path / "run")]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "within.csv").read_text().splitlines()))
    assert [(row["group"], row["samples"], row["responders"]) for row in rows] == [("lung", "50", "20")][:responders]
    for row in rows:
        assert float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"])
