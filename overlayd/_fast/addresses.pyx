# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""The texts of addresses and CIDRs, as nearly everybody writes them, to values of the standard library; and the few
things that a node asks of these values many times, done in C.

Owns: telling these from texts that need a closer look, which are for `ipaddress`; the values of that which are made
here, equal to the library's and usable wherever those are.  Must not know: where a text is from, or what an address is
for.

A node reads three of them for each peer that is added, and six for each at a start; and it looks for every allowed IP
in a dozen tables, for which the library's hash of one takes as long as reading its text.
"""
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "arpa/inet.h":
    enum: AF_INET
    enum: AF_INET6
    int inet_pton(int family, const char *text, void *packed) nogil

cdef enum:
    LONGEST = 45  # characters of an IPv6 address: INET6_ADDRSTRLEN, without the final zero
    LONGEST4 = 19  # and of an IPv4 network with its final zero

cdef object _new = object.__new__
cdef list _MASKS4 = [IPv4Network((0, prefix)).netmask for prefix in range(33)]
cdef list _MASKS6 = [IPv6Network((0, prefix)).netmask for prefix in range(129)]

# The library's hash of a network is another one since Python 3.13.
cdef object _ONE = IPv4Network("10.0.0.0/8")
cdef bint _IS_OF_A_PAIR = hash(_ONE) == hash((int(_ONE.network_address), int(_ONE.netmask)))
cdef bint _IS_OF_ONE_NUMBER = hash(_ONE) == hash(int(_ONE.network_address) ^ int(_ONE.netmask))


class Address4(IPv4Address):
    __slots__ = ()

    def __hash__(self):
        return hash(hex(self._ip))  # as the library's, for both may be keys of one table

    def __eq__(self, other):
        if type(other) is Address4:
            return self._ip == other._ip
        return IPv4Address.__eq__(self, other)

    def __str__(self):
        return _text4(self._ip, -1)

    @property
    def packed(self):
        return _packed4(self._ip)


class Network4(IPv4Network):
    def __hash__(self):
        return _hash(self, IPv4Network)

    def __eq__(self, other):
        if type(other) is Network4:
            return self.network_address._ip == other.network_address._ip and self._prefixlen == other._prefixlen
        return IPv4Network.__eq__(self, other)

    def __str__(self):
        return _text4(self.network_address._ip, self._prefixlen)

    def hosts(self):
        # The library gives each small network a function of its own.
        return iter(IPv4Network((self.network_address._ip, self._prefixlen)).hosts())


class Network6(IPv6Network):
    def __hash__(self):
        return _hash(self, IPv6Network)

    def __eq__(self, other):
        if type(other) is Network6:
            return self.network_address._ip == other.network_address._ip and self._prefixlen == other._prefixlen
        return IPv6Network.__eq__(self, other)

    def hosts(self):
        return iter(IPv6Network((self.network_address._ip, self._prefixlen)).hosts())


def address(text):
    cdef const char *characters
    cdef Py_ssize_t size
    cdef uint8_t packed[16]
    _take(text, &characters, &size)
    cdef int length = _read(characters, size, packed)
    if not length:
        return None
    return _address(packed, length)


def network(text):
    cdef const char *characters
    cdef Py_ssize_t size
    cdef uint8_t packed[16]
    _take(text, &characters, &size)
    cdef const char *slash = <const char *>memchr(characters, c'/', size)
    cdef int length = _read(characters, size if slash == NULL else slash - characters, packed)
    if not length:
        return None
    cdef int prefix = 8 * length
    if slash != NULL:
        prefix = _number(slash + 1, characters + size)
        if not 0 <= prefix <= 8 * length or not _is_masked(packed, length, prefix):
            return None
    return _network(packed, length, prefix)


def of_bytes(bytes data not None, int prefix):
    cdef const uint8_t *packed = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
    if length not in (4, 16) or not 0 <= prefix <= 8 * length or not _is_masked(packed, length, prefix):
        raise ValueError(f"no network: {data!r}/{prefix}")
    return _network(packed, length, prefix)


def is_inside(inner, outer):
    cdef int length = outer._prefixlen, bits
    if inner._version != outer._version or inner._prefixlen < length:
        return False
    if inner._version == 4:
        bits = 32 - length
        return <uint64_t>(<uint32_t>inner.network_address._ip ^ <uint32_t>outer.network_address._ip) >> bits == 0
    return (inner.network_address._ip ^ outer.network_address._ip) >> (128 - length) == 0


def place(network):
    address = network.network_address
    return (_packed4(address._ip) if network._version == 4 else address.packed), network._prefixlen


cdef inline Py_hash_t _hash(network, library) except? -1:
    """The library's, for values of ours and of the library may be keys of one table.

    An interpreter runs one of the three.
    """
    if _IS_OF_A_PAIR:
        return hash((network.network_address._ip, network.netmask._ip))  # pragma: no cover
    if _IS_OF_ONE_NUMBER:
        return hash(network.network_address._ip ^ network.netmask._ip)  # pragma: no cover
    return library.__hash__(network)  # pragma: no cover


cdef object _address(const uint8_t *packed, int length):
    if length != 4:
        return IPv6Address(packed[:length])
    address = _new(Address4)
    address._ip = _number4(packed)
    return address


cdef object _network(const uint8_t *packed, int length, int prefix):
    """With the attributes that the library's constructor gives it, which takes five times as long."""
    network = _new(Network4 if length == 4 else Network6)
    network.network_address = _address(packed, length)
    network.netmask = _MASKS4[prefix] if length == 4 else _MASKS6[prefix]
    network._prefixlen = prefix
    return network


cdef inline uint32_t _number4(const uint8_t *packed) noexcept:
    return <uint32_t>packed[0] << 24 | <uint32_t>packed[1] << 16 | <uint32_t>packed[2] << 8 | packed[3]


cdef inline bytes _packed4(uint32_t number):
    cdef uint8_t packed[4]
    packed[0], packed[1], packed[2], packed[3] = number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255
    return PyBytes_FromStringAndSize(<char *>packed, 4)


cdef inline str _text4(uint32_t number, int prefix):
    """prefix: -1 for an address."""
    cdef char text[LONGEST4]
    cdef int size = snprintf(text, LONGEST4, "%u.%u.%u.%u", number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255)
    if prefix >= 0:
        size += snprintf(text + size, LONGEST4 - size, "/%d", prefix)
    return text[:size].decode("ascii")


cdef inline int _take(object text, const char **characters, Py_ssize_t *size) except -1:
    if isinstance(text, bytes):
        characters[0] = PyBytes_AS_STRING(text)
        size[0] = PyBytes_GET_SIZE(text)
    elif not isinstance(text, str):
        raise TypeError(f"neither str nor bytes: {text!r}")
    elif text.isascii():  # else it may be what UTF-8 has no bytes for
        characters[0] = PyUnicode_AsUTF8AndSize(text, size)
    else:
        characters[0] = b""
        size[0] = 0
    return 0


cdef inline int _read(const char *characters, Py_ssize_t size, uint8_t *packed) noexcept:
    """The bytes that an address has, 0 when the text is none."""
    cdef char terminated[LONGEST + 1]
    if size > LONGEST or memchr(characters, 0, size) != NULL:
        return 0
    memcpy(terminated, characters, size)
    terminated[size] = 0
    if memchr(terminated, c':', size) == NULL:
        return 4 if inet_pton(AF_INET, terminated, packed) == 1 else 0
    return 16 if inet_pton(AF_INET6, terminated, packed) == 1 else 0


cdef inline int _number(const char *at, const char *end) noexcept:
    """One to three decimal digits; -1 for anything else."""
    cdef int value = 0
    if not 0 < end - at <= 3:
        return -1
    while at < end:
        if not c'0' <= at[0] <= c'9':
            return -1
        value = 10 * value + at[0] - c'0'
        at += 1
    return value


cdef inline bint _is_masked(const uint8_t *packed, int length, int prefix) noexcept:
    """Whether no bit is set beyond the prefix."""
    cdef int at = prefix // 8
    if prefix % 8:
        if packed[at] & (0xFF >> prefix % 8):
            return False
        at += 1
    while at < length:
        if packed[at]:
            return False
        at += 1
    return True
