# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Protobuf wire format, read as strictly as Rust's prost reads it: the part of an envelope that costs time.

Owns: varints, keys, skipping, and the nine fields of a `Frame`.  Must not know: what a frame is for, the framing
around it (`proto.envelope`), or where its bytes come from.

Source: https://protobuf.dev/programming-guides/encoding/ for the format.  Where that leaves a choice, prost's: a key is
a varint of any width whose value fits 32 bits; a skipped group is one level, and so is what is in it, so a field inside the
100th group is as much an error as a 101st group.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, uint32_t, uint64_t

from overlayd.errors import ProtocolError

cdef enum:
    VARINT = 0
    FIXED64 = 1
    LENGTH_DELIMITED = 2
    START_GROUP = 3
    END_GROUP = 4
    FIXED32 = 5

cdef enum:
    MAX_DEPTH = 100  # prost's recursion limit
    MAX_KEY = 0xFFFFFFFF

cdef struct Span:
    const unsigned char *at
    const unsigned char *end


cdef int read_varint(Span *span, uint64_t *value) except -1:
    cdef uint64_t result = 0
    cdef unsigned int shift = 0
    cdef unsigned char byte
    while span.at < span.end:
        byte = span.at[0]
        span.at += 1
        if shift == 63 and byte > 1:  # the tenth byte has room for one bit, and no eleventh may follow
            raise ProtocolError("varint over 64 bits")
        result |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = result
            return 0
        shift += 7
    raise ProtocolError("varint runs past the end")


cdef int read_key(Span *span, uint32_t *number, unsigned int *wire_type) except -1:
    cdef uint64_t key = 0
    read_varint(span, &key)
    if key > <uint64_t>MAX_KEY:
        raise ProtocolError("field key over 32 bits")
    wire_type[0] = key & 7
    number[0] = <uint32_t>(key >> 3)
    if wire_type[0] > FIXED32:
        raise ProtocolError(f"field {number[0]}: no such wire type: {wire_type[0]}")
    if number[0] == 0:
        raise ProtocolError("field number 0")
    return 0


cdef int read_bytes(Span *span, uint32_t number, Span *value) except -1:
    cdef uint64_t length = 0
    read_varint(span, &length)
    if length > <uint64_t>(span.end - span.at):
        raise ProtocolError(f"field {number} runs past the end")
    value.at = span.at
    span.at += length
    value.end = span.at
    return 0


cdef int skip(Span *span, uint32_t number, unsigned int wire_type, int depth) except -1:
    """Step over a field's value; `depth`: how many more levels it may open, itself included."""
    cdef uint64_t unused = 0
    cdef Span value
    cdef uint32_t inner = 0
    cdef unsigned int inner_type = 0
    cdef Py_ssize_t width
    if depth == 0:
        raise ProtocolError("groups nested too deep")
    if wire_type == VARINT:
        return read_varint(span, &unused)
    if wire_type == LENGTH_DELIMITED:
        return read_bytes(span, number, &value)
    if wire_type == START_GROUP:
        while True:
            read_key(span, &inner, &inner_type)
            if inner_type == END_GROUP:
                if inner != number:
                    raise ProtocolError(f"group {number} closed by an end of group {inner}")
                return 0
            skip(span, inner, inner_type, depth - 1)
    if wire_type == END_GROUP:
        raise ProtocolError(f"end of group {number} without a start")
    width = 8 if wire_type == FIXED64 else 4
    if width > span.end - span.at:
        raise ProtocolError(f"field {number} runs past the end")
    span.at += width
    return 0


cdef inline int expect(uint32_t number, unsigned int wire_type, unsigned int wanted) except -1:
    if wire_type != wanted:
        raise ProtocolError(f"field {number} has wire type {wire_type}, expected {wanted}")
    return 0


cdef str text(Span *value, uint32_t number):
    if value.at == value.end:
        return ""
    try:
        return PyUnicode_DecodeUTF8(<const char *>value.at, value.end - value.at, "strict")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"field {number} is not UTF-8: {error.reason}") from None


cdef tuple parse_frame(Span *span):
    cdef uint32_t version = 0, protocol = 0, number = 0
    cdef int32_t kind = 0, encoding = 0
    cdef uint64_t request_id = 0, deadline = 0, value = 0
    cdef unsigned int wire_type = 0
    cdef Span payload, blob
    cdef str traceparent = "", tracestate = ""
    payload.at = payload.end = span.at
    while span.at < span.end:
        read_key(span, &number, &wire_type)
        if number == 4 or number == 8 or number == 9:
            expect(number, wire_type, LENGTH_DELIMITED)
            read_bytes(span, number, &blob)
            if number == 4:
                payload = blob
            elif number == 8:
                traceparent = text(&blob, number)
            else:
                tracestate = text(&blob, number)
        elif number <= 7:
            expect(number, wire_type, VARINT)
            read_varint(span, &value)
            if number == 1:
                version = <uint32_t>value
            elif number == 2:
                kind = <int32_t><uint32_t>value
            elif number == 3:
                protocol = <uint32_t>value
            elif number == 5:
                request_id = value
            elif number == 6:
                encoding = <int32_t><uint32_t>value
            else:
                deadline = value
        else:
            skip(span, number, wire_type, MAX_DEPTH)
    return (
        version,
        kind,
        protocol,
        PyBytes_FromStringAndSize(<const char *>payload.at, payload.end - payload.at),
        request_id,
        encoding,
        deadline,
        traceparent,
        tracestate,
    )


cdef list parse_fields(Span *span, int depth):
    cdef list found = []
    cdef uint32_t number = 0
    cdef unsigned int wire_type = 0
    cdef uint64_t value = 0
    cdef Span blob
    while span.at < span.end:
        read_key(span, &number, &wire_type)
        if wire_type == VARINT:
            read_varint(span, &value)
            found.append((number, wire_type, value))
        elif wire_type == LENGTH_DELIMITED:
            read_bytes(span, number, &blob)
            found.append((number, wire_type, PyBytes_FromStringAndSize(<const char *>blob.at, blob.end - blob.at)))
        else:
            skip(span, number, wire_type, depth)
            found.append((number, wire_type, None))
    return found


def decode_frame(buffer not None, Py_ssize_t start, Py_ssize_t end):
    cdef Py_buffer view
    cdef Span span
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= end <= view.len:
            raise IndexError(f"bytes {start} to {end} of a buffer of {view.len}")
        span.at = <const unsigned char *>view.buf + start
        span.end = <const unsigned char *>view.buf + end
        frame = parse_frame(&span)
    finally:
        PyBuffer_Release(&view)
    return frame


def fields(const unsigned char[::1] message not None, int depth=MAX_DEPTH):
    cdef Span span
    if message.shape[0] == 0:
        return []
    span.at = &message[0]
    span.end = span.at + message.shape[0]
    return parse_fields(&span, depth)
