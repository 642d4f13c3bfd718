"""The relational layout gives what the flat one gives."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxdti.config import DataConfig
from jaxdti.data.pairs.validation import KEY, load_for_prediction, load_interactions
from jaxdti.errors import DataError

MKT, ACD = "MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture
def relational(tmp_path):
    """Writes the three tables, texts given, and returns the configuration with the two side tables."""

    def write(
        pairs, drugs="drug,SMILES\n0,CCO\n1,c1ccccc1\n", proteins=f"protein,Protein\n0,{MKT}\n7,{ACD}\n", **options
    ):
        for name, text in (("pairs", pairs), ("drugs", drugs), ("proteins", proteins)):
            (tmp_path / f"{name}.csv").write_text(text)
        sides = {name: str(tmp_path / f"{name}.csv") for name in ("drugs", "proteins")}
        return DataConfig(**({**sides, "max_rejected": 1.0} | options)), tmp_path / "pairs.csv"

    return write


def triples(table):
    return list(zip(table.drugs[table.drug], table.proteins[table.protein], table.label.tolist(), strict=True))


def test_relational_equals_flat(relational, tmp_path):
    data, pairs = relational("drug,protein,Y\n1,7,1\n0,0,0\n0,7,1\n")
    flat = tmp_path / "flat.csv"
    flat.write_text(f"SMILES,Protein,Y\nc1ccccc1,{ACD},1\nCCO,{MKT},0\nCCO,{ACD},1\n")
    found = load_interactions(data, {"table": pairs}, "classification")
    expected = load_interactions(DataConfig(), {"table": flat}, "classification")
    assert triples(found.table) == triples(expected.table)
    assert found.table.row.tolist() == expected.table.row.tolist() == [0, 1, 2]
    assert found.store.atom_counts.tolist() == expected.store.atom_counts.tolist() == [6, 3]


def test_integer_keys_of_parquet_match_those_of_csv(relational, tmp_path):
    data, _ = relational("drug,protein,Y\n0,0,0\n")
    path = tmp_path / "pairs.parquet"
    pa.parquet.write_table(pa.table({"drug": [1, 0], "protein": [7, 7], "Y": [1, 0]}), path)
    assert triples(load_interactions(data, {"table": path}, "classification").table) == [
        ("c1ccccc1", ACD, 1.0),
        ("CCO", ACD, 0.0),
    ]


def parquet(tmp_path, **columns):
    path = tmp_path / "pairs.parquet"
    pa.parquet.write_table(pa.table({"SMILES": ["CCO", "CCN"], "Protein": [MKT, ACD], "Y": [1, 0]} | columns), path)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {"SMILES": [b"CCO", b"CCN"], "Protein": [MKT.encode(), ACD.encode()], "Y": [b"1", b"0"]},
        {"SMILES": pa.array(["CCO", "CCN"]).dictionary_encode(), "Y": pa.array([1.0, 0.0]).dictionary_encode()},
        {"Y": [True, False]},
    ],
    ids=["binary", "dictionary", "boolean"],
)
def test_parquet_types_that_are_text_in_other_clothes(tmp_path, columns):
    path = parquet(tmp_path, **columns)
    found = load_interactions(DataConfig(), {"table": path}, "classification").table
    assert triples(found) == [("CCO", MKT, 1.0), ("CCN", ACD, 0.0)]
    assert load_for_prediction(path, DataConfig()).errors.tolist() == ["", ""]


@pytest.mark.parametrize("name", ["SMILES", "Protein", "Y"])
def test_parquet_columns_that_are_no_text_are_named(tmp_path, name):
    path = parquet(tmp_path, **{name: [["1"], ["0"]]})
    with pytest.raises(DataError, match=rf"pairs\.parquet: column '{name}' holds values of type list<.*text"):
        load_interactions(DataConfig(), {"table": path}, "classification")
    path = parquet(tmp_path, **{name: [b"\xff", b"\xff"]})
    with pytest.raises(DataError, match=rf"pairs\.parquet: column '{name}': the text is not UTF-8"):
        load_interactions(DataConfig(), {"table": path}, "classification")


def test_one_side_may_stay_flat(relational, tmp_path):
    data, pairs = relational(f"drug,Sequence,Y\n1,{MKT},1\n")
    data = DataConfig(drugs=data.drugs)
    assert triples(load_interactions(data, {"table": pairs}, "classification").table) == [("c1ccccc1", MKT, 1.0)]


def test_given_names_choose_the_texts_of_the_side_tables(relational):
    data, pairs = relational(
        "drug,protein,Y\n0,0,1\n", drugs="drug,SMILES,SMILES_flat\n0,CCO,CCN\n", drug_column="SMILES_flat"
    )
    assert triples(load_interactions(data, {"table": pairs}, "classification").table) == [("CCN", MKT, 1.0)]


def test_unknown_and_empty_keys_reject_the_row(relational):
    data, pairs = relational("drug,protein,Y\n0,0,1\n5,0,1\n0,9,1\n,0,1\n")
    report = load_interactions(data, {"table": pairs}, "classification").report
    rows = [(row.row, row.field, row.value, row.reason) for row in report.rejected]
    assert rows == [
        (2, "drug", "5", f"no such key in {data.drugs}"),
        (3, "protein", "9", f"no such key in {data.proteins}"),
        (4, "drug", "", "empty cell"),
    ]
    assert report.rejected_by_kind[KEY] == 2


def test_faults_of_the_side_tables_are_told_by_row_of_pairs(relational):
    data, pairs = relational("drug,protein,Y\n0,0,1\n1,0,1\n2,0,1\n", drugs="drug,SMILES\n0,CCO\n1,CCX\n2,\n")
    report = load_interactions(data, {"table": pairs}, "classification").report
    assert [(row.row, row.field, row.value) for row in report.rejected] == [(2, "SMILES", "CCX"), (3, "SMILES", "2")]
    assert report.rejected[1].reason == f"empty cell in {data.drugs}"


def test_duplicate_keys_are_an_error(relational):
    data, pairs = relational("drug,protein,Y\n0,0,1\n", drugs="drug,SMILES\n0,CCO\n1,C\n0,CCN\n")
    with pytest.raises(DataError, match=r"drugs\.csv: data row 3: the key drug='0' is that of row 1 too"):
        load_interactions(data, {"table": pairs}, "classification")


def test_missing_key_and_text_columns(relational):
    data, pairs = relational("compound_name,protein,Y\n0,0,1\n")
    with pytest.raises(DataError, match=r"pairs\.csv: no drug key column; columns found: 'compound_name'"):
        load_interactions(data, {"table": pairs}, "classification")
    data, pairs = relational("drug,protein,Y\n0,0,1\n", proteins="protein,name\n0,AAK1\n")
    with pytest.raises(DataError, match=r"proteins\.csv: no protein \(sequence\) column; columns found: 'name'"):
        load_interactions(data, {"table": pairs}, "classification")


def test_one_column_cannot_be_both(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"SMILES,Protein,Y\nCCO,{MKT},1\n")
    data = DataConfig(drug_column="SMILES", protein_column="SMILES")
    with pytest.raises(DataError, match="'SMILES' cannot be both"):
        load_interactions(data, {"table": path}, "classification")


def test_prediction_by_keys(relational):
    data, pairs = relational("protein,note,drug\n7,a,1\n9,b,0\n")
    found = load_for_prediction(pairs, data)
    assert found.columns.to_pydict() == {"protein": ["7", "9"], "note": ["a", "b"], "drug": ["1", "0"]}
    assert found.errors.tolist() == ["", f"protein: no such key in {data.proteins}"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "table", "rows"), [("davis", "affinity", 30056), ("kiba", "affinity", 118254)])
def test_real_relational_sets(data_dir, name, table, rows):
    data = DataConfig(drugs=str(data_dir / name / "drugs.csv.gz"), proteins=str(data_dir / name / "proteins.csv.gz"))
    found = load_interactions(data, {"table": data_dir / name / f"{table}.csv.gz"}, "regression")
    assert len(found.table) == rows and not found.report.rejected
    if name == "davis":
        assert (len(found.table.drugs), len(found.table.proteins)) == (68, 379)
        assert found.report.replicates == 30056 - 25772
        assert found.table.label.mean() == pytest.approx(5.452, abs=5e-4)
