"""What all tests of the folder share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def fast(compile_fast_and_once):
    """Every test here is mostly compilation."""
