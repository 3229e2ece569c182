from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    DROP = 0  # no answer at all
    FORWARD = -1  # a proper question that is not ours to answer
    MOST_LABELS = 127  # of a name of 255 bytes
    LONGEST_QUESTION = 259  # bytes: a name, type and class
    CLIENT_COOKIE = 8  # bytes, RFC 7873 section 4
    # What passes any network of today unfragmented (the DNS flag day of 2020); an overlay's MTU is at least 1280.
    DATAGRAM = 1232
    # Header, third and fourth byte.
    QR = 0x80
    OPCODE = 0x78
    AA = 0x04
    TC = 0x02
    RD = 0x01
    RA = 0x80
    AD = 0x20
    CD = 0x10
    HEADER = 12  # bytes
    LONGEST_LABEL = 63
    LONGEST_NAME = 255  # bytes on the wire, the root's zero included
    OPT = 41
    IN = 1
    NOERROR = 0
    NXDOMAIN = 3

cdef struct Secret:
    uint64_t first
    uint64_t second

cdef struct Question:
    int type
    int labels  # the root's not counted
    uint8_t starts[MOST_LABELS]  # of the labels, from the name's first byte
    Py_ssize_t name  # bytes of the name
    bint edns
    int version
    int payload
    bint dnssec
    bint cookie
    uint8_t client_cookie[CLIENT_COOKIE]
    const uint8_t *client  # the asker's address, 4 or 16 bytes, 0 when nobody knows
    Py_ssize_t client_size
    Py_ssize_t limit  # bytes of the response before its OPT record
    bint done  # the response is whole, or there is none

cdef int read16(const uint8_t *p) noexcept
cdef unsigned int read32(const uint8_t *p) noexcept
cdef uint8_t *write16(uint8_t *p, int value) noexcept
cdef uint8_t *write32(uint8_t *p, unsigned int value) noexcept
cdef uint8_t lower(uint8_t letter) noexcept

cdef void lower_name(uint8_t *name, Py_ssize_t size) noexcept
cdef Secret read_secret(bytes secret) except *
cdef Py_ssize_t begin(
    const uint8_t *query, Py_ssize_t size, uint8_t *out, Py_ssize_t capacity, bint stream, const Secret *secret, Question *q
) noexcept
cdef Py_ssize_t finish(
    uint8_t *out, Py_ssize_t end, Question *q, int code, const uint8_t *options, Py_ssize_t size, const Secret *secret
) noexcept
