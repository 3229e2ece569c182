from libc.stdint cimport uint8_t

from overlayd._fast.dnsquery cimport Question, Secret

cdef Py_ssize_t write_key(uint8_t *key, const uint8_t *question, Question *q, const uint8_t *query) noexcept


cdef class Answer:
    cdef readonly int code
    cdef readonly bint truncated
    cdef readonly unsigned int lifetime
    cdef public str server
    cdef bint recursion, authenticated
    cdef bytes records  # those of the three sections, the OPT record left out
    cdef int counts[3]
    cdef bytes ttls  # where the lifetimes stand in `records`, as C's int
    cdef bytes options  # extended errors

    cdef int read(self, const uint8_t *message, Py_ssize_t size) except -1
    cdef int read_errors(self, const uint8_t *options, int size) except -1
    cdef Py_ssize_t write(self, Question *q, uint8_t *out, Py_ssize_t end, double age, bint stale, const Secret *secret) noexcept


cdef class Entry:
    cdef Answer answer
    cdef double stored
    cdef unsigned int hits  # since it was stored
    cdef bint used  # since the last look at what may go
    cdef bint refreshing


cdef class Cache:
    cdef Secret secret
    cdef object entries  # key -> Entry, the oldest first: an OrderedDict
    cdef readonly Py_ssize_t size
    cdef readonly unsigned long hits, misses
    cdef Py_ssize_t most, largest
    cdef readonly bint refresh

    cdef Py_ssize_t answer(self, Question *q, const uint8_t *query, uint8_t *out, Py_ssize_t end, double now) except -2
    cdef int drop(self, bytes key, Entry entry) except -1
