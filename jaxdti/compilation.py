"""Where compiled programs are kept between runs."""

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
