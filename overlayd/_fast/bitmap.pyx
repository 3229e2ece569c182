# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A set of small integers, as a bitmap of 64-bit words: which host offsets of a subnet are held.

Owns: finding and taking the lowest clear bit.  Must not know: what a bit stands for.

Not thread-safe beyond what the GIL gives: no method releases it.
"""
cimport cython
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long) noexcept nogil  # undefined for 0

cdef enum:
    WORD_BITS = 64
    LARGEST = 65536  # our own limit: an IPv4 /16, the largest range that addresses are handed out from

cdef uint64_t FULL = ~<uint64_t>0


@cython.final
cdef class Bitmap:
    cdef uint64_t *words  # the bits of the last word from `size` on are always set, so that no scan finds them clear
    cdef Py_ssize_t word_count, bits, set_bits
    cdef Py_ssize_t hint  # every word before this one is full

    def __cinit__(self, Py_ssize_t size):
        if size < 0 or size > LARGEST:
            raise ValueError(f"a bitmap has 0 to {LARGEST} bits, not {size}")
        self.bits = size
        self.word_count = (size + WORD_BITS - 1) // WORD_BITS
        self.words = <uint64_t *>calloc(self.word_count + 1, sizeof(uint64_t))  # one spare: calloc(0) may return NULL
        if self.words == NULL:
            raise MemoryError
        if size % WORD_BITS:
            self.words[self.word_count - 1] = FULL << (size % WORD_BITS)

    def __dealloc__(self):
        free(self.words)

    @property
    def size(self):
        return self.bits

    @property
    def count(self):
        return self.set_bits

    def set(self, Py_ssize_t i):
        self.check(i)
        if self.words[i // WORD_BITS] >> (i % WORD_BITS) & 1:
            return False
        self.words[i // WORD_BITS] |= <uint64_t>1 << (i % WORD_BITS)
        self.set_bits += 1
        return True

    def clear(self, Py_ssize_t i):
        self.check(i)
        if not self.words[i // WORD_BITS] >> (i % WORD_BITS) & 1:
            return False
        self.words[i // WORD_BITS] &= ~(<uint64_t>1 << (i % WORD_BITS))
        self.set_bits -= 1
        self.hint = min(self.hint, i // WORD_BITS)
        return True

    def test(self, Py_ssize_t i):
        self.check(i)
        return bool(self.words[i // WORD_BITS] >> (i % WORD_BITS) & 1)

    def first_clear(self, Py_ssize_t start=0):
        if start < 0 or start > self.bits:
            raise IndexError(f"bit {start} of a bitmap of {self.bits}")
        return self.scan(start)

    def allocate(self):
        cdef Py_ssize_t i = self.scan(0)
        if i >= 0:
            self.words[i // WORD_BITS] |= <uint64_t>1 << (i % WORD_BITS)
            self.set_bits += 1
        return i

    def copy(self):
        cdef Bitmap twin = Bitmap(self.bits)
        memcpy(twin.words, self.words, self.word_count * sizeof(uint64_t))
        twin.set_bits = self.set_bits
        twin.hint = self.hint
        return twin

    cdef inline int check(self, Py_ssize_t i) except -1:
        if i < 0 or i >= self.bits:
            raise IndexError(f"bit {i} of a bitmap of {self.bits}")
        return 0

    cdef Py_ssize_t scan(self, Py_ssize_t start) noexcept:
        """The lowest clear bit at or after `start`, or -1; a scan that passes the hint moves it."""
        cdef Py_ssize_t word = start // WORD_BITS
        cdef bint from_hint = word < self.hint or start == self.hint * WORD_BITS
        cdef uint64_t clear
        if from_hint:
            word = self.hint
        while word < self.word_count:
            clear = ~self.words[word]
            if word * WORD_BITS < start:
                clear &= FULL << (start % WORD_BITS)
            if clear:
                break
            word += 1
        if from_hint:
            self.hint = word
        return word * WORD_BITS + count_trailing_zeros(clear) if word < self.word_count else -1
