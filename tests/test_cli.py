import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FAULTS = """
import resource
import numpy as np
from fakereal import runtime
kept = runtime.keep_freed_memory()
np.ones(10_000_000)  # 80 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**settings):
    """Whether freed memory is kept, and how many pages five large arrays then take from the system."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, cwd=ROOT, env=own | settings, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again_without_asking_the_system():
    kept, count = faults()
    assert kept
    assert count < 100  # 97,656 pages of 4 kB otherwise, or 190 of 2 MB


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_for_malloc_stays(name):
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}[name]
    assert not faults(**{name: value})[0]
