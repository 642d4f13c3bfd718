"""What a transfer protocol by sizes found: metrics with intervals, tables and a figure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdti.data.vectors.families import EVERY
from jaxdti.evaluation.intervals import percentiles
from jaxdti.evaluation.metrics import weighted_concordance
from jaxdti.evaluation.part import json_ready
from jaxdti.files import write_csv, write_json

METRICS = ("auroc", "balanced_accuracy", "mcc")
BASELINE = "scratch"
SHOWN = ("scratch", "shallow_forest", "source", "mode1", "mode2", "mode3_logistic", "mode3_svm", "mode3_forest")
_SHADED = ("scratch", "mode1", "mode2", "mode3_forest")  # in the figure; more would hide each other
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class SizeTable:
    """Rows of results.csv and of the means over target families."""

    rows: list[dict[str, Any]]  # one for each target, source, method and size
    means: list[dict[str, Any]]  # one for each source kind, method and size, over the targets that have the size

    def lines(self) -> list[tuple[str, ...]]:
        """AUROC ± half its interval by method and size, header first: means over the target families.

        A + or - follows where the interval of the difference from scratch is above or below 0.
        """
        sizes = sorted({row["size"] for row in self.means} - {0})
        lines = [("method", "source", *map(str, sizes))]
        kinds = {(row["method"], row["source"]): None for row in self.means}
        for method, source in sorted(kinds, key=lambda kind: (_rank(kind[0]), kind[1] != EVERY)):
            by_size = {r["size"]: r for r in self.means if (r["method"], r["source"]) == (method, source)}
            cells = [_cell(by_size.get(size, by_size.get(0))) for size in sizes]
            lines.append((method, source, *cells))
        return lines

    def verdicts(self) -> list[str]:
        """For each method with a source, where it is above or below training from scratch."""
        lines = []
        for method, source in dict.fromkeys((row["method"], row["source"]) for row in self.means):
            rows = [row for row in self.means if (row["method"], row["source"]) == (method, source) and row["size"]]
            if source == "none" or not rows:
                continue
            above = [str(row["size"]) for row in rows if row["auroc_gain_low"] > 0]
            below = [str(row["size"]) for row in rows if row["auroc_gain_high"] < 0]
            told = [f"{word} at {', '.join(at)}" for word, at in (("above", above), ("below", below)) if at]
            lines.append(f"{method}, source {source}, against scratch: {'; '.join(told) or 'no clear difference'}")
        return lines


def measure(
    found: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> SizeTable:
    """Metrics of all scores: means over the repeats, with bootstrap intervals.

    A resample draws test compounds and repeats anew, the same ones for all methods of a target, so that ``auroc_gain``,
    AUROC less that from scratch at the same size, is a paired difference. Means over targets resample each on its own.

    Args:
      found: (target, source) -> "method/size" -> float [repeats, test compounds]; above 0 is called active. Size 0 is
        a method that learns nothing.
      labels: target -> 0 or 1 [test compounds].
      resamples: of the intervals; 0 = none.
    """
    rows: list[dict[str, Any]] = []
    draws: dict[tuple[str, ...], np.ndarray] = {}  # (target, source, method, size) -> [1 + resamples, metrics]
    for i, (target, label) in enumerate(labels.items()):
        rng = np.random.default_rng((seed, i))  # of its own: with common ones errors of the targets would add up
        weights = rng.multinomial(len(label), np.full(len(label), 1 / len(label)), size=resamples).astype(np.float64)
        weights = np.concatenate([np.ones((1, len(label))), weights])  # the first one is the sample itself
        repeats = max(len(scores) for (t, _), cells in found.items() if t == target for scores in cells.values())
        drawn = np.concatenate([np.arange(repeats)[None], rng.integers(repeats, size=(resamples, repeats))])
        for (_, source), cells in ((key, cells) for key, cells in found.items() if key[0] == target):
            for name, scores in cells.items():
                method, size = name.split("/")
                values = np.stack([_metrics(label, score, weights) for score in scores])  # [repeats, 1 + resamples, 3]
                chosen = drawn if len(scores) == repeats else np.zeros((len(weights), 1), np.int64)
                mean = values[chosen, np.arange(len(weights))[:, None]].mean(1)
                draws[target, source, method, size] = mean
                spread = values[:, 0].std(0, ddof=1) if len(scores) > 1 else np.full(len(METRICS), np.nan)
                rows.append(
                    {"target": target, "source": source, "method": method, "size": int(size), "repeats": len(scores)}
                    | _summary(mean)
                    | {f"{metric}_sd": float(sd) for metric, sd in zip(METRICS, spread, strict=True)}
                )
    for row in rows:
        row |= _gain(draws, [(row["target"], row["source"])], row["method"], row["size"])
    return SizeTable(rows=rows, means=_means(rows, draws))


def _means(rows: list[dict[str, Any]], draws: Mapping[tuple[str, ...], np.ndarray]) -> list[dict[str, Any]]:
    """Over the targets; single sources are averaged too, as "each": which one is best is not known beforehand."""
    kinds: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
    for row in rows:
        source = row["source"] if row["source"] in (EVERY, "none") else "each"
        kinds.setdefault((row["method"], source, row["size"]), []).append((row["target"], row["source"]))
    means = []
    for (method, source, size), places in sorted(kinds.items()):
        # Every target counts once, whatever the number of its sources.
        shares = [1 / sum(t == target for t, _ in places) for target, _ in places]
        stacked = np.stack([draws[target, s, method, str(size)] for target, s in places])
        mean = np.average(stacked, axis=0, weights=shares)
        row = {"method": method, "source": source, "size": size, "targets": len({target for target, _ in places})}
        means.append(row | _summary(mean) | _gain(draws, places, method, size))
    return means


def _gain(
    draws: Mapping[tuple[str, ...], np.ndarray], places: list[tuple[str, str]], method: str, size: int
) -> dict[str, float]:
    """AUROC less that from scratch, on the same resamples; NaN where there is nothing to compare with."""
    if any((target, "none", BASELINE, str(size)) not in draws for target, _ in places):
        return dict.fromkeys(("auroc_gain", "auroc_gain_low", "auroc_gain_high"), float("nan"))
    shares = [1 / sum(t == target for t, _ in places) for target, _ in places]
    gains = np.stack(
        [draws[t, s, method, str(size)][:, 0] - draws[t, "none", BASELINE, str(size)][:, 0] for t, s in places]
    )
    mean = np.average(gains, axis=0, weights=shares)
    low, high = percentiles(mean[1:], _LEVEL)
    return {"auroc_gain": float(mean[0]), "auroc_gain_low": low, "auroc_gain_high": high}


def _summary(mean: np.ndarray) -> dict[str, float]:
    """[1 + resamples, metrics] -> value and interval of each metric."""
    summary = {}
    for i, metric in enumerate(METRICS):
        low, high = percentiles(mean[1:, i], _LEVEL)
        summary |= {metric: float(mean[0, i]), f"{metric}_low": low, f"{metric}_high": high}
    return summary


def _metrics(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``METRICS`` under R sets of row weights: float64 [R, 3]; NaN where a class has no weight, MCC then 0."""
    positive, called = label > 0.5, score > 0
    counts = (positive & called, positive & ~called, ~positive & called, ~positive & ~called)
    tp, fn, fp, tn = (weights @ rows.astype(np.float64) for rows in counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = 0.5 * (tp / (tp + fn) + tn / (tn + fp))
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    mcc = np.divide(tp * tn - fp * fn, np.sqrt(margins), out=np.zeros_like(tp), where=margins > 0)
    return np.stack([weighted_concordance(label, score.astype(np.float64), weights), balanced, mcc], 1)


def write_size_results(table: SizeTable, output: Path) -> None:
    """results.csv and means.csv, results.json with both, the table sizes.md and the figure sizes.png."""
    write_csv(output / "results.csv", table.rows)
    write_csv(output / "means.csv", table.means)
    write_json(output / "results.json", json_ready({"rows": table.rows, "means": table.means}))
    (output / "sizes.md").write_text(markdown(table.lines()) + "\n", encoding="utf-8")
    draw_sizes(table, output / "sizes.png")


def draw_sizes(table: SizeTable, path: Path) -> None:
    """AUROC over the size of the training set: a panel for each target family, and their mean.

    The source is all other families, or the one that there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(row["target"] for row in table.rows))
    panels = [(target, [row for row in table.rows if row["target"] == target]) for target in targets]
    panels.append(("mean", table.means))
    columns = min(len(panels), 4)
    figure = Figure(figsize=(3.4 * columns, 3.0 * -(-len(panels) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True).ravel()
    for axis, (title, rows) in zip(axes, panels, strict=False):
        sources = {row["source"] for row in rows} - {"none"}
        drawn = ("none", EVERY if EVERY in sources else min(sources, default=""))
        for i, method in enumerate(SHOWN):
            line = sorted((row for row in rows if row["method"] == method and row["source"] in drawn), key=_size)
            _draw_line(axis, method, line, f"C{i}")
        axis.set(title=title, xscale="log", xlabel="training compounds")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("test AUROC")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_line(axis: Any, method: str, rows: list[dict[str, Any]], colour: str) -> None:
    if [row["size"] for row in rows] == [0]:
        axis.axhline(rows[0]["auroc"], color=colour, linestyle=":", label=f"{method}, unchanged")
        return
    x, y = [row["size"] for row in rows], [row["auroc"] for row in rows]
    axis.plot(x, y, marker="o", markersize=3, color=colour, label=method)
    if method in _SHADED:
        low, high = ([row[f"auroc_{side}"] for row in rows] for side in ("low", "high"))
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _size(row: Mapping[str, Any]) -> int:
    return row["size"]


def _rank(method: str) -> int:
    return SHOWN.index(method) if method in SHOWN else len(SHOWN)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    half = 0.5 * (row["auroc_high"] - row["auroc_low"])
    spread = f" ± {half:.3f}" if np.isfinite(half) else ""
    sign = " +" if row["auroc_gain_low"] > 0 else " -" if row["auroc_gain_high"] < 0 else ""
    return f"{row['auroc']:.3f}{spread}{sign}"


def markdown(lines: Iterable[tuple[str, ...]]) -> str:
    """The rows of ``SizeTable.lines`` as a Markdown table."""
    header, *rows = lines
    text = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in text)
