# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""How much there is in a JSON text, and which keys, before anything is made of it.

Owns: counting values, where in the text a limit is exceeded, and where the keys of an object are.  Must not know: what
the text says, or whether it is JSON: of what is not, any count will do.

Scanning releases the GIL and makes no object, so it may be done beside the event loop.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t
from libc.string cimport memchr

cdef enum:
    DEEPEST = 8  # keys of a path that are told
    MOST_KEYS = 64  # that one call may return


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


def next_keys(body, Py_ssize_t start, Py_ssize_t most):
    cdef Py_buffer view
    cdef Key keys[MOST_KEYS]
    cdef Py_ssize_t count = min(most, MOST_KEYS)
    if count < 1 or start < 0:
        raise ValueError(f"{most} keys from {start} on")
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            start = find_keys(<const uint8_t *>view.buf, view.len, start, keys, &count)
        found = [(<const uint8_t *>view.buf)[keys[at].start : keys[at].end] for at in range(count)]
    finally:
        PyBuffer_Release(&view)
    return found, start


cdef inline Py_ssize_t end_of_text(const uint8_t *p, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    """Where the quote is that ends the text which begins at i; n or more: not before n."""
    cdef const uint8_t *quote = NULL
    cdef const uint8_t *escape
    while i < n:
        if quote < p + i:
            quote = <const uint8_t *>memchr(p + i, b'"', n - i)
            if quote == NULL:
                return n
        escape = <const uint8_t *>memchr(p + i, b"\\", quote - (p + i))
        if escape == NULL:
            return quote - p
        i = escape - p + 2
    return n


cdef Py_ssize_t find_keys(
    const uint8_t *p, Py_ssize_t n, Py_ssize_t i, Key *keys, Py_ssize_t *count
) noexcept nogil:
    """Fill `keys` with up to `count` keys of an object, from i on: before it, or behind a value of it; where to go on."""
    cdef Py_ssize_t found = 0, depth = 0 if i == 0 else 1
    cdef Key text = Key(0, 0)
    cdef uint8_t c
    while i < n:
        c = p[i]
        if c == b'"':
            text.start = i
            i = end_of_text(p, n, i + 1)
            text.end = min(i + 1, n)
        elif c == b":" and depth == 1:
            keys[found] = text
            found += 1
            if found == count[0]:
                return i + 1
        elif c == b"{" or c == b"[":
            depth += 1
        elif c == b"}" or c == b"]":
            depth -= 1
        i += 1
    count[0] = found
    return -1


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
            text.start = i + 1
            # Of a longer one the rest need not be looked at.
            i = end_of_text(p, min(n, text.start + longest + 1), text.start)
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
