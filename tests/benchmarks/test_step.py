"""What the profile of a program says of its operations."""

import jax
import jax.numpy as jnp
import pytest
import step


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="kernels of accelerators have other names")
def test_operations_are_those_of_the_program(tmp_path):
    x = jnp.ones((300, 300))
    program = jax.jit(lambda x: jnp.sort(x @ x, axis=0)).lower(x).compile()
    jax.block_until_ready(program(x))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            jax.block_until_ready(program(x))
    spent = step.operation_seconds(tmp_path)
    named = {name: calls for name, (_, calls) in spent.items() if "sort" in name or "dot" in name}
    assert len(named) >= 2 and set(named.values()) == {3}
    assert all(seconds > 0 for seconds, _ in spent.values())


def test_without_a_profile_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no profile"):
        step.operation_seconds(tmp_path)
