"""A test module's `digest` made by a process that has one core, so one thread."""

from __future__ import annotations

import subprocess
import sys


def digest_of(module: str) -> str:
    """What ``digest()`` of a module gives there."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        f"from {module} import digest\n"
        "print(digest(), len(os.sched_getaffinity(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found, cores = done.stdout.split()
    assert cores == "1"
    return found
