"""Metrics, intervals and paired gains of the transfer protocol by sizes, against plain definitions."""

import csv
import json
import re

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef, roc_auc_score

from jaxdti.studies.report import sizes as size_results
from jaxdti.studies.report.sizes import SizeTable, markdown, measure, write_size_results

RNG = np.random.default_rng(0)
LABEL = {"x": np.arange(40) % 2, "y": np.arange(30) % 2}


def scores(target, strength, repeats=3):
    noise = RNG.normal(size=(repeats, len(LABEL[target])))
    return (noise + strength * (LABEL[target] - 0.5)).astype(np.float32)


FOUND = {
    (target, source): {
        f"{method}/{size}": scores(target, strength * size**0.5 + 0.2)
        for method, strength in methods.items()
        for size in (2, 12)
    }
    for target in LABEL
    for source, methods in {
        "none": {"scratch": 0.3, "shallow_forest": 0.3},
        "z": {"mode1": 0.8, "mode2": 0.3},
        "all": {"mode1": 5.0, "mode2": -3.0},
    }.items()
}
for target in LABEL:
    FOUND[target, "all"]["source/0"] = scores(target, 1.0, repeats=1)


@pytest.fixture(scope="module")
def table():
    return measure(FOUND, LABEL, resamples=200, seed=1)


def find(rows, **wanted):
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_values_are_means_over_repeats(table):
    for row in table.rows:
        cell = FOUND[row["target"], row["source"]][f"{row['method']}/{row['size']}"]
        label = LABEL[row["target"]]
        for name, metric in (
            ("auroc", lambda score, label=label: roc_auc_score(label, score)),
            ("balanced_accuracy", lambda score, label=label: balanced_accuracy_score(label, score > 0)),
            ("mcc", lambda score, label=label: matthews_corrcoef(label, score > 0)),
        ):
            values = [metric(score) for score in cell]
            assert row[name] == pytest.approx(np.mean(values), abs=1e-6)
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            if len(cell) > 1:
                assert row[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert row["repeats"] == len(cell)


@pytest.mark.slow
def test_intervals_hold_the_spread_of_compounds_and_repeats(table):
    wide = find(table.rows, target="x", source="none", method="scratch", size=2)
    # By hand: resample compounds and repeats.
    rng, cell, values = np.random.default_rng(7), FOUND["x", "none"]["scratch/2"], []
    for _ in range(400):
        rows, repeats = rng.integers(40, size=40), rng.integers(3, size=3)
        if len(set(LABEL["x"][rows])) == 2:
            values.append(np.mean([roc_auc_score(LABEL["x"][rows], cell[r][rows]) for r in repeats]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (wide["auroc_low"], wide["auroc_high"]) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))


def test_the_mean_of_independent_targets_has_a_narrower_interval():
    alike = {(target, "none"): FOUND["x", "none"] for target in ("one", "two", "three", "four")}
    found = measure(alike, dict.fromkeys(("one", "two", "three", "four"), LABEL["x"]), resamples=2000)
    width = lambda row: row["auroc_high"] - row["auroc_low"]
    single = find(found.rows, target="one", source="none", method="scratch", size=2)
    mean = find(found.means, source="none", method="scratch", size=2)
    assert mean["auroc"] == pytest.approx(single["auroc"])
    assert width(mean) == pytest.approx(width(single) / 2, rel=0.1)


def test_gains_are_paired_differences_from_scratch(table):
    same = find(table.rows, target="x", source="none", method="scratch", size=12)
    assert (same["auroc_gain"], same["auroc_gain_low"], same["auroc_gain_high"]) == (0, 0, 0)
    one = find(table.rows, target="x", source="all", method="mode1", size=12)
    assert one["auroc_gain"] == pytest.approx(one["auroc"] - same["auroc"])
    assert np.isnan(find(table.rows, target="x", source="all", method="source", size=0)["auroc_gain"])


def test_means_count_every_target_once_and_average_single_sources(table):
    mean = find(table.means, method="mode2", source="each", size=2)
    parts = [find(table.rows, target=t, source="z", method="mode2", size=2)["auroc"] for t in LABEL]
    assert mean["auroc"] == pytest.approx(np.mean(parts)) and mean["targets"] == 2
    more = FOUND | {("x", "w"): {"mode2/2": scores("x", 3.0)}}
    mean = find(measure(more, LABEL, resamples=0).means, method="mode2", source="each", size=2)
    both = np.mean([roc_auc_score(LABEL["x"], s) for key in ("z", "w") for s in more["x", key]["mode2/2"]])
    assert mean["auroc"] == pytest.approx((both + parts[1]) / 2)


def test_lines_and_verdicts_tell_where_transfer_wins(table):
    header, *lines = table.lines()
    assert header == ("method", "source", "2", "12")
    assert [line[:2] for line in lines[:4]] == [
        ("scratch", "none"),
        ("shallow_forest", "none"),
        ("source", "all"),
        ("mode1", "all"),
    ]
    assert len(set(map(len, lines))) == 1
    cells = {line[:2]: line[3] for line in lines}
    assert cells["mode1", "all"].endswith(" +") and cells["mode2", "all"].endswith(" -")
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", cells["scratch", "none"])
    assert "mode1, source all, against scratch: above at 2, 12" in table.verdicts()
    assert "mode2, source all, against scratch: below at 2, 12" in table.verdicts()
    assert markdown(table.lines()).splitlines()[1] == "| --- | --- | --- | --- |"


def test_the_files_hold_the_table(table, tmp_path):
    write_size_results(table, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table.rows)
    assert float(rows[0]["auroc"]) == pytest.approx(table.rows[0]["auroc"])
    assert "nan" not in (tmp_path / "means.csv").read_text().lower()
    assert len(json.loads((tmp_path / "results.json").read_text())["means"]) == len(table.means)
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("means.csv", "results.csv", "results.json", "sizes.md", "sizes.png")
    ]


def test_two_families_are_each_drawn_with_the_other_as_the_source(tmp_path, monkeypatch):
    found = {(target, "none"): FOUND[target, "none"] for target in LABEL}
    found |= {("x", "y"): FOUND["x", "z"], ("y", "x"): FOUND["y", "z"]}
    drawn = []
    monkeypatch.setattr(
        size_results, "_draw_line", lambda axis, method, rows, colour: drawn.append((method, len(rows)))
    )
    size_results.draw_sizes(measure(found, LABEL, resamples=0), tmp_path / "sizes.png")
    assert drawn.count(("mode1", 2)) == drawn.count(("scratch", 2)) == 3  # both panels and that of the mean


def test_a_table_of_one_target_and_one_source_is_drawn(tmp_path):
    found = {key: cells for key, cells in FOUND.items() if key in (("x", "none"), ("x", "z"))}
    table = measure(found, {"x": LABEL["x"]}, resamples=20)
    assert isinstance(table, SizeTable)
    write_size_results(table, tmp_path)
    assert (tmp_path / "sizes.png").stat().st_size > 10_000
