# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Answers of upstream servers: taken apart once, then given to every client that asks the same until their time is over.

Owns: which records may be kept for how long, what goes when there are too many, and the responses made of them.  Must
not know: sockets and clocks, which upstreams there are, names of our own (`_fast.nametable`).

RFC 1035 (messages), 2308 (negative answers), 2181 section 8 (lifetimes), 8767 (stale answers), 8914 (extended errors).
The question stands at one place in query and response and is of one length, so that compression pointers in the records
hold for every client.  They are never followed: a record's owner is passed over, its data is not looked at.  The OPT
record is the upstream's word to us and ends here, but for extended errors.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from overlayd._fast.dnsquery cimport (
    AD,
    CD,
    DATAGRAM,
    FORWARD,
    HEADER,
    LONGEST_LABEL,
    LONGEST_QUESTION,
    NOERROR,
    NXDOMAIN,
    OPT,
    QR,
    RA,
    RD,
    TC,
    Question,
    begin,
    finish,
    lower_name,
    read16,
    read32,
    read_secret,
    write16,
    write32,
)

from collections import OrderedDict

from overlayd.errors import ProtocolError

# Protocol constants.
cdef enum:
    SOA = 6
    TSIG = 250
    ANY = 255
    SERVFAIL = 2
    EXTENDED_ERROR = 15  # RFC 8914
    STALE_ANSWER = 3
    STALE_NXDOMAIN = 19
    SOA_FIXED = 20  # bytes of a SOA record behind its two names; the last four are the minimum
    DO = 0x80  # of our key: no bit of the header's fourth byte that a query may have
    LONGEST_MESSAGE = 65535

# Our own constants.
cdef enum:
    DAY = 86400  # seconds: the longest that an answer is kept; RFC 8767 section 4 wants stale ones bounded by days
    NEGATIVE = 10800  # seconds: the longest for one that says that there is nothing, RFC 2308 section 5
    STALE_LIFETIME = 30  # seconds that a client may keep a stale answer, RFC 8767 section 4
    LONGEST_ERRORS = 256  # bytes of extended errors that are passed on
    OVERHEAD = 400  # bytes of an entry's objects beside its records
    POPULAR = 2  # hits that make an answer worth asking for before its time is over
    LAST_PART = 10  # of its time: then it is asked for
    SHORTEST_REFRESHED = 10  # seconds; what lives shorter would be asked for all the time
    OPT_AND_COOKIE = 31  # bytes of what `finish` adds, beside extended errors

STALE = DAY


cdef Py_ssize_t write_key(uint8_t *key, const uint8_t *question, Question *q, const uint8_t *query) noexcept:
    """The key of a query; its size."""
    cdef Py_ssize_t size = q.name + 4
    memcpy(key, question, size)
    lower_name(key, q.name)
    key[size] = (query[2] & RD) | (query[3] & (AD | CD)) | (DO if q.edns and q.dnssec else 0)
    return size + 1


def key_of(bytes query not None):
    cdef Question q
    cdef uint8_t out[DATAGRAM]
    cdef uint8_t key[LONGEST_QUESTION + 1]
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(query)
    cdef Py_ssize_t size
    q.client_size = 0
    q.client = data
    begin(data, PyBytes_GET_SIZE(query), out, DATAGRAM, False, &NO_SECRET, &q)
    if q.done:
        return b""
    size = write_key(key, out + HEADER, &q, data)
    return PyBytes_FromStringAndSize(<char *>key, size)


cdef Secret NO_SECRET = read_secret(bytes(16))


cdef Py_ssize_t name_end(const uint8_t *message, Py_ssize_t size, Py_ssize_t at) noexcept:
    """Where a name ends, with its zero or a pointer; -1 when it is broken."""
    while at < size:
        if message[at] == 0:
            return at + 1
        if message[at] >= 0xC0:
            return at + 2 if at + 2 <= size else -1
        if message[at] > LONGEST_LABEL:
            return -1
        at += 1 + message[at]
    return -1


@cython.final
cdef class Answer:
    def __init__(self, bytes response not None):
        self.options = b""
        self.read(<const uint8_t *>PyBytes_AS_STRING(response), PyBytes_GET_SIZE(response))

    @property
    def empty(self):
        return self.counts[0] == 0 and not self.truncated

    @staticmethod
    def failure(int error, str text not None):
        cdef Answer answer = Answer.__new__(Answer)
        cdef bytes said = text.encode()[:LONGEST_ERRORS - 6]
        answer.code = SERVFAIL
        answer.recursion = True
        answer.records = answer.ttls = b""
        answer.options = b"".join(
            number.to_bytes(2, "big") for number in (EXTENDED_ERROR, 2 + len(said), error)
        ) + said
        return answer

    cdef int read(self, const uint8_t *message, Py_ssize_t size) except -1:
        cdef Py_ssize_t at, start, end, fixed
        cdef int section, type, length, asked, left, errors
        cdef uint32_t ttl, least = DAY, negative = 0
        cdef bint answered = False, over = False
        cdef int place
        cdef uint8_t *copy
        cdef list ttls = []
        if size < HEADER or not message[2] & QR or read16(message + 4) != 1:
            raise ProtocolError("not a DNS response to one question")
        start = name_end(message, size, HEADER)
        if start < 0 or start + 4 > size:
            raise ProtocolError("a DNS question is broken")
        asked = read16(message + start)
        at = start = start + 4
        self.code = message[3] & 0x0F
        self.truncated = message[2] & TC != 0
        self.recursion = message[3] & RA != 0
        self.authenticated = message[3] & AD != 0
        end = start
        for section in range(3):
            left = read16(message + 6 + 2 * section)
            self.counts[section] = 0
            while left and not over:
                left -= 1
                fixed = name_end(message, size, at)
                length = read16(message + fixed + 8) if 0 <= fixed and fixed + 10 <= size else -1
                if length < 0 or fixed + 10 + length > size:
                    if not self.truncated:
                        raise ProtocolError("a DNS record is broken, or cut short")
                    over = True  # what is cut anyhow may be cut anywhere
                    break
                type = read16(message + fixed)
                if section == 2 and (type == OPT or type == TSIG):
                    # What stands behind is left away, too: it may point to what stands in between, and nobody needs it.
                    if type == OPT:
                        self.code |= message[fixed + 4] << 4
                        self.read_errors(message + fixed + 10, length)
                    over = True
                    break
                ttl = read32(message + fixed + 4)
                if ttl & <uint32_t>0x80000000:
                    ttl = 0
                place = <int>(fixed + 4 - start)
                if section == 0 and (type == asked or asked == ANY):
                    answered = True
                if section == 1 and type == SOA and length >= SOA_FIXED + 2:
                    ttl = min(ttl, read32(message + fixed + 10 + length - 4), <uint32_t>NEGATIVE)
                    negative = ttl
                least = min(least, ttl)
                ttls.append((place, ttl))
                self.counts[section] += 1
                at = end = fixed + 10 + length
        self.records = PyBytes_FromStringAndSize(<const char *>message + start, end - start)
        copy = <uint8_t *>PyBytes_AS_STRING(self.records)
        for place, ttl in ttls:
            write32(copy + place, ttl if self.code != NXDOMAIN and answered else min(<uint32_t>ttl, <uint32_t>NEGATIVE))
        self.ttls = b"".join([(<int>place).to_bytes(4, "little") for place, _ in ttls])
        if self.truncated:
            self.lifetime = 0
        elif self.code == NOERROR and answered:
            self.lifetime = least
        elif self.code == NOERROR or self.code == NXDOMAIN:
            self.lifetime = min(least, negative)
        else:
            self.lifetime = 0
        return 0

    cdef int read_errors(self, const uint8_t *options, int size) except -1:
        """Take the extended errors over."""
        cdef int at = 0, length
        while at + 4 <= size:
            length = read16(options + at + 2)
            if at + 4 + length > size:
                return 0
            if read16(options + at) == EXTENDED_ERROR and length >= 2:
                if PyBytes_GET_SIZE(self.options) + 4 + length > LONGEST_ERRORS:
                    return 0
                self.options += PyBytes_FromStringAndSize(<const char *>options + at, 4 + length)
            at += 4 + length
        return 0

    cdef Py_ssize_t write(
        self, Question *q, uint8_t *out, Py_ssize_t end, double age, bint stale, const Secret *secret
    ) noexcept:
        """Add the answer to a response that `begin` began; its size.  age: seconds since it came.  stale: its lifetimes
        are those of a stale one.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.records), i
        cdef const uint8_t *places = <const uint8_t *>PyBytes_AS_STRING(self.ttls)
        cdef uint8_t *place
        cdef uint8_t options[LONGEST_ERRORS + 6]
        cdef Py_ssize_t options_size = PyBytes_GET_SIZE(self.options)
        cdef uint32_t ttl, passed = <uint32_t>age if age > 0 else 0
        out[3] = (out[3] & CD) | (RA if self.recursion else 0) | (AD if self.authenticated else 0)
        if self.truncated:
            out[2] |= TC
        if end + size > q.limit:
            out[2] |= TC
        else:
            memcpy(out + end, PyBytes_AS_STRING(self.records), size)
            for i in range(3):
                write16(out + 6 + 2 * i, self.counts[i])
            for i in range(0, PyBytes_GET_SIZE(self.ttls), 4):
                place = out + end + (places[i] | places[i + 1] << 8 | places[i + 2] << 16)
                ttl = read32(place)
                write32(place, STALE_LIFETIME if stale else ttl - min(ttl, passed))
            end += size
        memcpy(options, PyBytes_AS_STRING(self.options), options_size)
        if stale:
            write16(options + options_size, EXTENDED_ERROR)
            write16(options + options_size + 2, 2)
            write16(options + options_size + 4, STALE_NXDOMAIN if self.code == NXDOMAIN else STALE_ANSWER)
            options_size += 6
        return finish(out, end, q, self.code, options, options_size, secret)


@cython.final
@cython.no_gc
cdef class Entry:
    def __cinit__(self, Answer answer, double stored):
        self.answer = answer
        self.stored = stored


cdef inline Py_ssize_t size_of(bytes key, Answer answer):
    return PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(answer.records) + PyBytes_GET_SIZE(answer.ttls) + OVERHEAD


@cython.final
cdef class Cache:
    def __cinit__(self, Py_ssize_t most, Py_ssize_t largest, bytes secret=bytes(16)):
        self.secret = read_secret(secret)
        self.entries = OrderedDict()  # whose first one is found however many have gone before it
        self.most = most
        self.largest = largest

    def __len__(self):
        return len(self.entries)

    def put(self, bytes key not None, Answer answer not None, double now):
        cdef Entry old = self.entries.get(key)
        cdef Py_ssize_t more = size_of(key, answer)
        cdef Entry entry
        if answer.lifetime == 0 or not self.most or more > self.largest:
            if old is not None and answer.code in (NOERROR, NXDOMAIN) and not answer.truncated:
                self.drop(key, old)  # what was true is no more
            return
        if old is not None:
            self.drop(key, old)
        while len(self.entries) >= self.most or self.size + more > self.largest:
            first = next(iter(self.entries))
            entry = self.entries[first]
            if entry.used and now < entry.stored + entry.answer.lifetime:
                entry.used = False  # it has another turn
                self.entries.move_to_end(first)
            else:
                self.drop(first, entry)
        self.entries[key] = Entry(answer, now)
        self.size += more

    def respond(self, bytes query not None, bint stream, bytes client not None, double now):
        cdef Py_ssize_t capacity = LONGEST_MESSAGE if stream else DATAGRAM
        cdef bytearray out = bytearray(capacity)
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(query)
        cdef Question q
        cdef Py_ssize_t size
        q.client = <const uint8_t *>PyBytes_AS_STRING(client)
        q.client_size = min(PyBytes_GET_SIZE(client), 16)
        size = begin(data, PyBytes_GET_SIZE(query), out, capacity, stream, &self.secret, &q)
        if not q.done:
            size = self.answer(&q, data, out, size, now)
        return None if size == FORWARD else bytes(out[:size])

    def stale(self, bytes key not None, double now):
        cdef Entry entry = self.entries.get(key)
        if entry is None:
            return None
        if now > entry.stored + entry.answer.lifetime + DAY:
            self.drop(key, entry)
            return None
        entry.used = True
        return entry.answer

    def give(self, Answer answer not None, bytes query not None, bint stream, bytes client not None, bint stale=False):
        cdef Question q
        cdef Py_ssize_t capacity = LONGEST_MESSAGE if stream else DATAGRAM
        cdef bytearray out = bytearray(capacity)
        q.client = <const uint8_t *>PyBytes_AS_STRING(client)
        q.client_size = min(PyBytes_GET_SIZE(client), 16)
        cdef Py_ssize_t end = begin(
            <const uint8_t *>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), out, capacity, stream, &self.secret, &q
        )
        return bytes(out[: end if q.done else answer.write(&q, out, end, 0.0, stale, &self.secret)])

    def clear(self):
        cdef Py_ssize_t count = len(self.entries)
        self.entries.clear()
        self.size = 0
        return count

    def describe(self, double now):
        cdef Entry entry
        return [
            (key, entry.answer.code, int(entry.stored + entry.answer.lifetime - now), entry.hits, size_of(key, entry.answer))
            for key, entry in self.entries.items()
        ]

    cdef int drop(self, bytes key, Entry entry) except -1:
        del self.entries[key]
        self.size -= size_of(key, entry.answer)
        return 0

    cdef Py_ssize_t answer(self, Question *q, const uint8_t *query, uint8_t *out, Py_ssize_t end, double now) except -2:
        """Write the rest of the response that `begin` began, and return its size; FORWARD when there is no answer."""
        cdef uint8_t key[LONGEST_QUESTION + 1]
        cdef Entry entry
        cdef double age
        cdef Py_ssize_t size = write_key(key, out + HEADER, q, query)
        self.refresh = False
        found = PyDict_GetItemWithError(self.entries, PyBytes_FromStringAndSize(<char *>key, size))
        if found is NULL:
            self.misses += 1
            return FORWARD
        entry = <Entry>found
        age = now - entry.stored
        if age >= entry.answer.lifetime:
            self.misses += 1
            return FORWARD
        self.hits += 1
        entry.hits += 1
        entry.used = True
        if (
            not entry.refreshing
            and entry.hits >= POPULAR
            and entry.answer.lifetime >= SHORTEST_REFRESHED
            and (entry.answer.lifetime - age) * LAST_PART < entry.answer.lifetime
        ):
            entry.refreshing = self.refresh = True
        return entry.answer.write(q, out, end, age, False, &self.secret)
