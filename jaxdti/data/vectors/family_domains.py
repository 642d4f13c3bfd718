"""Partial transfer on compounds: which protein family one binds, on other scaffolds and of fewer families."""

from collections.abc import Sequence

import numpy as np

from jaxdti.config import DataConfig
from jaxdti.data.fingerprints import ecfp4
from jaxdti.data.pairs.splits import scaffold_groups
from jaxdti.data.vectors.domains import FeatureSpace, VectorDomains, split_source
from jaxdti.data.vectors.families import load_families
from jaxdti.errors import DataError

DATASET = "families/dti_six"
BITS = 1024  # of ECFP4
# Families that the target keeps; the source has all six. Chosen before anything was trained on them.
TARGETS: dict[str, tuple[str, ...]] = {
    "gpcr+kinase": ("gpcr", "kinase"),
    "kinase+protease": ("kinase", "protease"),
    "gpcr+ion_channel+transporter": ("gpcr", "ion_channel", "transporter"),
}
_TARGET_SCAFFOLDS = 0.5
_TARGET_TRAIN = 2 / 3  # of the target compounds; the others are the test


def load_family_domains(
    data: DataConfig, tasks: Sequence[str], *, validation: float, seeds: Sequence[int]
) -> VectorDomains:
    """ECFP4 of the compounds that bind proteins of one family only, with the family as the class.

    A random half of the scaffolds is the source. Of the compounds of the other half, those of a task's families are
    its target, two thirds of them unlabelled for training and the rest the test.

    Args:
      data: limits and cache of the reading; the dataset is ``DATASET``.
      tasks: keys of ``TARGETS``; all of them if empty.
      validation: share of the source compounds that validates.
      seeds: a draw of all parts for each.

    Raises:
      DataError: no such task, or the dataset is missing or unfit.
    """
    if unknown := [name for name in tasks if name not in TARGETS]:
        raise DataError(f"vectors.tasks: {unknown[0]!r}: choose from {', '.join(TARGETS)}")
    limits = {name: getattr(data, name) for name in ("cache_dir", "max_atoms", "max_rejected")}
    compounds = load_families(DataConfig(dataset=DATASET, **limits))
    binds = compounds.active.sum(0)
    rows = np.flatnonzero(binds == 1)
    smiles, label = compounds.smiles[rows], np.argmax(compounds.active[:, rows], 0)
    scaffold = scaffold_groups(smiles)
    counts = ", ".join(f"{name} {np.sum(label == k):,}" for k, name in enumerate(compounds.names))
    databases = {name: of_database[rows] for name, of_database in compounds.databases.items()}
    return VectorDomains(
        databases=databases,
        space=FeatureSpace(fingerprint_bits=BITS),
        features=ecfp4(list(smiles), bits=BITS).astype(np.float32),
        label=label.astype(np.int64),
        classes=compounds.names,
        tasks={
            name: tuple(
                _draw(label, scaffold, [compounds.number(family) for family in TARGETS[name]], validation, seed)
                for seed in seeds
            )
            for name in tasks or TARGETS
        },
        lines=(
            *compounds.lines,
            f"{len(rows):,} compounds bind one family: {counts}; {int(np.sum(binds > 1)):,} bind several and "
            f"{int(np.sum(binds == 0)):,} none, and are left out",
            *(f"{own.sum():,} of them have pairs of {name}" for name, own in databases.items()),
        ),
    )


def _draw(
    label: np.ndarray, scaffold: np.ndarray, kept: Sequence[int], validation: float, seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((seed, 1))
    held_out = rng.random(scaffold.max() + 1)[scaffold] < _TARGET_SCAFFOLDS
    target = rng.permutation(np.flatnonzero(held_out & np.isin(label, kept)))
    size = round(_TARGET_TRAIN * len(target))
    return {
        **split_source(np.flatnonzero(~held_out), validation, seed),
        "target_train": target[:size],
        "test": target[size:],
    }
