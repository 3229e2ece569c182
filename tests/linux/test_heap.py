"""What a start has used is given back: seen from outside, on a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
from overlayd.linux import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

heap.use_one_arena()
pieces = [bytes(2000) for _ in range(20_000)]  # too large for Python's own allocator, too small to be mapped alone
last = bytes(2000)  # keeps the end of the heap in place
used = resident()
del pieces
freed = resident()
heap.give_back()
print(used, freed, resident())
"""


def test_what_is_free_inside_the_heap_goes_back_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    used, freed, given = map(int, done.stdout.split())
    assert used - given > 30_000_000
    assert freed - given > 10_000_000, "the C library would have kept it"


UNMAPPING = """
import ssl  # with libraries of some size, most of whose pages nobody needs again

from overlayd.linux import heap

def programs():
    kilobytes, counted = 0, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            counted = words[1] == PERMISSIONS and words[4] != "0"
        elif words[0] == "Rss:" and counted:
            kilobytes += int(words[1])
    return kilobytes

programs()
before = programs()
heap.give_back()
after = programs()
ssl.create_default_context()
print(before, after)
"""


@pytest.mark.parametrize("permissions", ["r-xp", "r--p"])
def test_pages_of_programs_that_only_a_start_needs_are_unmapped_and_come_back_when_they_are_needed(
    permissions: str,
) -> None:
    program = f"PERMISSIONS = {permissions!r}\n{UNMAPPING}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before - 1000
