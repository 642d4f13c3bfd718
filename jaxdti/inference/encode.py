"""Drugs and proteins encoded once each, by length, into states that any pair can be scored from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdti.compilation import told_jit
from jaxdti.config import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.data.batches import Shape
from jaxdti.data.interactions import FeatureStore
from jaxdti.layers.bilinear import gram_state
from jaxdti.models.drugban import DrugBAN
from jaxdti.training.features import DeviceFeatures, chosen_features

ATOM_GRANULE, RESIDUE_GRANULE, BOND_GRANULE = 8, 16, 8
_LEAST_GAIN = 0.03  # share of the work that one more length bucket, so one more program, has to save


class Projected(flax.struct.PyTreeNode):
    """The pairwise states of T entities of one length bucket."""

    values: Array  # [T, n, K] in the compute dtype; V or Q of ``BilinearAttention``, 0 at padding
    count: Array  # int32 [T]; atoms or residues that pooling counts


class Grams(flax.struct.PyTreeNode):
    """The Gram states of T entities of any length; see ``jaxdti.layers.bilinear.gram_attention``."""

    gram: Array  # float32 [K, T, K]
    total: Array  # float32 [T, K]
    count: Array  # int32 [T]


@dataclass(frozen=True)
class Entities:
    """How the drugs, or the proteins, of a table are batched for their encoder."""

    kind: str  # "drug" | "protein"
    shapes: tuple[Shape, ...]  # padded sizes of the buckets, shortest first; the other kind's are 0
    of_entity: np.ndarray  # int32 [E]; the bucket of each entity
    states: tuple[int, ...]  # rows n of a bucket's projected states
    batches: tuple[int, ...]  # entities that a bucket's encoder takes at a time


def choose_lengths(lengths: np.ndarray, weights: np.ndarray, granule: int, most: int) -> tuple[int, ...]:
    """At most ``most`` padded lengths, ascending, that waste little; every entity takes the shortest that holds it.

    Dynamic programming over the lengths rounded up to ``granule`` minimises ``sum(weights * padded length)`` for each
    number of buckets; one more bucket has to save 3 % of that, so that a few odd entities get no program of their own.

    Args:
      lengths: int [E], at least one entity.
      weights: float [E], work per unit of padded length.
    """
    levels, level = np.unique(np.maximum(-(-lengths // granule), 1) * granule, return_inverse=True)
    below = np.concatenate([[0.0], np.cumsum(np.bincount(level, weights, len(levels)))])
    least = levels * below[1:]  # [j]: work of the levels 0..j in the buckets so far
    cuts = [[int(top)] for top in levels]
    for _ in range(1, min(most, len(levels))):
        # Levels 0..i as before, i+1..j in one more bucket.
        work = least[:, None] + levels[None, :] * (below[None, 1:] - below[1:, None])
        work[np.tril_indices(len(levels))] = np.inf
        last = np.argmin(work, axis=0)
        better = work[last, np.arange(len(levels))]
        if better[-1] > (1.0 - _LEAST_GAIN) * least[-1]:
            break
        cuts = [[*cuts[i], int(levels[j])] if np.isfinite(better[j]) else cuts[j] for j, i in enumerate(last)]
        least = np.minimum(better, least)
    return tuple(cuts[-1])


def drug_entities(
    config: ModelConfig, features: DeviceFeatures | FeatureStore, weights: np.ndarray, most: int, batch_size: int
) -> Entities:
    """Length buckets of all drugs of ``features``; ``weights`` as in ``choose_lengths``.

    ``batch_size`` bounds the encoder's batches. Under ``reference`` there is the one published size.

    Raises:
      ValueError: a drug or a protein is larger than that.
    """
    atoms, bonds = np.diff(np.asarray(features.atom_offsets)), np.diff(np.asarray(features.bond_offsets))
    if config.reference:
        _check_fits("atoms", atoms, REFERENCE_ATOMS)
        sizes = (REFERENCE_ATOMS,)
    else:
        sizes = choose_lengths(atoms, weights, ATOM_GRANULE, most)
    of_entity = np.searchsorted(sizes, atoms).astype(np.int32)
    most_bonds = [int(bonds[of_entity == i].max(initial=1)) for i in range(len(sizes))]
    shapes = tuple(
        Shape(size, -(-most // BOND_GRANULE) * BOND_GRANULE, 0) for size, most in zip(sizes, most_bonds, strict=True)
    )
    batches = tuple(_batch(size, of_entity == i, batch_size) for i, size in enumerate(sizes))
    return Entities("drug", shapes, of_entity, sizes, batches)


def protein_entities(
    config: ModelConfig, features: DeviceFeatures | FeatureStore, weights: np.ndarray, most: int, batch_size: int
) -> Entities:
    """Length buckets of all proteins of ``features``, otherwise as ``drug_entities``."""
    residues = np.diff(np.asarray(features.residue_offsets))
    if config.reference:
        _check_fits("residues", residues, REFERENCE_RESIDUES)
        sizes = (REFERENCE_RESIDUES,)
        states = (REFERENCE_RESIDUES - sum(kernel - 1 for kernel in config.protein_kernels),)
    else:
        sizes = states = choose_lengths(residues, weights, RESIDUE_GRANULE, most)
    of_entity = np.searchsorted(sizes, residues).astype(np.int32)
    batches = tuple(_batch(size, of_entity == i, batch_size) for i, size in enumerate(sizes))
    return Entities("protein", tuple(Shape(0, 0, size) for size in sizes), of_entity, states, batches)


def _check_fits(name: str, lengths: np.ndarray, size: int) -> None:
    if (most := int(lengths.max(initial=0))) > size:
        raise ValueError(f"model.reference pads to {size} {name}, and an entity has {most}; lower data.max_{name}")


def _batch(length: int, members: np.ndarray, most: int) -> int:
    # On 2 CPU cores 8 proteins of 512 residues took 1.7 ms each, 64 took 3.7: the activations leave the caches. Scoring
    # with 16 met twice as many page faults and took twice the system time.
    positions = 4096 if jax.default_backend() == "cpu" else 65536
    return max(1, min(positions // length, most, int(members.sum())))


def project(
    model: DrugBAN, kind: str, variables: dict[str, Any], features: DeviceFeatures, index: Array, shape: Shape
) -> Projected:
    """The states of the drugs or proteins ``index`` int32 [B], all of one bucket; -1 gives 0. Pure in ``variables``."""
    valid = index >= 0
    safe = jnp.maximum(index, 0)
    batch = features.drugs(safe, shape) if kind == "drug" else features.proteins(safe, shape)
    states: Any = model.apply(variables, batch, valid, method=f"project_{kind}")
    return Projected(*states)


def _put_projected(into: Projected, slots: Array, new: Projected) -> Projected:
    return Projected(
        values=into.values.at[slots].set(new.values, mode="drop"),
        count=into.count.at[slots].set(new.count, mode="drop"),
    )


def _put_grams(into: Grams, slots: Array, new: Projected) -> Grams:
    gram, total = gram_state(new.values)
    return Grams(
        gram=into.gram.at[:, slots].set(gram, mode="drop"),
        total=into.total.at[slots].set(total, mode="drop"),
        count=into.count.at[slots].set(new.count, mode="drop"),
    )


States = Projected | Grams
Encode = Callable[[dict[str, Any], np.ndarray, States], States]


def make_encoder(config: ModelConfig, features: DeviceFeatures | FeatureStore, entities: Entities) -> Encode:
    """Builds ``encode(variables, index, into) -> states``: entity ``index[i]`` is encoded into slot ``i`` of ``into``.

    ``index`` int [n] of distinct entities fits into the slots; ``into`` is given up, and what other slots hold means
    nothing. ``Projected`` takes entities of one bucket, ``Grams`` of any. One program a bucket and kind of state.

    A store stays on the host, and every batch brings the features of its own entities. How many batches are under way
    is not limited: their features are small beside the states that they become.
    """
    model = DrugBAN(config)

    def program(shape: Shape):
        def batch(variables, features, index, slots, into: States) -> States:
            new = project(model, entities.kind, variables, features, index, shape)
            return _put_projected(into, slots, new) if isinstance(into, Projected) else _put_grams(into, slots, new)

        def name(variables, features, index, slots, into: States) -> str:
            form = ", Gram" if isinstance(into, Grams) else ""
            return f"encoder of {len(index)} {entities.kind}s of {shape.atoms or shape.residues}{form}"

        return told_jit(batch, name, ("encoder", config, entities.kind, shape), donate="into")

    programs = [program(shape) for shape in entities.shapes]

    def encode(variables: dict[str, Any], index: np.ndarray, into: States) -> States:
        for bucket, shape in enumerate(entities.shapes):
            slots = np.flatnonzero(entities.of_entity[index] == bucket)
            for taken, places in encoder_batches(index[slots], slots, entities.batches[bucket], len(into.count)):
                chosen, taken = own_features(features, entities.kind, taken, shape)
                into = programs[bucket](variables, chosen, taken, places, into)
        return into

    return encode


def own_features(
    features: DeviceFeatures | FeatureStore, kind: str, index: np.ndarray, shape: Shape
) -> tuple[DeviceFeatures, np.ndarray]:
    """What an encoder takes of a batch ``index`` int32 [B], filler -1 last: features, and the indices into them.

    Of a store these are the features of that batch alone.
    """
    if not isinstance(features, FeatureStore):
        return features, index
    mine, none = index[index >= 0], index[:0]
    drugs, proteins = (mine, none) if kind == "drug" else (none, mine)
    own = chosen_features(features, drugs, proteins, len(index), shape)
    return own, np.where(index >= 0, np.arange(len(index), dtype=np.int32), index)


def encoder_batches(
    index: np.ndarray, slots: np.ndarray, size: int, capacity: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index, slots) int32 [size] each, every entity once; filler has index -1 and slot ``capacity``, past the end."""
    batches = []
    for start in range(0, len(index), size):
        taken, places = np.full(size, -1, np.int32), np.full(size, capacity, np.int32)
        count = len(index[start : start + size])
        taken[:count], places[:count] = index[start : start + size], slots[start : start + size]
        batches.append((taken, places))
    return batches
