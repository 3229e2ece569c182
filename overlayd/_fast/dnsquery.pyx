# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""DNS queries as they come from clients, and the two ends of every response: header and question, and the OPT record.

Owns: whether a query is well-formed, what a client takes, and cookies.  Must not know: any name or record.

RFC 1035 (messages), 6891 (EDNS), 7873 (cookies).  EDNS is hop by hop: of a client's OPT record nothing but version,
payload, the DO bit and the cookie is looked at, and what it gets back is written here alone.  Compression pointers of a
query are never followed: in a question there is nothing before it to point to, and of other records only the length
counts.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    PLAIN_DATAGRAM = 512  # bytes that every client takes, RFC 1035 section 2.3.4
    FIRST_META = 249  # TKEY; then TSIG, IXFR, AXFR, MAILB, MAILA: not questions about a name's records
    LAST_META = 254
    FORMERR = 1
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16
    OPT_SIZE = 11  # bytes of an OPT record without options
    DO = 0x80  # in the OPT record, RFC 3225
    COOKIE = 10
    SERVER_COOKIE = 8  # bytes of ours
    LONGEST_COOKIE = 40  # bytes of both
    SHORTEST_COOKIE = 16  # bytes of both, when there are both
    COOKIE_SIZE = 4 + CLIENT_COOKIE + SERVER_COOKIE  # bytes of the option that we write
    SECRET_SIZE = 16

MAX_DATAGRAM = DATAGRAM
SECRET = SECRET_SIZE


def wire_name(str text not None):
    cdef bytes name = b""
    for label in text.removesuffix(".").split(".") if text not in ("", ".") else ():
        data = label.lower().encode("ascii")
        if not 0 < len(data) <= LONGEST_LABEL:
            raise ValueError(f"{text!r}: a label has 1 to {LONGEST_LABEL} bytes")
        name += bytes((len(data),)) + data
    if len(name) >= LONGEST_NAME:
        raise ValueError(f"{text!r} is longer than {LONGEST_NAME} bytes")
    return name + b"\0"


def server_cookie(bytes secret not None, bytes client_cookie not None, bytes client not None):
    cdef Secret read = read_secret(secret)
    cdef Question q
    cdef uint8_t out[SERVER_COOKIE]
    if PyBytes_GET_SIZE(client_cookie) != CLIENT_COOKIE or PyBytes_GET_SIZE(client) > 16:
        raise ValueError("a client cookie has 8 bytes, an address at most 16")
    memcpy(q.client_cookie, PyBytes_AS_STRING(client_cookie), CLIENT_COOKIE)
    q.client = <const uint8_t *>PyBytes_AS_STRING(client)
    q.client_size = PyBytes_GET_SIZE(client)
    write_server_cookie(out, &q, &read)
    return out[:SERVER_COOKIE]


cdef uint8_t lower(uint8_t letter) noexcept:
    return letter | 0x20 if 65 <= letter <= 90 else letter


cdef int read16(const uint8_t *p) noexcept:
    return p[0] << 8 | p[1]


cdef unsigned int read32(const uint8_t *p) noexcept:
    return <unsigned int>p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]


cdef uint8_t *write16(uint8_t *p, int value) noexcept:
    p[0] = value >> 8 & 0xFF
    p[1] = value & 0xFF
    return p + 2


cdef uint8_t *write32(uint8_t *p, unsigned int value) noexcept:
    return write16(write16(p, value >> 16), value & 0xFFFF)


cdef void lower_name(uint8_t *name, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    for i in range(size):
        name[i] = lower(name[i])  # a label's length is never as high as a letter


cdef Secret read_secret(bytes secret) except *:
    cdef Secret read
    if PyBytes_GET_SIZE(secret) != SECRET_SIZE:
        raise ValueError(f"a secret has {SECRET_SIZE} bytes")
    memcpy(&read, PyBytes_AS_STRING(secret), SECRET_SIZE)
    return read


cdef inline uint64_t rotated(uint64_t word, int bits) noexcept:
    return word << bits | word >> (64 - bits)


cdef inline void rounds(uint64_t *v, int count) noexcept:
    """SipHash's (Aumasson and Bernstein, 2012)."""
    for _ in range(count):
        v[0] += v[1]
        v[1] = rotated(v[1], 13) ^ v[0]
        v[0] = rotated(v[0], 32)
        v[2] += v[3]
        v[3] = rotated(v[3], 16) ^ v[2]
        v[0] += v[3]
        v[3] = rotated(v[3], 21) ^ v[0]
        v[2] += v[1]
        v[1] = rotated(v[1], 17) ^ v[2]
        v[2] = rotated(v[2], 32)


cdef void write_server_cookie(uint8_t *out, const Question *q, const Secret *secret) noexcept:
    """SipHash-2-4 of client cookie and address, zero-padded to three words: as RFC 7873 appendix B.1 has it, with the
    hash of RFC 9018.  It is never asked back, so it needs no time in it.
    """
    cdef uint64_t words[4]
    cdef uint64_t v[4]
    memset(words, 0, sizeof(words))
    memcpy(words, q.client_cookie, CLIENT_COOKIE)
    memcpy(&words[1], q.client, q.client_size)
    words[3] = <uint64_t>24 << 56  # the length, as SipHash ends
    v[0] = secret.first ^ <uint64_t>0x736F6D6570736575
    v[1] = secret.second ^ <uint64_t>0x646F72616E646F6D
    v[2] = secret.first ^ <uint64_t>0x6C7967656E657261
    v[3] = secret.second ^ <uint64_t>0x7465646279746573
    for i in range(4):
        v[3] ^= words[i]
        rounds(v, 2)
        v[0] ^= words[i]
    v[2] ^= 0xFF
    rounds(v, 4)
    words[0] = v[0] ^ v[1] ^ v[2] ^ v[3]
    memcpy(out, words, SERVER_COOKIE)


cdef bint read_question(const uint8_t *query, Py_ssize_t size, Question *q) noexcept:
    """Read the question's name, type and place; False when there is none."""
    cdef Py_ssize_t at = HEADER
    cdef int length
    q.labels = 0
    while True:
        if at >= size:
            return False
        length = query[at]
        if length == 0:
            break
        if length > LONGEST_LABEL or at - HEADER + 1 + length >= LONGEST_NAME:
            return False
        q.starts[q.labels] = <uint8_t>(at - HEADER)
        q.labels += 1
        at += 1 + length
    at += 1
    q.name = at - HEADER
    if at + 4 > size:
        return False
    q.type = read16(query + at)
    return True


cdef bint read_options(const uint8_t *options, Py_ssize_t size, Question *q) noexcept:
    """Look for a cookie, the first one; False when the options are broken, or the cookie is (RFC 7873 section 5.2.2)."""
    cdef Py_ssize_t at = 0, length
    while at < size:
        if at + 4 > size:
            return False
        length = read16(options + at + 2)
        if at + 4 + length > size:
            return False
        if read16(options + at) == COOKIE and not q.cookie:
            if length != CLIENT_COOKIE and not SHORTEST_COOKIE <= length <= LONGEST_COOKIE:
                return False
            q.cookie = True
            memcpy(q.client_cookie, options + at + 4, CLIENT_COOKIE)
        at += 4 + length
    return True


cdef bint read_additional(const uint8_t *query, Py_ssize_t size, Py_ssize_t at, int count, Question *q) noexcept:
    """Walk the additional section and read the OPT record; False when something is broken."""
    cdef Py_ssize_t owner
    cdef int length
    q.edns = q.cookie = False
    for _ in range(count):
        owner = at
        while at < size and 0 < query[at] <= LONGEST_LABEL:
            at += 1 + query[at]
        if at >= size or (query[at] and query[at] < 0xC0):
            return False
        at += 2 if query[at] else 1
        if at + 10 > size:
            return False
        length = read16(query + at + 8)
        if at + 10 + length > size:
            return False
        if read16(query + at) == OPT:
            if q.edns or at != owner + 1:  # the second one, or not of the root (RFC 6891 section 6.1.1 and 6.1.2)
                return False
            q.edns = True
            q.payload = read16(query + at + 2)
            q.version = query[at + 5]
            q.dnssec = query[at + 6] & DO != 0
            if q.version == 0 and not read_options(query + at + 10, length, q):
                return False
        at += 10 + length
    return True


cdef Py_ssize_t begin(
    const uint8_t *query, Py_ssize_t size, uint8_t *out, Py_ssize_t capacity, bint stream, const Secret *secret, Question *q
) noexcept:
    """Read a query, and begin its response with header and question; its size so far.  `q.done` when that is all there
    is to say.  q: its client is set already.  capacity: bytes of `out`, at least DATAGRAM.
    """
    cdef Py_ssize_t end
    cdef int code = NOERROR
    q.done = True
    q.edns = False
    if size < HEADER or query[2] & QR:
        return DROP
    memset(out, 0, HEADER)
    memcpy(out, query, 2)
    out[2] = QR | (query[2] & (OPCODE | RD))
    out[3] = RA | (query[3] & CD)
    if query[2] & OPCODE:
        out[3] |= NOTIMP
        return HEADER
    if read16(query + 4) != 1 or read16(query + 6) or read16(query + 8) or not read_question(query, size, q):
        out[3] |= FORMERR
        return HEADER
    end = HEADER + q.name + 4
    if not read_additional(query, size, end, read16(query + 10), q) or q.type == OPT:
        out[3] |= FORMERR
        return HEADER
    memcpy(out + HEADER, query + HEADER, q.name + 4)
    write16(out + 4, 1)
    q.limit = capacity
    if not stream:
        q.limit = min(max(q.payload, PLAIN_DATAGRAM), DATAGRAM) if q.edns else PLAIN_DATAGRAM
    if q.edns:
        q.limit -= OPT_SIZE + (COOKIE_SIZE if q.cookie else 0)
        if q.version:
            code = BADVERS
    if code == NOERROR and (read16(query + end - 2) != IN or FIRST_META <= q.type <= LAST_META):
        code = REFUSED
    if code != NOERROR:
        return finish(out, end, q, code, NULL, 0, secret)
    q.done = False
    return end


cdef Py_ssize_t finish(
    uint8_t *out, Py_ssize_t end, Question *q, int code, const uint8_t *options, Py_ssize_t size, const Secret *secret
) noexcept:
    """Write the response code, and an OPT record for who sent one; the response's size.  options: more of them, left
    out when there is no room.
    """
    cdef uint8_t *p = out + end + OPT_SIZE
    out[3] |= code & 0x0F
    if not q.edns:
        return end
    memset(out + end, 0, OPT_SIZE)
    write16(out + end + 1, OPT)
    write16(out + end + 3, DATAGRAM)
    out[end + 5] = code >> 4
    out[end + 7] = DO if q.dnssec else 0
    write16(out + 10, read16(out + 10) + 1)
    if q.cookie:
        write16(write16(p, COOKIE), CLIENT_COOKIE + SERVER_COOKIE)
        memcpy(p + 4, q.client_cookie, CLIENT_COOKIE)
        write_server_cookie(p + 4 + CLIENT_COOKIE, q, secret)
        p += COOKIE_SIZE
    if size and end + size <= q.limit:
        memcpy(p, options, size)
        p += size
    write16(out + end + 9, <int>(p - out - end - OPT_SIZE))
    return p - out
