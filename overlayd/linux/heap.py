"""What a start has used of the memory, and the daemon does not.

Owns: two settings of glibc's malloc (mallopt(3), malloc_trim(3)), without which nothing happens, and the pages of
programs that are mapped (madvise(2)).  Must not know: whose memory it is.
"""

import ctypes
import re
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # malloc.h
_MADV_DONTNEED = 4  # sys/mman.h
_MAPS = Path("/proc/self/smaps")  # proc_pid_smaps(5)
# A mapping of a file (it has an inode) that nobody may write to, and that nobody has written to before that: what the
# loader has relocated is in no file, and would be lost.
_AS_IN_THE_FILE = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[-x]p \S+ \S+ [1-9].*\n(?:[A-Z].*\n)*?Anonymous: +0 kB$", re.MULTILINE
)


def use_one_arena() -> None:
    """Let all threads share one heap: they take turns anyway, and each of its own would keep some 100 kB.  Before the
    first thread starts.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return to the kernel what has been freed, and the pages of programs and libraries, their constants too: a start
    uses much that a daemon does not.

    Pages of a file that nobody has written to stay in the page cache.  What is needed again comes back from there by
    minor faults, without the disk; what is not needed any more, such as the importing of modules, does not.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    for start, end in _AS_IN_THE_FILE.findall(_MAPS.read_text()):
        first = int(start, 16)
        _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(int(end, 16) - first), _MADV_DONTNEED)
