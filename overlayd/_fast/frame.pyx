# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""The receive side of one connection: bytes off the socket become whole JSON bodies, without a copy.

Owns: the framing of the JSON wire (`u32` little-endian length, then the body), the size limit, and telling the JSON
wire from the binary envelope that shares the socket.  Must not know: what a body or an envelope says, sockets, clocks.

Memory.  Bytes land in a `Block`; a body that `take` returns is a read-only view of its block.  A block is never
resized, and never overwritten while somebody holds such a view: when space is needed and views are out, the inbox
moves on to a new block, and the old one lives exactly as long as its views.  So views may be kept for any time, and
the usual case, decode at once and drop, reuses one block for ever.

Not thread-safe beyond what the GIL gives: no method releases it, and one inbox belongs to one connection.
"""
cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from overlayd.errors import ProtocolError

# Protocol constants (the wire contract).
cdef enum:
    ENVELOPE_MARK = 1  # first byte of an envelope
    ENVELOPE_HEADER = 5  # the mark, then u32 little-endian body length
    ENVELOPE_TOP = 1  # top byte of the largest legal envelope length, 16 MiB = 0x01000000

MAX_BODY = BODY_LIMIT

# Our own constant: below this the growth rule would hand out windows too small to be worth a system call.
cdef enum:
    SMALLEST_BLOCK = 8

cdef char *UNSIGNED_BYTE = b"B"  # struct format of a view's items


class FrameTooLarge(ProtocolError):
    """A frame's body is over MAX_BODY; `length` is the body length that was advertised, in bytes."""

    def __init__(self, length):
        super().__init__(f"frame too large: {length} bytes, at most {MAX_BODY}")
        self.length = length


# What the bytes at the front of the inbox are.
cdef enum Front:
    UNKNOWN  # too few bytes to tell, or none
    JSON
    ENVELOPE


cdef inline uint32_t little_endian(const uint8_t *p) noexcept:
    return p[0] | (<uint32_t>p[1] << 8) | (<uint32_t>p[2] << 16) | (<uint32_t>p[3] << 24)


cdef inline Front front(const uint8_t *p, Py_ssize_t held, Py_ssize_t *size) noexcept:
    """Tell which wire the message at `p` is on, and its whole size in bytes, header included.

    This cannot misjudge a legal message.  A first byte other than 1 cannot begin an envelope.  When it is 1, five bytes
    always come: an envelope has a header of five, and a JSON frame whose length has 1 as its low byte has a body of at
    least one byte after its header of four.  Byte 4 is then, in an envelope, the top byte of a length of at most
    0x01000000: 0x00 or 0x01.  In a JSON frame it is the first byte of a JSON text, which RFC 8259 (section 2) makes
    white space or one of `{["-0123456789tfn`: never a byte below 0x09.  The two sets are disjoint.  What is legal on
    neither wire may be judged either way: both drop the connection.
    """
    if held >= 1 and p[0] == ENVELOPE_MARK:
        if held < ENVELOPE_HEADER:
            return UNKNOWN
        if p[4] <= ENVELOPE_TOP:
            size[0] = ENVELOPE_HEADER + <Py_ssize_t>little_endian(p + 1)
            return ENVELOPE
    if held < HEADER:
        return UNKNOWN
    size[0] = HEADER + <Py_ssize_t>little_endian(p)
    return JSON


@cython.final
@cython.freelist(8)
cdef class Block:
    """A fixed piece of memory that exports the windows its inbox arms, one export an arming, and counts the readers."""

    def __cinit__(self, Py_ssize_t size):
        self.data = <uint8_t *>malloc(size)
        if self.data == NULL:
            raise MemoryError
        self.size = size

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        # Without this check memoryview(view.obj) would reach bytes that were never handed out.
        if not self.armed:
            raise BufferError("only the views that an Inbox hands out")
        self.armed = False
        view.buf = self.data + self.armed_start
        view.len = self.armed_length
        view.readonly = self.armed_readonly
        view.itemsize = 1
        view.format = UNSIGNED_BYTE if flags & PyBUF_FORMAT else NULL
        view.ndim = 1
        view.shape = &view.len if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self
        if view.readonly:
            self.readers += 1

    def __releasebuffer__(self, Py_buffer *view):
        if view.readonly:
            self.readers -= 1

    cdef object window(self, Py_ssize_t start, Py_ssize_t length, bint readonly):
        self.armed_start = start
        self.armed_length = length
        self.armed_readonly = readonly
        self.armed = True
        return PyMemoryView_FromObject(self)


@cython.final
cdef class Inbox:
    """Bytes received on one connection and not yet consumed, and the messages that they make up.

    initial: size of the first block in bytes, to which the inbox returns whenever it is drained; at least 8.
    """

    def __cinit__(self, Py_ssize_t initial=16384):
        if initial < SMALLEST_BLOCK:
            raise ValueError(f"initial must be at least {SMALLEST_BLOCK} bytes, got {initial}")
        self.initial = initial
        self.block = Block(initial)

    @property
    def buffered(self):
        return self.end - self.start

    @property
    def capacity(self):
        return self.block.size

    @property
    def foreign(self):
        cdef Py_ssize_t size = 0
        return front(self.block.data + self.start, self.end - self.start, &size) == ENVELOPE

    @property
    def partial(self):
        cdef Py_ssize_t at = self.start, size = 0
        while at < self.end:
            if front(self.block.data + at, self.end - at, &size) == UNKNOWN or size > self.end - at:
                return True
            at += size
        return False

    def get_buffer(self, Py_ssize_t sizehint):
        self.make_room()
        self.lent = self.block.size - self.end
        return self.block.window(self.end, self.lent, False)

    def received(self, Py_ssize_t n):
        if n < 0 or n > self.lent:
            raise ValueError(f"received {n} bytes into a buffer of {self.lent}")
        self.lent = 0
        self.end += n

    def feed(self, data):
        cdef Py_buffer view
        cdef Py_ssize_t done = 0, n
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self.lent = 0
        try:
            while done < view.len:
                self.make_room()
                n = min(view.len - done, self.block.size - self.end)
                memcpy(self.block.data + self.end, <const uint8_t *>view.buf + done, n)
                self.end += n
                done += n
        finally:
            PyBuffer_Release(&view)

    def take(self, Py_ssize_t limit, Py_ssize_t enough=BODY_LIMIT):
        cdef list bodies = []
        cdef Py_ssize_t length, total = 0
        while len(bodies) < limit and total < enough:
            try:
                length = self.whole()
            except FrameTooLarge:
                if bodies:
                    break
                raise
            if length < 0:
                break
            bodies.append(self.pop(length))
            total += HEADER + length
        self.settle()
        return bodies

    cdef Py_ssize_t whole(self) except -2:
        """The length of the JSON body at the front, -1 when none is whole.  Raises FrameTooLarge."""
        cdef Py_ssize_t held = self.end - self.start, size = 0
        if front(self.block.data + self.start, held, &size) != JSON:
            return -1
        if size - HEADER > BODY_LIMIT:
            raise FrameTooLarge(size - HEADER)
        return size - HEADER if size <= held else -1

    cdef object pop(self, Py_ssize_t length):
        """A view of the body at the front, which is whole and so long; `settle` has to follow."""
        cdef Py_ssize_t start = self.start + HEADER
        self.start = start + length
        return self.block.window(start, length, True)

    def peek(self):
        return self.block.window(self.start, self.end - self.start, True)

    def consume(self, Py_ssize_t n):
        if n < 0 or n > self.end - self.start:
            raise ValueError(f"consume {n} bytes of {self.end - self.start}")
        self.start += n
        self.settle()

    cdef int settle(self) except -1:
        """Give a block that grew for a large message back as soon as the inbox is drained."""
        if self.start == self.end and self.block.size > self.initial:
            self.block = Block(self.initial)
            self.start = self.end = self.lent = 0
        return 0

    cdef int make_room(self) except -1:
        """Leave at least a quarter of `initial` free after `end`, by going back to the start, moving, or a new block.

        The block grows with what has come, to at most twice that, and never beyond what the unfinished message at the
        front asks for plus `initial`: advertising a large frame buys no memory, and growing costs O(1) a byte.
        """
        cdef Block block = self.block
        cdef Py_ssize_t held = self.end - self.start, wanted, size = 0
        if held == 0 and block.readers == 0:
            self.start = self.end = 0
        if block.size - self.end >= self.initial // 4:
            return 0
        wanted = 2 * held
        if front(block.data + self.start, held, &size) != UNKNOWN and size > held:
            wanted = min(wanted, size + self.initial)
        wanted = max(wanted, self.initial)
        if block.readers == 0 and wanted <= block.size <= 2 * wanted:
            memmove(block.data, block.data + self.start, held)
        else:
            self.block = Block(wanted)
            memcpy(self.block.data, block.data + self.start, held)
        self.start = 0
        self.end = held
        self.lent = 0
        return 0


def frame(bytes body not None):
    cdef Py_ssize_t length = PyBytes_GET_SIZE(body)
    cdef bytes whole
    cdef uint8_t *p
    if length > BODY_LIMIT:
        raise FrameTooLarge(length)
    whole = PyBytes_FromStringAndSize(NULL, HEADER + length)
    p = <uint8_t *>PyBytes_AS_STRING(whole)
    p[0] = length & 0xFF
    p[1] = (length >> 8) & 0xFF
    p[2] = (length >> 16) & 0xFF
    p[3] = (length >> 24) & 0xFF
    memcpy(p + HEADER, PyBytes_AS_STRING(body), length)
    return whole
