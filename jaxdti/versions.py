"""Refuses to stay silent about installed JAX versions that compute wrong numbers."""

import warnings
from importlib import metadata

# Releases no supported range admits, of jax or of jaxlib, which carries the compiler.
KNOWN_BAD = {"0.10.2": "inside jit on CPU, a vmapped matrix-vector product followed by a reduction"}


def check_jax_version() -> None:
    """Warns when jax or jaxlib is a version known to return wrong numbers.

    Reads the installed metadata only, so that it costs no import of jax. Emits one ``RuntimeWarning`` per bad package.
    """
    for package in ("jax", "jaxlib"):
        version = metadata.version(package)
        if version in KNOWN_BAD:
            warnings.warn(
                f"{package} {version} returns wrong numbers ({KNOWN_BAD[version]}); do not trust any result. "
                "Install jax>=0.10.0,<0.10.2 on Python 3.11 or jax>=0.11.2,<0.12 on later versions.",
                RuntimeWarning,
                stacklevel=3,
            )
