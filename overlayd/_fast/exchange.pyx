# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""The short way of a request: from the bytes of a frame to the bytes of its answer, without Python code in between.

Owns: answering at once what can be answered at once, and the frame around an answer that is encoded already.  Must not
know: what a request says; it is given the decoder, and for each type of request that it may answer what answers it.

What cannot be answered so is handed out, decoded if that went well.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from overlayd._fast.frame cimport BODY_LIMIT, HEADER, Inbox

from overlayd.errors import ProtocolError

# Our own constants.
cdef enum:
    GATHERED = 16 * 1024  # bytes of short answers that make up one piece
    LONG = 4 * 1024  # bytes from which on an answer is a piece of its own, and not copied
    MOST_DIGITS = 20  # of an id, a u64

# Protocol constants (the wire contract).
cdef const char *BEFORE_ID = b'{"frame":"response","id":'
cdef const char *AFTER_ID = b',"response":'
cdef enum:
    BEFORE_LENGTH = 25
    AFTER_LENGTH = 12
    LONGEST_HEAD = HEADER + BEFORE_LENGTH + MOST_DIGITS + AFTER_LENGTH


cdef Py_ssize_t put_head(uint8_t *to, uint64_t id, Py_ssize_t answer) noexcept:
    """Write what precedes an answer of so many bytes; returns how much that is."""
    cdef uint8_t digits[MOST_DIGITS]
    cdef Py_ssize_t at = MOST_DIGITS, size = HEADER, length
    while True:
        at -= 1
        digits[at] = 48 + id % 10
        id //= 10
        if id == 0:
            break
    memcpy(to + size, BEFORE_ID, BEFORE_LENGTH)
    size += BEFORE_LENGTH
    memcpy(to + size, digits + at, MOST_DIGITS - at)
    size += MOST_DIGITS - at
    memcpy(to + size, AFTER_ID, AFTER_LENGTH)
    size += AFTER_LENGTH
    length = size - HEADER + answer + 1
    to[0] = length & 0xFF
    to[1] = (length >> 8) & 0xFF
    to[2] = (length >> 16) & 0xFF
    to[3] = (length >> 24) & 0xFF
    return size


@cython.final
cdef class Exchange:
    cdef Inbox inbox
    cdef object decode
    cdef dict answers
    cdef Py_ssize_t large
    cdef uint64_t id
    cdef readonly Py_ssize_t taken
    cdef readonly Py_ssize_t size
    cdef readonly object left

    def __cinit__(self, Inbox inbox not None, decode, dict answers not None, Py_ssize_t large):
        self.inbox = inbox
        self.decode = decode
        self.answers = answers
        self.large = large

    def advance(self, Py_ssize_t most, Py_ssize_t enough, bint at_once=True):
        cdef uint8_t gathered[GATHERED]
        cdef Py_ssize_t used = 0, read = 0, written = 0, length
        cdef list pieces = []
        cdef bytes answer
        self.taken = 0
        self.left = None
        while self.taken < most and read < enough and written < enough:
            try:
                length = self.inbox.whole()
            except ProtocolError:
                if self.taken:
                    break
                raise
            if length < 0:
                break
            self.taken += 1
            self.size = length
            read += HEADER + length
            answer = self.open_next(at_once)
            if answer is None:
                break
            length = PyBytes_GET_SIZE(answer)
            written += LONGEST_HEAD + length
            if used + LONGEST_HEAD + min(length, LONG) + 1 > GATHERED:
                pieces.append(PyBytes_FromStringAndSize(<char *>gathered, used))
                used = 0
            used += put_head(gathered + used, self.id, length)
            if length < LONG:
                memcpy(gathered + used, PyBytes_AS_STRING(answer), length)
                used += length
            else:
                pieces.append(PyBytes_FromStringAndSize(<char *>gathered, used))
                pieces.append(answer)
                used = 0
            gathered[used] = b"}"
            used += 1
        self.inbox.settle()
        if used:
            pieces.append(PyBytes_FromStringAndSize(<char *>gathered, used))
        return pieces

    cdef bytes open_next(self, bint at_once):
        """Take the body at the front, which is whole.  Returns the answer; None: it is `left`, decoded or as it is."""
        cdef object body = self.inbox.pop(self.size), frame, request, answer, find
        self.left = body
        if self.size >= self.large:
            return None
        try:
            frame = self.decode(body)
            self.id = frame.id  # OverflowError: over a u64
            request = frame.request
        except Exception:
            return None
        self.left = frame
        if not at_once:
            return None
        find = self.answers.get(type(request))
        if find is None:
            return None
        try:
            answer = find(request)
        except Exception:
            return None  # whoever is handed the frame meets the error again, and tells it
        if type(answer) is not bytes or LONGEST_HEAD + PyBytes_GET_SIZE(answer) + 1 > BODY_LIMIT:
            return None
        self.left = None
        return answer
