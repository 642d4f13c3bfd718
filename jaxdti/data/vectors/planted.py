"""Embedded feature vectors with classes that only the source has, and a target shift of any strength.

A row has a place z in a latent space, around the centre of its class, and features [z, n] Q: n are other numbers that
tell nothing, Q is a random rotation of all together. The target of strength s turns the latent space and moves it,

    z = c_k + e,    z' = R(45 s degrees) z + 3 s t,    e ~ N(0, I),  |c_k| = 3,  |t| = 1,

with R a rotation in as many planes as there are. That keeps all distances, so that the best possible accuracy is the
same in both domains and for every strength; it is measured with the true centres.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg import expm

from jaxdti.data.vectors.domains import VectorDomains, split_source
from jaxdti.errors import DataError

CLASSES, TARGET_CLASSES = 8, 3  # the target has the first ones
# Chosen before anything was trained on them, and not changed since.
STRENGTHS = ("0", "0.5", "1")
_LATENT, _FEATURES = 8, 32
_RADIUS = 3.0  # of the centres, and the translation of strength 1
_ANGLE = math.pi / 4  # of the rotation of strength 1
_SOURCE_ROWS, _TARGET_ROWS, _TEST_ROWS = 200, 200, 100  # of each class


def load_planted_domains(strengths: Sequence[str], *, validation: float, seeds: Sequence[int]) -> VectorDomains:
    """A task for each strength of the shift, all of 8 classes in the source and 3 in the target.

    Args:
      strengths: numbers from 0 on, as text; ``STRENGTHS`` if empty.
      validation: share of the source rows that validates.
      seeds: a draw of centres, shift and rows for each; the strengths of one seed share the source, and the target up
        to the shift.

    Raises:
      DataError: a strength is no such number.
    """
    names = tuple(strengths) or STRENGTHS
    shifts = [_strength(name) for name in names]
    counts = np.repeat([_SOURCE_ROWS, _TARGET_ROWS, _TEST_ROWS], [CLASSES, TARGET_CLASSES, TARGET_CLASSES])
    label = np.repeat([*range(CLASSES), *range(TARGET_CLASSES), *range(TARGET_CLASSES)], counts)
    source, target, test = np.split(np.arange(len(label)), np.cumsum(counts)[[CLASSES - 1, -TARGET_CLASSES - 1]])
    blocks, ceilings = [], []
    tasks: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}
    for seed in seeds:
        rows, ceiling = _draw(label, len(source), shifts, seed)
        ceilings.append(ceiling)
        for name, features in zip(names, rows, strict=True):
            first = len(label) * len(blocks)
            parts = {**split_source(source, validation, seed), "target_train": target, "test": test}
            tasks[name].append({part: own + first for part, own in parts.items()})
            blocks.append(features)
    return VectorDomains(
        features=np.concatenate(blocks).astype(np.float32),
        label=np.tile(label, len(blocks)).astype(np.int64),
        classes=tuple(map(str, range(CLASSES))),
        tasks={name: tuple(parts) for name, parts in tasks.items()},
        lines=(
            f"{len(source):,} source rows of {CLASSES} classes, {len(target) + len(test):,} target rows of "
            f"{TARGET_CLASSES} of them; the true centres of all {CLASSES} classes call {np.mean(ceilings):.3f} of the "
            "target rows right",
        ),
    )


def _strength(name: str) -> float:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"vectors.tasks: {name!r}: strengths of the shift are expected, such as {','.join(STRENGTHS)}")
    return value


def _draw(label: np.ndarray, source: int, strengths: Sequence[float], seed: int) -> tuple[list[np.ndarray], float]:
    """Features float64 [N, F] of all rows for each strength, and the accuracy of the true centres on the target.

    Args:
      label: int [N], the source's first.
      source: how many rows are the source's.
    """
    shape_rng, row_rng = (np.random.default_rng((seed, i)) for i in (2, 3))
    centres = _RADIUS * _unit(shape_rng.normal(size=(CLASSES, _LATENT)))
    basis = _orthogonal(shape_rng, _LATENT)
    generator = np.kron(np.eye(_LATENT // 2), [[0.0, 1.0], [-1.0, 0.0]])  # of a turn by one radian in each plane
    move = _RADIUS * _unit(shape_rng.normal(size=_LATENT))
    mixing = _orthogonal(shape_rng, _FEATURES)
    latent = centres[label] + row_rng.normal(size=(len(label), _LATENT))
    others = row_rng.normal(size=(len(label), _FEATURES - _LATENT))
    shifted = []
    for strength in strengths:
        turn = basis.T @ expm(_ANGLE * strength * generator) @ basis
        place = np.concatenate([latent[:source], latent[source:] @ turn + strength * move])
        shifted.append(np.concatenate([place, others], 1) @ mixing)
    distance = np.linalg.norm(latent[source:, None] - centres[None], axis=-1)
    return shifted, float(np.mean(distance.argmin(1) == label[source:]))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random orthogonal matrix [size, size]."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]
