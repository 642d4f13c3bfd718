"""What a comparison on target domains reports, from outputs written by hand."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from jaxdti.studies.report.domains import (
    database_lines,
    domain_lines,
    domain_points,
    draw_tasks,
    measure_domains,
    paired_differences,
    summarise_domains,
    write_domain_results,
)


def test_the_measures_by_hand():
    logits = np.eye(3)[[0, 0, 1, 2, 2]]  # called 0 0 1 2 2
    label = np.array([0, 0, 0, 1, 1])  # of a target without class 2
    found = measure_domains(np.eye(3), np.array([0, 1, 1]), logits, label, np.zeros((3, 2)), np.zeros((5, 2)))
    assert found["target_accuracy"] == pytest.approx(2 / 5)
    assert found["target_balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["outlier_share"] == pytest.approx(2 / 5)
    assert found["source_accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(found["proxy_a_distance"])  # too few rows


def test_accuracy_is_told_by_database():
    label, logits = np.array([0, 0, 1, 1]), np.eye(2)[[0, 1, 1, 1]]
    databases = {"one": np.array([True, True, False, False]), "two": np.array([False, True, True, True])}
    databases["none of them"] = np.zeros(4, bool)
    found = measure_domains(np.eye(2), np.array([0, 1]), logits, label, databases=databases)
    assert found["target_accuracy_on_one"] == 0.5 and found["target_accuracy_on_two"] == pytest.approx(2 / 3)
    assert np.isnan(found["target_accuracy_on_none of them"])
    told = [{"task": task, "method": "san", "seed": 0, "failed": "", "best_epoch": 1} | found for task in "ab"]
    lines = database_lines(summarise_domains(told))
    assert lines == [("database", "san"), ("one", "0.500"), ("two", "0.667"), ("none of them", "nan")]
    assert database_lines(summarise_domains(rows())) == []


def test_domains_far_apart_have_a_large_distance():
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(2, 100, 2)), rng.normal(size=(100, 2)) + 9
    distance = lambda target: measure_domains(
        np.eye(2)[np.zeros(100, int)],
        np.zeros(100),
        np.eye(2)[np.zeros(100, int)],
        np.zeros(100),
        near[0],
        target,
    )["proxy_a_distance"]
    assert distance(far) == pytest.approx(2.0) and distance(near[1]) < 0.6


def rows(failed=""):
    values = {("none", "a"): (0.4, 0.6), ("none", "b"): (0.5, 0.5), ("san", "a"): (0.7, 0.9), ("san", "b"): (0.2, 0.4)}
    return [
        {"task": task, "method": method, "seed": seed, "target_accuracy": value, "best_epoch": 3}
        | {"failed": failed if (task, method, seed) == ("b", "san", 1) else ""}
        for (method, task), pair in values.items()
        for seed, value in enumerate(pair)
    ]


def test_means_sds_and_the_number_of_targets_above():
    summary = {(row["task"], row["method"]): row for row in summarise_domains(rows())}
    assert summary["a", "san"]["target_accuracy"] == pytest.approx(0.8)
    assert summary["a", "san"]["target_accuracy_sd"] == pytest.approx(np.std([0.7, 0.9], ddof=1))
    assert (summary["a", "san"]["above_none"], summary["b", "san"]["above_none"]) == (1, 0)
    assert summary["mean", "san"]["above_none"] == 1 and "above_dann" not in summary["mean", "san"]
    assert summary["mean", "san"]["target_accuracy"] == pytest.approx(0.55)
    # Of the means over the targets, seed by seed: (0.45, 0.65).
    assert summary["mean", "san"]["target_accuracy_sd"] == pytest.approx(np.std([0.45, 0.65], ddof=1))


def test_failed_networks_are_counted_marked_and_left_out():
    summary = summarise_domains(rows(failed="not finite at step 2"))
    cell = next(row for row in summary if (row["task"], row["method"]) == ("b", "san"))
    assert (cell["networks"], cell["failed"], cell["target_accuracy"]) == (1, 1, pytest.approx(0.2))
    lines = domain_lines(summary)
    assert lines[0] == ("target", "none", "san") and [line[0] for line in lines[1:]] == ["a", "b", "mean"]
    assert lines[2][2] == "0.200*" and lines[1][2] == "0.800 ± 0.141"  # one network has no spread
    # Seed 1 has one task less, so that the mean is that of seed 0 alone.
    whole = next(row for row in summary if (row["task"], row["method"]) == ("mean", "san"))
    assert (whole["networks"], whole["failed"], whole["target_accuracy"]) == (1, 1, pytest.approx(0.45))
    assert lines[3][1:] == ("0.500 ± 0.071", "0.450*")


def test_differences_are_paired_by_the_seeds_that_both_have():
    (difference,) = paired_differences(rows())  # means over the tasks: (0.45, 0.55) and (0.45, 0.65)
    assert (difference["method"], difference["less"], difference["seeds"]) == ("san", "none", 2)
    assert difference["target_accuracy"] == pytest.approx(0.05)
    assert difference["target_accuracy_sd"] == pytest.approx(np.std([0.0, 0.1], ddof=1))
    # Student's t with one degree of freedom is Cauchy's: its 97.5 % quantile is 12.7062.
    assert difference["high"] - 0.05 == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert difference["low"] + difference["high"] == pytest.approx(0.1)
    (one,) = paired_differences(rows(failed="not finite at step 2"))
    assert (one["seeds"], one["target_accuracy"]) == (1, pytest.approx(0.0)) and np.isnan(one["low"])


def test_what_is_written(tmp_path):
    found = rows()
    found[0]["target_accuracy"] = float("nan")
    write_domain_results(tmp_path, found, summarise_domains(rows()), {"seeds": [0, 1]})
    with (tmp_path / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 8 and written[0]["target_accuracy"] == "" and written[1]["target_accuracy"] == "0.6"
    assert json.loads((tmp_path / "summary.json").read_text())["results"][0]["task"] == "a"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_picture_a_task_with_a_panel_a_method(tmp_path, monkeypatch):
    rng, drawn, save = np.random.default_rng(0), [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **how: drawn.append(figure) or save(figure, *given, **how)
    )
    features = lambda width: (rng.normal(size=(700, width)), rng.normal(5.0, size=(9, width)))
    methods = {"none": 1, "san": 4, "coral": 2, "dann": 4}
    points = pa.concat_tables(
        [domain_points(task, name, *features(methods[name])) for task in "ab" for name in methods]
    )
    told = [
        {"task": task, "method": name, "proxy_a_distance": 1.5 if task == "a" else float("nan")}
        for name in (*methods, "similarity")  # a baseline has no features
        for task in "ab"
    ]
    draw_tasks(points, told, tmp_path / "domains")
    assert {path.name for path in (tmp_path / "domains").iterdir()} == {"a.png", "b.png"}
    panels = [[axes for axes in figure.axes if axes.axison] for figure in drawn]
    assert [axes.get_title() for axes in panels[0]] == [f"{name}: proxy A-distance 1.50" for name in methods]
    assert [axes.get_title() for axes in panels[1]] == [f"{name}: too few rows for a distance" for name in methods]
    for axes in (*panels[0], *panels[1]):
        source, target = (mark.get_offsets() for mark in axes.collections)
        assert (len(source), len(target)) == (300, 9)  # of 700 and 9
        gap = np.abs(np.mean(source, 0) - np.mean(target, 0))
        assert gap[0] > 4.0 > gap[1]  # the shift is the first direction
