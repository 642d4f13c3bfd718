"""Protein sequences: the 25-letter code of the published model, normalisation and encoding."""

import numpy as np

# The number of a letter is its place here plus one; 0 is padding. The order is the published model's, with its
# exceptions to the alphabet (E before D, I before H).
LETTERS = "ACBEDGFIHKMLONQPSRUTWVYXZ"
UNKNOWN = "X"
MAX_UNKNOWN = 0.05  # share of letters outside LETTERS above which a sequence is refused

_KEEP = LETTERS.encode()
_CODES = bytes(LETTERS.index(chr(i)) + 1 if chr(i) in LETTERS else 0 for i in range(256))
_TO_UNKNOWN = bytes(i if i in _KEEP else ord(UNKNOWN) for i in range(256))


def normalise_sequence(raw: str) -> tuple[str, int]:
    """Upper-cases a sequence, removes white space anywhere and ``*`` at the end, and turns foreign letters into X.

    Returns:
      The sequence, and how many of its letters were outside the 25 (J, an inner ``*``, digits ...).

    Raises:
      ValueError: nothing is left, or more than 5 % of the letters are foreign.
    """
    text = "".join(raw.split()).upper().rstrip("*")
    if not text:
        raise ValueError("empty sequence")
    data = text.encode("ascii", errors="replace")  # a letter outside ASCII becomes one "?"
    unknown = len(data.translate(None, delete=_KEEP))
    if unknown > MAX_UNKNOWN * len(data):
        raise ValueError(f"{unknown} of {len(data)} letters are not amino acids (at most 5 % are accepted)")
    return data.translate(_TO_UNKNOWN).decode("ascii"), unknown


def encode_sequence(sequence: str, max_residues: int | None = None) -> np.ndarray:
    """A normalised sequence of n letters -> uint8 [min(n, max_residues)], 1 to 25; 0 for a letter outside the 25."""
    data = sequence[:max_residues].encode("ascii", errors="replace")
    return np.frombuffer(data.translate(_CODES), np.uint8)
