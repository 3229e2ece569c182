# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Registered names, and the DNS responses that they make: a query's bytes in, a response's bytes out.

Owns: the table, who sees which name, and every response but those of upstream servers.  Must not know: sockets, who
registers names, where queries that are not ours go, how queries are read (`_fast.dnsquery`).

RFC 1034 and 1035 (messages), 2308 (negative answers), 6761 (localhost), 8482 (ANY).  The question is echoed as it was
asked, letter case included, and all names in a response are pointers into it.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy

from overlayd._fast.dnsquery cimport (
    AA,
    FORWARD,
    HEADER,
    IN,
    NOERROR,
    NXDOMAIN,
    TC,
    Question,
    begin,
    finish,
    lower_name,
    read_secret,
    write16,
)

# Protocol constants.
cdef enum:
    POINTER = 0xC000
    # Types.
    A = 1
    NS = 2
    SOA = 6
    PTR = 12
    HINFO = 13
    AAAA = 28
    SVCB = 64
    HTTPS = 65
    ANY = 255

# Our own constants.
cdef enum:
    # A name moves with its container: who keeps an answer is wrong for no longer than this, in seconds.
    LIFETIME = 5
    # More would only make a reverse answer long; nobody reads them.
    POINTERS = 32
    # More than this is no answer that anybody uses; all of them fit a stream.
    ADDRESSES = 512
    STREAM = 16384  # bytes, more than the longest response: HEADER, a question, records and an OPT
    NO_ZONE = -1
    ROOT_ZONE = -2
    NO_GROUP = -1  # of a client
    NODE_GROUP = 0  # everybody knows its addresses, and it knows all
    RECORD = 12  # bytes of a record whose owner is a pointer, before its data

TTL = LIFETIME
MAX_POINTERS = POINTERS
MAX_ADDRESSES = ADDRESSES

# The SOA of a zone that nobody transfers, as RFC 6303 section 3 has it: who is responsible, then serial, refresh,
# retry, expire and minimum, which is the lifetime of a negative answer.
cdef bytes SOA_TAIL = (
    b"\x06nobody\x07invalid\x00"
    + b"".join(number.to_bytes(4, "big") for number in (1, 3600, 1200, 604800, LIFETIME))
)
cdef bytes HINFO_DATA = b"\x07RFC8482\x00"  # RFC 8482 section 4.2


cdef bytes LOCALHOST = b"\x09localhost\x00"
cdef bytes LOOPBACK4 = bytes([127, 0, 0, 1])
cdef bytes LOOPBACK6 = bytes(15) + b"\x01"


@cython.final
cdef class Name:
    """What a name has: addresses, and the names that it points to as the reverse name of `reverse`."""

    cdef tuple addresses
    cdef tuple targets
    cdef bytes reverse

    def __cinit__(self, tuple addresses, tuple targets, bytes reverse):
        self.addresses = addresses
        self.targets = targets
        self.reverse = reverse


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


@cython.final
cdef class NameTable:
    def __cinit__(self, bytes secret=bytes(16)):
        self.secret = read_secret(secret)
        self.names = {}
        self.inner = {}
        self.zones = set()
        self.groups = {}
        self.turn = 0

    def set_addresses(self, bytes name not None, tuple addresses not None):
        cdef Name old = self.names.get(name)
        self.put(name, addresses[:ADDRESSES], old.targets if old is not None else (), old.reverse if old is not None else b"")

    def set_pointers(self, bytes name not None, tuple targets not None, bytes address not None):
        cdef Name old = self.names.get(name)
        self.put(name, old.addresses if old is not None else (), targets[:POINTERS], address)

    def set_group(self, bytes address not None, group):
        if group is None:
            self.groups.pop(address, None)
        else:
            self.groups[address] = group

    def add_zone(self, bytes name not None):
        if name not in self.zones:
            self.zones.add(name)
            self.count(name, 1)

    def remove_zone(self, bytes name not None):
        if name in self.zones:
            self.zones.remove(name)
            self.count(name, -1)

    def respond(self, bytes query not None, bint stream, bytes client=b""):
        cdef Question q
        cdef uint8_t out[STREAM]
        cdef Py_ssize_t size
        q.client = <const uint8_t *>PyBytes_AS_STRING(client)
        q.client_size = min(PyBytes_GET_SIZE(client), 16)
        size = begin(
            <const uint8_t *>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), out, STREAM, stream, &self.secret, &q
        )
        if not q.done:
            size = self.answer(&q, out, size)
        return None if size == FORWARD else PyBytes_FromStringAndSize(<char *>out, size)

    cdef int put(self, bytes name, tuple addresses, tuple targets, bytes reverse) except -1:
        cdef bint there = name in self.names, wanted = len(addresses) > 0 or len(targets) > 0
        if wanted:
            self.names[name] = Name(addresses, targets, reverse)
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

    cdef Py_ssize_t answer(self, Question *q, uint8_t *out, Py_ssize_t end) except -2:
        """Write the rest of the response that `begin` began, and return its size; else FORWARD, and it is as it was."""
        end = self.look_up(q, out, end)
        return end if end == FORWARD else finish(out, end, q, NOERROR, NULL, 0, &self.secret)

    cdef Py_ssize_t look_up(self, Question *q, uint8_t *out, Py_ssize_t end) except -2:
        """Add the records for the question, which is in `out` already, and the response code; the new end, or FORWARD.
        """
        cdef bytes key = PyBytes_FromStringAndSize(<char *>out + HEADER, q.name)
        cdef uint8_t *p = out + end
        cdef int zone
        cdef Name name = None
        cdef tuple addresses = ()
        lower_name(<uint8_t *>PyBytes_AS_STRING(key), q.name)
        found = PyDict_GetItemWithError(self.names, key)
        if found is not NULL:
            name = <Name>found
            addresses = name.addresses
            if self.groups:
                addresses = self.visible(addresses, q)
                if not addresses and not (name.targets and self.visible((name.reverse,), q)):
                    name = None  # for this client it is not registered
        if name is None and is_localhost(key, q):
            return self.write_localhost(q, out, end)
        if name is not None:
            if q.type == A or q.type == AAAA:
                end = self.write_addresses(addresses, q, out, end)
                if out + end != p or out[2] & TC:
                    return end
            elif q.type == PTR and name.targets:
                return self.write_pointers(name.targets, out, end, q.limit)
        zone = self.zone_of(key, q)
        if zone == NO_ZONE:
            if name is not None:
                zone = 0  # registered alone, it is a zone of one name
            elif q.labels == 1 and q.type in (A, AAAA, SVCB, HTTPS):
                zone = ROOT_ZONE  # a name without a domain has no address elsewhere
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

    cdef tuple visible(self, tuple addresses, Question *q):
        """Those of the addresses that the client is to know of."""
        cdef int asker = NO_GROUP, group
        cdef list seen = []
        found = self.groups.get(PyBytes_FromStringAndSize(<const char *>q.client, q.client_size))
        if found is not None:
            asker = found
        if asker == NODE_GROUP:
            return addresses
        for address in addresses:
            found = self.groups.get(address)
            group = NODE_GROUP if found is None else found
            if group == NODE_GROUP or group == asker:
                seen.append(address)
        return tuple(seen)

    cdef Py_ssize_t write_addresses(self, tuple addresses, Question *q, uint8_t *out, Py_ssize_t end) except -2:
        """Add the addresses of the type that was asked for, each time beginning with the next one: as many as fit, with
        the bit that says so.  Some C libraries (musl before 1.2.4) do not ask again by TCP.
        """
        cdef Py_ssize_t size = 4 if q.type == A else 16, count = 0, i, first, place, room
        cdef uint8_t *p = out + end
        for address in addresses:
            count += PyBytes_GET_SIZE(<bytes>address) == size
        if count == 0:
            return end
        out[2] |= AA
        room = max(q.limit - end, 0) // (RECORD + size)
        if count > room:
            out[2] |= TC
        first = 0
        if count > 1:
            self.turn += 1
            first = self.turn % count
        i = 0
        for address in addresses:
            if PyBytes_GET_SIZE(<bytes>address) == size:
                # The first one in turn is written first, those before it behind the last.
                place = i - first if i >= first else i - first + count
                if place < room:
                    p = out + end + place * (RECORD + size)
                    write_bytes(write_record(p, HEADER, q.type, size), <bytes>address)
                i += 1
        count = min(count, room)
        write16(out + 6, <int>count)
        return end + count * (RECORD + size)

    cdef Py_ssize_t write_localhost(self, Question *q, uint8_t *out, Py_ssize_t end) except -2:
        """RFC 6761 section 6.3: the loopback address, and nothing else."""
        cdef uint8_t *p = out + end
        cdef bytes address = LOOPBACK4 if q.type == A else LOOPBACK6
        out[2] |= AA
        if q.type == A or q.type == AAAA:
            write16(out + 6, 1)
            return write_bytes(write_record(p, HEADER, q.type, PyBytes_GET_SIZE(address)), address) - out
        write16(out + 8, 1)
        return write_soa(p, HEADER + q.starts[q.labels - 1]) - out

    cdef Py_ssize_t write_pointers(self, tuple targets, uint8_t *out, Py_ssize_t end, Py_ssize_t limit) except -2:
        """Add PTR records, all of them, or none and the bit that says so."""
        cdef uint8_t *p = out + end
        out[2] |= AA
        for target in targets:
            if p - out + RECORD + PyBytes_GET_SIZE(target) > limit:
                out[2] |= TC
                return end
            p = write_record(p, HEADER, PTR, PyBytes_GET_SIZE(target))
            p = write_bytes(p, target)
        write16(out + 6, <int>len(targets))
        return p - out


cdef bint is_localhost(bytes key, Question *q) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(LOCALHOST)
    return q.name >= size and q.labels and q.name - q.starts[q.labels - 1] == size and not memcmp(
        PyBytes_AS_STRING(key) + q.name - size, PyBytes_AS_STRING(LOCALHOST), size
    )
