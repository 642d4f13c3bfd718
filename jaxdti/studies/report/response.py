"""What a drug response run leaves: metrics by method and drug, predictions for every patient, codes and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table

from jaxdti.config import Config
from jaxdti.data.expression.study import ResponseData
from jaxdti.data.tables import write_table
from jaxdti.evaluation.domain_gap import principal_components
from jaxdti.evaluation.part import json_ready
from jaxdti.evaluation.response import target_metrics, within_groups
from jaxdti.files import write_json

Domain = dict[str, np.ndarray]
FIRST = {"binary": "auroc", "continuous": "spearman"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method under one protocol: S seeds, D drugs, F folds, M target samples."""

    method: str
    protocol: str
    target: np.ndarray  # float32 [S, D, F, M], probabilities
    validation: np.ndarray  # float64 [S, D], AUROC on held-out source folds
    settings: list[list[dict[str, Any]]]  # [S][D], what was selected


def write_response_results(
    config: Config,
    output: Path,
    study: ResponseData,
    entries: Sequence[Entry],
    codes: dict[str, tuple[Domain, Domain]],
    accuracy: dict[str, dict[str, list[float]]],
    seconds: float,
) -> dict[str, Any]:
    """Evaluates and writes everything a user reads; prints the table; returns the summary."""
    measured = [_measure(config, study, entry) for entry in entries]
    summary: dict[str, Any] = json_ready(
        {
            "drugs": list(study.drugs),
            "source_samples": len(study.source),
            "target_samples": len(study.target),
            "genes": len(study.genes),
            "methods": measured,
            "domain_accuracy": {
                method: {kind: float(np.mean(values)) for kind, values in kinds.items()}
                for method, kinds in accuracy.items()
            },
            "ceiling_auroc": study.ceiling,
            "left_out": len(study.left_out),
            "seconds": round(seconds, 1),
        }
    )
    write_table(_result_rows(study, measured), output / "results.csv")
    if study.groups is not None and study.target_kind == "binary":
        write_table(_group_rows(measured), output / "within.csv")
    write_table(_predictions(study, entries), output / "predictions.parquet")
    for method, (source, target) in codes.items():
        write_table(_embedding_rows(study, source, target), output / "embeddings" / f"{method}.parquet")
    if codes:
        draw_codes(codes, output / "embeddings.png")
    write_json(output / "summary.json", summary)
    show_response(summary, study, output)
    return summary


def _measure(config: Config, study: ResponseData, entry: Entry) -> dict[str, Any]:
    """Metrics of the mean score over seeds and folds by drug, and the means over drugs of each seed alone."""
    first, drugs = FIRST[study.target_kind], {}
    for d, drug in enumerate(study.drugs):
        response = study.target_response[:, d]
        score = entry.target[:, d].mean((0, 1))
        metrics = target_metrics(response, score, study.target_kind, config.output.bootstrap)
        alone = [target_metrics(response, one.mean(0), study.target_kind, 0)[first] for one in entry.target[:, d]]
        metrics[f"{first}_seeds"] = alone
        metrics["validation_auroc"] = float(entry.validation[:, d].mean())
        metrics["selected"] = [settings[d] for settings in entry.settings]
        if study.groups is not None and study.target_kind == "binary":
            metrics["within"] = within_groups(response, score, study.groups, config.output.bootstrap)
        drugs[drug] = metrics
    seeds = np.array([drugs[drug][f"{first}_seeds"] for drug in study.drugs], np.float64)  # NaN where undefined
    known = ~np.isnan(seeds).all(1)
    by_seed = seeds[known].mean(0) if known.any() else np.full(len(entry.target), np.nan)
    together = [metrics[first] for metrics in drugs.values() if metrics[first] is not None]
    return {
        "method": entry.method,
        "protocol": entry.protocol,
        f"mean_{first}": float(by_seed.mean()),
        f"mean_{first}_sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        f"mean_{first}_seeds": by_seed.tolist(),
        f"mean_{first}_together": float(np.mean(together)) if together else None,  # of the mean score over seeds
        "mean_validation_auroc": float(entry.validation.mean()),
        "drugs": drugs,
    }


def _result_rows(study: ResponseData, measured: Sequence[dict[str, Any]]) -> pa.Table:
    """One row for each method, protocol and drug."""
    names = ("auroc", "auprc") if study.target_kind == "binary" else ("spearman", "concordance_index")
    rows = []
    for entry in measured:
        for drug, metrics in entry["drugs"].items():
            row = {"method": entry["method"], "protocol": entry["protocol"], "drug": drug} | _measures(metrics, names)
            alone = [value for value in metrics[f"{names[0]}_seeds"] if value is not None]
            row[f"{names[0]}_seed_mean"] = float(np.mean(alone)) if alone else None
            row[f"{names[0]}_seed_sd"] = float(np.std(alone, ddof=1)) if len(alone) > 1 else None
            row["validation_auroc"] = metrics["validation_auroc"]
            rows.append(row)
    return pa.Table.from_pylist(rows)


def _measures(metrics: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Counts, and each metric with its interval."""
    row = {"samples": metrics["samples"], "responders": metrics.get("responders")}
    for name in names:
        low, high = metrics.get(f"{name}_ci") or (None, None)
        row |= {name: metrics[name], f"{name}_low": low, f"{name}_high": high}
    return row


def _group_rows(measured: Sequence[dict[str, Any]]) -> pa.Table:
    """One row for each method, protocol, drug and group that has enough patients."""
    keys, names = ("method", "protocol", "drug", "group"), ("auroc", "auprc")
    rows = [
        dict(zip(keys, (entry["method"], entry["protocol"], drug, group), strict=True)) | _measures(found, names)
        for entry in measured
        for drug, metrics in entry["drugs"].items()
        for group, found in metrics["within"].items()
    ]
    columns = [*keys, "samples", "responders", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]
    return pa.table({name: [row[name] for row in rows] for name in columns})


def _predictions(study: ResponseData, entries: Sequence[Entry]) -> pa.Table:
    """One row for each method, protocol, drug and target sample: mean and spread over seeds and folds."""
    encoded = lambda values: pa.array(values).dictionary_encode()
    parts = []
    for entry in entries:
        for d, drug in enumerate(study.drugs):
            models = entry.target[:, d].reshape(-1, len(study.target_samples)).astype(np.float64)
            response = study.target_response[:, d]
            columns = {
                "method": encoded([entry.method] * len(response)),
                "protocol": encoded([entry.protocol] * len(response)),
                "drug": encoded([drug] * len(response)),
                "sample": pa.array(list(study.target_samples)),
                "score": pa.array(models.mean(0)),
                "score_sd": pa.array(models.std(0, ddof=1)),
                "response": pa.array(response, mask=np.isnan(response)),
            }
            if study.groups is not None:
                columns["group"] = pa.array([group or None for group in study.groups])
            parts.append(pa.table(columns))
    return pa.concat_tables(parts).unify_dictionaries()


def _embedding_rows(study: ResponseData, source: Domain, target: Domain) -> pa.Table:
    """Sample, domain, and its codes by the first setting that has not failed as lists of float32."""
    columns: dict[str, Any] = {
        "sample": [*study.source_samples, *study.target_samples],
        "domain": ["source"] * len(study.source_samples) + ["target"] * len(study.target_samples),
    }
    for kind in source:
        if kind != "joined":
            values = np.concatenate([source[kind][0], target[kind][0]]).astype(np.float32)
            columns[kind] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.table(columns)


def draw_codes(codes: dict[str, tuple[Domain, Domain]], path: Path) -> None:
    """A row for each kind of code, a column for each method: the first two principal components, coloured by domain."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("shared", "private") if any(kind in source for source, _ in codes.values())]
    figure = Figure(figsize=(2.6 * len(codes), 2.8 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(codes), squeeze=False)
    for column, (method, (source, target)) in enumerate(codes.items()):
        for row, kind in enumerate(kinds):
            axis = axes[row][column]
            axis.set_xticks([])
            axis.set_yticks([])
            if kind not in source:
                axis.axis("off")
                continue
            planes = principal_components(source[kind][0], target[kind][0])
            for (name, colour), plane in zip((("target", "C1"), ("source", "C0")), reversed(planes), strict=True):
                axis.scatter(plane[:, 0], plane[:, 1], s=3, alpha=0.5, c=colour, label=name, linewidths=0)
            axis.set_title(f"{method}: {kind}" if column == 0 or row == 0 else kind, fontsize=8)
    axes[0][0].legend(fontsize=7, markerscale=3)
    figure.savefig(path, dpi=120)


def response_table(summary: dict[str, Any], study: ResponseData) -> list[tuple[str, ...]]:
    """Rows of text, the header first: each method with its means over drugs, the drugs, and the domain accuracy."""
    first = FIRST[study.target_kind]
    protocols = {entry["protocol"] for entry in summary["methods"]} - {"none"}
    shown = list(study.drugs)[:8]
    header = ["method", *(["protocol"] if len(protocols) > 1 else []), f"mean {first}", "seeds together"]
    header += ["source validation", *shown]
    rows = [(*header, "domains told apart by shared / private / joined code")]
    number = lambda value: "" if value is None else f"{value:.3f}"
    for entry in sorted(summary["methods"], key=lambda entry: -(entry[f"mean_{first}"] or -1)):
        spread = entry[f"mean_{first}_sd"]
        mean = number(entry[f"mean_{first}"]) + (f" ± {spread:.3f}" if spread is not None else "")
        told = summary["domain_accuracy"].get(entry["method"], {})
        accuracies = " / ".join(number(told[kind]) for kind in ("shared", "private", "joined") if kind in told)
        cells = [entry["method"], *([entry["protocol"]] if len(protocols) > 1 else []), mean]
        cells += [number(entry[f"mean_{first}_together"]), number(entry["mean_validation_auroc"])]
        cells += [number(entry["drugs"][drug][first]) for drug in shown]
        rows.append((*cells, accuracies))
    return rows


def show_response(summary: dict[str, Any], study: ResponseData, output: Path) -> None:
    """Prints the table, best mean first, and what is known of the ceiling."""
    header, *rows = response_table(summary, study)
    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(highlight=False, markup=False, width=10_000)
    table = Table(title="target samples", box=box.HEAVY_HEAD if console.is_terminal else None)
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if ceilings := [value for value in study.ceiling.values() if np.isfinite(value)]:
        print(f"the truth itself: mean AUROC {np.mean(ceilings):.3f}")
    print(
        "means are over drugs, first of single seeds, then of the mean score over seeds and folds, as are drug columns"
    )
    print(f"written to {output}, {summary['seconds']:.0f} s")
