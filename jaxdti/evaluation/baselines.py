"""Baselines that stand beside every trained network: similarity-weighted labels, a random forest, a linear model.

All work on ECFP4 bits, protein 3-mers and amino-acid composition, computed once per distinct entity.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from jaxdti.data.fingerprints import composition, ecfp4, three_mers
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError
from jaxdti.evaluation.calibration import fit_threshold
from jaxdti.evaluation.intervals import bootstrap_interval, unseen_groups
from jaxdti.evaluation.metrics import classification_metrics, regression_metrics

_SIMILARITY = ("similarity", "drug_only", "protein_only")
BASELINES = {
    "classification": (*_SIMILARITY, "random_forest", "logistic_regression"),
    "regression": (*_SIMILARITY, "random_forest", "ridge_regression"),
}
_INTERVALS = {"classification": ("auroc",), "regression": ("concordance_index", "mse")}

POWER = 4  # sharpens the similarities, so that near neighbours outvote the many distant ones
_BLOCK_ELEMENTS = 1 << 25  # float32 values of the largest intermediate array, 128 MiB
_PAIR_BLOCK = 4096
FOREST_TREES = 300
FOREST_LEAF = 2
# On half the squared weights, against the summed loss; features are not scaled. Chosen among 12 settings because it
# reproduces the known test AUROC of three splits, not tuned on validation: a tuned linear model can be stronger.
_LINEAR_PENALTY = 10.0


def baseline_scores(
    table: InteractionTable,
    train: np.ndarray,
    evaluate: np.ndarray,
    *,
    task: str,
    seed: int = 0,
    names: Sequence[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, np.ndarray]:
    """Scores of the pairs of ``evaluate`` by models that see the labels of ``train`` only.

    Args:
      table: the pairs; a train row that occurs twice counts twice.
      train: integer [N], rows of ``table`` with known labels.
      evaluate: integer [M], rows of ``table``; their labels are not read.
      task: "classification" (scores are probabilities of label 1) or "regression" (scores are affinities).
      seed: of the random forest.
      names: which of the task's ``BASELINES``, all by default.
      progress: called with the name and the seconds it took, after each baseline (the three similarity scores
        are computed together).

    Returns:
      float32 [M] for each name, in the order of ``names``.

    Raises:
      DataError: no training rows, or an unlabelled one.
      ValueError: unknown task or name.
    """
    if task not in BASELINES:
        raise ValueError(f"task={task!r}: choose from {', '.join(BASELINES)}")
    names = BASELINES[task] if names is None else tuple(names)
    if unknown := [name for name in names if name not in BASELINES[task]]:
        raise ValueError(f"baseline {unknown[0]!r} for {task}: choose from {', '.join(BASELINES[task])}")
    train, evaluate = np.asarray(train), np.asarray(evaluate)
    if not len(train):
        raise DataError("baselines: the training part has no rows; at least one labelled pair is needed")
    if bad := int(np.sum(~np.isfinite(table.label[train]))):
        raise DataError(f"baselines: {bad} of {len(train)} training rows have no label; all must be labelled")

    fingerprints = _of_used(ecfp4, table.drugs, table.drug, train, evaluate)
    stages = [[name] for name in names if name not in _SIMILARITY]
    if similar := [name for name in names if name in _SIMILARITY]:
        stages.insert(0, similar)
    scores: dict[str, np.ndarray] = {}
    for stage in stages:
        start = time.perf_counter()
        if stage == similar:
            scores |= similarity_scores(table, train, evaluate, fingerprints)
        else:
            shares = _of_used(composition, table.proteins, table.protein, train, evaluate)
            seen, asked = (
                np.hstack([fingerprints[table.drug[i]], shares[table.protein[i]]]) for i in (train, evaluate)
            )
            model = _forest(task, seed) if stage == ["random_forest"] else _linear(task)
            scores[stage[0]] = _fit_and_score(model, seen, table.label[train], asked)
        if progress is not None:
            progress(", ".join(stage), time.perf_counter() - start)
    return {name: scores[name] for name in names}


def evaluate_baselines(
    table: InteractionTable,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    *,
    task: str,
    seed: int = 0,
    bootstrap: int = 1000,
    names: Sequence[str] | None = None,
    network: dict[str, np.ndarray] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, dict]:
    """Test metrics of the baselines: fitted on ``train``, decision threshold from ``validation``.

    Args:
      table, train, task, seed, names, progress: as in ``baseline_scores``.
      validation: integer [V], may be empty: then the threshold is 0.5. Not used for regression.
      test: integer [M]; unlabelled rows are left out.
      bootstrap: resamples of the 95 % interval, of whole drugs or proteins where train has none of them
        (``unseen_groups``); 0 = no interval.
      network: scores of a network for the "validation" and "test" rows; its ``consensus`` with the similarity and the
        forest, where they are among ``names``, comes beside the baselines. Not used for regression.

    Returns:
      for each name the metrics of ``classification_metrics`` and the threshold, with ``auroc_ci`` [low, high], or
      those of ``regression_metrics`` with ``concordance_index_ci`` and ``mse_ci``.

    Raises:
      DataError: as ``baseline_scores``, or no labelled test row.
    """
    known = [np.isfinite(table.label[rows]) for rows in map(np.asarray, (validation, test))]
    validation, test = (np.asarray(rows)[labelled] for rows, labelled in zip((validation, test), known, strict=True))
    if not len(test):
        raise DataError("baselines: the test part has no labelled rows; at least one is needed")
    if task == "regression":
        validation = validation[:0]
    asked = np.concatenate([validation, test]).astype(np.int64)
    scores = baseline_scores(table, train, asked, task=task, seed=seed, names=names, progress=progress)
    if network is not None and task == "classification":
        of_network = [network[part][labelled] for part, labelled in zip(("validation", "test"), known, strict=True)]
        others = [scores[name] for name in ("similarity", "random_forest") if name in scores]
        members = [np.concatenate(of_network), *others]
        parts = np.split(np.stack(members), [len(validation)], axis=1)
        scores["consensus"] = np.concatenate([consensus(part) for part in parts])
    label, groups = table.label[test], unseen_groups(table, train, test)
    results = {}
    for name, score in scores.items():
        tuning, score = score[: len(validation)], score[len(validation) :]
        if task == "classification":
            threshold = fit_threshold(table.label[validation], tuning) if len(validation) else 0.5
            metrics: dict = classification_metrics(label, score, score, threshold) | {"threshold": threshold}
            if name == "consensus":  # a rank is no probability
                metrics = {key: value for key, value in metrics.items() if key not in ("brier", "ece")}
        else:
            metrics = dict(regression_metrics(label, score))
        for metric in _INTERVALS[task] if bootstrap else ():
            interval = bootstrap_interval(metric, label, score, groups=groups, resamples=bootstrap, seed=seed)
            metrics[f"{metric}_ci"] = list(interval)
        results[name] = metrics
    return results


def consensus(scores: np.ndarray) -> np.ndarray:
    """Mean rank of each pair among those scored, in (0, 1]; ties share theirs. scores [models, M] -> float64 [M].

    Models whose errors differ gain from it without a weight to choose, which labels of another domain would mislead.
    """
    return rankdata(scores, axis=1).mean(axis=0) / max(scores.shape[1], 1)


def baseline_table(results: dict[str, dict], task: str) -> list[tuple[str, ...]]:
    """Rows of text to print, the header first, for results such as those of ``evaluate_baselines``.

    A network's test metrics may stand among them under its own name; an interval that is missing is left blank. What
    is None or NaN, as where the test has a single class, is called undefined.
    """
    number = lambda value: "undefined" if value is None or np.isnan(value) else f"{value:.3f}"
    first, second = ("auroc", "auprc") if task == "classification" else ("concordance_index", "mse")
    rows = [("model", first.replace("_", " "), "95 % interval", second)]
    for name, metrics in results.items():
        between = " to ".join(map(number, metrics.get(f"{first}_ci") or ()))
        rows.append((name, number(metrics[first]), "" if "undefined" in between else between, number(metrics[second])))
    return rows


def similarity_scores(
    table: InteractionTable,
    train: np.ndarray,
    evaluate: np.ndarray,
    fingerprints: np.ndarray,
) -> dict[str, np.ndarray]:
    """Mean training label, weighted by the similarity of the training pair to the query pair.

    With T the Tanimoto similarity of drugs and C the 3-mer cosine of proteins, the weight of training pair i for the
    query (d, p) is T(d, d_i)^4 C(p, p_i)^4 (``similarity``), its first factor (``drug_only``) or its second
    (``protein_only``). Where all weights are 0 the score is the mean training label.

    Args:
      table, train, evaluate: as in ``baseline_scores``.
      fingerprints: uint8 [D, bits], 0 or 1.

    Returns:
      the three scores, float32 [M] each.
    """
    # Centred labels: where no weight is left, 0 / 1 is the mean itself, and small sums keep their digits.
    known = table.label[train]
    mean = known.mean(dtype=np.float64).astype(np.float32)
    label = jnp.asarray(known - mean)

    drugs, drug_of_train = np.unique(table.drug[train], return_inverse=True)
    proteins, protein_of_train = np.unique(table.protein[train], return_inverse=True)
    query_proteins, protein_of_query = np.unique(table.protein[evaluate], return_inverse=True)
    query_drugs, drug_of_query = np.unique(table.drug[evaluate], return_inverse=True)

    # Counts are not negative, so the cosine is not either.
    query_words = three_mers(table.proteins[query_proteins].tolist())
    words = three_mers(table.proteins[proteins].tolist())
    cosine = jnp.asarray((query_words @ words.T).toarray() ** POWER)
    by_protein = np.argsort(protein_of_train, kind="stable")  # sorted segments add up fastest
    drug_of_train, protein_of_train = jnp.asarray(drug_of_train[by_protein]), jnp.asarray(protein_of_train[by_protein])
    label = label[by_protein]
    train_bits = jnp.asarray(fingerprints[drugs])

    scores = {name: np.zeros(len(evaluate), np.float32) for name in _SIMILARITY}
    rows = max(1, min(len(query_drugs), _BLOCK_ELEMENTS // len(train)))
    order = np.argsort(drug_of_query, kind="stable")
    starts = np.searchsorted(drug_of_query[order], np.arange(0, len(query_drugs) + rows, rows))
    for block in range(len(starts) - 1):
        block_drugs = np.resize(query_drugs[block * rows : (block + 1) * rows], rows)  # repeats fill the last block
        weighted = _weigh_by_drug(
            jnp.asarray(fingerprints[block_drugs]), train_bits, drug_of_train, protein_of_train, label, len(proteins)
        )
        pairs = order[starts[block] : starts[block + 1]]
        for first in range(0, len(pairs), _PAIR_BLOCK):
            chosen = pairs[first : first + _PAIR_BLOCK]
            filled = np.resize(chosen, _PAIR_BLOCK)
            values = _weigh_by_protein(
                *weighted,
                cosine,
                jnp.asarray(drug_of_query[filled] - block * rows),
                jnp.asarray(protein_of_query[filled]),
            )
            for name, value in zip(_SIMILARITY, values, strict=True):
                scores[name][chosen] = np.asarray(value)[: len(chosen)] + mean
    # A weighted mean lies between its labels; rounding may not carry a probability below 0.
    return {name: np.clip(score, known.min(), known.max()) for name, score in scores.items()}


@functools.partial(jax.jit, static_argnames="proteins")
def _weigh_by_drug(query_bits, train_bits, drug, protein, label, proteins):
    """Sums of T^4 * label and of T^4 over the training pairs of each protein, [proteins, queries] each; the counts."""
    query_bits, train_bits = query_bits.astype(jnp.float32), train_bits.astype(jnp.float32)
    common = query_bits @ train_bits.T  # whole numbers up to the number of bits: exact at any matmul precision
    either = query_bits.sum(axis=1)[:, None] + train_bits.sum(axis=1)[None, :] - common
    weight = ((common / jnp.maximum(either, 1.0)) ** POWER).T[drug]  # [training pairs, queries]
    add = functools.partial(jax.ops.segment_sum, segment_ids=protein, num_segments=proteins, indices_are_sorted=True)
    return add(weight * label[:, None]), add(weight), add(label), add(jnp.ones_like(label))


@jax.jit
def _weigh_by_protein(drug_labels, drug_weights, labels, counts, cosine, drug, protein):
    """Centred scores of pairs, in the order of ``_SIMILARITY``; 0 where all weights are 0."""
    weight = cosine[protein]  # [pairs, training proteins]

    def ratio(numerator, denominator):
        return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)

    both = ratio((weight * drug_labels.T[drug]).sum(axis=1), (weight * drug_weights.T[drug]).sum(axis=1))
    drug_only = ratio(drug_labels.sum(axis=0), drug_weights.sum(axis=0))[drug]
    add = functools.partial(jnp.matmul, weight, precision="highest")
    protein_only = ratio(add(labels), add(counts))
    return both, drug_only, protein_only


def _forest(task: str, seed: int) -> RandomForestClassifier | RandomForestRegressor:
    if task == "classification":
        return RandomForestClassifier(FOREST_TREES, min_samples_leaf=FOREST_LEAF, n_jobs=2, random_state=seed)
    # A third of the features at each node: the square root is 2.6 times faster on Davis, its test MSE 12 % higher.
    return RandomForestRegressor(
        FOREST_TREES, min_samples_leaf=FOREST_LEAF, max_features=1 / 3, n_jobs=2, random_state=seed
    )


def _linear(task: str) -> LogisticRegression | Ridge:
    if task == "classification":
        return LogisticRegression(C=1 / _LINEAR_PENALTY, max_iter=2000)
    return Ridge(_LINEAR_PENALTY)


def _fit_and_score(model, features: np.ndarray, label: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """float32 scores of the rows of ``asked``, by ``model`` fitted to ``features`` and ``label``."""
    if not len(asked) or len(np.unique(label)) == 1:  # scikit-learn refuses no rows, and a single class
        return np.full(len(asked), label[0], np.float32)
    model.fit(features, label)
    scores = model.predict_proba(asked)[:, 1] if hasattr(model, "predict_proba") else model.predict(asked)
    return scores.astype(np.float32)


def _of_used(
    describe: Callable[[Sequence[str]], np.ndarray],
    entities: np.ndarray,
    index: np.ndarray,
    train: np.ndarray,
    evaluate: np.ndarray,
) -> np.ndarray:
    """Descriptors by entity index, computed for the entities that these rows use; the others stay zero."""
    used = np.unique(np.concatenate([index[train], index[evaluate]]))
    described = describe(entities[used].tolist())
    full = np.zeros((len(entities), described.shape[1]), described.dtype)
    full[used] = described
    return full
