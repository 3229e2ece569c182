# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Registered names, and the DNS responses that they make: a query's bytes in, a response's bytes out.

Owns: the table, whether a query is well-formed, and every response but those of upstream servers.  Must not know:
sockets, who registers names, where queries that are not ours go.

RFC 1034 and 1035 (messages), 2308 (negative answers), 6891 (EDNS), 8482 (ANY).  The question is echoed as it was asked,
letter case included, and all names in a response are pointers into it.  Compression pointers of a query are never
followed: in a question there is nothing before it to point to, and of other records only the length counts.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

# Protocol constants.
cdef enum:
    HEADER = 12  # bytes
    LONGEST_LABEL = 63
    LONGEST_NAME = 255  # bytes on the wire, the root's zero included
    PLAIN_DATAGRAM = 512  # bytes that every client takes, RFC 1035 section 2.3.4
    POINTER = 0xC000
    # Header, third and fourth byte.
    QR = 0x80
    OPCODE = 0x78
    AA = 0x04
    TC = 0x02
    RD = 0x01
    RA = 0x80
    CD = 0x10
    # Types.
    A = 1
    NS = 2
    SOA = 6
    PTR = 12
    HINFO = 13
    AAAA = 28
    OPT = 41
    FIRST_META = 249  # TKEY; then TSIG, IXFR, AXFR, MAILB, MAILA: not questions about a name's records
    LAST_META = 254
    ANY = 255
    IN = 1
    # Response codes.
    NOERROR = 0
    FORMERR = 1
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16
    OPT_SIZE = 11  # bytes of an OPT record without options
    DO = 0x80  # in the OPT record, RFC 3225

# Our own constants.
cdef enum:
    # What passes any network of today unfragmented (the DNS flag day of 2020); an overlay's MTU is at least 1280.
    DATAGRAM = 1232
    # A name moves with its container: who keeps an answer is wrong for no longer than this, in seconds.
    LIFETIME = 5
    # More would only make a reverse answer long; nobody reads them.
    POINTERS = 32
    STREAM = 16384  # bytes, more than the longest response: HEADER, a question, POINTERS records and an OPT
    NO_ZONE = -1
    ROOT_ZONE = -2

MAX_DATAGRAM = DATAGRAM
TTL = LIFETIME
MAX_POINTERS = POINTERS

# The SOA of a zone that nobody transfers, as RFC 6303 section 3 has it: who is responsible, then serial, refresh,
# retry, expire and minimum, which is the lifetime of a negative answer.
cdef bytes SOA_TAIL = (
    b"\x06nobody\x07invalid\x00"
    + b"".join(number.to_bytes(4, "big") for number in (1, 3600, 1200, 604800, LIFETIME))
)
cdef bytes HINFO_DATA = b"\x07RFC8482\x00"  # RFC 8482 section 4.2


@cython.final
cdef class Name:
    """What a name has: an address or None, and the names that it points to."""

    cdef bytes address
    cdef tuple targets

    def __cinit__(self, bytes address, tuple targets):
        self.address = address
        self.targets = targets


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


cdef inline int read16(const uint8_t *p) noexcept:
    return p[0] << 8 | p[1]


cdef inline uint8_t *write16(uint8_t *p, int value) noexcept:
    p[0] = value >> 8 & 0xFF
    p[1] = value & 0xFF
    return p + 2


cdef inline uint8_t *write_bytes(uint8_t *p, bytes data):
    memcpy(p, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return p + PyBytes_GET_SIZE(data)


cdef inline uint8_t *write_record(uint8_t *p, int owner, int type, Py_ssize_t length) noexcept:
    """A record up to its data.  owner: offset of its name in the message; ROOT_ZONE: the root."""
    if owner == ROOT_ZONE:
        p[0] = 0
        p += 1
    else:
        p = write16(p, POINTER | owner)
    p = write16(p, type)
    p = write16(p, IN)
    p = write16(p, 0)
    p = write16(p, LIFETIME)
    return write16(p, <int>length)


cdef uint8_t *write_soa(uint8_t *p, int owner):
    cdef int primary = 1 if owner == ROOT_ZONE else 2
    p = write_record(p, owner, SOA, primary + PyBytes_GET_SIZE(SOA_TAIL))
    if owner == ROOT_ZONE:
        p[0] = 0
        p += 1
    else:
        p = write16(p, POINTER | owner)
    return write_bytes(p, SOA_TAIL)


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


cdef bint read_additional(const uint8_t *query, Py_ssize_t size, Py_ssize_t at, int count, Question *q) noexcept:
    """Walk the additional section and read the OPT record; False when something is broken."""
    cdef Py_ssize_t owner
    q.edns = False
    for _ in range(count):
        owner = at
        while at < size and 0 < query[at] <= LONGEST_LABEL:
            at += 1 + query[at]
        if at >= size or (query[at] and query[at] < 0xC0):
            return False
        at += 2 if query[at] else 1
        if at + 10 > size:
            return False
        if read16(query + at) == OPT:
            if q.edns or at != owner + 1:  # the second one, or not of the root (RFC 6891 section 6.1.1 and 6.1.2)
                return False
            q.edns = True
            q.payload = read16(query + at + 2)
            q.version = query[at + 5]
            q.dnssec = query[at + 6] & DO != 0
        at += 10 + read16(query + at + 8)
        if at > size:
            return False
    return True


@cython.final
cdef class NameTable:
    def __cinit__(self):
        self.names = {}
        self.inner = {}
        self.zones = set()

    def set_address(self, bytes name not None, bytes address):
        cdef Name old = self.names.get(name)
        self.put(name, address, old.targets if old is not None else ())

    def set_pointers(self, bytes name not None, tuple targets not None):
        cdef Name old = self.names.get(name)
        self.put(name, old.address if old is not None else None, targets[:POINTERS])

    def add_zone(self, bytes name not None):
        if name not in self.zones:
            self.zones.add(name)
            self.count(name, 1)

    def remove_zone(self, bytes name not None):
        if name in self.zones:
            self.zones.remove(name)
            self.count(name, -1)

    def respond(self, bytes query not None, bint stream):
        cdef uint8_t out[STREAM]
        cdef Py_ssize_t size = self.answer(
            <const uint8_t *>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), out, STREAM, stream
        )
        return None if size == FORWARD else PyBytes_FromStringAndSize(<char *>out, size)

    cdef int put(self, bytes name, bytes address, tuple targets) except -1:
        cdef bint there = name in self.names, wanted = address is not None or len(targets) > 0
        if wanted:
            self.names[name] = Name(address, targets)
        elif there:
            del self.names[name]
        if there != wanted:
            self.count(name, 1 if wanted else -1)
        return 0

    cdef int count(self, bytes name, int difference) except -1:
        """Something at `name` came or went: note it at every name above, the root's excepted."""
        cdef Py_ssize_t at = 0
        while name[at]:
            at += 1 + name[at]
            above = name[at:]
            total = self.inner.get(above, 0) + difference
            if total:
                self.inner[above] = total
            else:
                self.inner.pop(above, None)
        return 0

    cdef Py_ssize_t answer(
        self, const uint8_t *query, Py_ssize_t size, uint8_t *out, Py_ssize_t capacity, bint stream
    ) except -2:
        """Write the response and return its size; else DROP or FORWARD.

        capacity: bytes of `out`: at least DATAGRAM, and STREAM for a stream.
        """
        cdef Question q
        cdef Py_ssize_t limit, end
        cdef int code = NOERROR
        if size < HEADER or query[2] & QR:
            return DROP
        memset(out, 0, HEADER)
        memcpy(out, query, 2)
        out[2] = QR | (query[2] & (OPCODE | RD))
        out[3] = RA | (query[3] & CD)
        if query[2] & OPCODE:
            out[3] |= NOTIMP
            return HEADER
        if read16(query + 4) != 1 or read16(query + 6) or read16(query + 8) or not read_question(query, size, &q):
            out[3] |= FORMERR
            return HEADER
        end = HEADER + q.name + 4
        if not read_additional(query, size, end, read16(query + 10), &q) or q.type == OPT:
            out[3] |= FORMERR
            return HEADER
        memcpy(out + HEADER, query + HEADER, q.name + 4)
        write16(out + 4, 1)
        limit = capacity
        if not stream:
            limit = min(max(q.payload, PLAIN_DATAGRAM), DATAGRAM) if q.edns else PLAIN_DATAGRAM
        if q.edns:
            limit -= OPT_SIZE
            if q.version:
                code = BADVERS
        if code == NOERROR and (read16(query + end - 2) != IN or FIRST_META <= q.type <= LAST_META):
            code = REFUSED
        if code == NOERROR:
            end = self.look_up(&q, out, end, limit)
            if end == FORWARD:
                return FORWARD
        out[3] |= code & 0x0F
        if q.edns:
            memset(out + end, 0, OPT_SIZE)
            write16(out + end + 1, OPT)
            write16(out + end + 3, DATAGRAM)
            out[end + 5] = code >> 4
            out[end + 7] = DO if q.dnssec else 0
            write16(out + 10, 1)
            end += OPT_SIZE
        return end

    cdef Py_ssize_t look_up(self, Question *q, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2:
        """Add the records for the question, which is in `out` already, and the response code; the new end, or FORWARD.
        """
        cdef bytes key = PyBytes_FromStringAndSize(<char *>out + HEADER, q.name)
        cdef uint8_t *lower = <uint8_t *>PyBytes_AS_STRING(key)
        cdef uint8_t *p = out + end
        cdef Py_ssize_t i, size
        cdef int zone
        for i in range(q.name):
            if 65 <= lower[i] <= 90:  # a label's length is never as high
                lower[i] |= 0x20
        found = PyDict_GetItemWithError(self.names, key)
        cdef Name name = <Name>found if found is not NULL else None
        if name is not None:
            size = PyBytes_GET_SIZE(name.address) if name.address is not None else 0
            if (q.type == A and size == 4) or (q.type == AAAA and size == 16):
                out[2] |= AA
                write16(out + 6, 1)
                return write_bytes(write_record(p, HEADER, q.type, size), name.address) - out
            if q.type == PTR and name.targets:
                out[2] |= AA
                return self.write_pointers(name.targets, out, end, limit)
        zone = self.zone_of(key, q)
        if zone == NO_ZONE:
            if name is not None:
                zone = 0  # registered alone, it is a zone of one name
            elif q.labels == 1:
                zone = ROOT_ZONE  # a name without a domain means nothing elsewhere
            else:
                return FORWARD
        out[2] |= AA
        if q.type == ANY and (name is not None or zone == 0):
            write16(out + 6, 1)
            return write_bytes(write_record(p, HEADER, HINFO, PyBytes_GET_SIZE(HINFO_DATA)), HINFO_DATA) - out
        if q.type == SOA and zone == 0:
            write16(out + 6, 1)
            return write_soa(p, HEADER) - out
        if q.type == NS and zone == 0:
            write16(out + 6, 1)
            return write16(write_record(p, HEADER, NS, 2), POINTER | HEADER) - out
        if name is None and zone != 0 and key not in self.inner:
            out[3] |= NXDOMAIN
        write16(out + 8, 1)
        return write_soa(p, ROOT_ZONE if zone == ROOT_ZONE else HEADER + zone) - out

    cdef int zone_of(self, bytes key, Question *q) except -3:
        """Where in the name the zone begins that it is in, the innermost one; NO_ZONE when it is in none."""
        cdef const uint8_t *name = <const uint8_t *>PyBytes_AS_STRING(key)
        for i in range(q.labels):
            above = key if i == 0 else PyBytes_FromStringAndSize(<char *>name + q.starts[i], q.name - q.starts[i])
            if above in self.zones:
                return q.starts[i]
        return NO_ZONE

    cdef Py_ssize_t write_pointers(self, tuple targets, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2:
        """Add PTR records, all of them, or none and the bit that says so."""
        cdef uint8_t *p = out + end
        for target in targets:
            if p - out + HEADER + PyBytes_GET_SIZE(target) > limit:
                out[2] |= TC
                return end
            p = write_record(p, HEADER, PTR, PyBytes_GET_SIZE(target))
            p = write_bytes(p, target)
        write16(out + 6, <int>len(targets))
        return p - out
