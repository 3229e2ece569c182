# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""The texts of addresses and CIDRs, as nearly everybody writes them, to values of the standard library.

Owns: telling these from texts that need a closer look, which are for `ipaddress`.  Must not know: where a text is from,
or what an address is for.

A node reads three of them for each peer that is added, and six for each at a start.
"""
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "arpa/inet.h":
    enum: AF_INET
    enum: AF_INET6
    int inet_pton(int family, const char *text, void *packed) nogil

cdef enum:
    LONGEST = 45  # characters of an IPv6 address: INET6_ADDRSTRLEN, without the final zero


def address(text):
    cdef const char *characters
    cdef Py_ssize_t size
    cdef uint8_t packed[16]
    _take(text, &characters, &size)
    cdef int length = _read(characters, size, packed)
    if not length:
        return None
    value = _value(packed, length)
    return IPv4Address(value) if length == 4 else IPv6Address(value)


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
    value = _value(packed, length)
    return IPv4Network((value, prefix)) if length == 4 else IPv6Network((value, prefix))


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


cdef inline object _value(const uint8_t *packed, int length):
    """What stands for an address with the least to do for `ipaddress`."""
    if length == 4:
        return <uint32_t>packed[0] << 24 | <uint32_t>packed[1] << 16 | <uint32_t>packed[2] << 8 | packed[3]
    return packed[:length]


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
