"""Partial transfer on the 8 x 8 digits of scikit-learn: ten digits in the source, five in the shifted target."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from jaxdti.data.vectors.domains import VectorDomains, split_source
from jaxdti.errors import DataError

TARGET_DIGITS = 5  # 0 to 4
_TARGET_TRAIN = 2 / 3  # of the target images; the others are the test
_BLACK = 1.0  # pixels are between 0 (paper) and 1


def _rotate(images: np.ndarray) -> np.ndarray:
    return ndimage.rotate(images, 30.0, axes=(1, 2), reshape=False, order=1)


def _translate(images: np.ndarray) -> np.ndarray:
    return ndimage.shift(images, (0, 1, 1), order=1)


def _invert(images: np.ndarray) -> np.ndarray:
    return _BLACK - images


def _fade(images: np.ndarray) -> np.ndarray:
    return 0.4 * images + 0.3


def _blur(images: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, 1.0, 1.0))


def _noise(images: np.ndarray) -> np.ndarray:
    return np.clip(images + np.random.default_rng(0).normal(0.0, 0.35, images.shape), 0.0, _BLACK)


def _shrink(images: np.ndarray) -> np.ndarray:
    """To three quarters, about the centre."""
    ratio = np.asarray((1.0, 1 / 0.75, 1 / 0.75))
    centre = (np.asarray(images.shape) - 1) / 2
    offset: Any = centre * (1.0 - ratio)
    return ndimage.affine_transform(images, ratio, offset, order=1)


# Chosen before anything was trained on them, and not changed since.
SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotation": _rotate,  # by 30 degrees
    "translation": _translate,  # by one pixel down and to the right
    "inversion": _invert,
    "contrast": _fade,
    "blur": _blur,
    "noise": _noise,
    "scale": _shrink,
}


def load_digit_domains(shifts: Sequence[str], *, validation: float, seeds: Sequence[int]) -> VectorDomains:
    """A task for each shift. A random half of the images is the source; of the other half the digits 0 to 4, shifted,
    are the target, two thirds of them unlabelled for training and the rest the test.

    Args:
      shifts: keys of ``SHIFTS``; all of them if empty.
      validation: share of the source images that validates.
      seeds: a draw of all parts for each.

    Raises:
      DataError: no such shift.
    """
    from sklearn.datasets import load_digits

    if unknown := [name for name in shifts if name not in SHIFTS]:
        raise DataError(f"vectors.tasks: {unknown[0]!r}: choose from {', '.join(SHIFTS)}")
    shifts = list(shifts) or list(SHIFTS)
    digits: Any = load_digits()
    images, label = digits.images / 16.0, digits.target.astype(np.int64)
    shifted = np.stack([images, *(SHIFTS[name](images) for name in shifts)])
    return VectorDomains(
        features=shifted.reshape(shifted.shape[0] * len(images), -1).astype(np.float32),
        label=np.tile(label, len(shifted)),
        classes=tuple(map(str, range(10))),
        tasks={
            name: tuple(_draw(label, i * len(images), validation, seed) for seed in seeds)
            for i, name in enumerate(shifts, 1)
        },
        lines=(f"{len(images):,} images of 10 digits, half of them source; target: the digits 0 to 4, shifted",),
    )


def _draw(label: np.ndarray, offset: int, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Parts of one task whose shifted images begin at row ``offset``."""
    order = np.random.default_rng((seed, 1)).permutation(len(label))
    source, held_out = np.array_split(order, 2)
    target = held_out[label[held_out] < TARGET_DIGITS] + offset
    size = round(_TARGET_TRAIN * len(target))
    return {**split_source(source, validation, seed), "target_train": target[:size], "test": target[size:]}
