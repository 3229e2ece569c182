# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""Netlink messages and attributes, to bytes and back.

Owns: lengths and padding.  Must not know: what a message is for; `proto.netlink` has the names.

An attach is some thirty attributes in fourteen messages, and the kernel tells of it in as many.
Source: linux/netlink.h.
"""
from collections import namedtuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from overlayd.errors import ProtocolError

cdef enum:
    HEADER = 16  # struct nlmsghdr: length, type, flags, sequence, port
    ATTRIBUTE = 4  # struct nlattr: length with this header, type
    LONGEST = 0xFFFF - 4  # bytes in an attribute, for its length has 16 bits
    NESTED = 0x8000  # NLA_F_NESTED
    TYPE = 0x3FFF  # NLA_TYPE_MASK

Message = namedtuple("Message", ("type", "flags", "sequence", "port", "body"))
cdef object _new = tuple.__new__


def message(uint16_t kind, uint16_t flags, uint32_t sequence, bytes body not None):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef Py_ssize_t padded = (size + 3) & ~3
    cdef bytes made = PyBytes_FromStringAndSize(NULL, HEADER + padded)
    cdef char *at = PyBytes_AS_STRING(made)
    cdef uint32_t length = <uint32_t>(HEADER + size)
    memcpy(at, &length, 4)
    memcpy(at + 4, &kind, 2)
    memcpy(at + 6, &flags, 2)
    memcpy(at + 8, &sequence, 4)
    memset(at + 12, 0, 4)
    memcpy(at + HEADER, PyBytes_AS_STRING(body), size)
    memset(at + HEADER + size, 0, padded - size)
    return made


def messages(bytes data not None):
    cdef const char *at = PyBytes_AS_STRING(data)
    cdef Py_ssize_t offset = 0, end = PyBytes_GET_SIZE(data)
    cdef uint32_t size, sequence, port
    cdef uint16_t kind, flags
    cdef object view = memoryview(data)
    cdef list found = []
    while offset < end:
        if end - offset < HEADER:
            raise ProtocolError("netlink: a message is cut short")
        memcpy(&size, at + offset, 4)
        if size < HEADER or size > end - offset:
            raise ProtocolError("netlink: a message is longer than what holds it")
        memcpy(&kind, at + offset + 4, 2)
        memcpy(&flags, at + offset + 6, 2)
        memcpy(&sequence, at + offset + 8, 4)
        memcpy(&port, at + offset + 12, 4)
        found.append(_new(Message, (kind, flags, sequence, port, view[offset + HEADER : offset + size])))
        offset += (<Py_ssize_t>size + 3) & ~3
    return found


def attribute(uint16_t kind, payload):
    cdef bytes held = payload if type(payload) is bytes else bytes(payload)
    return _attribute(kind, PyBytes_AS_STRING(held), PyBytes_GET_SIZE(held))


def nested(uint16_t kind, *attributes):
    cdef bytes held = b"".join(attributes)
    return _attribute(kind | NESTED, PyBytes_AS_STRING(held), PyBytes_GET_SIZE(held))


def u16(uint16_t kind, uint16_t value):
    return _attribute(kind, <const char *>&value, 2)


def u32(uint16_t kind, uint32_t value):
    return _attribute(kind, <const char *>&value, 4)


def text(uint16_t kind, str value not None):
    cdef bytes held = value.encode()
    return _attribute(kind, PyBytes_AS_STRING(held), PyBytes_GET_SIZE(held) + 1)  # with the zero that ends it


cdef bytes _attribute(uint16_t kind, const char *payload, Py_ssize_t size):
    if size > LONGEST:
        raise OverflowError(f"netlink: {size} bytes do not fit in an attribute")
    cdef Py_ssize_t padded = (size + 3) & ~3
    cdef bytes made = PyBytes_FromStringAndSize(NULL, ATTRIBUTE + padded)
    cdef char *at = PyBytes_AS_STRING(made)
    cdef uint16_t length = <uint16_t>(ATTRIBUTE + size)
    memcpy(at, &length, 2)
    memcpy(at + 2, &kind, 2)
    memcpy(at + ATTRIBUTE, payload, size)
    memset(at + ATTRIBUTE + size, 0, padded - size)
    return made


def attributes(data):
    cdef Py_buffer buffer
    cdef Py_ssize_t offset = 0
    cdef uint16_t size, kind
    cdef list found = []
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        while offset < buffer.len:
            if buffer.len - offset < ATTRIBUTE:
                raise ProtocolError("netlink: an attribute is cut short")
            memcpy(&size, <const char *>buffer.buf + offset, 2)
            memcpy(&kind, <const char *>buffer.buf + offset + 2, 2)
            if size < ATTRIBUTE or size > buffer.len - offset:
                raise ProtocolError("netlink: an attribute is longer than what holds it")
            found.append((kind & TYPE, data[offset + ATTRIBUTE : offset + size]))
            offset += (<Py_ssize_t>size + 3) & ~3
    finally:
        PyBuffer_Release(&buffer)
    return found
