"""Pre-training objectives of the autoencoders: sums of pure losses on one batch of each domain.

``params`` holds "model" and, for the methods that have one, "adversary".
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdti.adaptation.coral import coral
from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.domains import Domains
from jaxdti.adaptation.mmd import mmd
from jaxdti.config import PretrainingConfig
from jaxdti.layers.means import masked_mean
from jaxdti.layers.reversal import reverse_gradient
from jaxdti.models.autoencoders import (
    RECONSTRUCTION,
    Autoencoder,
    Perceptron,
    corrupt,
    draw_code,
    gaussian_divergence,
)
from jaxdti.models.codeae import Codes, DomainSeparation, critic_gap, gradient_penalty, orthogonality
from jaxdti.training.objective import Objective
from jaxdti.training.state import TrainState
from jaxdti.training.step import make_train_step

ADVERSARY_WIDTHS = (64, 32)  # of the critic, the domain classifier and the confounder's classifier
SEPARATING = ("codeae_base", "codeae_mmd", "codeae_adv", "dsn_dann", "coral")


class Profiles(flax.struct.PyTreeNode):
    """All profiles of a study, on the device."""

    source: Array  # float32 [N, G]
    target: Array  # float32 [M, G]
    source_confounder: Array  # int32 [N]; -1 where unknown, and where there is none
    target_confounder: Array  # int32 [M]


class ProfileBatch(flax.struct.PyTreeNode):
    """B samples of each domain; leading axes are critic updates, steps or replicas."""

    source: Array  # int32 [..., B], rows of ``Profiles.source``
    target: Array  # int32 [..., B]
    source_mask: Array  # bool [..., B]
    target_mask: Array  # bool [..., B]

    @property
    def row_mask(self) -> Array:
        return jnp.concatenate([self.source_mask, self.target_mask], -1)


def make_model(method: str, genes: int, config: PretrainingConfig) -> Autoencoder | DomainSeparation:
    """The network that ``method`` pre-trains."""
    if method in SEPARATING:
        return DomainSeparation(genes, config.widths, config.latent)
    return Autoencoder(genes, config.widths, config.latent, variational=method == "vae")


def make_adversary(method: str, confounders: int) -> Perceptron | None:
    """The opponent of the encoders, if the method trains one in the same step or with the critic."""
    outputs = {"codeae_adv": 1, "dsn_dann": 2, "adae": confounders}.get(method)
    return None if outputs is None else Perceptron(ADVERSARY_WIDTHS, outputs)


def init_params(method: str, genes: int, confounders: int, config: PretrainingConfig, key: Array) -> dict[str, Any]:
    """Fresh parameters of the model and its adversary."""
    model, adversary = make_model(method, genes, config), make_adversary(method, confounders)
    keys = jax.random.split(key)
    x = jnp.zeros((1, genes))
    inputs = (x, x) if method in SEPARATING else (x,)
    params = {"model": model.init(keys[0], *inputs)["params"]}
    if adversary is not None:
        width = {"codeae_adv": 2 * config.latent}.get(method, config.latent)
        params["adversary"] = adversary.init(keys[1], jnp.zeros((1, width)))["params"]
    return params


def run_model(module: nn.Module, params: Any, *inputs: Any, method: str | None = None, key: Array | None = None) -> Any:
    """``module.method(*inputs)`` with these parameters; ``key`` is for dropout."""
    return module.apply({"params": params}, *inputs, rngs=None if key is None else {"dropout": key}, method=method)


def pretraining_objective(method: str, profiles: Profiles, confounders: int, config: PretrainingConfig) -> Objective:
    """The loss of a method that one optimiser serves; ``hyper``: dropout, orthogonality, alignment.

    For codeae_adv it is that of codeae_base: the reconstruction that comes before the critic.
    """
    if method in SEPARATING:
        return _separation_objective(method, profiles, config)
    return _autoencoder_objective(method, profiles, confounders, config)


def _autoencoder_objective(method: str, profiles: Profiles, confounders: int, config: PretrainingConfig) -> Objective:
    """Reconstruction of the profiles of both domains: ae, dae, vae, adae."""
    model = make_model(method, profiles.source.shape[-1], config)
    adversary, error = make_adversary(method, confounders), RECONSTRUCTION[config.reconstruction]
    assert isinstance(model, Autoencoder)

    def objective(variables: dict[str, Any], batch: ProfileBatch, rng: Array, hyper: dict[str, Array]):
        x = jnp.concatenate([profiles.source[batch.source], profiles.target[batch.target]])
        mask, rate = batch.row_mask, hyper["dropout"]
        noise, drawn, key = jax.random.split(rng, 3)
        seen = corrupt(x, config.corruption, noise) if method == "dae" else x
        params, keys = variables["params"], jax.random.split(key)
        call = lambda name, x, key: run_model(model, params["model"], x, rate, method=name, key=key)
        extra = jnp.zeros(())
        if method == "vae":
            mean, log_variance = call("posterior", seen, keys[0])
            code = draw_code(mean, log_variance, drawn)
            extra = config.divergence * masked_mean(gaussian_divergence(mean, log_variance), mask)
        else:
            code = call("encode", seen, keys[0])
        reconstruction = masked_mean(error(call("decode", code, keys[1]), x), mask)
        if adversary is not None:
            category = jnp.concatenate(
                [profiles.source_confounder[batch.source], profiles.target_confounder[batch.target]]
            )
            logits = run_model(adversary, params["adversary"], reverse_gradient(code, hyper["alignment"]))
            known = mask & (category >= 0)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(category, 0))
            extra = masked_mean(entropy, known)
        return reconstruction + extra, ({}, {"loss": jax.lax.stop_gradient(reconstruction)})

    return objective


def _separation_objective(method: str, profiles: Profiles, config: PretrainingConfig) -> Objective:
    """Reconstruction, orthogonality and an alignment of the domains."""
    model = make_model(method, profiles.source.shape[-1], config)
    assert isinstance(model, DomainSeparation)

    def objective(variables: dict[str, Any], batch: ProfileBatch, rng: Array, hyper: dict[str, Array]):
        params = variables["params"]
        base, reconstruction, (source, target) = _base_loss(model, params["model"], profiles, batch, rng, hyper, config)
        aligned = jnp.zeros(())
        if method in ("codeae_mmd", "coral"):
            gap = mmd if method == "codeae_mmd" else coral
            # Codes of length 1 have entries of variance 1 / D: too little for a covariance to show.
            unit = config.latent**0.5
            aligned = hyper["alignment"] * gap(
                unit * source.joined, unit * target.joined, batch.source_mask, batch.target_mask
            )
        elif method == "dsn_dann":
            adversary = Perceptron(ADVERSARY_WIDTHS, 2)
            shared = jnp.stack([source.shared, target.shared])
            domains = Domains(
                shared, jnp.zeros((*shared.shape[:2], 1)), jnp.stack([batch.source_mask, batch.target_mask])
            )
            judge = lambda x, mask: run_model(adversary, params["adversary"], x)
            aligned = dann_loss(domains, judge, hyper["alignment"])
        return base + aligned, ({}, {"loss": jax.lax.stop_gradient(reconstruction)})

    return objective


def _base_loss(
    model: DomainSeparation,
    params: Any,
    profiles: Profiles,
    batch: ProfileBatch,
    rng: Array,
    hyper: dict[str, Array],
    config: PretrainingConfig,
) -> tuple[Array, Array, tuple[Codes, Codes]]:
    """Reconstruction + orthogonality, the reconstruction alone, and the codes of both domains."""
    x, y = profiles.source[batch.source], profiles.target[batch.target]
    keys = jax.random.split(rng)
    codes = run_model(model, params, x, y, hyper["dropout"], method="encode_both", key=keys[0])
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *codes)
    rebuilt = run_model(model, params, both, hyper["dropout"], method="decode", key=keys[1])
    error = RECONSTRUCTION[config.reconstruction](rebuilt, jnp.concatenate([x, y]))
    reconstruction = masked_mean(error, batch.row_mask)
    apart = orthogonality(codes[0], batch.source_mask) + orthogonality(codes[1], batch.target_mask)
    return reconstruction + hyper["orthogonality"] * apart, reconstruction, codes


class AdversarialState(flax.struct.PyTreeNode):
    """The two players of codeae_adv; ``params`` are those of the autoencoder and of the critic."""

    model: TrainState
    critic: TrainState


class CriticBatch(flax.struct.PyTreeNode):
    """Codes of one batch of each domain."""

    source: Array  # float32 [..., B, 2 D]
    target: Array  # float32 [..., B, 2 D]
    source_mask: Array  # bool [..., B]
    target_mask: Array  # bool [..., B]

    @property
    def row_mask(self) -> Array:
        return self.source_mask & self.target_mask


AdversarialStep = Callable[[AdversarialState, ProfileBatch], tuple[AdversarialState, dict[str, Array]]]


def make_adversarial_step(
    profiles: Profiles, tx: optax.GradientTransformation, config: PretrainingConfig
) -> AdversarialStep:
    """WGAN-GP on the joined codes: ``critic_steps`` updates of the critic, each on its own batch, and one of the model.

        critic:  mean C(target) - mean C(source) + gradient_penalty mean (|grad C| - 1)^2
        model:   reconstruction + orthogonality - alignment mean C(target)

    Source codes are what target codes are moved to. ``step(state, batches)`` takes ``critic_steps`` + 1 batches.
    """
    model = DomainSeparation(profiles.source.shape[-1], config.widths, config.latent)
    critic = Perceptron(ADVERSARY_WIDTHS, 1)

    def score(params: Any, x: Array, rate: Array | None = None, key: Array | None = None) -> Array:
        return run_model(critic, params, x, rate, key=key)[..., 0]

    def critic_objective(variables: dict[str, Any], batch: CriticBatch, rng: Array, hyper: dict[str, Array]):
        params, keys = variables["params"], jax.random.split(rng, 3)
        both = jnp.concatenate([batch.source, batch.target])
        scores, count = score(params, both, hyper["dropout"], keys[0]), len(batch.source)
        gap = critic_gap(scores[:count], scores[count:], batch.source_mask, batch.target_mask)
        share = jax.random.uniform(keys[1], (count,))
        # Without dropout: its gradient would be that of another critic for every row.
        penalty = gradient_penalty(lambda x: score(params, x), batch.source, batch.target, batch.row_mask, share)
        return gap + config.gradient_penalty * penalty, ({}, {"gap": -jax.lax.stop_gradient(gap)})

    def model_objective(critic_params: chex.ArrayTree) -> Any:
        def objective(variables: dict[str, Any], batch: ProfileBatch, rng: Array, hyper: dict[str, Array]):
            keys = jax.random.split(rng)
            base, reconstruction, (_, target) = _base_loss(
                model, variables["params"], profiles, batch, keys[0], hyper, config
            )
            fooled = masked_mean(score(critic_params, target.joined, hyper["dropout"], keys[1]), batch.target_mask)
            return base - hyper["alignment"] * fooled, ({}, {"loss": jax.lax.stop_gradient(reconstruction)})

        return objective

    def step(state: AdversarialState, batches: ProfileBatch) -> tuple[AdversarialState, dict[str, Array]]:
        own, last = jax.tree.map(lambda x: x[:-1], batches), jax.tree.map(lambda x: x[-1], batches)
        key = jax.random.fold_in(jax.random.fold_in(state.model.rng, state.model.step), 1)
        # The encoders do not move while the critic trains: the codes of all its batches in one pass.
        shape = own.source.shape
        rows = profiles.source[own.source.reshape(-1)], profiles.target[own.target.reshape(-1)]
        codes = run_model(model, state.model.params, *rows, state.model.hyper["dropout"], method="encode_both", key=key)
        source, target = (jax.lax.stop_gradient(code.joined).reshape(*shape, -1) for code in codes)
        rounds = CriticBatch(source, target, own.source_mask, own.target_mask)
        play: Any = make_train_step(critic_objective, tx)
        critic_state, played = jax.lax.scan(play, state.critic, rounds)
        move: Any = make_train_step(model_objective(critic_state.params), tx)
        model_state, metrics = move(state.model, last)
        return AdversarialState(model_state, critic_state), metrics | {"gap": played["gap"][-1]}

    return step
