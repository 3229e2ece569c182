# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""DNS datagrams in batches: one system call takes many queries, one sends their answers.

Owns: the buffers, recvmmsg(2), sendmmsg(2) and UDP_SEGMENT (udp(7)), which socket's turn it is, and who may ask.  Must
not know: what is in a datagram (`_fast.nametable`, `_fast.dnscache`), when sockets come and go, or what becomes of
queries that are not ours.

The interpreter's lock is kept: the calls never wait, and getting it back could take longer than they do.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from overlayd._fast.dnscache cimport Cache
from overlayd._fast.dnsquery cimport DATAGRAM, FORWARD, Question, begin
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
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    size_t CMSG_LEN(size_t length)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *address, unsigned int length)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        epoll_data_t data
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

cdef extern from "<netinet/udp.h>" nogil:
    enum:
        SOL_UDP
        UDP_SEGMENT

# Our own constants.
cdef enum:
    # Their answers take a third of a millisecond, of which the kernel has nearly all; larger ones save little more.
    # It is also the most that a kernel takes apart.
    BATCH_SIZE = 64
    ADDRESS = 28  # bytes of the longest address here, struct sockaddr_in6

BATCH = BATCH_SIZE

cdef struct Segmentation:  # a control message
    cmsghdr header
    uint16_t size  # of each answer


cdef inline double monotonic() noexcept:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


@cython.final
cdef class Datagrams:
    cdef NameTable table
    cdef Cache cache
    cdef object before_cache
    cdef mmsghdr incoming[BATCH_SIZE]
    cdef iovec queries[BATCH_SIZE]
    cdef uint8_t peers[BATCH_SIZE][ADDRESS]
    cdef uint8_t received[BATCH_SIZE][DATAGRAM]  # a longer query is none
    cdef uint8_t written[BATCH_SIZE][DATAGRAM]  # answers, each at its query's place
    # What is sent: one answer, or several to the same socket that the kernel takes apart again.
    cdef mmsghdr outgoing[BATCH_SIZE]
    cdef iovec answers[BATCH_SIZE][BATCH_SIZE]
    cdef Segmentation segmentations[BATCH_SIZE]
    # Which of them may take one more answer: chains by its socket and length, of indices plus one; 0 ends them.
    cdef uint8_t heads[256]
    cdef uint8_t following[BATCH_SIZE]
    cdef uint8_t network[16]  # who may ask
    cdef int family, prefix_length

    def __cinit__(self, NameTable table not None, Cache cache not None, before_cache not None):
        self.table = table
        self.cache = cache
        self.before_cache = before_cache
        self.family = -1
        memset(self.incoming, 0, sizeof(self.incoming))
        memset(self.outgoing, 0, sizeof(self.outgoing))
        for i in range(BATCH_SIZE):
            self.queries[i].iov_base = self.received[i]
            self.queries[i].iov_len = DATAGRAM
            self.incoming[i].msg_hdr.msg_name = self.peers[i]
            self.incoming[i].msg_hdr.msg_iov = &self.queries[i]
            self.incoming[i].msg_hdr.msg_iovlen = 1
            self.outgoing[i].msg_hdr.msg_iov = self.answers[i]
            self.segmentations[i].header.cmsg_len = CMSG_LEN(sizeof(uint16_t))
            self.segmentations[i].header.cmsg_level = SOL_UDP
            self.segmentations[i].header.cmsg_type = UDP_SEGMENT

    def admit(self, bytes network not None, int prefix_length):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(network)
        if size not in (4, 16) or not 0 <= prefix_length <= 8 * size:
            raise ValueError(f"not a network: {network!r}/{prefix_length}")
        memcpy(self.network, PyBytes_AS_STRING(network), size)
        self.family = AF_INET if size == 4 else AF_INET6
        self.prefix_length = prefix_length

    def serve(self, int ready, double now, double seconds):
        cdef epoll_event event
        cdef int count
        cdef list others = []
        while not others:
            # One at a time: the kernel puts who has had a turn behind the others.
            count = epoll_wait(ready, &event, 1, 0)
            if count < 0 and errno != EINTR:
                PyErr_SetFromErrno(OSError)
            if count <= 0:
                break
            self.take(event.data.fd, now, others)
            if monotonic() >= now + seconds:
                break
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

    cdef int take(self, int descriptor, double now, list others) except -1:
        """Take a batch from a socket; add those that are to be forwarded to `others`."""
        cdef Question q
        cdef Py_ssize_t size, end
        cdef int count, messages = 0
        cdef bint may_use_cache = False
        cdef int address = 4 if self.family == AF_INET else 8  # where sin_addr, sin6_addr is
        cdef int width = 4 if self.family == AF_INET else 16
        for i in range(BATCH_SIZE):
            self.incoming[i].msg_hdr.msg_namelen = ADDRESS
        count = recvmmsg(descriptor, self.incoming, BATCH_SIZE, MSG_DONTWAIT, NULL)
        if count < 0:
            if errno not in (EAGAIN, EINTR):
                PyErr_SetFromErrno(OSError)
            return 0
        memset(self.heads, 0, sizeof(self.heads))
        for i in range(count):
            if self.incoming[i].msg_hdr.msg_flags & MSG_TRUNC or not self.admitted(self.peers[i]):
                continue
            q.client = self.peers[i] + address
            q.client_size = width
            size = end = begin(
                self.received[i],
                self.incoming[i].msg_len,
                self.written[i],
                DATAGRAM,
                False,
                &self.table.secret,
                &q,
            )
            if not q.done:
                size = self.table.answer(&q, self.written[i], end)
            if size == FORWARD:
                if not may_use_cache:
                    self.before_cache()
                    may_use_cache = True
                size = self.cache.answer(&q, self.received[i], self.written[i], end, now)
                if self.cache.refresh:
                    others.append((
                        descriptor, PyBytes_FromStringAndSize(<char *>self.received[i], self.incoming[i].msg_len), b""
                    ))
            if size > 0:
                messages += self.add(messages, i, size)
            elif size == FORWARD:
                others.append((
                    descriptor,
                    PyBytes_FromStringAndSize(<char *>self.received[i], self.incoming[i].msg_len),
                    PyBytes_FromStringAndSize(<char *>self.peers[i], self.incoming[i].msg_hdr.msg_namelen),
                ))
        self.send_all(descriptor, messages)
        return 0

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

    cdef bint add(self, int messages, int i, size_t size) noexcept:
        """Prepare to send the answer to a query, and tell whether that takes one more message.  It takes none when it
        goes behind others of one length to the same socket: the kernel takes these apart again.
        """
        cdef msghdr *message
        cdef msghdr *query = &self.incoming[i].msg_hdr
        # The low byte of sin_port or sin6_port, so that other sockets are looked at only by chance.
        cdef uint8_t *head = &self.heads[(<const uint8_t *>query.msg_name)[3] + size & 0xFF]
        cdef int j = head[0] - 1
        while j >= 0:
            message = &self.outgoing[j].msg_hdr
            if (
                size == message.msg_iov.iov_len
                and message.msg_namelen == query.msg_namelen
                and not memcmp(message.msg_name, query.msg_name, query.msg_namelen)
            ):
                self.segmentations[j].size = <uint16_t>size
                message.msg_control = &self.segmentations[j]
                message.msg_controllen = sizeof(Segmentation)
                message.msg_iov[message.msg_iovlen].iov_base = self.written[i]
                message.msg_iov[message.msg_iovlen].iov_len = size
                message.msg_iovlen += 1
                return False
            j = self.following[j] - 1
        self.following[messages] = head[0]
        head[0] = <uint8_t>(messages + 1)
        message = &self.outgoing[messages].msg_hdr
        message.msg_name = query.msg_name
        message.msg_namelen = query.msg_namelen
        message.msg_control = NULL
        message.msg_controllen = 0
        message.msg_iov.iov_base = self.written[i]
        message.msg_iov.iov_len = size
        message.msg_iovlen = 1
        return True

    cdef void send_all(self, int descriptor, int messages) noexcept:
        cdef int done = 0, sent
        while done < messages:
            sent = sendmmsg(descriptor, &self.outgoing[done], messages - done, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0:
                if errno == EAGAIN:
                    return
                # This one's receiver cannot be reached, while the others may be; or its device cannot take it apart.
                if self.outgoing[done].msg_hdr.msg_iovlen > 1:
                    self.send_singly(descriptor, &self.outgoing[done].msg_hdr)
                sent = 1
            done += sent

    cdef void send_singly(self, int descriptor, msghdr *message) noexcept:
        for i in range(message.msg_iovlen):
            sendto(
                descriptor,
                message.msg_iov[i].iov_base,
                message.msg_iov[i].iov_len,
                MSG_DONTWAIT | MSG_NOSIGNAL,
                <const sockaddr *>message.msg_name,
                message.msg_namelen,
            )
