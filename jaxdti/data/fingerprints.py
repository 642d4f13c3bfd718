"""Plain descriptors of distinct drugs and proteins, for the baselines: ECFP4 bits, 3-mer counts, composition."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator

from jaxdti.errors import DataError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
FINGERPRINT_BITS = 1024
_OTHER = len(AMINO_ACIDS)  # code of every letter outside the 20

_CODES = np.full(256, _OTHER, dtype=np.int64)
_CODES[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(len(AMINO_ACIDS))


def ecfp4(smiles: Sequence[str], *, bits: int = FINGERPRINT_BITS) -> np.ndarray:
    """Morgan fingerprints of radius 2 without chirality (Rogers & Hahn 2010, doi 10.1021/ci100050t).

    Args:
      smiles: D strings.
      bits: length of the folded fingerprint.

    Returns:
      uint8 [D, bits] of 0 and 1, one row per drug.

    Raises:
      DataError: a SMILES does not parse.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=bits)
    fingerprints = np.zeros((len(smiles), bits), dtype=np.uint8)
    with rdBase.BlockLogs():  # the DataError says it in one line
        for i, text in enumerate(smiles):
            molecule = Chem.MolFromSmiles(text)
            if molecule is None:
                raise DataError(f"drug {i}: SMILES {text!r} does not parse; a valid molecule was expected")
            fingerprints[i] = generator.GetFingerprintAsNumPy(molecule)
    return fingerprints


def residue_codes(sequence: str) -> np.ndarray:
    """int64 [L]: 0 to 19 in the order of ``AMINO_ACIDS``, 20 for any other letter."""
    return _CODES[np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)]


def three_mer_counts(sequences: Sequence[str], *, overlapping: bool = True) -> scipy.sparse.csr_array:
    """Counts of 3-mers over the 20 amino acids.

    Windows that hold any other letter are left out. A sequence without a window (shorter than 3) gives a zero row.

    Args:
      sequences: P upper-case strings.
      overlapping: where False, occurrences of one 3-mer share no residue, taken from the left: AAAA holds AAA once.

    Returns:
      int64 sparse [P, 8000].
    """
    size = len(AMINO_ACIDS)
    columns, counts, offsets = [], [], [0]
    for sequence in sequences:
        codes = residue_codes(sequence)
        first, second, third = codes[:-2], codes[1:-1], codes[2:]
        known = np.maximum(np.maximum(first, second), third) < size
        words = ((first * size + second) * size + third)[known]
        word, count = np.unique(words, return_counts=True)
        if not overlapping:
            # Only a 3-mer that ends in its first letter can share a residue with another one of its kind.
            for i in np.flatnonzero((word // size**2 == word % size) & (count > 1)):
                letters = (word[i] // size**2, word[i] // size % size, word[i] % size)
                count[i] = sequence.count("".join(AMINO_ACIDS[letter] for letter in letters))
        columns.append(word)
        counts.append(count)
        offsets.append(offsets[-1] + len(word))
    values, indices = (np.concatenate([*parts, []]).astype(np.int64) for parts in (counts, columns))
    return scipy.sparse.csr_array((values, indices, np.array(offsets)), shape=(len(sequences), size**3))


def three_mers(sequences: Sequence[str]) -> scipy.sparse.csr_array:
    """``three_mer_counts`` with each row scaled to length 1 (a zero row stays zero).

    Args:
      sequences: P upper-case strings.

    Returns:
      float32 sparse [P, 8000]; the product with its own transpose holds cosine similarities.
    """
    counts = three_mer_counts(sequences)
    length = np.maximum(np.sqrt(counts.power(2).sum(axis=1)), 1.0)
    values = (counts.data / np.repeat(length, np.diff(counts.indptr))).astype(np.float32)
    return scipy.sparse.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)


def composition(sequences: Sequence[str]) -> np.ndarray:
    """Share of each of the 20 amino acids in each sequence.

    Args:
      sequences: P upper-case strings.

    Returns:
      float32 [P, 20]; other letters count in the length only, an empty sequence gives zeros.
    """
    shares = np.zeros((len(sequences), len(AMINO_ACIDS)), dtype=np.float32)
    for i, sequence in enumerate(sequences):
        counts = np.bincount(residue_codes(sequence), minlength=_OTHER + 1)[:_OTHER]
        shares[i] = counts / max(len(sequence), 1)
    return shares
