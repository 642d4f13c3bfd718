"""Domain separation and its losses, the second derivative of the gradient penalty included, against float64 PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdti.models.autoencoders import Perceptron
from jaxdti.models.codeae import Codes, DomainSeparation, critic_gap, gradient_penalty, orthogonality

ROWS, GENES, CODE = 6, 5, 3
MASK = np.array([1, 0, 1, 1, 0, 1], bool)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    module = DomainSeparation(GENES, (8, 6), CODE)
    return module, module.init(jax.random.PRNGKey(0), draw(2, GENES), draw(2, GENES))


@pytest.mark.slow
def test_codes_have_length_1_and_the_shared_encoder_serves_both_domains(model):
    module, variables = model
    source, target = draw(ROWS, GENES), draw(4, GENES, seed=1)
    both = module.apply(variables, source, target, method="encode_both")
    alone = (
        module.apply(variables, source, method="encode_source"),
        module.apply(variables, target, method="encode_target"),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both, alone)
    for codes, x in zip(both, (source, target), strict=True):
        np.testing.assert_allclose(np.linalg.norm(codes.private, axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(codes.shared, module.apply(variables, x, method="encode"), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(codes.joined, np.concatenate([codes.private, codes.shared], -1))
    same = module.apply(variables, source, source, method="encode_both")
    assert np.all(np.asarray(same[0].shared) == same[1].shared) and np.any(
        np.asarray(same[0].private) != same[1].private
    )


def test_reconstruction_generation_and_sampling(model):
    module, variables = model
    x = draw(ROWS, GENES)
    source, target = module.apply(variables, x, x)
    for found, domain in ((source, "source"), (target, "target")):
        codes = module.apply(variables, x, method=f"encode_{domain}")
        expected = module.apply(variables, codes, method="decode")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    rngs = {"sample": jax.random.PRNGKey(1)}
    codes = module.apply(variables, 9, rngs=rngs, method="sample")
    np.testing.assert_allclose(np.linalg.norm(codes.shared, axis=-1), 1.0, rtol=1e-5)
    generated = module.apply(variables, 9, rngs=rngs, method="generate")
    np.testing.assert_array_equal(generated, module.apply(variables, codes, method="decode"))


def test_orthogonality_matches_torch_and_does_not_see_masked_rows():
    torch = pytest.importorskip("torch")
    shared, private = draw(ROWS, CODE), draw(ROWS, CODE, seed=1)

    def loss(shared, private):
        return orthogonality(Codes(private=private, shared=shared), MASK)

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(shared, private)
    s, p = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (shared, private))
    expected = ((s[MASK].T @ p[MASK]) ** 2).mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], s.grad, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slopes[1], p.grad, rtol=1e-4, atol=1e-7)
    poisoned = np.where(MASK[:, None], private, np.nan).astype(np.float32)
    value_poisoned, slope = jax.value_and_grad(loss)(shared, poisoned)
    assert value_poisoned == value and np.all(np.asarray(slope)[~MASK] == 0)


# The critic is tanh(x W + b) v: it has a second derivative everywhere, as ReLU has not.


def critic_of(params):
    return lambda x: jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


PARAMS = {"w": draw(2 * CODE, 7), "b": draw(7, seed=1), "v": draw(7, seed=2)}


def torch_critic(torch):
    tensors = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in PARAMS.items()}
    return tensors, lambda x: torch.tanh(x @ tensors["w"] + tensors["b"]) @ tensors["v"]


def test_gradient_penalty_and_its_second_derivative_match_torch():
    torch = pytest.importorskip("torch")
    source, target = draw(ROWS, 2 * CODE), draw(ROWS, 2 * CODE, seed=1)
    share = np.random.default_rng(2).random(ROWS).astype(np.float32)

    def penalty(params, source, target):
        return gradient_penalty(critic_of(params), source, target, MASK, share)

    value, (slope, source_slope) = jax.jit(jax.value_and_grad(penalty, argnums=(0, 1)))(PARAMS, source, target)
    tensors, critic = torch_critic(torch)
    s, t, u = (torch.tensor(x[MASK], dtype=torch.float64) for x in (source, target, share[:, None]))
    s.requires_grad_()
    between = u * s + (1 - u) * t
    (inner,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    expected = ((inner.norm(dim=-1) - 1) ** 2).mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for name in PARAMS:
        wanted = np.zeros(PARAMS[name].shape) if tensors[name].grad is None else tensors[name].grad.numpy()
        np.testing.assert_allclose(slope[name], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(source_slope)[MASK], s.grad, rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(source_slope)[~MASK] == 0)


@pytest.mark.slow
def test_gradient_penalty_is_safe_where_the_critic_is_flat_and_where_rows_are_bad():
    source = np.where(MASK[:, None], draw(ROWS, 2 * CODE), np.nan).astype(np.float32)
    flat = {name: np.zeros_like(x) for name, x in PARAMS.items()}

    def penalty(params, mask):
        return gradient_penalty(critic_of(params), source, draw(ROWS, 2 * CODE), mask, np.full(ROWS, 0.5, np.float32))

    value, slope = jax.value_and_grad(penalty)(flat, MASK)
    np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))
    assert penalty(PARAMS, np.zeros(ROWS, bool)) == 0


def test_critic_gap_matches_torch():
    torch = pytest.importorskip("torch")
    source, target = draw(ROWS, 2 * CODE), draw(ROWS, 2 * CODE, seed=1)
    values = lambda params: (critic_of(params)(source), critic_of(params)(target))
    gap = lambda params: critic_gap(*values(params), MASK, ~MASK)
    value, slope = jax.value_and_grad(gap)(PARAMS)
    tensors, critic = torch_critic(torch)
    s, t = (torch.tensor(x, dtype=torch.float64) for x in (source[MASK], target[~MASK]))
    expected = critic(t).mean() - critic(s).mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    for name in PARAMS:
        np.testing.assert_allclose(slope[name], tensors[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_vmapped_penalties_equal_one_by_one():
    critic = Perceptron((8,), 1)
    sources, targets, shares = draw(3, ROWS, CODE), draw(3, ROWS, CODE, seed=1), np.float32([[0.3] * ROWS] * 3)

    def penalty(seed, source, target, share):
        variables = critic.init(jax.random.PRNGKey(seed), source)
        score = lambda params: lambda x: critic.apply(params, x)[..., 0]
        loss = lambda params: gradient_penalty(score(params), source, target, MASK, share)
        return jax.value_and_grad(loss)(variables)

    together = jax.jit(jax.vmap(penalty))(np.arange(3), sources, targets, shares)
    for i in range(3):
        alone = penalty(i, sources[i], targets[i], shares[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), together, alone)
