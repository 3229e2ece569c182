from libc.stdint cimport uint8_t

from overlayd._fast.dnsquery cimport HEADER, LONGEST_QUESTION

cdef enum:
    LONGEST_FORWARDED = HEADER + LONGEST_QUESTION + 11  # bytes: an OPT record without options behind the question


cdef class Query:
    cdef readonly bytes key
    cdef readonly bint edns
    cdef bytes question
    cdef uint8_t flags[2]
    cdef readonly bint dnssec

    cdef Py_ssize_t write(self, uint8_t *out, int id, bint edns) noexcept
    cdef bint is_answered(self, const uint8_t *response, Py_ssize_t size, int id) noexcept
