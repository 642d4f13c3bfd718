"""A drug response study: expression of two domains on one scale, and the responses of their samples."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdti.config import ResponseConfig
from jaxdti.data.expression.planted import make_planted_expression
from jaxdti.data.expression.responses import (
    ResponseTable,
    class_problem,
    fold_labels,
    fold_of_samples,
    label_of,
    matching_drugs,
    one_value_each,
    read_responses,
    read_thresholds,
    response_matrix,
)
from jaxdti.data.expression.tables import (
    SAMPLE_NAMES,
    ExpressionFile,
    ExpressionTable,
    LeftOut,
    drop_constant,
    drop_incomplete,
    gene_symbol,
    named_or_usual,
    number_column,
    shared_genes,
    standardise,
    text_column,
)
from jaxdti.data.named import data_roots
from jaxdti.data.tables import TableFile, Wanted, read_table
from jaxdti.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ResponseData:
    """N source and M target samples with G genes, D drugs."""

    genes: np.ndarray  # str objects [G]
    source_samples: np.ndarray  # str objects [N]
    target_samples: np.ndarray  # str objects [M]
    source: np.ndarray  # float32 [N, G], scaled
    target: np.ndarray  # float32 [M, G], scaled
    drugs: tuple[str, ...]
    source_response: np.ndarray  # float64 [N, D], NaN = not measured
    target_response: np.ndarray  # float64 [M, D]; labels (1 = responds), or values where ``target_kind`` is continuous
    source_kind: str  # continuous: low = responds; binary: 1 = responds
    target_kind: str
    thresholds: np.ndarray | None  # float64 [D]; None: the median of the training folds
    groups: np.ndarray | None = None  # str objects [M]; empty where a sample is in none
    source_confounder: np.ndarray | None = None  # int32 [N], number of the category
    target_confounder: np.ndarray | None = None  # int32 [M]
    confounder_names: tuple[str, ...] = ()
    ceiling: dict[str, float] = field(default_factory=dict)  # drug -> AUROC of the truth, where that is known
    lines: list[str] = field(default_factory=list)  # for the user
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def labelled(self) -> np.ndarray:
        """Bool [M]: target samples with a response to any of the drugs."""
        return np.any(np.isfinite(self.target_response), 1)

    def identity(self) -> str:
        """SHA-256 over everything that a result depends on."""
        total = hashlib.sha256()
        arrays = (self.source, self.target, self.source_response, self.target_response, self.thresholds)
        for array in (*arrays, self.source_confounder, self.target_confounder):
            total.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        groups = () if self.groups is None else self.groups
        for names in (self.genes, self.source_samples, self.target_samples, self.drugs, groups, self.confounder_names):
            total.update("\0".join(names).encode() + b"\1")
        return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Input:
    """What was read, before genes and samples are matched."""

    source: ExpressionTable
    target: ExpressionTable
    source_response: ResponseTable
    target_response: ResponseTable | None
    groups: np.ndarray | None = None
    confounders: dict[str, str] | None = None  # sample -> category
    ceiling: dict[str, float] = field(default_factory=dict)


def load_study(config: ResponseConfig) -> ResponseData:
    """Reads, matches and scales what ``config`` names.

    Raises:
      DataError: a table is unfit, or no drug has enough source samples of both classes.
    """
    lines: list[str] = []
    left_out: list[LeftOut] = []
    filled = _named(config)
    _check_shared_names(filled)
    if config.dataset == "planted-expression":
        given = _planted(config, lines)
    elif config.dataset == "tcrp_sorafenib":
        given = _tcrp(_data_file("tcrp_sorafenib/sorafenib.csv.gz"), lines)
    else:
        given = _read(filled, lines, left_out)
    return _assemble(filled, given, lines, left_out)


def _named(config: ResponseConfig) -> ResponseConfig:
    """The configuration with the files of a named dataset filled in."""
    if config.dataset == "gdsc_tcga":
        return dataclasses.replace(
            config,
            dataset=None,
            source_expression=str(_data_file("gdsc_ccle/expression.csv.gz")),
            target_expression=str(_data_file("tcga/expression.csv.gz")),
            source_response=str(_data_file("gdsc_ccle/ic50.csv.gz")),
            target_response=str(_data_file("tcga/drug_response.csv.gz")),
            group_column="cancer",
        )
    if config.dataset == "tcrp_sorafenib":
        return dataclasses.replace(config, source_kind="continuous", target_kind="continuous")
    return config


def _check_shared_names(config: ResponseConfig) -> None:
    """Raises DataError where no table has a column that is named for all of them."""
    responses = (config.source_response, config.target_response)
    expression = (config.source_expression, config.target_expression)
    for option, paths in (
        ("sample_column", (*expression, *responses, config.confounders)),
        ("drug_column", (*responses, config.thresholds)),
    ):
        name, given = getattr(config, option), [Path(path) for path in paths if path]
        if name is not None and not any(name in TableFile(path).columns for path in given):
            tables = ", ".join(map(str, given)) or "no table is given"
            raise DataError(f"response.{option}={name!r}: no table has such a column: {tables}")


def _data_file(name: str) -> Path:
    for root in data_roots():
        if (path := root / "drug_response" / name).is_file():
            return path
    raise DataError(
        f"drug_response/{name}: not found; set JAXDTI_DATA to the folder that holds drug_response, "
        "or use response.dataset=planted-expression, which needs no file"
    )


def _planted(config: ResponseConfig, lines: list[str]) -> _Input:
    planted = make_planted_expression(config.planted)
    lines.append(
        f"planted-expression (seed {config.planted.seed}): shift {config.planted.shift:g}, "
        f"confounding {config.planted.confounding:g}"
    )
    labelled = len(planted.target_response.sample) > 0
    if not labelled:
        lines.append("no target responses: predictions are not evaluated")
    batches = [*planted.source_batch, *planted.target_batch]
    samples = [*planted.source.samples, *planted.target.samples]
    return _Input(
        source=planted.source,
        target=planted.target,
        source_response=planted.source_response,
        target_response=planted.target_response if labelled else None,
        confounders={sample: f"batch {batch}" for sample, batch in zip(samples, batches, strict=True)},
        ceiling=planted.ceiling,
    )


def _tcrp(path: Path, lines: list[str]) -> _Input:
    """Cell lines and patient-derived cells of one table, whose expression columns end in _expression."""
    file = TableFile(path)
    columns = [name for name in file.columns if name.endswith("_expression")]
    table = file.read(["tissue", "domain", "AUC", *columns])
    domain, tissue = text_column(table, "domain"), text_column(table, "tissue")
    samples = np.array([f"{tissue[i]} {i}" for i in range(len(tissue))], dtype=object)
    values = np.stack([number_column(table, name, path, samples) for name in columns], 1).astype(np.float32)
    auc = number_column(table, "AUC", path, samples)
    genes = np.array([gene_symbol(name.removesuffix("_expression")) for name in columns], dtype=object)
    sides = [np.flatnonzero(domain == name) for name in ("cell_line", "patient_derived")]
    expression = [ExpressionTable(samples[rows], genes, values[rows]) for rows in sides]
    drug = lambda rows: np.full(len(rows), "sorafenib", dtype=object)
    responses = [ResponseTable(samples[rows], drug(rows), auc[rows]) for rows in sides]
    lines.append(f"tcrp_sorafenib: {len(sides[0])} cell lines, {len(sides[1])} patient-derived samples")
    return _Input(
        source=expression[0],
        target=expression[1],
        source_response=responses[0],
        target_response=responses[1],
    )


def _read(config: ResponseConfig, lines: list[str], left_out: list[LeftOut]) -> _Input:
    """The tables of the user."""
    for name in ("source_expression", "target_expression", "source_response"):
        if getattr(config, name) is None:
            raise DataError(f"response.{name} is missing: name a table, or set response.dataset=planted-expression")
    assert config.source_expression and config.target_expression and config.source_response
    source = ExpressionFile(Path(config.source_expression), config.sample_column)
    target = ExpressionFile(Path(config.target_expression), config.sample_column)
    for file in (source, target):
        if file.unnamed:
            lines.append(f"{file.path}: sample names are taken from its first column, {file.sample_column!r}")
    groups = None
    if config.group_column:
        groups = target.group(config.group_column)
        target.columns.pop(gene_symbol(config.group_column), None)
    genes, missing, found = shared_genes(list(source.columns), list(target.columns))
    lines += found
    left_out += missing
    responses = []
    for domain, path, kind, column in (
        ("source", config.source_response, config.source_kind, config.source_value_column),
        ("target", config.target_response, config.target_kind, config.target_value_column),
    ):
        if path is None:
            lines.append("no target responses: predictions are not evaluated")
            responses.append(None)
            continue
        table, lost, said = read_responses(
            Path(path),
            domain,
            kind,
            sample_column=config.sample_column,
            drug_column=config.drug_column,
            value_column=column,
            date_column=config.date_column if domain == "target" else None,
        )
        responses.append(table)
        left_out += lost
        lines += said
    return _Input(
        source=source.read(genes),
        target=target.read(genes),
        source_response=responses[0],
        target_response=responses[1],
        groups=groups,
        confounders=_read_confounders(config),
    )


def _read_confounders(config: ResponseConfig) -> dict[str, str] | None:
    if config.confounders is None:
        return None
    path = Path(config.confounders)
    file = TableFile(path)
    sample = named_or_usual(
        file.columns, Wanted("sample", "response.sample_column", config.sample_column, SAMPLE_NAMES), path
    )
    assert sample
    others = [name for name in file.columns if name != sample]
    column = config.confounder_column or (others[0] if len(others) == 1 else None)
    if column is None or column not in others:
        found = ", ".join(map(repr, others))
        raise DataError(f"{path}: response.confounder_column={column!r}: choose from {found}")
    table = read_table(path, [sample, column])
    samples, categories = text_column(table, sample), text_column(table, column)
    return one_value_each(samples.tolist(), categories.tolist(), (samples != "") & (categories != ""), column, path)


def _assemble(config: ResponseConfig, given: _Input, lines: list[str], left_out: list[LeftOut]) -> ResponseData:
    source, lost = drop_incomplete(given.source, "source")
    target, lost_target = drop_incomplete(given.target, "target")
    if overlap := set(source.samples) & set(target.samples):
        raise DataError(
            f"source and target expression both have {len(overlap)} samples, such as {min(overlap)!r}; "
            "a sample belongs to one domain"
        )
    for count, what in ((len(lost), "source samples with"), (len(lost_target), "target samples with")):
        if count:
            lines.append(f"  {count} {what} missing values: left out")
    left_out += lost + lost_target
    responses = _match_responses(config, given, source.samples, target.samples, left_out)
    rows = _measured_rows(config, responses.target)
    source, target, flat = drop_constant(source, target, rows)
    if flat:
        lines.append(f"  {len(flat)} genes without variation in a domain: left out")
    left_out += flat
    scaled_source, scaled_target, said = standardise(
        source.values, target.values, log=config.log, scale=config.scale, clip=config.clip, rows=rows
    )
    lines.append(
        f"{len(source.samples):,} source and {len(target.samples):,} target samples, {len(source.genes)} genes"
    )
    if not rows.all():
        lines.append(
            f"  inductive: scale and constant genes of the target by its {rows.sum():,} samples without a response"
        )
    lines += said + responses.lines
    confounders = _confounders(given, source.samples, target.samples, lines, left_out)
    groups = _groups(config, given, target.samples, lines, left_out)
    return ResponseData(
        genes=source.genes,
        source_samples=source.samples,
        target_samples=target.samples,
        source=scaled_source,
        target=scaled_target,
        drugs=responses.drugs,
        source_response=responses.source,
        target_response=responses.target,
        source_kind=config.source_kind,
        target_kind=config.target_kind,
        thresholds=responses.thresholds,
        groups=groups,
        source_confounder=confounders[0],
        target_confounder=confounders[1],
        confounder_names=confounders[2],
        ceiling={drug: value for drug, value in given.ceiling.items() if drug in responses.drugs},
        lines=lines,
        left_out=left_out,
    )


class _Responses(NamedTuple):
    """Of N source and M target samples, to the D drugs that are modelled."""

    drugs: tuple[str, ...]
    source: np.ndarray  # float64 [N, D]
    target: np.ndarray  # float64 [M, D]
    thresholds: np.ndarray | None  # float64 [D]
    lines: list[str]  # for the user


def _match_responses(
    config: ResponseConfig, given: _Input, source: np.ndarray, target: np.ndarray, left_out: list[LeftOut]
) -> _Responses:
    """The responses of these samples; what takes no part is appended to ``left_out``."""
    drugs, lost, lines = matching_drugs(config.drugs, given.source_response, given.target_response)
    source_response, strangers, said = response_matrix(given.source_response, source, drugs, "source")
    left_out += lost + strangers
    lines += said
    target_response = np.full((len(target), len(drugs)), np.nan)
    if given.target_response is not None:
        target_response, strangers, said = response_matrix(given.target_response, target, drugs, "target")
        left_out += strangers
        lines += said
    thresholds = _thresholds(config, drugs)
    kept, refused = _usable_drugs(config, drugs, source_response, thresholds)
    left_out += refused
    lines += [f"  drug {item.name} left out: {item.reason}" for item in refused]
    if not kept:
        raise DataError(f"no drug has enough source samples: {'; '.join(f'{r.name}: {r.reason}' for r in refused[:3])}")
    if config.target_kind == "binary":
        for i in kept:
            known = target_response[np.isfinite(target_response[:, i]), i]
            lines.append(
                f"  {drugs[i]}: {int(np.isfinite(source_response[:, i]).sum())} source samples; "
                f"{len(known)} target samples with a response, {int(known.sum())} of them respond"
            )
    return _Responses(
        tuple(drugs[i] for i in kept),
        source_response[:, kept],
        target_response[:, kept],
        None if thresholds is None else thresholds[kept],
        lines,
    )


def _measured_rows(config: ResponseConfig, response: np.ndarray) -> np.ndarray:
    """Bool [M]: target samples that decide about the scale: where a protocol is inductive, those without a response.

    Both protocols of a run share one matrix; to leave a few samples out costs the transductive one little.

    Raises:
      DataError: fewer than two are left.
    """
    rows = np.ones(len(response), bool)
    if "inductive" in config.protocols:
        rows = ~np.any(np.isfinite(response), 1)
        if rows.sum() < 2:
            raise DataError(
                f"response.protocols: inductive: {np.sum(~rows)} of {len(rows)} target samples have a response; the "
                "scale of the genes needs at least two without"
            )
    return rows


def _groups(
    config: ResponseConfig, given: _Input, samples: np.ndarray, lines: list[str], left_out: list[LeftOut]
) -> np.ndarray | None:
    """The groups of the target samples that are left, empty where the cell is."""
    if given.groups is None:
        return None
    of_sample = dict(zip(given.target.samples, given.groups, strict=True))
    groups = np.array([of_sample[name] for name in samples], dtype=object)
    if nowhere := int(np.sum(groups == "")):
        lines.append(f"  {nowhere} target samples without {config.group_column}: in no group")
        left_out += [LeftOut("target sample", name, f"no {config.group_column}") for name in samples[groups == ""]]
    return groups


def _thresholds(config: ResponseConfig, drugs: list[str]) -> np.ndarray | None:
    if config.thresholds is None:
        return None
    known = read_thresholds(Path(config.thresholds), config.drug_column)
    return np.array([known.get(drug.casefold(), np.nan) for drug in drugs])


def _usable_drugs(
    config: ResponseConfig, drugs: list[str], response: np.ndarray, thresholds: np.ndarray | None
) -> tuple[list[int], list[LeftOut]]:
    """The drugs with enough source samples of both classes, and the others with their counts."""
    kept, refused = [], []
    for i, drug in enumerate(drugs):
        values = response[:, i]
        threshold = None if thresholds is None else float(thresholds[i])
        if threshold is not None and np.isnan(threshold):
            problem = "no threshold is given"
        elif not np.isfinite(values).any():
            problem = "no source sample with expression has a response"
        else:
            whole = float(np.nanmedian(values)) if threshold is None else threshold
            problem = class_problem(label_of(values, config.source_kind, whole))
            problem = problem or _fold_problem(config, values, threshold)
        if problem:
            refused.append(LeftOut("drug", drug, problem))
        else:
            kept.append(i)
    return kept, refused


def _fold_problem(config: ResponseConfig, values: np.ndarray, threshold: float | None) -> str | None:
    """Where a classifier would see one class only, as with many values tied at a median; None if nowhere."""
    for seed in range(config.seed, config.seed + config.seeds):
        fold = fold_of_samples(values, config.folds, seed)
        for held in range(config.folds):
            label = fold_labels(values, config.source_kind, fold, held, threshold)[(fold >= 0) & (fold != held)]
            sensitive = int(label.sum())
            if sensitive in (0, len(label)):
                return (
                    f"{sensitive} sensitive and {len(label) - sensitive} resistant source samples train without fold "
                    f"{held} of seed {seed}; both classes are needed; values are tied at the threshold"
                )
    return None


def _confounders(
    given: _Input, source: np.ndarray, target: np.ndarray, lines: list[str], left_out: list[LeftOut]
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Numbers of the categories of source and target samples, -1 where unknown, and the categories."""
    if given.confounders is None:
        return None, None, ()
    names = tuple(sorted({given.confounders[name] for name in [*source, *target] if given.confounders.get(name)}))
    if len(names) < 2:
        raise DataError(f"response.confounders: {len(names)} category among the samples; at least 2 are expected")
    number = {name: i for i, name in enumerate(names)}
    numbers = [
        np.array([number.get(given.confounders.get(name, ""), -1) for name in samples], np.int32)
        for samples in (source, target)
    ]
    for domain, samples, values in (("source", source, numbers[0]), ("target", target, numbers[1])):
        if unknown := int(np.sum(values < 0)):
            lines.append(f"  {unknown} {domain} samples without a confounder: the adversary does not see them")
            left_out += [LeftOut(f"{domain} sample", s, "no confounder") for s in samples[values < 0]]
    return numbers[0], numbers[1], names
