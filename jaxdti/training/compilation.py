"""Compiling: programs kept between runs and told."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from jaxdti.console import say_compiled
from jaxdti.files import user_cache_dir
from jaxdti.memory import release_freed_memory


def keep_programs() -> None:
    """Keeps compiled programs in the user cache, so that the next run of the same shapes starts at once.

    On GPU and TPU only: a CPU program that is loaded again makes XLA (jax 0.10) print pages of warnings about the
    processor. A directory that the user has set stays.
    """
    if jax.default_backend() == "cpu" or jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    jax.config.update("jax_compilation_cache_dir", str(user_cache_dir() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


_MOST_KEPT = 128  # compiled programs; those of a run are some forty
_kept: dict[Hashable, Any] = {}  # the one used last is last


def kept_program(key: Hashable, compile: Callable[[], Any]) -> Any:
    """The program that was compiled for ``key`` before in this process, or ``compile()``.

    So the next run of a network, such as the next group of a sweep, finds its programs compiled. ``key`` holds all that
    they depend on, the shapes of their arguments too (``signature``).
    """
    settings: Any = jax.config
    key = (
        key,
        settings.jax_default_matmul_precision,
        settings.jax_enable_x64,
        settings.jax_default_device,
    )
    program = _kept.pop(key, None) or compile()
    _kept[key] = program
    if len(_kept) > _MOST_KEPT:
        del _kept[next(iter(_kept))]
    return program


def forget_programs() -> None:
    """Drops every kept program; those in use stay."""
    _kept.clear()


def signature(*arguments: Any) -> Hashable:
    """The structure, and all shapes and dtypes, of arrays in trees."""
    leaves, structure = jax.tree.flatten(arguments)
    return structure, *((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)


def told_jit(
    program: Callable[..., Any], name: Callable[..., str], key: Hashable, donate: str | None = None
) -> Callable[..., Any]:
    """``jax.jit(program)`` that says of every compilation what it was, ``name(*arguments)``, and its seconds.

    There is one for each ``signature`` of the arguments, which lie on one device. Of several processes the first one
    says it.

    Args:
      key: all that ``program`` depends on beside its arguments, as in ``kept_program``.
      donate: the argument that is given up, if any.
    """
    jitted = jax.jit(program, donate_argnames=donate)
    compiled = {}

    def compile(arguments):
        start = time.perf_counter()
        made = jitted.lower(*arguments).compile()
        release_freed_memory()
        if jax.process_index() == 0:
            say_compiled(name(*arguments), time.perf_counter() - start)
        return made

    def call(*arguments):
        shapes = signature(*arguments)
        if shapes not in compiled:
            compiled[shapes] = kept_program((key, shapes), lambda: compile(arguments))
        return compiled[shapes](*arguments)

    return call
