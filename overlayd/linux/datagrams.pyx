# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""DNS datagrams in batches: one system call takes many queries, one sends their answers.

Owns: the buffers, recvmmsg(2) and sendmmsg(2), and who may ask.  Must not know: what is in a datagram
(`_fast.nametable`, `_fast.dnscache`), which sockets there are, or what becomes of queries that are not ours.

The interpreter's lock is kept: the calls never wait, and getting it back could take longer than they do.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset

from overlayd._fast.dnscache cimport Cache
from overlayd._fast.dnsquery cimport DATAGRAM, FORWARD
from overlayd._fast.nametable cimport NameTable

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_TRUNC
    struct sockaddr:
        pass
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *address, unsigned int length)

# Our own constants.
cdef enum:
    # Their answers take a quarter of a millisecond, of which the kernel has nearly all; larger ones save little more.
    BATCH_SIZE = 32
    ADDRESS = 28  # bytes of the longest address here, struct sockaddr_in6

BATCH = BATCH_SIZE


@cython.final
cdef class Datagrams:
    cdef NameTable table
    cdef Cache cache
    cdef mmsghdr incoming[BATCH_SIZE]
    cdef mmsghdr outgoing[BATCH_SIZE]
    cdef iovec queries[BATCH_SIZE]
    cdef iovec answers[BATCH_SIZE]
    cdef uint8_t peers[BATCH_SIZE][ADDRESS]
    cdef uint8_t received[BATCH_SIZE][DATAGRAM]  # a longer query is none
    cdef uint8_t written[BATCH_SIZE][DATAGRAM]
    cdef uint8_t network[16]  # who may ask
    cdef int family, prefix_length

    def __cinit__(self, NameTable table not None, Cache cache not None):
        self.table = table
        self.cache = cache
        self.family = -1
        memset(self.incoming, 0, sizeof(self.incoming))
        memset(self.outgoing, 0, sizeof(self.outgoing))
        for i in range(BATCH_SIZE):
            self.queries[i].iov_base = self.received[i]
            self.queries[i].iov_len = DATAGRAM
            self.answers[i].iov_base = self.written[i]
            self.incoming[i].msg_hdr.msg_name = self.peers[i]
            self.incoming[i].msg_hdr.msg_iov = &self.queries[i]
            self.incoming[i].msg_hdr.msg_iovlen = 1
            self.outgoing[i].msg_hdr.msg_iov = &self.answers[i]
            self.outgoing[i].msg_hdr.msg_iovlen = 1

    def admit(self, bytes network not None, int prefix_length):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(network)
        if size not in (4, 16) or not 0 <= prefix_length <= 8 * size:
            raise ValueError(f"not a network: {network!r}/{prefix_length}")
        memcpy(self.network, PyBytes_AS_STRING(network), size)
        self.family = AF_INET if size == 4 else AF_INET6
        self.prefix_length = prefix_length

    def serve(self, int descriptor, double now):
        cdef list others = []
        cdef Py_ssize_t size
        cdef int count, ready = 0
        cdef int address = 4 if self.family == AF_INET else 8  # where sin_addr, sin6_addr is
        cdef int width = 4 if self.family == AF_INET else 16
        for i in range(BATCH_SIZE):
            self.incoming[i].msg_hdr.msg_namelen = ADDRESS
        count = recvmmsg(descriptor, self.incoming, BATCH_SIZE, MSG_DONTWAIT, NULL)
        if count < 0:
            if errno not in (EAGAIN, EINTR):
                PyErr_SetFromErrno(OSError)
            return others
        for i in range(count):
            if self.incoming[i].msg_hdr.msg_flags & MSG_TRUNC or not self.admitted(self.peers[i]):
                continue
            size = self.table.answer(
                self.received[i],
                self.incoming[i].msg_len,
                self.peers[i] + address,
                width,
                self.written[ready],
                DATAGRAM,
                False,
            )
            if size == FORWARD:
                size = self.cache.answer(
                    self.received[i],
                    self.incoming[i].msg_len,
                    self.peers[i] + address,
                    width,
                    self.written[ready],
                    DATAGRAM,
                    False,
                    now,
                )
                if self.cache.refresh:
                    others.append((PyBytes_FromStringAndSize(<char *>self.received[i], self.incoming[i].msg_len), b""))
            if size > 0:
                self.answers[ready].iov_len = size
                self.outgoing[ready].msg_hdr.msg_name = self.peers[i]
                self.outgoing[ready].msg_hdr.msg_namelen = self.incoming[i].msg_hdr.msg_namelen
                ready += 1
            elif size == FORWARD:
                others.append((
                    PyBytes_FromStringAndSize(<char *>self.received[i], self.incoming[i].msg_len),
                    PyBytes_FromStringAndSize(<char *>self.peers[i], self.incoming[i].msg_hdr.msg_namelen),
                ))
        self.send_all(descriptor, ready)
        return others

    def send(self, int descriptor, bytes response not None, bytes receiver not None):
        sendto(
            descriptor,
            PyBytes_AS_STRING(response),
            PyBytes_GET_SIZE(response),
            MSG_DONTWAIT | MSG_NOSIGNAL,
            <const sockaddr *>PyBytes_AS_STRING(receiver),
            <unsigned int>PyBytes_GET_SIZE(receiver),
        )

    cdef bint admitted(self, const uint8_t *peer) noexcept:
        """Whether a struct sockaddr is of the network that may ask."""
        cdef unsigned short family
        cdef const uint8_t *address
        cdef int whole = self.prefix_length >> 3, rest = self.prefix_length & 7
        memcpy(&family, peer, sizeof(family))
        if family != self.family:
            return False
        address = peer + (4 if family == AF_INET else 8)  # of sin_addr, sin6_addr
        if memcmp(address, self.network, whole):
            return False
        return not rest or not (address[whole] ^ self.network[whole]) & (0xFF00 >> rest & 0xFF)

    cdef void send_all(self, int descriptor, int count) noexcept:
        cdef int done = 0, sent
        while done < count:
            sent = sendmmsg(descriptor, &self.outgoing[done], count - done, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0:
                if errno == EAGAIN:
                    return
                sent = 1  # this one's receiver cannot be reached; the others may be
            done += sent
