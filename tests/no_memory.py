"""A moment in which malloc has nothing left, for what must then say so and stay as it was."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager

SIZES = (1 << 20, 1 << 16, 1 << 13, 1 << 11)  # bytes; blocks that are smaller than the last are left


@contextmanager
def no_memory() -> Iterator[None]:
    """Let malloc refuse every block of two kilobytes and more.

    The kernel gives the process no more, and what the C library holds is taken.  Python's own small objects still find
    room in the arenas that it has: the block should do one thing only.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    taken = (ctypes.c_void_p * 200_000)()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    count = 0
    resource.setrlimit(resource.RLIMIT_AS, (4096, hard))
    try:
        for size in SIZES:
            while block := libc.malloc(size):
                taken[count] = block
                count += 1
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number in range(count):
            libc.free(taken[number])
