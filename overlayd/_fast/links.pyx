# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""What an RTM_NEWLINK message says of a link, in one pass over its attributes.

Owns: the reading of the attributes.  Must not know: what they mean to us (`linux.rtnetlink`).

A kernel of today sends some fifty of them for a veth, and half a dozen messages for an attach.
Sources: linux/if_link.h, linux/rtnetlink.h.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from overlayd.errors import ProtocolError

cdef enum:
    HEAD = 16  # struct ifinfomsg
    AF_INET = 2
    AF_INET6 = 10
    TYPE = 0x3FFF  # NLA_TYPE_MASK
    IFLA_ADDRESS = 1
    IFLA_IFNAME = 3
    IFLA_MTU = 4
    IFLA_LINK = 5
    IFLA_MASTER = 10
    IFLA_PROTINFO = 12
    IFLA_TXQLEN = 13
    IFLA_LINKINFO = 18
    IFLA_IFALIAS = 20
    IFLA_AF_SPEC = 26
    IFLA_GROUP = 27
    IFLA_LINK_NETNSID = 37
    IFLA_PROP_LIST = 52
    IFLA_ALT_IFNAME = 53
    IFLA_INFO_KIND = 1
    IFLA_INFO_DATA = 2
    IFLA_INFO_SLAVE_KIND = 4
    IFLA_INFO_SLAVE_DATA = 5
    IFLA_CONF = 1  # IFLA_INET_CONF, IFLA_INET6_CONF


cdef struct Span:
    const uint8_t *data
    uint32_t size


cdef struct Attribute:
    int type
    Span value


cdef int _next(Span *rest, Attribute *found) except -1:
    """Take the next attribute off what is left; 0 at the end.  ProtocolError when one is cut short."""
    cdef uint16_t size, type
    cdef uint32_t step
    if rest.size == 0:
        return 0
    if rest.size < 4:
        raise ProtocolError("netlink: an attribute is cut short")
    memcpy(&size, rest.data, 2)
    memcpy(&type, rest.data + 2, 2)
    if size < 4 or size > rest.size:
        raise ProtocolError("netlink: an attribute is longer than what holds it")
    found.type = type & TYPE
    found.value.data = rest.data + 4
    found.value.size = size - 4
    step = (size + 3) & ~3
    if step > rest.size:
        step = rest.size
    rest.data += step
    rest.size -= step
    return 1


cdef uint32_t _number(Span value) except? 0xFFFFFFFF:
    cdef uint32_t number
    if value.size < 4:
        raise ProtocolError("netlink: a number is cut short")
    memcpy(&number, value.data, 4)
    return number


cdef str _text(Span value):
    while value.size and value.data[value.size - 1] == 0:
        value.size -= 1
    return value.data[: value.size].decode("utf-8", "replace")


cdef bytes _bytes(Span value):
    return PyBytes_FromStringAndSize(<const char *>value.data, value.size)


cdef dict _options(Span rest):
    cdef Attribute each
    cdef dict found = {}
    while _next(&rest, &each):
        found[each.type] = _bytes(each.value)
    return found


cdef tuple _names(Span rest):
    cdef Attribute each
    cdef list names = []
    while _next(&rest, &each):
        if each.type == IFLA_ALT_IFNAME:
            names.append(_text(each.value))
    return tuple(names)


cdef bytes _conf(Span rest):
    """The array of parameters of one family."""
    cdef Attribute each
    cdef bytes found = b""
    while _next(&rest, &each):
        if each.type == IFLA_CONF:
            found = _bytes(each.value)
    return found


@cython.final
cdef class LinkAttributes:
    cdef readonly int index
    cdef readonly uint32_t flags, mtu, group, master, peer
    cdef readonly object peer_namespace, queue
    cdef readonly str name, kind, alias
    cdef readonly bytes mac, ipv4, ipv6
    cdef readonly dict bridge_options, port_options
    cdef readonly tuple alternative_names

    def __cinit__(self, const uint8_t[::1] body not None):
        cdef Span rest
        cdef Attribute each
        cdef int32_t index
        if body.shape[0] < HEAD:
            raise ProtocolError("netlink: a link's message is cut short")
        memcpy(&index, &body[4], 4)
        memcpy(&self.flags, &body[8], 4)
        self.index = index
        self.name = self.kind = self.alias = ""
        self.mac = self.ipv4 = self.ipv6 = b""
        self.alternative_names = ()
        rest.data = &body[0] + HEAD
        rest.size = <uint32_t>(body.shape[0] - HEAD)
        while _next(&rest, &each):
            if each.type == IFLA_IFNAME:
                self.name = _text(each.value)
            elif each.type == IFLA_MTU:
                self.mtu = _number(each.value)
            elif each.type == IFLA_GROUP:
                self.group = _number(each.value)
            elif each.type == IFLA_MASTER:
                self.master = _number(each.value)
            elif each.type == IFLA_LINK:
                self.peer = _number(each.value)
            elif each.type == IFLA_ADDRESS:
                self.mac = _bytes(each.value)
            elif each.type == IFLA_IFALIAS:
                self.alias = _text(each.value)
            elif each.type == IFLA_LINK_NETNSID:
                self.peer_namespace = <int32_t>_number(each.value)
            elif each.type == IFLA_LINKINFO:
                self.read_info(each.value)
            elif each.type == IFLA_PROP_LIST:
                self.alternative_names = _names(each.value)
            elif each.type == IFLA_AF_SPEC:
                self.read_families(each.value)
            elif each.type == IFLA_PROTINFO:  # in a message of family AF_BRIDGE
                self.port_options = _options(each.value)
            elif each.type == IFLA_TXQLEN:
                self.queue = _number(each.value)

    cdef int read_info(self, Span rest) except -1:
        """The kernel tells the kind before its options."""
        cdef Attribute each
        cdef bint is_port = False
        while _next(&rest, &each):
            if each.type == IFLA_INFO_KIND:
                self.kind = _text(each.value)
            elif each.type == IFLA_INFO_DATA:
                if self.kind == "bridge":
                    self.bridge_options = _options(each.value)
            elif each.type == IFLA_INFO_SLAVE_KIND:
                is_port = _text(each.value) == "bridge"
            elif each.type == IFLA_INFO_SLAVE_DATA and is_port:
                self.port_options = _options(each.value)
        return 0

    cdef int read_families(self, Span rest) except -1:
        cdef Attribute each
        while _next(&rest, &each):
            if each.type == AF_INET:
                self.ipv4 = _conf(each.value)
            elif each.type == AF_INET6:
                self.ipv6 = _conf(each.value)
        return 0
