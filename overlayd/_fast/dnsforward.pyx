# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Queries that go on to upstream servers, and which messages answer them.

Owns: what an upstream hears of a client's query, and how its response is told from noise and forgeries.  Must not know:
sockets, which id a query goes out under, what an answer says (`_fast.dnscache`).

RFC 1035 (messages), 5452 (forgeries), 6891 (EDNS).  EDNS is hop by hop: an upstream gets an OPT record of our own,
without options.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from overlayd._fast.dnscache cimport write_key
from overlayd._fast.dnsquery cimport (
    AD,
    CD,
    DATAGRAM,
    HEADER,
    LONGEST_QUESTION,
    NOERROR,
    NXDOMAIN,
    OPCODE,
    OPT,
    QR,
    RD,
    Question,
    Secret,
    begin,
    lower,
    read16,
    read_secret,
    write16,
)

from overlayd.errors import ProtocolError

cdef enum:
    OPT_SIZE = 11  # bytes of an OPT record without options
    DO = 0x80  # in the OPT record, RFC 3225

cdef Secret NO_SECRET = read_secret(bytes(16))


@cython.final
cdef class Query:
    def __cinit__(self, bytes message not None):
        cdef Question q
        cdef uint8_t begun[DATAGRAM]
        cdef uint8_t key[LONGEST_QUESTION + 1]
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(message)
        q.client = data
        q.client_size = 0
        begin(data, PyBytes_GET_SIZE(message), begun, DATAGRAM, False, &NO_SECRET, &q)
        if q.done:
            raise ProtocolError("not a DNS query that can be forwarded")
        self.key = PyBytes_FromStringAndSize(<char *>key, write_key(key, begun + HEADER, &q, data))
        self.question = PyBytes_FromStringAndSize(<char *>begun + HEADER, q.name + 4)
        self.flags[0] = data[2] & RD
        self.flags[1] = data[3] & (AD | CD)
        self.edns = q.edns
        self.dnssec = q.edns and q.dnssec

    @property
    def name(self):
        return self.key[: PyBytes_GET_SIZE(self.key) - 5]  # without type, class and flags

    def for_upstream(self, int id, *, bint edns):
        cdef uint8_t out[LONGEST_FORWARDED]
        return PyBytes_FromStringAndSize(<char *>out, self.write(out, id, edns))

    def answered_by(self, bytes response not None, int id):
        return self.is_answered(<const uint8_t *>PyBytes_AS_STRING(response), PyBytes_GET_SIZE(response), id)

    cdef Py_ssize_t write(self, uint8_t *out, int id, bint edns) noexcept:
        """Write it to `out`, of LONGEST_FORWARDED bytes; its size."""
        cdef Py_ssize_t end = HEADER + PyBytes_GET_SIZE(self.question)
        memset(out, 0, HEADER)
        write16(out, id)
        memcpy(out + 2, self.flags, 2)
        write16(out + 4, 1)
        memcpy(out + HEADER, PyBytes_AS_STRING(self.question), PyBytes_GET_SIZE(self.question))
        if not edns:
            return end
        write16(out + 10, 1)
        memset(out + end, 0, OPT_SIZE)
        write16(out + end + 1, OPT)
        write16(out + end + 3, DATAGRAM)
        out[end + 7] = DO if self.dnssec else 0
        return end + OPT_SIZE

    cdef bint is_answered(self, const uint8_t *response, Py_ssize_t size, int id) noexcept:
        cdef const uint8_t *question = <const uint8_t *>PyBytes_AS_STRING(self.question)
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.question), i
        if size < HEADER or read16(response) != id or response[2] & (QR | OPCODE) != QR:
            return False
        if read16(response + 4) == 0:
            return response[3] & 0x0F not in (NOERROR, NXDOMAIN)
        if read16(response + 4) != 1 or size < HEADER + length:
            return False
        # Letter by letter, lengths of labels are below the letters; type and class behind the name as they are.
        for i in range(length - 4):
            if lower(response[HEADER + i]) != lower(question[i]):
                return False
        for i in range(length - 4, length):
            if response[HEADER + i] != question[i]:
                return False
        return True
