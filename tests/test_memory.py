"""Freed memory: given back to the system on request, or kept for the next arrays in a process of one's own."""

import os
import subprocess
import sys

import pytest

from jaxdti.memory import release_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    release_freed_memory()
    before = resident()
    blocks = [bytes(64 * 1024) for _ in range(2000)]  # 125 MiB in pieces that glibc keeps in its heap
    kept = blocks[-1]
    blocks.clear()
    release_freed_memory()
    assert resident() - before < 30 * 2**20 and len(kept) == 64 * 1024


# Page faults of fifty arrays of 64 MiB, one after the other, written once.
PAGED_IN = """
import resource
import numpy as np
from jaxdti.memory import keep_freed_memory
keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
for _ in range(50):
    np.ones(2**23)
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets glibc's allocator")
@pytest.mark.parametrize("setting, kept", [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1048576"}, False)])
def test_memory_of_arrays_is_paged_in_once_unless_the_user_has_set_the_allocator(setting, kept):
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        pytest.skip("another C library than glibc")
    allocator = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(allocator)} | setting
    done = subprocess.run([sys.executable, "-c", PAGED_IN], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 500) == kept  # 50 x 64 MiB are 819,200 pages of 4 KiB, or 1,600 of 2 MiB
