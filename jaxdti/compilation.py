"""What compiling leaves behind: programs kept between runs, and memory given back."""

import ctypes
import sys

import jax

from jaxdti.data.features import user_cache_dir


def keep_programs() -> None:
    """Keeps compiled programs in the user cache, so that the next run of the same shapes starts at once.

    On GPU and TPU only: a CPU program that is loaded again makes XLA (jax 0.10) print pages of warnings about the
    processor. A directory that the user has set stays.
    """
    if jax.default_backend() == "cpu" or jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    jax.config.update("jax_compilation_cache_dir", str(user_cache_dir() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def release_compiler_memory() -> None:
    """Gives back what the compiler has freed: about 300 MiB a program on CPU, which glibc would keep until the end."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
