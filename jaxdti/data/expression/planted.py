"""Embedded cell lines and patients under a rule that is known exactly: shared signal, private signal, a confounder.

The expression of a gene is a saturating sum of factors. Shared factors (pathways) are at work in both domains and
decide about the response. Private factors stand for what only one domain has: programs of cells in culture, and the
tissue around a tumour. Each has marker genes of its own and, as stroma does with the mesenchymal program, also moves
the genes of a shared factor the way that factor does, so that those genes mean one thing in cell lines and another in
patients. In the source, private factors and the known confounder (a batch) move the response too; in the target
they do not.

With a the loadings of factors s (shared), p (private to the domain) and c (the confounder, -1 or 1):

    u = s A + p B + c D,    expression = offset + 4 tanh(u / 4) + noise e
    sensitivity of a drug y = s w, of variance 1
    source ln IC50 = -(y + confounding (p v + c / 2)) + noise e'
    target responder ~ Bernoulli(sigmoid(3 y))
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from jaxdti.config import PlantedExpressionConfig
from jaxdti.data.expression.responses import ResponseTable
from jaxdti.data.expression.tables import ExpressionTable

_SHARED_GENES, _PRIVATE_GENES, _BATCH_GENES = 12, 8, 8  # markers of one factor
_COHERENCE = 0.8  # of a private factor's loadings on the genes of the shared factor that it imitates
_BACKGROUND = 0.1  # standard deviation of the loadings on all other genes
_SATURATION = 4.0
_SLOPE = 3.0  # of the target response
_BATCH_SHARES = (0.5, 0.3)  # of samples with c = 1, source and target


@dataclass(frozen=True, kw_only=True)
class PlantedExpression:
    """N source samples, M target samples, G genes, D drugs, K shared and P private factors."""

    source: ExpressionTable
    target: ExpressionTable
    source_response: ResponseTable  # ln IC50 of every cell line and drug
    target_response: ResponseTable  # 1 = responds, of the labelled patients
    source_batch: np.ndarray  # int32 [N], 0 or 1
    target_batch: np.ndarray  # int32 [M]
    drugs: tuple[str, ...]
    source_shared: np.ndarray  # float64 [N, K]
    target_shared: np.ndarray  # float64 [M, K]
    source_private: np.ndarray  # float64 [N, P]
    target_private: np.ndarray  # float64 [M, P]
    weights: np.ndarray  # float64 [K, D]; sensitivity = shared @ weights
    ceiling: dict[str, float]  # AUROC of the true sensitivity against the target labels; NaN where those are all equal


def make_planted_expression(config: PlantedExpressionConfig) -> PlantedExpression:
    """The study of ``config``, the same for the same config."""
    seeds = np.random.SeedSequence(config.seed).spawn(4)
    loading_rng, source_rng, target_rng, response_rng = (np.random.default_rng(seed) for seed in seeds)
    shared, source_private, target_private, batch = _draw_loadings(loading_rng, config)
    offset = loading_rng.normal(6.0, 2.0, config.genes)
    target_offset = offset + config.shift * loading_rng.normal(0.0, 1.0, config.genes)
    weights = _draw_weights(response_rng, config)

    s, p, c, values = _draw_domain(source_rng, config, config.source, shared, source_private, batch, offset, 0)
    t, q, d, target_values = _draw_domain(
        target_rng, config, config.target, shared, target_private, batch, target_offset, 1
    )

    private_weights = np.zeros((config.private, config.drugs))
    for drug in range(config.drugs):
        chosen = response_rng.choice(config.private, min(2, config.private), replace=False)
        private_weights[chosen, drug] = response_rng.choice([-1.0, 1.0], len(chosen)) / np.sqrt(len(chosen))
    confounding = config.confounding * (p @ private_weights + 0.5 * c[:, None])
    ln_ic50 = -(s @ weights + confounding) + response_rng.normal(0.0, config.noise, (config.source, config.drugs))
    sensitivity = t @ weights
    responder = response_rng.random(sensitivity.shape) < expit(_SLOPE * sensitivity)
    labelled = np.sort(response_rng.permutation(config.target)[: round(config.labelled * config.target)])

    drugs = tuple(f"drug {i}" for i in range(config.drugs))
    source = _table("line", values)
    target = _table("patient", target_values)
    everyone = np.arange(config.source)
    return PlantedExpression(
        source=source,
        target=target,
        source_response=_responses(source.samples, drugs, everyone, ln_ic50),
        target_response=_responses(target.samples, drugs, labelled, responder),
        source_batch=(c > 0).astype(np.int32),
        target_batch=(d > 0).astype(np.int32),
        drugs=drugs,
        source_shared=s,
        target_shared=t,
        source_private=p,
        target_private=q,
        weights=weights,
        ceiling={drug: _auroc(responder[labelled, i], sensitivity[labelled, i]) for i, drug in enumerate(drugs)},
    )


def _draw_loadings(rng: np.random.Generator, config: PlantedExpressionConfig):
    """Loadings of the shared factors [K, G], the private ones of source and target [P, G] and the batch [G]."""
    count = config.shared + 2 * config.private + 1
    sizes = [_SHARED_GENES] * config.shared + [_PRIVATE_GENES] * (2 * config.private) + [_BATCH_GENES]
    markers = np.split(rng.permutation(config.genes), np.cumsum(sizes))[:count]
    loadings = rng.normal(0.0, _BACKGROUND, (count, config.genes))
    for factor, genes in enumerate(markers):
        loadings[factor, genes] = rng.choice([-1.0, 1.0], len(genes)) * rng.uniform(0.5, 1.5, len(genes))
    shared = loadings[: config.shared]
    source, target = loadings[config.shared : -1].reshape(2, config.private, config.genes).copy()
    for factor in range(config.private):
        # The first shared factors are imitated in the source, the last ones in the target.
        for private, imitated in ((source, factor), (target, config.shared - 1 - factor)):
            private[factor, markers[imitated]] += _COHERENCE * shared[imitated, markers[imitated]]
    return shared, config.shift * source, config.shift * target, loadings[-1]


def _draw_weights(rng: np.random.Generator, config: PlantedExpressionConfig) -> np.ndarray:
    """Float64 [K, D]: each drug depends on three shared factors, its sensitivity has variance 1."""
    weights = np.zeros((config.shared, config.drugs))
    for drug in range(config.drugs):
        chosen = rng.choice(config.shared, 3, replace=False)
        weights[chosen, drug] = rng.choice([-1.0, 1.0], 3) / np.sqrt(3.0)
    return weights


def _draw_domain(rng, config: PlantedExpressionConfig, count: int, shared, private, batch, offset, domain: int):
    """Factors s [N, K], p [N, P] (skewed, as the share of a tissue is), c [N] and the expression [N, G]."""
    s = rng.normal(size=(count, len(shared)))
    p = (rng.gamma(2.0, 1.0, (count, len(private))) - 2.0) / np.sqrt(2.0)
    c = np.where(rng.random(count) < _BATCH_SHARES[domain], 1.0, -1.0)
    u = s @ shared + p @ private + c[:, None] * batch[None]
    values = offset + _SATURATION * np.tanh(u / _SATURATION) + rng.normal(0.0, config.noise, u.shape)
    return s, p, c, values.astype(np.float32)


def _table(prefix: str, values: np.ndarray) -> ExpressionTable:
    names = lambda word, count: np.array([f"{word}{i:04d}" for i in range(count)], dtype=object)
    return ExpressionTable(samples=names(prefix, len(values)), genes=names("G", values.shape[1]), values=values)


def _responses(samples: np.ndarray, drugs: tuple[str, ...], rows: np.ndarray, values: np.ndarray) -> ResponseTable:
    """The records of all drugs for the samples in ``rows``; values [samples, drugs]."""
    return ResponseTable(
        sample=np.repeat(samples[rows], len(drugs)),
        drug=np.tile(np.array(drugs, dtype=object), len(rows)),
        value=values[rows].astype(np.float64).reshape(-1),
    )


def _auroc(label: np.ndarray, score: np.ndarray) -> float:
    return float("nan") if label.all() or not label.any() else float(roc_auc_score(label, score))
