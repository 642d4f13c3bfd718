"""Refuses to stay silent about installed JAX versions that compute wrong numbers."""

import os
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


# Supported releases that are wrong in a corner only: a plain sum, mean, max or min over the product with one small
# shared matrix, in rows from 32,768 on. Without the fusion they are right (tests/test_miscompilation.py).
FAULTY_FUSION = ("0.10.0", "0.10.1")
_WITHOUT_FUSION = "--xla_cpu_experimental_ynn_fusion_type=-reduce"


def avoid_faulty_fusion() -> None:
    """Turns off XLA's faulty CPU fusion through ``XLA_FLAGS`` where the installed jaxlib has it.

    XLA reads the variable at the first computation, so ``jaxdti`` has to be imported before that. A setting of the same
    flag by the user stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") in FAULTY_FUSION and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_WITHOUT_FUSION}".strip()
