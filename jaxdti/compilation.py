"""Compiling, and what it leaves behind: programs kept between runs, and memory given back."""

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxdti.console import say_compiled
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


def told_jit(program: Callable[..., Any], name: Callable[..., str], donate: str | None = None) -> Callable[..., Any]:
    """``jax.jit(program)`` that says of every compilation what it was, ``name(*arguments)``, and its seconds.

    There is one for each structure, and for all shapes and dtypes, of the arguments; they lie on one device. Of several
    processes the first one says it.

    Args:
      donate: the argument that is given up, if any.
    """
    jitted = jax.jit(program, donate_argnames=donate)
    compiled = {}

    def call(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in compiled:
            start = time.perf_counter()
            compiled[key] = jitted.lower(*arguments).compile()
            release_compiler_memory()
            if jax.process_index() == 0:
                say_compiled(name(*arguments), time.perf_counter() - start)
        return compiled[key](*arguments)

    return call
