# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""How much there is in a JSON text, before anything is made of it.

Owns: counting values, and where in the text a limit is exceeded.  Must not know: what the text says, or whether it is
JSON: of what is not, any count will do.

Counting releases the GIL and makes no object, so it may be done beside the event loop.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t

cdef enum:
    DEEPEST = 8  # keys of a path that are told


cdef struct Key:
    Py_ssize_t start, end


def where_over(body, Py_ssize_t most, Py_ssize_t longest):
    cdef Py_buffer view
    cdef Key keys[DEEPEST + 1]
    cdef Py_ssize_t depth
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            depth = scan(<const uint8_t *>view.buf, view.len, most, longest, keys)
        path = [
            (<const uint8_t *>view.buf)[keys[at].start : keys[at].end]
            for at in range(1, min(depth, DEEPEST) + 1)
            if keys[at].end
        ]
    finally:
        PyBuffer_Release(&view)
    return path if depth >= 0 else None


cdef Py_ssize_t scan(
    const uint8_t *p, Py_ssize_t n, Py_ssize_t most, Py_ssize_t longest, Key *keys
) noexcept nogil:
    """The depth at which there is more than `most` and `longest` allow, and in `keys` the key at each depth, or -1."""
    cdef Py_ssize_t i = 0, depth = 0, count = 1
    cdef Key text = Key(0, 0)
    cdef uint8_t c
    while i < n and count <= most:
        c = p[i]
        if c == b'"':
            i += 1
            text.start = i
            while i < n and p[i] != b'"':
                i += 2 if p[i] == b"\\" else 1
            text.end = min(i, n)
            if text.end - text.start > longest:
                return depth
        elif c == b":":
            if depth <= DEEPEST:
                keys[depth] = text
        elif c == b"{" or c == b"[":
            count += 1
            depth += 1
            if depth <= DEEPEST:
                keys[depth] = Key(0, 0)
        elif c == b"}" or c == b"]":
            if depth > 0:
                depth -= 1
        elif c == b",":
            count += 1
        i += 1
    return depth if count > most else -1
