"""The embedded study: repeatable, and with the signal, the shift and the confounding that it promises."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from jaxdti.config import PlantedExpressionConfig
from jaxdti.data.expression.planted import make_planted_expression


@pytest.fixture(scope="module")
def study():
    return make_planted_expression(PlantedExpressionConfig())


def test_the_same_config_gives_the_same_study_and_another_seed_another(study):
    again = make_planted_expression(PlantedExpressionConfig())
    np.testing.assert_array_equal(again.target.values, study.target.values)
    np.testing.assert_array_equal(again.source_response.value, study.source_response.value)
    other = make_planted_expression(PlantedExpressionConfig(seed=1))
    assert not np.array_equal(other.target.values, study.target.values)


def test_its_numbers_are_those_it_was_fixed_with(study):
    """Fails when the generator changes: every published figure would have to be measured again."""
    figures = [study.source.values.mean(), study.target.values.std(), study.source_response.value.std()]
    np.testing.assert_allclose(figures, [6.1225157, 2.7384415, 1.2593197], rtol=1e-5)


def test_sizes_and_names(study):
    assert study.source.values.shape == (500, 240) and study.target.values.shape == (1000, 240)
    assert len(study.source_response.value) == 500 * 4 and len(study.target_response.value) == 500 * 4
    assert set(study.target_response.value) == {0.0, 1.0}
    assert set(study.target_response.sample) <= set(study.target.samples)
    assert len(set(study.source.samples) | set(study.target.samples)) == 1500
    assert set(study.source_batch) == {0, 1} and abs(study.target_batch.mean() - 0.3) < 0.05


def test_low_ln_ic50_goes_with_the_sensitivity_that_makes_patients_respond(study):
    for i, drug in enumerate(study.drugs):
        ln_ic50 = study.source_response.value[study.source_response.drug == drug]
        assert np.corrcoef(ln_ic50, study.source_shared @ study.weights[:, i])[0, 1] < -0.7
        assert study.ceiling[drug] > 0.85


def fitted_direction(study, drug):
    """Weights of a ridge regression of the sensitivity on the standardised expression of the cell lines."""
    x = study.source.values
    ln_ic50 = study.source_response.value[study.source_response.drug == study.drugs[drug]]
    return Ridge(30.0).fit((x - x.mean(0)) / x.std(0), -ln_ic50).coef_


def target_auroc(study):
    known = np.isin(study.target.samples, study.target_response.sample)
    y = study.target.values
    y = (y - y.mean(0)) / y.std(0)
    scores = [
        roc_auc_score(
            study.target_response.value[study.target_response.drug == name], (y @ fitted_direction(study, i))[known]
        )
        for i, name in enumerate(study.drugs)
    ]
    return np.mean(scores), np.mean(list(study.ceiling.values()))


def test_the_shift_is_what_a_linear_model_of_raw_genes_loses_by(study):
    calm = make_planted_expression(PlantedExpressionConfig(shift=0.0, confounding=0.0))
    auroc, ceiling = target_auroc(calm)
    assert auroc > ceiling - 0.04
    shifted, ceiling = target_auroc(study)
    assert shifted < ceiling - 0.1


def test_without_shift_genes_vary_together_alike_in_both_domains_and_with_it_they_do_not():
    def agreement(shift):
        study = make_planted_expression(PlantedExpressionConfig(shift=shift, noise=0.0))
        source, target = (
            np.corrcoef(table.values.T)[np.triu_indices(240, 1)] for table in (study.source, study.target)
        )
        return np.corrcoef(source, target)[0, 1]

    assert agreement(0.0) > 0.9 > 0.6 > agreement(2.0)


@pytest.mark.parametrize("labelled", [0.0, 1.0])
def test_any_share_of_patients_may_be_labelled(labelled):
    study = make_planted_expression(PlantedExpressionConfig(target=60, labelled=labelled))
    assert len(study.target_response.value) == round(60 * labelled) * 4
    assert np.isnan(study.ceiling["drug 0"]) == (labelled == 0.0)
