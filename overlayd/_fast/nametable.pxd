from libc.stdint cimport uint8_t

from overlayd._fast.dnsquery cimport Question, Secret


cdef class NameTable:
    cdef Secret secret
    cdef dict names  # wire name -> Name
    cdef dict inner  # wire name -> how many names and zones are below it
    cdef set zones  # wire names
    cdef dict groups  # packed address -> number of the isolation network it is a member of, 0 for the node's own
    cdef Py_ssize_t turn

    cdef Py_ssize_t answer(self, Question *q, uint8_t *out, Py_ssize_t end) except -2
    cdef Py_ssize_t look_up(self, Question *q, uint8_t *out, Py_ssize_t end) except -2
    cdef tuple visible(self, tuple addresses, Question *q)
    cdef Py_ssize_t write_addresses(self, tuple addresses, Question *q, uint8_t *out, Py_ssize_t end) except -2
    cdef Py_ssize_t write_localhost(self, Question *q, uint8_t *out, Py_ssize_t end) except -2
    cdef Py_ssize_t write_pointers(self, tuple targets, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2
    cdef int zone_of(self, bytes key, Question *q) except -3
    cdef int put(self, bytes name, tuple addresses, tuple targets, bytes reverse) except -1
    cdef int count(self, bytes name, int difference) except -1
