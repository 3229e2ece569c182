from libc.stdint cimport uint8_t

cdef enum:
    HEADER = 4  # u32 little-endian body length
    BODY_LIMIT = 8 * 1024 * 1024

cdef class Block:
    cdef uint8_t *data
    cdef Py_ssize_t size
    cdef Py_ssize_t readers  # read-only windows that are still held
    cdef Py_ssize_t armed_start, armed_length
    cdef bint armed, armed_readonly
    cdef object window(self, Py_ssize_t start, Py_ssize_t length, bint readonly)

cdef class Inbox:
    cdef Block block
    cdef Py_ssize_t initial
    cdef Py_ssize_t start, end  # what is buffered: block.data[start:end]
    cdef Py_ssize_t lent  # size of the window that get_buffer handed out and received has not answered yet
    cdef Py_ssize_t whole(self) except -2
    cdef object pop(self, Py_ssize_t length)
    cdef int settle(self) except -1
    cdef int make_room(self) except -1
