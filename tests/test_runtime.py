import os
import platform
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from fakereal.runtime import parallel_map

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


SERVED = """
import os
from pathlib import Path
from fakereal import runtime
print(runtime.return_freed_memory())
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
bytearray(b"x") * 20_000_000  # glibc now takes blocks of up to 20 MB from its pool
before = resident()
large, small = [], []
for _ in range(8):
    large.append(bytearray(b"x") * 8_000_000)
    small.append(bytearray(b"x") * 100_000)  # lie between them, and stay
large.clear()
print(resident() - before)
"""


def printed(code, **settings):
    """Return what Python prints, in an environment without settings for malloc but these."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=own | settings, capture_output=True, text=True, check=True).stdout


def faults(**settings):
    """Whether freed memory is kept, and how many pages five large arrays then take from the system."""
    kept, count = printed(FAULTS, **settings).split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again_without_asking_the_system():
    kept, count = faults()
    assert kept
    assert count < 100  # 97,656 pages of 4 kB otherwise, or 190 of 2 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_blocks_go_back_to_the_system_although_small_ones_lie_between():
    done, kept_bytes = printed(SERVED).split()
    assert done == "True"
    assert int(kept_bytes) < 5_000_000  # 65 MB otherwise


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_for_malloc_stays(name):
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}[name]
    assert not faults(**{name: value})[0]


def test_results_come_in_the_order_of_the_items_however_many_there_are():
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 * (number < 3))
        return number * number

    items = range(1000)
    assert list(parallel_map(slow_at_first, items, "squares")) == [number * number for number in items]
    assert list(parallel_map(slow_at_first, [], "nothing")) == []


def test_an_error_is_raised_at_its_items_turn():
    results = parallel_map(lambda number: 1 // (2 - number), range(9), "dividing")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_that_stops_waits_only_for_the_calls_that_have_begun():
    begun, go = [], threading.Event()

    def wait(number: int) -> None:
        begun.append(number)
        if number:
            go.wait(10)

    results = parallel_map(wait, range(200), "waiting")
    next(results)
    threading.Timer(0.2, go.set).start()
    results.close()
    assert len(begun) < 100


def test_the_garbage_collector_works_again_after_keras_was_imported_without_it():
    code = """
import gc
from fakereal.runtime import start_keras
start_keras()
frozen = gc.get_freeze_count()
start_keras()
print(gc.isenabled(), frozen > 100_000, gc.get_freeze_count() == frozen)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "True True True\n"
