# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Queries to a DNS server by datagrams, many from one socket.

Owns: their ids, and what waits for which.  Must not know: which servers there are and which socket is used when
(`daemon.dns.upstream_sockets`), what an answer says.

RFC 5452: an answer counts only when it comes from the server that was asked, to the port that asked, under the id that
asked, with the question that was asked.  The kernel sees to the first two, since the socket is connected.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint16_t

from overlayd._fast.dnsforward cimport LONGEST_FORWARDED, Query
from overlayd._fast.dnsquery cimport HEADER, QR, read16

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *out, size_t size, unsigned int flags)

# Our own constants.
cdef enum:
    MOST_RECEIVED = 32  # 10 us each, with all that becomes of them
    LONGEST_MESSAGE = 65535
    RANDOM = 128  # numbers that one system call gives

LONGEST = MOST_RECEIVED

# Shared by all sockets: nothing of it is needed when a call has returned.
cdef uint8_t received[LONGEST_MESSAGE]
cdef uint16_t random_numbers[RANDOM]
cdef int random_left = 0


cdef int next_random() except -1:
    global random_left
    if random_left == 0:
        if getrandom(random_numbers, sizeof(random_numbers), 0) != sizeof(random_numbers):
            PyErr_SetFromErrno(OSError)
        random_left = RANDOM
    random_left -= 1
    return random_numbers[random_left]


def random16():
    return next_random()


@cython.final
cdef class Waiting:
    """A query that is not answered yet."""

    cdef Query query
    cdef object owner


@cython.final
cdef class Asking:
    cdef int descriptor
    cdef dict waiting  # by id

    def __cinit__(self, int descriptor):
        self.descriptor = descriptor
        self.waiting = {}

    def __class_getitem__(cls, _):
        return cls

    def __len__(self):
        return len(self.waiting)

    def ask(self, Query query not None, owner, *, bint edns):
        cdef uint8_t out[LONGEST_FORWARDED]
        cdef Waiting waiting = Waiting.__new__(Waiting)
        cdef int id = next_random()
        while id in self.waiting:
            id = next_random()
        if send(self.descriptor, out, query.write(out, id, edns), MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            if errno not in (EAGAIN, EINTR, ENOBUFS):
                PyErr_SetFromErrno(OSError)
        waiting.query = query
        waiting.owner = owner
        self.waiting[id] = waiting
        return id

    def forget(self, int id):
        self.waiting.pop(id, None)

    def owners(self):
        return [(<Waiting>each).owner for each in self.waiting.values()]

    def receive(self):
        cdef list answers = []
        cdef ssize_t size
        cdef Waiting waiting
        cdef int id
        cdef bint late = False
        for _ in range(MOST_RECEIVED):
            size = recv(self.descriptor, received, LONGEST_MESSAGE, MSG_DONTWAIT)
            if size < 0:
                return answers, late, 0 if errno in (EAGAIN, EINTR) else errno
            if size < HEADER:
                continue
            id = read16(received)
            found = PyDict_GetItemWithError(self.waiting, id)
            if found is NULL:
                late = late or received[2] & QR
                continue
            waiting = <Waiting>found
            if waiting.query.is_answered(received, size, id):
                answers.append((waiting.owner, PyBytes_FromStringAndSize(<char *>received, size)))
        return answers, late, 0
