"""Clusters of similar drugs and of similar proteins, and the draw of those that make the target domain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from jaxdti.data.fingerprints import ecfp4, three_mer_counts
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError

FINGERPRINT_BITS = 2048
_PUBLISHED_BITS, _PUBLISHED_SHARE = 1024, 0.4
_BLOCK = 1024  # rows whose distances to as many others are held at once

Rows = np.ndarray | scipy.sparse.csr_array


SOURCE, TARGET, NEITHER = 0, 1, -1


@dataclass(frozen=True, kw_only=True)
class ClusterDomains:
    """The cluster of each drug and protein of a table, and the domain of that cluster."""

    drug_cluster: np.ndarray  # int64 [D]
    protein_cluster: np.ndarray  # int64 [P]
    drug_domain: np.ndarray  # int64 [D]: SOURCE, TARGET or NEITHER, the same for all drugs of a cluster
    protein_domain: np.ndarray  # int64 [P], likewise

    def lines(self) -> list[str]:
        """How many clusters there are of each kind and in each domain, as text to print."""
        sides = (
            ("drug", self.drug_cluster, self.drug_domain),
            ("protein", self.protein_cluster, self.protein_domain),
        )
        count = lambda clusters: f"{len(np.unique(clusters)):,}"
        return [
            f"{name} clusters: {count(cluster)} of {len(cluster):,} {name}s, the largest of "
            f"{np.bincount(cluster).max():,}; source {count(cluster[domain == SOURCE])}, "
            f"target {count(cluster[domain == TARGET])}"
            for name, cluster, domain in sides
        ]


def jaccard_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - |x & y| / |x | y| of bits: float32 [A, K], [B, K] of 0 and 1 -> float32 [A, B].

    Two rows without any bit are equal: distance 0.
    """
    shared = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - shared
    return (union - shared) / np.maximum(union, 1)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - x.y / (|x| |y|) of counts: float32 [A, K], [B, K] -> float64 [A, B].

    A row of zeros has no direction: its distance is 0 to another such row, which nothing tells apart from it, and 1
    to any other row.
    """
    squares = [np.square(rows, dtype=np.float64).sum(axis=1) for rows in (a, b)]
    # One root of the product: 2 * 2 gives exactly 2, so that rows at the threshold itself are judged rightly.
    lengths = np.sqrt(squares[0][:, None] * squares[1][None])
    similarity = np.divide(a @ b.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.where((squares[0] == 0)[:, None] & (squares[1] == 0)[None], 0.0, 1.0 - similarity)


def single_linkage(
    rows: Rows,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    threshold: float,
    *,
    block: int = _BLOCK,
) -> np.ndarray:
    """Single-linkage clusters: two rows share one when a chain of steps, each of at most ``threshold``, joins them.

    Distances are computed a block at a time and thrown away; what stays is one label a row.

    Args:
      rows: [N, K], dense or sparse.
      distance: of all rows of one block to all of another, such as ``jaccard_distance``.
      threshold: largest distance that joins.
      block: rows of a block; memory grows with ``block * (K + block)``, not with N.

    Returns:
      int64 [N], clusters numbered by first appearance.
    """
    size = rows.shape[0]  # pyright: ignore[reportOptionalSubscript]
    labels = np.arange(size)
    for start in range(0, size, block):
        here = _dense(rows, start, block)
        for other in range(start, size, block):
            near = distance(here, _dense(rows, other, block)) <= threshold
            first, second = (index + offset for index, offset in zip(np.nonzero(near), (start, other), strict=True))
            labels = _join(labels, first, second)
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[cluster]


def _dense(rows: Rows, start: int, block: int) -> np.ndarray:
    part = rows[start : start + block]
    return (part if isinstance(part, np.ndarray) else part.toarray()).astype(np.float32)


def _join(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gives one label to the clusters of ``first[i]`` and ``second[i]``, for every i: int64 [N], [E], [E] -> [N]."""
    a, b = labels[first], labels[second]
    apart = a != b
    if not apart.any():
        return labels
    shape = (len(labels), len(labels))
    edges = scipy.sparse.coo_array((np.ones(apart.sum(), np.int8), (a[apart], b[apart])), shape=shape)
    return connected_components(edges.tocsr(), directed=False)[1].astype(np.int64)[labels]


def cluster_drugs(smiles: Sequence[str], threshold: float = 0.5, *, bits: int = FINGERPRINT_BITS) -> np.ndarray:
    """Clusters of drugs by the Jaccard distance of their ECFP4 fingerprints.

    Args:
      smiles: D strings.
      threshold: largest distance that joins.
      bits: length of the folded fingerprint.

    Returns:
      int64 [D], clusters numbered by first appearance.

    Raises:
      DataError: a SMILES does not parse.
    """
    return single_linkage(ecfp4(smiles, bits=bits), jaccard_distance, threshold)


def cluster_proteins(sequences: Sequence[str], threshold: float = 0.5, *, overlapping: bool = True) -> np.ndarray:
    """Clusters of proteins by the cosine distance of their counts of 3-mers.

    Args:
      sequences: P upper-case strings.
      threshold: largest distance that joins.
      overlapping: how 3-mers are counted, see ``three_mer_counts``.

    Returns:
      int64 [P], clusters numbered by first appearance.
    """
    return single_linkage(three_mer_counts(sequences, overlapping=overlapping), cosine_distance, threshold)


def draw_clusters(
    cluster_of_row: np.ndarray, share: float, rng: np.random.Generator | np.random.RandomState
) -> np.ndarray:
    """Draws a share of the clusters, ordered by their first row, without replacement.

    Args:
      cluster_of_row: int64 [N], the cluster of each row of a table.
      share: of the clusters; the number drawn is rounded down.
      rng: moved on.

    Returns:
      int64, the clusters drawn.
    """
    clusters, first = np.unique(cluster_of_row, return_index=True)
    return rng.choice(clusters[np.argsort(first)], size=int(share * len(clusters)), replace=False)


def draw_domains(
    table: InteractionTable, seed: int, *, threshold: float = 0.5, share: float = 0.4, bits: int = FINGERPRINT_BITS
) -> ClusterDomains:
    """Clusters the drugs and proteins of a table and draws the target domain.

    Args:
      table: N interactions.
      seed: of the draw.
      threshold: largest distance that joins two drugs or two proteins.
      share: of the clusters of each kind that are target.
      bits: length of the fingerprints.
    """
    drug_cluster = cluster_drugs(table.drugs.tolist(), threshold, bits=bits)
    protein_cluster = cluster_proteins(table.proteins.tolist(), threshold)
    return _draw(drug_cluster, protein_cluster, table, np.random.default_rng(seed), share)


def published_domains(table: InteractionTable, order: np.ndarray, seed: int) -> ClusterDomains:
    """Repeats the draw of a published cluster split (Bai et al. 2023, doi 10.1038/s42256-022-00605-1).

    Fingerprints of 1,024 bits, 3-mers whose occurrences share no residue, threshold 0.5, 40 % of the clusters, NumPy's
    legacy generator.

    Args:
      table: all N interactions of the published table, repeated rows too.
      order: int64 [N], its rows in the order of that table.
      seed: of the published draw.
    """
    rows = table.rows(order)
    return _draw(*_published_clusters(table), rows, np.random.RandomState(seed), _PUBLISHED_SHARE)


def domains_of_parts(table: InteractionTable, source: InteractionTable, target: InteractionTable) -> ClusterDomains:
    """The clusters of ``published_domains``, each in the domain whose published rows hold one of its members.

    For a published split whose draw cannot be repeated, because the order of its table is not known. A cluster that
    neither part holds belongs to NEITHER.

    Args:
      table: all interactions of the published table.
      source, target: the published rows of the two domains.

    Raises:
      DataError: source and target share a cluster.
    """
    drug_cluster, protein_cluster = _published_clusters(table)
    drugs = [set(part.drugs[part.drug]) for part in (source, target)]
    proteins = [set(part.proteins[part.protein]) for part in (source, target)]
    return ClusterDomains(
        drug_cluster=drug_cluster,
        protein_cluster=protein_cluster,
        drug_domain=_domain_of_members(drug_cluster, table.drugs, *drugs),
        protein_domain=_domain_of_members(protein_cluster, table.proteins, *proteins),
    )


def _domain_of_members(cluster: np.ndarray, names: np.ndarray, source: set[str], target: set[str]) -> np.ndarray:
    members = (np.array([name in part for name in names]) for part in (source, target))
    in_source, in_target = (np.isin(cluster, cluster[part]) for part in members)
    if shared := len(np.unique(cluster[in_source & in_target])):
        raise DataError(f"the given source and target parts share {shared} clusters; they are of another split")
    return np.select([in_source, in_target], [SOURCE, TARGET], NEITHER)


def _published_clusters(table: InteractionTable) -> tuple[np.ndarray, np.ndarray]:
    drugs = cluster_drugs(table.drugs.tolist(), bits=_PUBLISHED_BITS)
    return drugs, cluster_proteins(table.proteins.tolist(), overlapping=False)


def _draw(
    drug_cluster: np.ndarray,
    protein_cluster: np.ndarray,
    table: InteractionTable,
    rng: np.random.Generator | np.random.RandomState,
    share: float,
) -> ClusterDomains:
    """Draws the target clusters: drugs first, then proteins, as the published splits did."""
    drugs = draw_clusters(drug_cluster[table.drug], share, rng)
    proteins = draw_clusters(protein_cluster[table.protein], share, rng)
    return ClusterDomains(
        drug_cluster=drug_cluster,
        protein_cluster=protein_cluster,
        drug_domain=np.where(np.isin(drug_cluster, drugs), TARGET, SOURCE),
        protein_domain=np.where(np.isin(protein_cluster, proteins), TARGET, SOURCE),
    )
