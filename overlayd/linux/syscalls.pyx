# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""System calls in a row, without the interpreter's lock between them.

Owns: the order of a sequence's operations, the reading of the kernel's answers, and the way into another network
namespace and back.  Must not know: what the messages say, beyond where an interface's index stands in them, or what the
operations are for.

Each of some fifty short calls that set up a container would give the lock up and wait for it again, and the event loop,
which the kernel's notifications of those very calls wake, has it by then.

Sources: netlink(7), linux/rtnetlink.h, setns(2), pidfd_open(2).
"""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, EIO, ENAMETOOLONG, ENOBUFS, ETIMEDOUT, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror

from overlayd import fault
from overlayd.linux.headers cimport (
    AF_NETLINK, CLOCK_MONOTONIC, CLONE_NEWNET, MSG_DONTWAIT, MSG_TRUNC, NETLINK_CAP_ACK, NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK, NETLINK_ROUTE, NLMSG_DONE, NLMSG_ERROR, NLM_F_DUMP_INTR, O_CLOEXEC, O_RDONLY, O_WRONLY,
    RTA_OIF, RTM_DELROUTE, RTM_NEWROUTE, SIOCGIFINDEX, SOCK_CLOEXEC, SOCK_RAW, SOL_NETLINK, clock_gettime, close,
    connect, ifreq, ioctl, nanosleep, nlattr, nlmsghdr, open, read, recvfrom, send, setns, setsockopt, sockaddr,
    sockaddr_nl, socket, timespec, write,
)

# Our own: no link has the greatest index there is.
LATER = 0x7FFFFFFF

cdef enum:
    INDEX_LATER = 0x7FFFFFFF
    # Our own: operations in a sequence at most, errnos that one of them tolerates, bytes that one read takes (dumps come in
    # pieces that fit), bytes of the kernel's explanation that are kept.
    MOST = 40
    TOLERATED = 3
    READ = 16384
    DATAGRAM = 0x10000  # bytes of a notification at most; a larger one counts as lost
    EXPLANATION = 512
    NUMBERS = 0x10000  # of messages that a sequence sends at most: an AWAIT asks some 15,000 times
    NAME = 16  # IFNAMSIZ
    # Kinds of operations.
    SEND = 1
    EMPTY = 2
    AWAIT = 3
    FIND = 4
    WRITE = 5
    ENTER = 6
    LEAVE = 7
    POINT = 8
    # What has become of a sequence.
    NOT_RUN = -1
    DONE = -2
    # Where an index stands, in bytes from a message's beginning: in ifinfomsg, ifaddrmsg and ndmsg, and in the first
    # attribute of a route.
    HEAD_INDEX = 16 + 4
    ROUTE_ATTRIBUTE = 16 + 12

# Our own: how long an AWAIT asks, and how often, in nanoseconds.
cdef long PATIENCE = 3_000_000_000
cdef long INTERVAL = 200_000


cdef struct Operation:
    int kind
    int count  # SEND, EMPTY, AWAIT: answers that end what was sent
    int wanted  # AWAIT: replies that must carry the attribute
    int header  # AWAIT: bytes of a reply's body before its attributes
    int namespace  # ENTER: its descriptor
    int name  # POINT: where it is kept
    bint unless_there  # WRITE: not if that is the value
    char *data  # messages; of FIND a name, of WRITE a path
    size_t size
    const char *value  # AWAIT: the attribute; of WRITE the value
    size_t value_size
    int tolerated[TOLERATED]


cdef struct State:
    Operation operations[MOST]
    int count
    int first  # where the next run begins
    int stopped  # at which operation; NOT_RUN, DONE
    int request  # of the operation, which the kernel refused
    int number  # errno, 0 for a stop without one
    int flags  # of the acknowledgement that refused
    uint32_t index  # of the link found last
    bint away  # in another namespace
    int inside  # a socket there, -1 for none
    uint32_t sequence  # of the newest message
    void *owner  # the object that this is of
    size_t explained
    uint8_t explanation[EXPLANATION]  # the body of that acknowledgement


cdef class Sequence:
    cdef State state
    cdef list kept  # what operations point to
    cdef object raised  # by a fault point

    def __cinit__(self):
        memset(&self.state, 0, sizeof(State))
        self.state.stopped = NOT_RUN
        self.state.inside = -1
        self.state.owner = <void *>self
        self.kept = []

    cdef Operation *add(self, int kind, tuple tolerated=()) except NULL:
        cdef Operation *operation
        if self.state.count == MOST or len(tolerated) > TOLERATED:
            raise ValueError("too much for one sequence")
        operation = &self.state.operations[self.state.count]
        operation.kind = kind
        for at, number in enumerate(tolerated):
            operation.tolerated[at] = number
        self.state.count += 1
        return operation

    cdef Operation *add_messages(self, int kind, bytearray messages, int count, tuple tolerated) except NULL:
        cdef Operation *operation = self.add(kind, tolerated)
        self.kept.append(messages)
        operation.data = PyByteArray_AS_STRING(messages)
        operation.size = PyByteArray_GET_SIZE(messages)
        operation.count = count
        return operation

    def send(self, bytearray messages not None, int count, tuple tolerated=()):
        self.add_messages(SEND, messages, count, tolerated)

    def require_empty(self, bytearray dump not None, tuple tolerated=()):
        self.add_messages(EMPTY, dump, 1, tolerated)

    def await_attribute(self, bytearray messages not None, int count, int header, bytes attribute not None, int wanted):
        cdef Operation *operation = self.add_messages(AWAIT, messages, count, ())
        self.kept.append(attribute)
        operation.value = PyBytes_AS_STRING(attribute)
        operation.value_size = PyBytes_GET_SIZE(attribute)
        operation.header = header
        operation.wanted = wanted

    def find(self, bytes name not None):
        self.add_text(FIND, name, ())

    def write(self, bytes path not None, bytes value not None, tuple tolerated=(), *, bint unless_there=False):
        cdef Operation *operation = self.add_text(WRITE, path, tolerated)
        self.kept.append(value)
        operation.value = PyBytes_AS_STRING(value)
        operation.value_size = PyBytes_GET_SIZE(value)
        operation.unless_there = unless_there

    cdef Operation *add_text(self, int kind, bytes text, tuple tolerated) except NULL:
        cdef Operation *operation = self.add(kind, tolerated)
        self.kept.append(text)
        operation.data = PyBytes_AS_STRING(text)
        operation.size = PyBytes_GET_SIZE(text)
        return operation

    def enter(self, int namespace):
        self.add(ENTER).namespace = namespace

    def leave(self):
        self.add(LEAVE)

    def point(self, str name not None):
        self.add(POINT).name = len(self.kept)
        self.kept.append(name)

    @property
    def stopped(self):
        return self.state.stopped if self.state.stopped >= 0 else None

    @property
    def refusal(self):
        explanation = PyBytes_FromStringAndSize(<char *>self.state.explanation, self.state.explained)
        return self.state.request, self.state.number, self.state.flags, explanation, self.raised

    def go_on(self, int at):
        self.state.first = at
        self.raised = None

    cdef bint pass_point(self, int at) noexcept:
        try:
            fault.point(self.kept[self.state.operations[at].name])
        except BaseException as error:
            self.raised = error
            return False
        return True


def drain(int descriptor, int most):
    cdef uint8_t buffer[DATAGRAM]
    cdef sockaddr_nl sender
    cdef unsigned int length
    cdef ssize_t got
    cdef list found = []
    while len(found) < most:
        length = sizeof(sender)
        got = recvfrom(descriptor, buffer, DATAGRAM, MSG_DONTWAIT | MSG_TRUNC, <sockaddr *>&sender, &length)
        if got < 0:
            if errno == EINTR:
                continue
            return found, 0 if errno == EAGAIN else errno
        if got > DATAGRAM:
            return found, ENOBUFS
        if sender.nl_pid == 0:
            found.append(PyBytes_FromStringAndSize(<char *>buffer, got))
    return found, 0


cdef uint32_t sequence = 0  # of the newest message of all


def run(int host, int home, list sequences not None):
    global sequence
    cdef Py_ssize_t count = len(sequences), at
    cdef State **states = <State **>malloc(count * sizeof(State *))
    if states == NULL:
        raise MemoryError()
    for at in range(count):
        states[at] = &(<Sequence?>sequences[at]).state
        states[at].sequence = sequence
        sequence += NUMBERS
    with nogil:
        for at in range(count):
            _run(states[at], host, home)
    free(states)


cdef void _run(State *state, int host, int home) noexcept nogil:
    cdef int at, failure = 0
    cdef int namespace = -1
    state.request = state.flags = 0
    state.explained = 0
    for at in range(state.first):  # where an earlier run had got to
        if state.operations[at].kind == ENTER:
            namespace = state.operations[at].namespace
        elif state.operations[at].kind == LEAVE:
            namespace = -1
    if namespace >= 0:
        failure = _enter(state, namespace)
    at = state.first
    while failure == 0 and at < state.count:
        failure = _do(state, at, host, home)
        if failure == 0:
            at += 1
    if state.away:
        _leave(state, home)
    state.number = failure if failure > 0 else 0
    state.stopped = at if failure else DONE


cdef int _do(State *state, int at, int host, int home) noexcept nogil:
    """Returns 0, an errno, or -1 to stop without one."""
    cdef Operation *operation = &state.operations[at]
    cdef int descriptor = state.inside if state.away else host
    cdef int failure = 0
    if operation.kind == SEND:
        failure = _exchange(state, operation, descriptor, NULL, NULL)
    elif operation.kind == EMPTY:
        failure = _require_empty(state, operation, descriptor)
    elif operation.kind == AWAIT:
        failure = _await(state, operation, descriptor)
    elif operation.kind == FIND:
        failure = _find(state, operation, descriptor)
    elif operation.kind == WRITE:
        failure = _write(operation)
    elif operation.kind == ENTER:
        failure = _enter(state, operation.namespace)
    elif operation.kind == LEAVE:
        _leave(state, home)
    elif operation.kind == POINT:
        with gil:
            failure = 0 if (<Sequence>state.owner).pass_point(at) else -1
    return 0 if _tolerates(operation, failure) else failure


cdef bint _tolerates(const Operation *operation, int number) noexcept nogil:
    cdef int at
    for at in range(TOLERATED):
        if number > 0 and operation.tolerated[at] == number:
            return True
    return False


cdef int _exchange(State *state, Operation *operation, int descriptor, int *replies, int *matching) noexcept nogil:
    """Send messages and read what they are answered until all are acknowledged, or the dump has ended.  Returns the
    first errno that is not tolerated.  replies, matching: how many there are, and those that carry the attribute.
    """
    cdef uint8_t buffer[READ]
    cdef int ended = 0, number, failure = 0
    cdef ssize_t got, at
    cdef nlmsghdr *found
    cdef uint32_t first = _number(state, operation)
    if send(descriptor, operation.data, operation.size, 0) < 0:
        return errno
    while ended < operation.count:
        got = _receive(descriptor, buffer)
        if got < 0:
            return <int>-got
        at = 0
        while at + <ssize_t>sizeof(nlmsghdr) <= got:
            found = <nlmsghdr *>(buffer + at)
            if found.nlmsg_len < sizeof(nlmsghdr) or at + <ssize_t>found.nlmsg_len > got:
                return EIO
            if found.nlmsg_seq - first < <uint32_t>operation.count:  # else of what was cut short before
                if found.nlmsg_type == NLMSG_ERROR or found.nlmsg_type == NLMSG_DONE:
                    ended += 1
                    if replies != NULL and found.nlmsg_flags & NLM_F_DUMP_INTR:
                        replies[0] += 1  # which might have been passed over
                    number = _errno(found)
                    if number and failure == 0 and not _tolerates(operation, number):
                        failure = number
                        state.request = <int>(found.nlmsg_seq - first)
                        _keep(state, found)
                elif replies != NULL:
                    replies[0] += 1
                    matching[0] += _carries(found, operation)
            at += (found.nlmsg_len + 3) & ~3
    return failure


cdef uint32_t _number(State *state, Operation *operation) noexcept nogil:
    """Give each message its number and, where it stands for later, the index of the link found last; returns the first
    number.
    """
    cdef uint32_t first = state.sequence + 1, next = first
    cdef size_t at = 0
    cdef nlmsghdr *each
    cdef nlattr *attribute
    cdef uint32_t *index
    state.sequence += operation.count
    while at < operation.size:
        each = <nlmsghdr *>(operation.data + at)
        each.nlmsg_seq = next
        next += 1
        index = NULL
        if each.nlmsg_type != RTM_NEWROUTE and each.nlmsg_type != RTM_DELROUTE:
            if each.nlmsg_len >= HEAD_INDEX + 4:
                index = <uint32_t *>(<char *>each + HEAD_INDEX)
        elif each.nlmsg_len >= ROUTE_ATTRIBUTE + 8:
            attribute = <nlattr *>(<char *>each + ROUTE_ATTRIBUTE)
            if attribute.nla_type == RTA_OIF:
                index = <uint32_t *>(<char *>attribute + sizeof(nlattr))
        if index != NULL and index[0] == INDEX_LATER:
            index[0] = state.index
        at += (each.nlmsg_len + 3) & ~3
    return first


cdef ssize_t _receive(int descriptor, uint8_t *buffer) noexcept nogil:
    """The next datagram from the kernel, into READ bytes; a negative errno when there is none."""
    cdef sockaddr_nl sender
    cdef unsigned int length
    cdef ssize_t got
    while True:
        length = sizeof(sender)
        got = recvfrom(descriptor, buffer, READ, MSG_TRUNC, <sockaddr *>&sender, &length)
        if got < 0:
            if errno != EINTR:
                return -errno
        elif sender.nl_pid == 0:
            return got if got <= READ else -EIO


cdef int _errno(const nlmsghdr *found) noexcept nogil:
    cdef int32_t number
    if found.nlmsg_len < sizeof(nlmsghdr) + sizeof(number):
        return EIO if found.nlmsg_type == NLMSG_ERROR else 0
    memcpy(&number, <const char *>found + sizeof(nlmsghdr), sizeof(number))
    return -number


cdef void _keep(State *state, const nlmsghdr *found) noexcept nogil:
    state.flags = found.nlmsg_flags
    state.explained = found.nlmsg_len - sizeof(nlmsghdr)
    if state.explained > EXPLANATION:
        state.flags = 0  # without the explanation, of which a part could not be read
        state.explained = sizeof(int32_t)
    memcpy(state.explanation, <const char *>found + sizeof(nlmsghdr), state.explained)


cdef int _carries(const nlmsghdr *found, const Operation *operation) noexcept nogil:
    """Whether a reply has the attribute, with its length, type and value."""
    cdef size_t at = sizeof(nlmsghdr) + operation.header
    cdef const nlattr *each
    if operation.value == NULL:
        return 0
    while at + sizeof(nlattr) <= found.nlmsg_len:
        each = <const nlattr *>(<const char *>found + at)
        if each.nla_len < sizeof(nlattr) or at + each.nla_len > found.nlmsg_len:
            return 0
        if each.nla_len == operation.value_size and memcmp(each, operation.value, operation.value_size) == 0:
            return 1
        at += (each.nla_len + 3) & ~3
    return 0


cdef int _require_empty(State *state, Operation *operation, int descriptor) noexcept nogil:
    cdef int replies = 0, matching = 0
    cdef int failure = _exchange(state, operation, descriptor, &replies, &matching)
    return failure if failure else -1 if replies else 0


cdef int _await(State *state, Operation *operation, int descriptor) noexcept nogil:
    cdef timespec pause, now
    cdef long deadline = 0
    cdef int replies, matching, failure
    pause.tv_sec = 0
    pause.tv_nsec = INTERVAL
    while True:
        replies = matching = 0
        failure = _exchange(state, operation, descriptor, &replies, &matching)
        if failure or matching >= operation.wanted:
            return failure
        clock_gettime(CLOCK_MONOTONIC, &now)
        if deadline == 0:
            deadline = now.tv_sec * 1_000_000_000 + now.tv_nsec + PATIENCE
        elif now.tv_sec * 1_000_000_000 + now.tv_nsec > deadline:
            return ETIMEDOUT
        nanosleep(&pause, NULL)


cdef int _find(State *state, const Operation *operation, int descriptor) noexcept nogil:
    cdef ifreq asked
    if operation.size >= NAME:
        return ENAMETOOLONG
    memset(&asked, 0, sizeof(asked))
    memcpy(asked.ifr_name, operation.data, operation.size)
    if ioctl(descriptor, SIOCGIFINDEX, &asked) < 0:
        return errno
    state.index = asked.ifr_ifindex
    return 0


cdef int _write(const Operation *operation) noexcept nogil:
    cdef char present[32]
    cdef int descriptor, failure = 0
    cdef ssize_t size
    if operation.unless_there:
        descriptor = open(operation.data, O_RDONLY | O_CLOEXEC)
        if descriptor < 0:
            return errno
        size = read(descriptor, present, sizeof(present))
        close(descriptor)
        if size > 0 and present[size - 1] == b"\n":
            size -= 1
        if size == <ssize_t>operation.value_size and memcmp(present, operation.value, size) == 0:
            return 0
    descriptor = open(operation.data, O_WRONLY | O_CLOEXEC)
    if descriptor < 0:
        return errno
    if write(descriptor, operation.value, operation.value_size) < 0:
        failure = errno
    close(descriptor)
    return failure


cdef int _enter(State *state, int namespace) noexcept nogil:
    """The calling thread is in the namespace, with a socket there, until `_leave`."""
    cdef sockaddr_nl kernel
    cdef int one = 1
    if setns(namespace, CLONE_NEWNET) < 0:
        return errno
    state.away = True
    state.inside = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)
    if state.inside < 0:
        return errno
    # As `netlink.connected`: only the kernel can send to it.
    memset(&kernel, 0, sizeof(kernel))
    kernel.nl_family = AF_NETLINK
    if connect(state.inside, <sockaddr *>&kernel, sizeof(kernel)) < 0:
        return errno
    setsockopt(state.inside, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one))
    setsockopt(state.inside, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one))
    setsockopt(state.inside, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof(one))
    return 0


cdef void _leave(State *state, int home) noexcept nogil:
    """A thread that cannot come back would act on the wrong host's links with every later call: see `netns.entered`."""
    if state.inside >= 0:
        close(state.inside)
        state.inside = -1
    state.away = False
    if setns(home, CLONE_NEWNET) < 0:
        fprintf(stderr, b"overlayd: cannot return to the own network namespace: %s; aborting\n", strerror(errno))
        abort()
