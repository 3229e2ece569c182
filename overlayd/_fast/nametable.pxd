from libc.stdint cimport uint8_t

cdef enum:
    DROP = 0  # no answer at all
    FORWARD = -1  # a proper question that is not ours to answer
    MOST_LABELS = 127  # of a name of 255 bytes

cdef struct Question:
    int type
    int labels  # the root's not counted
    uint8_t starts[MOST_LABELS]  # of the labels, from the name's first byte
    Py_ssize_t name  # bytes of the name
    bint edns
    int version
    int payload
    bint dnssec


cdef class NameTable:
    cdef dict names  # wire name -> Name
    cdef dict inner  # wire name -> how many names and zones are below it
    cdef set zones  # wire names

    cdef Py_ssize_t answer(
        self, const uint8_t *query, Py_ssize_t size, uint8_t *out, Py_ssize_t capacity, bint stream
    ) except -2
    cdef Py_ssize_t look_up(self, Question *q, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2
    cdef Py_ssize_t write_pointers(self, tuple targets, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2
    cdef int zone_of(self, bytes key, Question *q) except -3
    cdef int put(self, bytes name, bytes address, tuple targets) except -1
    cdef int count(self, bytes name, int difference) except -1
