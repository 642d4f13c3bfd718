"""Digits and tables of features with two domains: parts that do not overlap, shifts, what is refused."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.datasets import load_digits

from jaxdti.data.fingerprints import ecfp4
from jaxdti.data.vectors.digits import SHIFTS, load_digit_domains
from jaxdti.data.vectors.domains import TABLES, FeatureSpace, read_domains, split_source
from jaxdti.data.vectors.planted import CLASSES, STRENGTHS, TARGET_CLASSES, load_planted_domains
from jaxdti.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return load_digit_domains((), validation=0.2, seeds=(0, 1))


def test_the_parts_of_the_digits(digits):
    images = len(load_digits().target)
    assert list(digits.tasks) == list(SHIFTS) and digits.features.shape == (images * (1 + len(SHIFTS)), 64)
    for number, parts in enumerate(digits.tasks.values(), 1):
        for own in parts:
            source = np.concatenate([own["train"], own["validation"]])
            target = np.concatenate([own["target_train"], own["test"]])
            assert source.max() < images and set(digits.label[source]) == set(range(10))
            assert set(digits.label[target]) == set(range(5)) and set(target // images) == {number}
            assert not set(source) & set(target % images)  # no image is in both domains
            assert len(set(source)) == len(source) and len(set(target)) == len(target)
        assert not np.array_equal(parts[0]["train"], parts[1]["train"])


def test_the_parts_do_not_depend_on_which_shifts_are_asked_for(digits):
    alone = load_digit_domains(["noise"], validation=0.2, seeds=(1,))
    rows, all_rows = alone.tasks["noise"][0]["test"], digits.tasks["noise"][1]["test"]
    np.testing.assert_array_equal(alone.features[rows], digits.features[all_rows])


def test_the_shifts():
    image = np.zeros((1, 8, 8))
    image[0, 2, 5] = 1.0
    moved = SHIFTS["translation"](image)
    assert moved[0, 3, 6] == pytest.approx(1.0) and moved.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(SHIFTS["inversion"](image), 1 - image)
    np.testing.assert_allclose(SHIFTS["contrast"](image), 0.3 + 0.4 * image)
    assert SHIFTS["blur"](image).max() < 0.2
    smaller = SHIFTS["scale"](np.ones((1, 8, 8)))
    assert smaller[0, 0].max() == 0 and smaller[0, 3, 3] == pytest.approx(1.0)
    np.testing.assert_allclose(smaller, smaller[:, ::-1, ::-1], atol=1e-12)
    for shift in SHIFTS.values():
        np.testing.assert_array_equal(shift(image), shift(image))


def test_at_least_one_row_validates_and_one_trains():
    for share in (0.01, 0.5):
        parts = split_source(np.arange(2), share, 0)
        assert {len(parts["train"]), len(parts["validation"])} == {1}


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def tables(tmp_path):
    source = write(tmp_path, "source.csv", "a,b,label\n1,2,x\n3,6,y\n5,10,x\n")
    target = write(tmp_path, "target.csv", "b,a\n1,2\n")
    test = write(tmp_path, "test.csv", "label,a,b\nx,3,6\n")
    return {"source": source, "target": target, "test": test}


def read(tables, **settings):
    given = {"validation": 0.3, "seeds": (0,)}
    return read_domains(**tables, **(given | settings))


def test_given_tables(tables):
    found = read(tables)
    np.testing.assert_allclose(found.features[:3].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.features[:3].std(0), 1, rtol=1e-6)
    np.testing.assert_allclose(found.features[4], 0, atol=1e-6)  # the source's mean
    assert found.features[3, 0] == pytest.approx((2 - 3) / np.std([1, 3, 5]))  # columns by name, not by place
    assert found.classes == ("x", "y") and found.label.tolist() == [0, 1, 0, -1, 0]
    parts = found.tasks[TABLES][0]
    assert parts["target_train"].tolist() == [3] and parts["test"].tolist() == [4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("source", "a,b,label\n1,2,x\n3,4,x\n", "1 class in 'label'"),
        ("source", "label\nx\ny\n", "no column of features"),
        ("source", "a,b,label\n1,two,x\n3,4,y\n", r"row 1: column 'b' holds 'two'; .* \(1 such rows\)"),
        ("source", "a,b,label\n1,2,x\n3,nan,y\n", r"row 2: column 'b' holds 'nan'; a finite float32 number"),
        ("source", "a,b,label\n1,2,x\n3,4,\n", "1 rows have no label, the first is row 2"),
        ("target", "a\n1\n", "no column 'b', which the source has"),
        ("target", "a,b\n1,2\n1,1e300\n", r"row 2: column 'b' holds '1e300'; a finite float32 number"),
        ("test", "label,a,b\nz,3,6\n", "'z', which is no class"),
        ("test", "a,b\n3,6\n", r"test\.csv: no label column; columns found: 'a', 'b'"),
    ],
)
def test_what_is_wrong_with_given_tables(tables, name, text, message):
    tables[name].write_text(text)
    with pytest.raises(DataError, match=message):
        read(tables)


def test_a_column_of_dates_is_no_feature(tables, tmp_path):
    columns = {"a": [1, 3], "b": [datetime.date(2020, 1, 1)] * 2, "label": ["x", "y"]}
    tables["source"] = tmp_path / "source.parquet"
    pa.parquet.write_table(pa.table(columns), tables["source"])
    with pytest.raises(DataError, match=r"source\.parquet: row 1: column 'b' holds datetime.date"):
        read(tables)


def test_the_label_is_found_among_usual_names_or_named(tables):
    write(tables["source"].parent, "source.csv", "a,b,Y,kind\n1,2,x,u\n3,6,y,v\n5,10,x,u\n")
    with pytest.raises(DataError, match=r"row 1: column 'kind' holds 'u'"):
        read(tables)
    write(tables["source"].parent, "source.csv", "y,Label,a,b\n1,x,1,2\n2,y,3,6\n")
    with pytest.raises(DataError, match="no column 'y', which the source has"):  # "label" comes before "y"
        read(tables)
    write(tables["source"].parent, "source.csv", "a,b,Y\n1,2,x\n3,6,y\n")
    assert read(tables).label.tolist() == [0, 1, -1, 0]
    with pytest.raises(DataError, match=r"no column 'class' \(vectors.label_column\); columns found"):
        read(tables, label_column="class")


def test_labels_with_and_without_a_point_are_one_class(tables):
    write(tables["source"].parent, "source.csv", "a,b,label\n1,2,1\n3,6,0\n")
    write(tables["source"].parent, "test.csv", "a,b,label\n1,2,1.0\n3,6,0.\n")
    found = read(tables)
    assert found.classes == ("0", "1") and found.label.tolist() == [1, 0, -1, 1, 0]
    write(tables["source"].parent, "test.csv", "a,b,label\n1,2,1.5\n")
    with pytest.raises(DataError, match="holds '1.5', which is no class"):
        read(tables)
    write(tables["source"].parent, "test.csv", "a,b,label\n1,2,1\n1,2,NaN\n")
    with pytest.raises(DataError, match="1 rows have no label, the first is row 2"):
        read(tables)


def test_a_number_that_leaves_float32_when_it_is_standardised(tmp_path):
    space = FeatureSpace(columns=("a",), mean=(0.0,), deviation=(1e-3,))
    with pytest.raises(DataError, match=r"row 2: a number is beyond float32 once it is standardised \(1 such rows\)"):
        space.read(write(tmp_path, "new.csv", "a\n1\n3e38\n"))


def test_without_a_target_and_with_rows_that_repeat(tables):
    found = read(tables | {"target": None})
    assert len(found.tasks[TABLES][0]["target_train"]) == 0 and len(found.features) == 4
    assert "1 of the test rows have the features of a source row" in found.lines


def test_smiles_become_fingerprints(tables, tmp_path):
    for name, smiles in (("source", ["CCO", "c1ccccc1", "OCC"]), ("target", ["CN"]), ("test", ["CCN"])):
        rows = "".join(f"{text},x{i % 2}\n" for i, text in enumerate(smiles))
        write(tmp_path, f"{name}.csv", "SMILES,label\n" + rows)
    found = read(tables, fingerprint_bits=64)
    assert found.features.shape == (5, 64) and found.space == FeatureSpace(fingerprint_bits=64)
    np.testing.assert_array_equal(found.features, ecfp4(["CCO", "c1ccccc1", "CCO", "CN", "CCN"], bits=64))
    write(tmp_path, "test.csv", "SMILES,label\nCCN,x0\nC(C,x1\n")
    with pytest.raises(DataError, match=r"test\.csv: row 2: SMILES 'C\(C': not a valid SMILES"):
        read(tables, fingerprint_bits=64)


def test_the_space_of_a_network_reads_other_tables_alike(tables):
    found = read(tables)
    assert found.space is not None
    np.testing.assert_array_equal(found.space.read(tables["target"]), found.features[3:4])
    write(tables["source"].parent, "other.csv", "b,a,label\n1,2,y\n2,2,x\n")
    other = read(tables | {"source": tables["source"].parent / "other.csv"}, space=found.space)
    np.testing.assert_array_equal(other.features[0], found.features[3])  # not the means of the other table


def test_no_such_shift():
    with pytest.raises(DataError, match="'tilt': choose from rotation"):
        load_digit_domains(["tilt"], validation=0.2, seeds=(0,))


@pytest.fixture(scope="module")
def planted():
    return load_planted_domains(("0", "0.5", "2"), validation=0.2, seeds=(0, 1))


def test_the_parts_of_the_planted_vectors(planted):
    again = load_planted_domains(("0", "0.5", "2"), validation=0.2, seeds=(0, 1))
    np.testing.assert_array_equal(planted.features, again.features)
    assert list(load_planted_domains((), validation=0.2, seeds=(0,)).tasks) == list(STRENGTHS)
    used = []
    for parts in planted.tasks.values():
        for own in parts:
            source = np.concatenate([own["train"], own["validation"]])
            assert np.bincount(planted.label[source]).tolist() == [200] * CLASSES
            assert np.bincount(planted.label[own["target_train"]]).tolist() == [200] * TARGET_CLASSES
            assert np.bincount(planted.label[own["test"]]).tolist() == [100] * TARGET_CLASSES
            used += [*source, *own["target_train"], *own["test"]]
    assert sorted(used) == list(range(len(planted.label)))  # every row in one part of one task


def test_the_planted_shift_keeps_distances_and_moves_by_its_strength(planted):
    rows = lambda task, part: planted.features[planted.tasks[task][0][part]].astype(np.float64)
    distances = lambda x: np.linalg.norm(x[:50, None] - x[None, :50], axis=-1)
    none, weak, strong = (rows(task, "test") for task in ("0", "0.5", "2"))
    for moved in (weak, strong):
        np.testing.assert_allclose(distances(moved), distances(none), atol=1e-4)
        np.testing.assert_array_equal(rows("0", "train"), rows("0.5", "train"))
    assert 0 < np.linalg.norm(weak - none, axis=1).mean() < np.linalg.norm(strong - none, axis=1).mean()
    # Strength 2 turns by a right angle in every plane: z' = R z + 6 t, so that turning twice is -1.
    basis = np.linalg.svd(none - none.mean(0), full_matrices=False)[2]
    turn = np.linalg.lstsq((none - none.mean(0)) @ basis.T, (strong - strong.mean(0)) @ basis.T, rcond=None)[0]
    values = np.sort_complex(np.linalg.eigvals(turn))
    np.testing.assert_allclose(np.abs(values), 1.0, atol=1e-3)
    assert np.sum(np.abs(values - 1) < 1e-3) == 32 - 8 and np.sum(np.abs(np.abs(values.imag) - 1) < 1e-3) == 8


@pytest.mark.parametrize("strength", ["far", "-1", "nan", "inf"])
def test_no_such_strength(strength):
    with pytest.raises(DataError, match=f"{strength!r}: strengths of the shift are expected, such as 0,0.5,1"):
        load_planted_domains([strength], validation=0.2, seeds=(0,))
