"""Expression and responses of a study: what happens to every kind of bad input, and the sign of the labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxdti.config import PlantedExpressionConfig, ResponseConfig
from jaxdti.data.expression.responses import class_problem, fold_labels, fold_of_samples, label_of
from jaxdti.data.expression.study import load_study
from jaxdti.data.expression.tables import standardise
from jaxdti.errors import DataError

GENES = ("TP53", "KRAS", "EGFR", "C1orf112", "MYC")
LINES = tuple(f"L{i:03d}" for i in range(60))
PATIENTS = tuple(f"P{i:03d}" for i in range(30))


def values(rows, genes=GENES, seed=0):
    rng = np.random.default_rng(seed)
    return {gene: [f"{x:.4f}" for x in rng.normal(size=len(rows))] for gene in genes}


class Tables:
    """The files of a small study; every test spoils one of them."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(3)
        self.source = {"cell": list(LINES), **values(LINES)}
        self.target = {"patient": list(PATIENTS), **values(PATIENTS, seed=1)}
        self.source_response = {
            "cell": list(LINES),
            "drug": ["Alpha"] * len(LINES),
            "ln_IC50": [f"{x:.4f}" for x in rng.normal(size=len(LINES))],
        }
        self.target_response = {
            "patient": list(PATIENTS),
            "drug": ["alpha"] * len(PATIENTS),
            "responder": [str(i % 2) for i in range(len(PATIENTS))],
        }
        self.settings = {}

    def write(self, name, separator=","):
        columns = getattr(self, name)
        path = self.folder / f"{name}.{'csv' if separator == ',' else 'tsv'}"
        rows = zip(*columns.values(), strict=True)
        text = [separator.join(columns), *(separator.join(row) for row in rows)]
        path.write_text("\n".join(text) + "\n")
        return str(path)

    def config(self):
        names = ("source", "target", "source_response", "target_response")
        paths = {name: self.write(name, "\t" if name == "target" else ",") for name in names if hasattr(self, name)}
        return ResponseConfig(
            **{
                "source_expression": paths.pop("source"),
                "target_expression": paths.pop("target"),
                **paths,
                **self.settings,
            }
        )

    def load(self):
        return load_study(self.config())

    def error(self):
        with pytest.raises(DataError) as caught:
            self.load()
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(self.folder) + "/", "")


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def left_out(study, what):
    return {item.name: item.reason for item in study.left_out if item.what == what}


def test_a_clean_study_is_read_whole(tables):
    study = tables.load()
    assert tuple(study.genes) == tuple(gene.upper() for gene in GENES)
    assert study.source.shape == (60, 5) and study.target.shape == (30, 5)
    assert study.drugs == ("Alpha",) and study.source_response.shape == (60, 1)
    np.testing.assert_allclose(study.source.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(study.target.std(0), 1.0, rtol=1e-5)
    assert not study.left_out and study.labelled.all()
    np.testing.assert_array_equal(study.target_response[:, 0], np.arange(30) % 2)


def test_the_domains_may_name_samples_and_drugs_differently(tables):
    expected = tables.load()
    for name, old, new in (
        ("source", "cell", "line"),
        ("source_response", "cell", "line"),
        ("source_response", "drug", "d"),
    ):
        columns = getattr(tables, name)
        setattr(tables, name, {new: columns.pop(old), **columns})
    tables.settings |= {"sample_column": "line", "drug_column": "d"}
    assert tables.load().identity() == expected.identity()
    tables.settings["sample_column"] = "lime"
    assert tables.error() == (
        "response.sample_column='lime': no table has such a column: source.csv, target.tsv, source_response.csv, "
        "target_response.csv"
    )


def test_parquet_gives_the_same_study(tables):
    expected = tables.load()
    path = tables.folder / "source.parquet"
    numbers = {name: column if name == "cell" else np.float64(column) for name, column in tables.source.items()}
    pyarrow.parquet.write_table(pa.table(numbers), path)
    tables.settings["source_expression"] = str(path)
    assert tables.load().identity() == expected.identity()


def test_genes_in_another_order_are_matched_by_symbol(tables):
    expected = tables.load()
    tables.target = {"patient": tables.target["patient"]} | {
        f" {gene.lower()} ": tables.target[gene] for gene in reversed(GENES)
    }
    np.testing.assert_array_equal(tables.load().target, expected.target)


def test_genes_missing_in_a_domain_are_listed(tables):
    del tables.target["KRAS"]
    tables.target["XIST"] = values(PATIENTS, ["XIST"], 5)["XIST"]
    study = tables.load()
    assert "KRAS" not in study.genes and study.source.shape[1] == 4
    assert left_out(study, "gene") == {"KRAS": "not in the target expression", "XIST": "not in the source expression"}
    assert "  1 columns only in the source: KRAS" in study.lines


def test_tables_without_common_genes_are_refused(tables):
    tables.target = {"patient": tables.target["patient"]} | values(PATIENTS, ["7157", "3845"])
    assert tables.error().startswith("source and target expression share 0 gene symbols of 5 and 2 columns (such as")


def test_a_gene_symbol_twice_is_refused(tables):
    tables.source["tp53"] = tables.source["TP53"]
    assert tables.error() == (
        "source.csv: the gene TP53 has two columns, 'TP53' and 'tp53'; average them, or remove one"
    )


@pytest.mark.parametrize("cell", ["", "NaN", " na "])
def test_a_sample_without_a_value_is_left_out_and_listed(tables, cell):
    tables.source["KRAS"][4] = cell
    study = tables.load()
    assert ("source sample", "L004", "lacks 1 values, as of KRAS") in study.left_out
    assert len(study.source_samples) == 59 and np.isfinite(study.source).all()


def test_a_gene_that_many_samples_lack_is_an_error(tables):
    tables.source["KRAS"][:7] = [""] * 7
    assert tables.error().startswith(
        "source expression: 7 of 60 samples lack a value, most often of KRAS (7 samples); at most 5% are left out"
    )


@pytest.mark.parametrize(
    "cell, message",
    [
        ("high", "'high'; a number is expected"),
        ("inf", "infinite"),
        ("-1e300", "-1e+300; a number of at most 3.4e+38 is expected"),
    ],
)
def test_a_cell_that_is_no_number_is_an_error(tables, cell, message):
    tables.target["EGFR"][2] = cell
    assert tables.error().startswith("target.tsv: EGFR of 'P002' is ") and message in tables.error()


def test_constant_genes_are_left_out_and_listed(tables):
    tables.target["MYC"] = ["2.5"] * len(PATIENTS)
    study = tables.load()
    assert left_out(study, "gene") == {"MYC": "constant in the target"} and "MYC" not in study.genes


def test_inductive_takes_nothing_from_samples_with_a_response(tables):
    """Neither scale nor constant genes: the pre-trained models would know of them."""
    tables.target_response = {name: column[:10] for name, column in tables.target_response.items()}
    tables.target["MYC"] = ["1.5"] + ["2.5"] * 29  # varies by a patient with a response alone
    assert "MYC" in tables.load().genes
    tables.settings["protocols"] = ("transductive", "inductive")
    study = tables.load()
    assert left_out(study, "gene") == {"MYC": "constant in the target"}
    np.testing.assert_allclose(study.target[10:].mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(study.target[10:].std(0), 1.0, rtol=1e-5)
    assert "  inductive: scale and constant genes of the target by its 20 samples without a response" in study.lines
    tables.target["TP53"][:10] = ["99"] * 10
    moved = tables.load()
    np.testing.assert_array_equal(moved.target[10:], study.target[10:])


def test_a_sample_twice_is_an_error(tables):
    tables.source["cell"][1] = tables.source["cell"][0]
    assert tables.error() == "source.csv: the sample 'L000' twice in column 'cell'; one row a sample is expected"


def test_a_first_column_of_expression_is_no_column_of_samples(tables):
    del tables.target["patient"], tables.target_response
    first = tables.target["TP53"][0]
    assert tables.error() == (
        f"target.tsv: no column of sample names: the first, 'TP53', holds values such as {first!r}; add one, or name "
        "it with response.sample_column"
    )


def test_sample_names_in_a_nameless_first_column_are_told(tables):
    tables.target = {"": [str(i) for i in range(30)], **{gene: tables.target[gene] for gene in GENES}}
    tables.target_response["patient"] = [str(i) for i in range(30)]
    study = tables.load()
    assert list(study.target_samples[:2]) == ["0", "1"]
    (line,) = [line for line in study.lines if "first column" in line]
    assert line.endswith("target.tsv: sample names are taken from its first column, ''")


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"thresholds": "t.csv", "source_kind": "binary"},
            "response.thresholds='t.csv' would not be read: response.so",
        ),
        ({"target_value_column": "y"}, "response.target_value_column='y' would not be read: response.target_response"),
        ({"date_column": "day"}, "response.date_column='day' would not be read: response.target_response is not given"),
        (
            {"date_column": "day", "target_response": "r.csv", "target_kind": "continuous"},
            "response.date_column='day' would not be read: repeated continuous responses are averaged",
        ),
        (
            {"confounder_column": "sex"},
            "response.confounder_column='sex' would not be read: response.confounders is not",
        ),
    ],
)
def test_a_name_that_would_not_be_read_is_an_error(settings, message):
    with pytest.raises(ValueError) as caught:
        ResponseConfig(**settings)
    assert message in str(caught.value)


def test_a_sample_of_both_domains_is_an_error(tables):
    tables.target["patient"][0] = "L007"
    assert tables.error() == (
        "source and target expression both have 1 samples, such as 'L007'; a sample belongs to one domain"
    )


def test_ids_that_do_not_match_at_all_are_an_error(tables):
    tables.source_response["cell"] = [f"ACH-{i}" for i in range(60)]
    assert tables.error() == (
        "source responses: no sample has expression; responses name 'ACH-0', ..., the expression table 'L000', ..."
    )


def test_ids_that_match_in_part_are_counted_and_listed(tables):
    tables.source_response["cell"][:2] = ["ACH-1", "ACH-2"]
    study = tables.load()
    assert left_out(study, "source sample") == dict.fromkeys(("ACH-1", "ACH-2"), "responses, but no expression")
    assert "  2 samples with responses have no source expression" in study.lines
    assert np.isnan(study.source_response[:2, 0]).all()


def test_a_drug_with_one_class_only_is_left_out_with_the_counts(tables):
    tables.settings["thresholds"] = str(tables.folder / "thresholds.csv")
    (tables.folder / "thresholds.csv").write_text("drug,threshold\nalpha,-99\n")
    assert tables.error() == (
        "no drug has enough source samples: Alpha: 0 sensitive and 60 resistant source samples; "
        "at least 20 of each are needed"
    )


def test_five_labelled_samples_are_too_few_and_other_drugs_go_on(tables):
    tables.source_response["drug"][:5] = ["Beta"] * 5
    tables.target_response["drug"][:3] = ["Beta"] * 3
    study = tables.load()
    assert study.drugs == ("Alpha",)
    assert left_out(study, "drug") == {
        "Beta": "2 sensitive and 3 resistant source samples; at least 20 of each are needed"
    }
    assert any("drug Beta left out" in line for line in study.lines)


def test_a_drug_with_one_class_in_a_training_fold_is_left_out_with_the_counts(tables):
    """Half the values are tied at the least; where six folds have 26 of them in 51 samples, that is the median."""
    tables.settings["folds"] = 7
    tables.source_response["ln_IC50"] = ["0.5"] * 30 + [f"{1 + i}" for i in range(30)]
    error = tables.error()
    assert "Alpha: 0 sensitive and 51 resistant source samples train without fold " in error
    assert error.endswith("both classes are needed; values are tied at the threshold")


def test_a_missing_threshold_is_not_replaced(tables):
    tables.settings["thresholds"] = str(tables.folder / "thresholds.csv")
    (tables.folder / "thresholds.csv").write_text("drug,threshold\nGamma,1\n")
    assert tables.error() == "no drug has enough source samples: Alpha: no threshold is given"


def test_low_ln_ic50_is_label_1_and_so_is_a_responder():
    np.testing.assert_array_equal(label_of(np.array([-3.0, 4.0, np.nan]), "continuous", 0.5), [1, 0, np.nan])
    np.testing.assert_array_equal(label_of(np.array([1.0, 0.0, np.nan]), "binary", None), [1, 0, np.nan])


def test_a_study_keeps_the_sign_through_files(tables):
    """The most sensitive cell line gets label 1, a recorded responder too."""
    study = tables.load()
    response = study.source_response[:, 0]
    fold = fold_of_samples(response, 5, 0)
    label = fold_labels(response, study.source_kind, fold, 0, None)
    assert label[response.argmin()] == 1 and label[response.argmax()] == 0
    assert study.target_response[1, 0] == 1


def test_the_threshold_comes_from_the_training_folds_alone():
    response = np.arange(50.0)
    fold = fold_of_samples(response, 5, 0)
    moved = np.where(fold == 2, response + 1000, response)
    trained = fold != 2
    labels = [fold_labels(r, "continuous", fold, 2, None) for r in (response, moved)]
    np.testing.assert_array_equal(labels[0][trained], labels[1][trained])
    assert labels[0][trained].mean() == 0.5 and labels[1][~trained].sum() == 0


def test_folds_hold_every_sample_once_and_spread_the_values():
    response = np.random.default_rng(0).normal(size=103)
    response[:3] = np.nan
    fold = fold_of_samples(response, 5, 7)
    assert np.all(fold[:3] == -1) and np.all(np.bincount(fold[3:]) == 20)
    medians = [np.median(response[fold == i]) for i in range(5)]
    assert np.ptp(medians) < 0.2
    assert np.any(fold != fold_of_samples(response, 5, 8))


@pytest.mark.parametrize(
    "positive, negative, fine", [(20, 20, True), (19, 500, False), (30, 700, False), (40, 700, True)]
)
def test_class_counts(positive, negative, fine):
    problem = class_problem(np.array([1.0] * positive + [0.0] * negative + [np.nan]))
    assert (problem is None) == fine
    assert fine or f"{positive} sensitive and {negative} resistant" in problem


def test_the_first_record_by_date_counts_and_conflicts_are_listed(tables):
    for name, column in (("days_start", "date"), ("patient", "P000"), ("drug", "Alpha"), ("responder", "1")):
        if column == "date":
            tables.target_response[name] = ["100"] * len(PATIENTS)
        else:
            tables.target_response[name].append(column)
    tables.target_response["days_start"].append("7")
    study = tables.load()
    assert study.target_response[0, 0] == 1  # the later row, of the earlier day
    assert left_out(study, "target record") == {"P000, alpha": "says 0, the first 1"}


def test_repeated_measurements_of_cell_lines_are_averaged(tables):
    for name, cell in (("cell", "L000"), ("drug", "ALPHA"), ("ln_IC50", "5")):
        tables.source_response[name].append(cell)
    study = tables.load()
    assert study.source_response[0, 0] == pytest.approx((float(tables.source_response["ln_IC50"][0]) + 5) / 2)
    assert "  1 pairs of sample and drug were measured several times: averaged" in study.lines


def test_records_without_a_drug_or_a_value_are_listed(tables):
    tables.target_response["drug"][3] = ""
    tables.target_response["responder"][4] = ""
    study = tables.load()
    assert left_out(study, "target record") == {"row 4": "no drug", "row 5": "no value"}


def test_a_binary_response_that_is_not_binary_is_an_error(tables):
    tables.target_response["responder"][0] = "2"
    assert tables.error().startswith("target_response.csv: responder of 'P000' is 2; 1 (responds) or 0 is expected")


def test_labels_read_as_ln_ic50_are_an_error(tables):
    """As continuous values, 1 = responds would become label 0."""
    tables.source_response = {"cell": list(LINES), "drug": ["Alpha"] * 60, "response": ["0", "1"] * 30}
    assert tables.error() == (
        "source_response.csv: each of 60 values of response is 0 or 1, as labels are; with "
        "response.source_kind=continuous a low value means responds: set response.source_kind=binary for labels "
        "(1 = responds)"
    )
    tables.settings["source_kind"] = "binary"
    np.testing.assert_array_equal(tables.load().source_response[:, 0], np.arange(60) % 2)
    tables.settings["target_kind"] = "continuous"
    tables.target_response["response"] = tables.target_response.pop("responder")
    assert "each of 30 values of response is 0 or 1" in tables.error()


def test_unknown_drugs_are_an_error(tables):
    tables.settings["drugs"] = ("Omega",)
    assert tables.error() == "response.drugs: 'Omega' has no source response; the source has Alpha, ..."


def test_groups_and_confounders(tables):
    tables.target["cancer"] = ["blca"] * 10 + ["brca"] * 20
    path = tables.folder / "sex.csv"
    path.write_text("sample,sex\n" + "".join(f"{s},{'fm'[i % 2]}\n" for i, s in enumerate([*LINES[1:], *PATIENTS])))
    tables.settings |= {"group_column": "cancer", "confounders": str(path)}
    study = tables.load()
    assert study.groups.tolist() == tables.target["cancer"] and study.confounder_names == ("f", "m")
    assert study.source_confounder[0] == -1 and set(study.target_confounder) == {0, 1}
    assert left_out(study, "source sample") == {"L000": "no confounder"}
    before = study.identity()
    path.write_text(path.read_text().replace(",f", ",g"))  # same numbers, another name
    assert tables.load().identity() != before
    path.write_text(path.read_text().replace(",g", ",f"))
    tables.target["cancer"][0] = ""
    study = tables.load()
    assert study.identity() != before and study.groups[0] == ""
    assert "  1 target samples without cancer: in no group" in study.lines
    assert left_out(study, "target sample") == {"P000": "no cancer"}


def test_drugs_of_one_domain_only_are_left_out_and_listed(tables):
    for name, cell in (("cell", "L000"), ("drug", "Gamma"), ("ln_IC50", "1")):
        tables.source_response[name].append(cell)
    tables.target_response["drug"][4:6] = ["Beta", "beta"]
    study = tables.load()
    assert study.drugs == ("Alpha",)
    assert left_out(study, "drug") == {"Gamma": "no target response", "Beta": "no source response"}
    assert "  1 drugs only in the source responses, left out: Gamma" in study.lines
    assert "  1 drugs only in the target responses, left out: Beta" in study.lines
    tables.settings["drugs"] = ("Alpha",)  # the others were not asked for
    assert not tables.load().left_out


def test_a_drug_in_two_spellings_is_modelled_once(tables):
    tables.source_response["drug"][1::2] = ["ALPHA"] * 30
    tables.settings["drugs"] = ("alpha", "ALPHA")
    study = tables.load()
    assert study.drugs == ("Alpha",) and np.isfinite(study.source_response).all()
    assert "  response.drugs names 1 drugs again: modelled once" in study.lines
    tables.settings |= {"drugs": (), "target_response": None}
    assert tables.load().drugs == ("Alpha",)


def test_a_drug_measured_in_unknown_samples_only_is_left_out(tables):
    for i in range(3):
        for name, cell in (("cell", f"ACH-{i}"), ("drug", "Beta"), ("ln_IC50", "1.5")):
            tables.source_response[name].append(cell)
    tables.target_response["drug"][0] = "Beta"
    study = tables.load()
    assert study.drugs == ("Alpha",)
    assert left_out(study, "drug") == {"Beta": "no source sample with expression has a response"}


def test_contradicting_thresholds_are_an_error_and_repeated_ones_are_not(tables):
    path = tables.folder / "thresholds.csv"
    tables.settings["thresholds"] = str(path)
    path.write_text("drug,threshold\nalpha,0\nBeta,\nALPHA,0\n")
    assert tables.load().thresholds.tolist() == [0.0]
    path.write_text("drug,threshold\nalpha,0\nBeta,\nALPHA,0.5\n")
    assert tables.error() == (
        "thresholds.csv: data rows 1 and 3: threshold of 'alpha' is 0.0 and 0.5; one value is expected"
    )


def test_contradicting_confounders_are_an_error(tables):
    path = tables.folder / "sex.csv"
    tables.settings["confounders"] = str(path)
    path.write_text("sample,sex\nL000,f\nL001,m\nL000,\nL001,f\n")
    assert tables.error() == "sex.csv: data rows 2 and 4: sex of 'L001' is 'm' and 'f'; one value is expected"


@pytest.mark.parametrize("missing", ["source_expression", "target_expression", "source_response"])
def test_a_table_that_is_not_named_is_an_error(missing):
    given = {name: "x.csv" for name in ("source_expression", "target_expression", "source_response")} | {missing: None}
    with pytest.raises(DataError, match=f"response.{missing} is missing"):
        load_study(ResponseConfig(**given))


def test_scales():
    rng = np.random.default_rng(0)
    source, target = rng.random((40, 3)) + 5, rng.random((30, 3)) * 4
    rows = np.arange(30) < 20
    x, y, lines = standardise(source, target, log=False, scale="source", clip=None, rows=rows)
    np.testing.assert_allclose(y, (target - source.mean(0)) / source.std(0), rtol=1e-5)
    y = standardise(source, target, log=False, scale="domain", clip=None, rows=rows)[1]
    np.testing.assert_allclose(y, (target - target[:20].mean(0)) / target[:20].std(0), rtol=1e-5, atol=1e-6)
    x, y, lines = standardise(source, target, log=True, scale="none", clip=1.0, rows=rows)
    np.testing.assert_allclose(y, np.minimum(np.log1p(target), 1.0), rtol=1e-6)
    assert x.max() == 1.0 and lines[0].startswith("clipped at 1: 100.00% of the source")
    with pytest.raises(DataError, match="the lowest expression is -1; counts"):
        standardise(source - source.min() - 1, target, log=True, scale="none", clip=None, rows=rows)


@pytest.mark.parametrize(
    "dataset, given, message",
    [
        ("planted-expression", {"source_expression": "mine.csv"}, "source_expression='mine.csv': response.dataset=pla"),
        ("gdsc_tcga", {"target_response": "mine.csv"}, "response.target_response='mine.csv': response.dataset=gdsc"),
        ("gdsc_tcga", {"group_column": "stage"}, "response.group_column='stage'"),
        ("planted-expression", {"confounders": "sex.csv"}, "response.confounders='sex.csv'"),
        ("planted-expression", {"target_kind": "continuous"}, "response.target_kind=continuous: that of response.dat"),
        ("gdsc_tcga", {"target_kind": "continuous"}, "response.dataset=gdsc_tcga is binary"),
        ("tcrp_sorafenib", {"source_kind": "binary"}, "response.dataset=tcrp_sorafenib is continuous"),
    ],
)
def test_what_a_dataset_would_ignore_is_an_error(dataset, given, message):
    with pytest.raises(ValueError) as caught:
        ResponseConfig(dataset=dataset, **given)
    assert message in str(caught.value)


def test_the_embedded_study():
    study = load_study(ResponseConfig(dataset="planted-expression", planted=PlantedExpressionConfig(target=80)))
    assert study.labelled.sum() == 40 and len(study.drugs) == 4 and set(study.ceiling) == set(study.drugs)
    assert study.confounder_names == ("batch 0", "batch 1")


def test_an_embedded_study_without_target_responses():
    planted = PlantedExpressionConfig(target=80, labelled=0.0, drugs=2)
    study = load_study(ResponseConfig(dataset="planted-expression", planted=planted))
    assert study.drugs == ("drug 0", "drug 1") and not study.labelled.any()
    assert "no target responses: predictions are not evaluated" in study.lines


def test_the_ceiling_is_that_of_the_drugs_that_are_kept():
    planted = PlantedExpressionConfig(target=80)
    study = load_study(ResponseConfig(dataset="planted-expression", planted=planted, drugs=("drug 1",)))
    assert set(study.ceiling) == {"drug 1"}


def test_cell_lines_and_patients_of_the_shared_data(data_dir, monkeypatch):
    monkeypatch.setenv("JAXDTI_DATA", str(data_dir))
    study = load_study(ResponseConfig(dataset="gdsc_tcga", scale="none", drugs=("Gemcitabine", "Temozolomide")))
    assert study.source.shape == (580, 422) and study.target.shape == (5240, 422)
    assert np.abs(study.target).max() == 10.0
    counts = {
        drug: (np.isfinite(r).sum(), np.nansum(r)) for drug, r in zip(study.drugs, study.target_response.T, strict=True)
    }
    assert counts == {"Gemcitabine": (156, 78), "Temozolomide": (130, 20)}
    study = load_study(ResponseConfig(dataset="tcrp_sorafenib"))
    assert study.source.shape == (393, 796) and study.target.shape == (14, 796) and study.target_kind == "continuous"
