"""The memory that freed arrays leave: kept for the next ones, or given back."""

import ctypes
import os
import sys

# Of glibc's malloc.h, and of mallopt(3): what the environment variables MALLOC_TRIM_THRESHOLD_, ... set.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed arrays for the next ones; programs on CPU would else page it in each time.

    For a process of one's own, such as the command line's: it changes the allocator for all of it. Where the user has
    set the allocator by the environment, or there is no glibc, nothing changes.
    """
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if sys.platform != "linux" or any(name.startswith(chosen) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28)):
        library.mallopt(parameter, value)


def release_freed_memory() -> None:
    """Gives back what has been freed, to be called where much has been: a compiler on CPU leaves 300 MiB a program."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
