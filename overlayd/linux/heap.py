"""What the C library keeps of memory that nobody uses.

Owns: two settings of glibc's malloc (mallopt(3), malloc_trim(3)); without glibc they do nothing.  Must not know: whose
memory it is.
"""

import ctypes

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # malloc.h


def use_one_arena() -> None:
    """Let all threads share one heap: they take turns anyway, and each of its own would keep some 100 kB.  Before the
    first thread starts.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return to the kernel what has been freed: a start uses much that a daemon does not."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
