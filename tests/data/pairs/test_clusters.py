"""Single linkage against SciPy's own, and the published cluster splits repeated from their full tables."""

import numpy as np
import pyarrow.csv
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from jaxdti.config import DataConfig
from jaxdti.data.pairs.clusters import (
    NEITHER,
    SOURCE,
    TARGET,
    cluster_drugs,
    cluster_proteins,
    cosine_distance,
    domains_of_parts,
    draw_clusters,
    draw_domains,
    jaccard_distance,
    single_linkage,
)
from jaxdti.data.pairs.load import load_data, load_published_clusters
from jaxdti.data.pairs.splits import write_split
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError

SMILES = ("CCO", "CCCO", "OCC", "c1ccccc1", "Cc1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "[Na+].[Cl-]", "CCCCCCCC", "CCCCCCC")


def linked(distances, threshold):
    """SciPy's clusters of condensed distances, numbered by first appearance."""
    found = fcluster(linkage(distances, "single"), threshold, "distance")
    return [list(dict.fromkeys(found.tolist())).index(cluster) for cluster in found]


def cosine(rows):
    """Cosine distance by the definition, float64 [N, N]; rows without a count as documented."""
    length = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):
        distance = 1 - (rows @ rows.T) / (length[:, None] * length[None])
    empty = length == 0
    return np.where(empty[:, None] & empty[None], 0.0, np.where(empty[:, None] | empty[None], 1.0, distance))


def random_rows(rng, size, width, density):
    """0/1 rows in loose families, with copies and empty rows among them."""
    centres = rng.random((max(size // 4, 1), width)) < density
    rows = centres[rng.integers(0, len(centres), size)] ^ (rng.random((size, width)) < 0.08)
    rows[rng.random(size) < 0.1] = False
    return rows.astype(np.float32)


@pytest.mark.parametrize("block", [1, 7, 40, 64])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_jaccard_clusters_are_those_of_scipy(threshold, block):
    for seed in range(5):
        rows = random_rows(np.random.default_rng(seed), 40, 24, 0.3)
        found = single_linkage(rows, jaccard_distance, threshold, block=block)
        assert found.dtype == np.int64
        assert found.tolist() == linked(pdist(rows.astype(bool), "jaccard"), threshold)


@pytest.mark.parametrize("block", [1, 7, 40, 64])
@pytest.mark.parametrize("threshold", [0.1, 0.37, 0.5])
def test_cosine_clusters_are_those_of_scipy(threshold, block):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows = random_rows(rng, 40, 24, 0.2) * rng.integers(1, 5, (40, 24))
        expected = squareform(cosine(rows.astype(np.float64)), checks=False)
        expected[np.abs(expected - threshold) < 1e-12] = threshold  # as an exact computation has it
        found = single_linkage(scipy.sparse.csr_array(rows), cosine_distance, threshold, block=block)
        assert found.tolist() == linked(expected, threshold)


@given(data=st.data(), size=st.integers(2, 12), block=st.integers(1, 13))
def test_any_rows_cluster_like_scipy(data, size, block):
    bits = data.draw(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=size, max_size=size))
    rows = np.array(bits, np.float32)
    found = single_linkage(rows, jaccard_distance, 0.5, block=block)
    assert found.tolist() == linked(pdist(rows.astype(bool), "jaccard"), 0.5)


def test_distances_of_empty_rows():
    """Nothing tells two empty rows apart, so they stay together; they are like no other row."""
    rows = np.array([[0, 0], [1, 0], [0, 0], [0, 3]], np.float32)
    np.testing.assert_array_equal(cosine_distance(rows, rows)[0], [0, 1, 0, 1])
    np.testing.assert_array_equal(jaccard_distance(rows[:3], rows[:3])[0], [0, 1, 0])
    assert single_linkage(rows, cosine_distance, 0.5).tolist() == [0, 1, 0, 2]


def test_a_distance_equal_to_the_threshold_joins():
    rows = np.array([[1, 1, 0], [0, 1, 1]], np.float32)  # cosine exactly 1/2, Jaccard distance exactly 2/3
    assert single_linkage(rows, cosine_distance, 0.5).tolist() == [0, 0]
    assert single_linkage(rows, jaccard_distance, 2 / 3).tolist() == [0, 0]
    assert single_linkage(rows, jaccard_distance, 0.66).tolist() == [0, 1]


def test_a_long_chain_over_many_blocks_is_one_cluster():
    """Neighbours share half their bits; shuffled, so that joins come late and from everywhere."""
    size = 200
    chain = np.zeros((size, size + 2), np.float32)
    for i in range(size):
        chain[i, i : i + 3] = 1  # two of four bits shared with the next one
    order = np.random.default_rng(0).permutation(size)
    assert not single_linkage(chain[order], jaccard_distance, 0.5, block=9).any()
    broken = np.delete(chain, size // 2, axis=0)[np.random.default_rng(1).permutation(size - 1)]
    assert sorted(np.bincount(single_linkage(broken, jaccard_distance, 0.5, block=9))) == [99, 100]


def test_drugs_are_clustered_by_ecfp4():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(smiles)) for smiles in SMILES]
    pairs = [(i, j) for i in range(len(prints)) for j in range(i + 1, len(prints))]
    distances = np.array([1 - DataStructs.TanimotoSimilarity(prints[i], prints[j]) for i, j in pairs])
    for threshold in (0.2, 0.5, 0.7):
        assert cluster_drugs(SMILES, threshold).tolist() == linked(distances, threshold)
    found = cluster_drugs(SMILES)
    assert found[0] == found[2] and found[7] == found[8]  # the same molecule; octane and heptane
    assert cluster_drugs(["CCO"]).tolist() == [0] and cluster_drugs([]).tolist() == []


def test_proteins_are_clustered_by_their_3_mers():
    proteins = ["ACDEFGHIK", "MNPQRSTVW", "ACDEFGHIKL", "AC", "XXXX", "WVTSRQPNM"]
    # The third shares 7 of its 8 3-mers with the first; the fourth and fifth have none.
    assert cluster_proteins(proteins).tolist() == [0, 1, 0, 2, 2, 3]
    assert cluster_proteins(["MKT"]).tolist() == [0]


def test_occurrences_that_share_residues_matter_to_the_published_recipe_only():
    pair = ["A" * 9 + "CDEFGH", "A" * 5 + "WYVTSR"]
    counts = np.array([[7, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    assert cosine(counts.astype(float))[0, 1] < 0.5 and cluster_proteins(pair).tolist() == [0, 0]
    counts[:, 0] = 3, 1  # AAA without overlap
    assert cosine(counts.astype(float))[0, 1] > 0.5 and cluster_proteins(pair, overlapping=False).tolist() == [0, 1]


def test_the_draw_counts_clusters_in_order_of_their_rows():
    rows = np.array([5, 5, 2, 9, 2, 0])
    np.random.seed(3)  # noqa: NPY002  the published draws were made so
    expected = np.random.choice([5, 2, 9, 0], size=2, replace=False)  # noqa: NPY002
    np.testing.assert_array_equal(draw_clusters(rows, 0.6, np.random.RandomState(3)), expected)
    assert len(draw_clusters(rows, 0.2, np.random.default_rng(0))) == 0


def table_of(drug, protein):
    return InteractionTable(
        drugs=np.array(SMILES, object),
        proteins=np.array(["ACDEFGHIK", "ACDEFGHIL", "MNPQRSTVW"], object),
        drug=np.array(drug, np.int32),
        protein=np.array(protein, np.int32),
        label=np.zeros(len(drug), np.float32),
        part=np.full(len(drug), "table", object),
        row=np.arange(len(drug)),
    )


def test_domains_hold_whole_clusters():
    table = table_of([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2] * 3)
    for seed in range(5):
        domains = draw_domains(table, seed, share=0.5)
        for cluster, domain in (
            (domains.drug_cluster, domains.drug_domain),
            (domains.protein_cluster, domains.protein_domain),
        ):
            members = [set(domain[cluster == number].tolist()) for number in range(cluster.max() + 1)]
            assert all(len(found) == 1 for found in members)
            assert sum(found == {TARGET} for found in members) == len(members) // 2
        assert len(domains.lines()) == 2 and "target 1" in domains.lines()[1]


def test_domains_of_given_parts():
    table = table_of([0, 3, 5], [0, 2, 2])
    domains = domains_of_parts(table, table.rows(np.array([0])), table.rows(np.array([1])))
    assert domains.drug_domain[[0, 2]].tolist() == [SOURCE, SOURCE]  # the same molecule
    assert domains.drug_domain[[3, 5]].tolist() == [TARGET, NEITHER]
    assert domains.protein_domain.tolist() == [SOURCE, SOURCE, TARGET]  # the second resembles the first
    with pytest.raises(DataError, match="share 1 clusters"):
        domains_of_parts(table, table.rows(np.array([1])), table.rows(np.array([1, 2])))


# The published splits


def published_pairs(folder, *parts):
    rows = [pyarrow.csv.read_csv(folder / "cluster" / f"{part}.csv.gz") for part in parts]
    return {pair for table in rows for pair in zip(*map(as_list, (table["SMILES"], table["Protein"])), strict=True)}


def as_list(column):
    return column.to_pylist()


def pairs_of(dataset, *parts):
    table, rows = dataset.table, np.concatenate([dataset.parts[part] for part in parts])
    return set(zip(table.drugs[table.drug[rows]], table.proteins[table.protein[rows]], strict=True))


def canonical(pairs):
    names = {smiles: Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) for smiles in {smiles for smiles, _ in pairs}}
    return {(names[smiles], protein.upper()) for smiles, protein in pairs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clusters", "sizes"),
    [("biosnap", (2387, 1978), (9765, 4533)), ("bindingdb", (2780, 1693), (14928, 8893))],
)
def test_published_domains(data_dir, monkeypatch, tmp_path, name, clusters, sizes):
    """BioSNAP by repeating the draw; BindingDB, the order of whose table is unknown, by the clusters of its parts."""
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    dataset = load_published_clusters(DataConfig(dataset=f"{name}/random"), "classification")
    lines = "\n".join(dataset.lines)
    assert f"drug clusters: {clusters[0]:,} of" in lines and f"protein clusters: {clusters[1]:,} of" in lines
    source, target = pairs_of(dataset, "train", "validation"), pairs_of(dataset, "target_train", "test")
    assert (len(source), len(target)) == sizes
    assert source == canonical(published_pairs(data_dir / name, "source_train"))
    assert target == canonical(published_pairs(data_dir / name, "target_train", "target_test"))
    write_split(tmp_path / "split.json", dataset.parts, dataset.table, "cluster", 0)
    again = load_data(DataConfig(dataset=f"{name}/random", split_file=str(tmp_path / "split.json")), "classification")
    assert all(np.array_equal(again.parts[part], rows) for part, rows in dataset.parts.items())


def test_only_known_recipes_are_repeated():
    with pytest.raises(DataError, match="human/random: its cluster split cannot be repeated; known for biosnap/random"):
        load_published_clusters(DataConfig(dataset="human/random"), "classification")
