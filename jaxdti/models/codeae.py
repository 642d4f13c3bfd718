"""CODE-AE (He et al., Nature Machine Intelligence 2022, doi 10.1038/s42256-022-00541-0).

Cell lines are the source domain, patients the target. A shared encoder is to find what both have in common, a private
encoder a domain what only that one has; one decoder rebuilds the profile from both codes. Objectives on top of the
reconstruction keep the two codes apart (orthogonality) and make the domains alike (MMD, CORAL, a critic, a reversed
classifier).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxdti.layers.means import masked_mean
from jaxdti.models.autoencoders import Perceptron, normalise

_ROOT_OFFSET = 1e-12  # below the root of the gradient penalty, whose slope at 0 is infinite


class Codes(flax.struct.PyTreeNode):
    """The codes of B profiles, each of length 1."""

    private: Array  # float32 [B, D]
    shared: Array  # float32 [B, D]

    @property
    def joined(self) -> Array:
        """[private, shared], float32 [B, 2 D]: what the decoder sees, and what the domains are aligned on."""
        return jnp.concatenate([self.private, self.shared], -1)


class DomainSeparation(nn.Module):
    """A shared encoder, a private encoder for each domain and a shared decoder (Bousmalis et al., arXiv:1608.06019)."""

    genes: int
    widths: Sequence[int] = (512, 256)
    latent: int = 128

    def setup(self):
        self.encoder = Perceptron(self.widths, self.latent)
        self.private_source = Perceptron(self.widths, self.latent)
        self.private_target = Perceptron(self.widths, self.latent)
        self.decoder = Perceptron(tuple(reversed(self.widths)), self.genes)

    def __call__(self, source: Array, target: Array) -> tuple[Array, Array]:
        codes = self.encode_both(source, target)
        return self.decode(codes[0]), self.decode(codes[1])

    def encode(self, x: Array, rate: float | Array | None = None) -> Array:
        """Shared codes [B, D] of profiles [B, G] of either domain: what carries over."""
        return normalise(self.encoder(x, rate))

    def encode_source(self, x: Array, rate: float | Array | None = None) -> Codes:
        return Codes(private=normalise(self.private_source(x, rate)), shared=self.encode(x, rate))

    def encode_target(self, x: Array, rate: float | Array | None = None) -> Codes:
        return Codes(private=normalise(self.private_target(x, rate)), shared=self.encode(x, rate))

    def encode_both(self, source: Array, target: Array, rate: float | Array | None = None) -> tuple[Codes, Codes]:
        """As ``encode_source`` and ``encode_target``, with one pass of the shared encoder over both."""
        shared = self.encode(jnp.concatenate([source, target]), rate)
        return (
            Codes(private=normalise(self.private_source(source, rate)), shared=shared[: len(source)]),
            Codes(private=normalise(self.private_target(target, rate)), shared=shared[len(source) :]),
        )

    def decode(self, codes: Codes, rate: float | Array | None = None) -> Array:
        """Codes of B profiles -> [B, G]."""
        return self.decoder(codes.joined, rate)

    def sample(self, count: int) -> Codes:
        """Codes [count, D] uniform on their spheres, drawn from the stream "sample"."""
        drawn = jax.random.normal(self.make_rng("sample"), (2, count, self.latent))
        return Codes(private=normalise(drawn[0]), shared=normalise(drawn[1]))

    def generate(self, count: int) -> Array:
        """``count`` profiles [count, G] from such codes."""
        return self.decode(self.sample(count))


def orthogonality(codes: Codes, mask: Array) -> Array:
    """``mean((S^T P)^2)`` over the D x D products of the shared codes S and the private codes P, both [B, D].

    Rows where ``mask`` bool [B] is False do not count.
    """
    shared, private = (jnp.where(mask[:, None], code, 0.0) for code in (codes.shared, codes.private))
    return jnp.mean((shared.T @ private) ** 2)


Critic = Callable[[Array], Array]  # codes [B, F] -> [B]


def critic_gap(source: Array, target: Array, source_mask: Array, target_mask: Array) -> Array:
    """``mean critic(target) - mean critic(source)``: what a Wasserstein critic minimises (arXiv:1701.07875).

    source, target: its values [B]; masks bool [B].
    """
    return masked_mean(target, target_mask) - masked_mean(source, source_mask)


def gradient_penalty(critic: Critic, source: Array, target: Array, mask: Array, share: Array) -> Array:
    """``mean (|grad critic(x)| - 1)^2`` at ``x = u source + (1 - u) target`` (Gulrajani et al., arXiv:1704.00028).

    ``|g| = sqrt(sum g^2 + 1e-12)``, so that the second derivative is finite where the critic is flat.

    Args:
      critic: without dropout.
      source, target: codes [B, F], row by row.
      mask: bool [B]; the other rows are not penalised.
      share: u, float32 [B] in [0, 1].
    """
    between = share[:, None] * source + (1.0 - share[:, None]) * target
    slope = jax.grad(lambda x: jnp.sum(critic(x)))(jnp.where(mask[:, None], between, 0.0))
    length = jnp.sqrt(jnp.sum(slope**2, -1) + _ROOT_OFFSET)
    return masked_mean((length - 1.0) ** 2, mask)
