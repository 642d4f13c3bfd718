"""Small runs of every kind give the numbers that they always gave."""

import pytest

TOLERANCES = {}


@pytest.mark.parametrize(
    "case",
    ["pairs", "pairs_cdan", "vectors_san", "transfer_full", "transfer_feature", "transfer_shallow", "response"]
    + ["transfer_sizes"],
)
def test_the_numbers_stay(golden, case):
    golden.check(golden.here / "expected" / f"{case}.json", golden.measure(case), TOLERANCES.get(case, {}))
