"""Tables on disk: every dialect, every way to be broken, columns by their usual names, atomic writing."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.data import tables
from jaxdti.data.tables import (
    DRUG_NAMES,
    LABEL_NAMES,
    PROTEIN_NAMES,
    TableFile,
    Wanted,
    check_output,
    find_column,
    read_table,
    table_name,
    write_table,
)
from jaxdti.errors import DataError

ROWS = {"SMILES": ["CCO", "C"], "Protein": ["MKT", "ACD"], "Y": ["1", "0.0"]}
TEXT = b"SMILES,Protein,Y\nCCO,MKT,1\nC,ACD,0.0\n"


def file_of(tmp_path, content: bytes, name="pairs.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def fails(path, *parts):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT.replace(b",", b"\t"),
        TEXT.replace(b",", b";"),
        TEXT.replace(b"\n", b"\r\n"),
        TEXT.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + TEXT,
        b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n"),
        TEXT.rstrip(b"\n"),
        b"\n" + TEXT.replace(b"\n", b"\n\n"),
        TEXT.replace(b"MKT", b'"MKT"').replace(b"Protein", b'"Protein"'),
        gzip.compress(TEXT),
        gzip.compress(TEXT[:22]) + gzip.compress(TEXT[22:]),
        pa.compress(TEXT, "zstd").to_pybytes(),
    ],
    ids="comma tab semicolon crlf cr bom bom+crlf no-end blank quoted gzip two-gzips zstd".split(),
)
def test_every_text_dialect_gives_the_same_strings(tmp_path, content):
    # The name says nothing: the bytes decide.
    assert read_table(file_of(tmp_path, content)).to_pydict() == ROWS


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_parquet_plain_or_compressed(tmp_path, compression):
    path = tmp_path / "pairs.parquet"
    pa.parquet.write_table(pa.table(ROWS), path)
    if compression == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif compression == "zstd":
        path.write_bytes(pa.compress(path.read_bytes(), "zstd").to_pybytes())
    assert TableFile(path).columns == list(ROWS)
    assert read_table(path).to_pydict() == ROWS
    encoded = read_table(path, ["Protein"], encode=["Protein"])
    assert pa.types.is_dictionary(encoded["Protein"].type) and encoded.column_names == ["Protein"]


def test_strings_are_kept_as_they_are(tmp_path):
    content = b'id,note\n007,NA\n1e5,"a,b"\nnull,\n,"two\nlines"\n'
    expected = {"id": ["007", "1e5", "null", ""], "note": ["NA", "a,b", "", "two\nlines"]}
    assert read_table(file_of(tmp_path, content)).to_pydict() == expected


def test_encoded_columns_hold_each_string_once(tmp_path, monkeypatch):
    table = read_table(file_of(tmp_path, b"p,y\n" + b"MKT,1\n" * 1000), encode=["p"])
    assert table["p"].unify_dictionaries().chunk(0).dictionary.to_pylist() == ["MKT"]
    assert table["y"].type == pa.string()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty"]),
        (b"\n\r\n \n", ["empty"]),
        (gzip.compress(b"", mtime=0), ["empty"]),
        (b"\xef\xbb\xbf", ["empty"]),
        (b"\xef\xbb\xbf\r\n", ["empty"]),
        (b"SMILES,Protein,Y\n", ["only the header", "'SMILES', 'Protein', 'Y'"]),
        (b"SMILES,Protein,Y", ["only the header", "'SMILES', 'Protein', 'Y'"]),
        (b'"SMI\nLES",Protein\nC,MKT\n', ["the header has a quote that does not end"]),
        (b"a,b\n1,2\n3\n", ["data row 2", "1 columns", "header has 2"]),
        (b"a,b\n1,2\n3,4\n5,6,7\n", ["data row 3", "3 columns", "header has 2"]),
        (b"a,b,a\n1,2,3\n", ["'a' occurs twice"]),
        ("a,b\n\u00fc,2\n".encode("latin-1"), ["not UTF-8"]),
        ("a,b\n1,2\n3\n\u00fc,2\n".encode("latin-1"), ["data row 2", "1 columns"]),
        ("\u00fc,b\n1,2\n".encode("latin-1"), ["not UTF-8"]),
        (TEXT.decode().encode("utf-16"), ["not a text table"]),
        (bytes(range(256)) * 4, ["not a text table"]),
        (b"\x89PNG\r\n\x1a\n12345", ["not UTF-8"]),
        (gzip.compress(TEXT * 999, mtime=0)[:-40], ["cannot be read"]),
        (b"\x1f\x8b\x08\x00garbage", ["cannot be read"]),
        (b"PAR1 and no more", ["damaged Parquet"]),
    ],
)
def test_broken_files_are_one_line(tmp_path, content, parts):
    fails(file_of(tmp_path, content), *parts)


def test_missing_file_and_directory(tmp_path):
    fails(tmp_path / "absent.csv", "no such file")
    fails(tmp_path, "cannot be read")


def test_truncated_parquet(tmp_path):
    path = tmp_path / "pairs.parquet"
    pa.parquet.write_table(pa.table(ROWS), path)
    path.write_bytes(path.read_bytes()[:-30])
    fails(path, "damaged Parquet")


def test_first_line_too_long_for_a_header(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "HEADER_BYTES", 64)
    fails(file_of(tmp_path, b"A" * 200 + b"\n"), "not a header")


def test_twenty_thousand_columns_have_a_header_of_any_length(tmp_path):
    names = [f"ENSG{i:011d}" for i in range(20_000)]
    file = TableFile(file_of(tmp_path, "\t".join(names).encode() + b"\n" + b"\t".join([b"1"] * 20_000) + b"\n"))
    assert file.columns == names and len(file.read(names[:2])) == 1
    with pytest.raises(DataError, match=r"'ENSG00000000039', \.\.\. \(20,000 columns\)"):
        find_column(names, DRUG, file.path)


DRUG = Wanted("drug", "data.drug_column", None, DRUG_NAMES)
PROTEIN = Wanted("protein", "data.protein_column", None, PROTEIN_NAMES)
LABEL = Wanted("label", "data.label_column", None, LABEL_NAMES)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("SMILES Protein Y", "SMILES Protein Y"),
        ("Drug_ID Drug Target_ID Target Y", "Drug Target Y"),  # TDC
        ("compound_iso_smiles target_sequence affinity", "compound_iso_smiles target_sequence affinity"),
        ("smiles sequence pIC50", "smiles sequence pIC50"),
        ("drug SMILES protein protein_sequence kiba_score", "SMILES protein_sequence kiba_score"),
        ("canonical_smiles PROTEIN pKd", "canonical_smiles PROTEIN pKd"),
        ("Compound Protein-Sequence interaction", "Compound Protein-Sequence interaction"),
    ],
)
def test_usual_names(columns, expected):
    found = [find_column(columns.split(), wanted, Path("t.csv")) for wanted in (DRUG, PROTEIN, LABEL)]
    assert found == expected.split()


def test_names_with_spaces():
    columns = ["Ligand SMILES", "BindingDB Target Chain Sequence", "Binding Affinity"]
    assert [find_column(columns, wanted, Path("t.csv")) for wanted in (DRUG, PROTEIN, LABEL)] == columns


def test_a_given_name_wins_and_must_exist():
    wanted = DRUG._replace(name="mine")
    assert find_column(["SMILES", "mine"], wanted, Path("t.csv")) == "mine"
    with pytest.raises(DataError, match=r"t\.csv: no column 'mine' \(data\.drug_column\); columns found: 'SMILES'"):
        find_column(["SMILES"], wanted, Path("t.csv"))


def test_no_column_lists_found_and_wanted():
    with pytest.raises(DataError) as caught:
        find_column(["a", "b"], DRUG, Path("t.csv"))
    message = str(caught.value)
    assert message.startswith("t.csv: no drug column; columns found: 'a', 'b'; wanted: one of smiles, ")
    assert message.endswith("name it with data.drug_column")
    assert find_column(["a", "b"], DRUG._replace(required=False), Path("t.csv")) is None


def test_wrong_delimiter_is_named_as_the_cause(tmp_path):
    columns = TableFile(file_of(tmp_path, TEXT.replace(b",", b"|"))).columns
    with pytest.raises(DataError, match=r"'SMILES\|Protein\|Y'.*delimiter must be a comma, a tab or a semicolon"):
        find_column(columns, DRUG, Path("t.csv"))


def test_two_equal_matches_are_an_error():
    with pytest.raises(DataError, match=r"'SMILES' and 'smiles' could each be the drug column; name one with data\.dr"):
        find_column(["SMILES", "smiles"], DRUG, Path("t.csv"))


NAMES = ["out.csv", "out.tsv", "out.csv.gz", "out.tsv.zst", "OUT.CSV", "out.parquet", "my.out.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_written_tables_read_back_the_same(tmp_path, name):
    columns = {"plain": ["x", ""], 'odd,\t"name': ["a,b\tc", 'say "hi"\nagain'], "d": ["u", "v"]}
    table = pa.table({**columns, "score": pa.array([0.5, None])})
    table = table.set_column(2, "d", table["d"].dictionary_encode())
    write_table(table, tmp_path / name)
    scores = [0.5, None] if name.endswith("parquet") else ["0.5", ""]
    assert read_table(tmp_path / name).to_pydict() == columns | {"score": scores}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_is_quoted_only_where_needed(tmp_path):
    table = pa.table({"SMILES": ["CCO", ""], "score": [0.5, None]})
    write_table(table, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "SMILES,score\nCCO,0.5\n,\n"
    write_table(table, tmp_path / "out.csv.gz")
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pairs.csv", "pairs"),
        ("in/pairs.v1.csv", "pairs.v1"),
        ("pairs.v1.TSV.gz", "pairs.v1"),
        ("pairs.v1", "pairs.v1"),
        ("p.parquet", "p"),
    ],
)
def test_only_extensions_of_tables_are_taken_from_a_name(name, expected):
    assert table_name(Path(name)) == expected


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gz", "out.parquet.gz", ".csv"])
def test_unknown_extensions(tmp_path, name):
    with pytest.raises(DataError, match="unknown extension"):
        write_table(pa.table(ROWS), tmp_path / name)
    with pytest.raises(DataError, match="unknown extension"):
        check_output(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_text_cannot_hold(tmp_path):
    table = pa.table({"a": [[1], [2, 3]]})
    with pytest.raises(DataError, match=r"out\.csv: cannot be written \(Unsupported Type:list"):
        write_table(table, tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    write_table(pa.table(ROWS), path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "_write_text", full)
    with pytest.raises(DataError, match="cannot be written .No space left"):
        write_table(pa.table({"a": ["1"]}), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_no_directory_to_write_to(tmp_path):
    with pytest.raises(DataError, match=r"out\.csv: cannot be written \(No such file"):
        write_table(pa.table(ROWS), tmp_path / "absent" / "out.csv")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_any_text_survives_a_round_trip(tmp_path_factory, rows):
    table = pa.table({"key": [f"k{i}" for i in range(len(rows))], "a": [a for a, _ in rows], "b": [b for _, b in rows]})
    for suffix in ("csv", "tsv"):
        path = tmp_path_factory.getbasetemp() / f"round.{suffix}"
        write_table(table, path)
        assert read_table(path).to_pydict() == table.to_pydict()
