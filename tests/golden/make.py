"""Writes the expected numbers of the runs in this folder anew: ``python tests/golden/make.py [CASE ...]``.

It goes through the tests, so that the numbers come about as they are compared. Those of tests/golden/old_runs are
written by make_old_runs.py.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def write_expected(cases: list[str]) -> int:
    """Runs the tests in their writing mode; returns their exit code.

    Args:
      cases: names of runs; none for all.
    """
    command = [sys.executable, "-m", "pytest", "-q", str(HERE / "test_golden.py")]
    if cases:
        command += ["-k", " or ".join(f"[{case}]" for case in cases)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAXDTI_GOLDEN_WRITE": "1"}).returncode


if __name__ == "__main__":
    sys.exit(write_expected(sys.argv[1:]))
