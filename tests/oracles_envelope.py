"""Slow, obvious readers of envelopes, to hold the fast ones against: prost's rules written as one would say them."""

from overlayd.errors import ProtocolError

Fields = tuple[int, int, int, bytes, int, int, int, str, str]


def take_varint(data: bytes) -> tuple[int, bytes]:
    """A varint at the front and what follows it: at most ten bytes, at most 64 bits."""
    for size in range(1, 11):
        if len(data) < size:
            raise ProtocolError("cut")
        if data[size - 1] < 0x80:
            value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[:size]))
            if value >= 1 << 64:
                raise ProtocolError("over 64 bits")
            return value, data[size:]
    raise ProtocolError("over ten bytes")


def take_key(data: bytes) -> tuple[int, int, bytes]:
    """A field number and a wire type, and what follows."""
    key, data = take_varint(data)
    if key >= 1 << 32 or key >> 3 == 0 or key & 7 > 5:
        raise ProtocolError("bad key")
    return key >> 3, key & 7, data


def take_value(number: int, wire_type: int, data: bytes, levels: int = 100) -> tuple[int | bytes, bytes]:
    """A field's value and what follows; of a group nothing but its absence of faults is kept."""
    if levels == 0:
        raise ProtocolError("too deep")
    if wire_type == 0:
        return take_varint(data)
    if wire_type in (1, 2, 5):
        size, data = take_varint(data) if wire_type == 2 else ({1: 8, 5: 4}[wire_type], data)
        if size > len(data):
            raise ProtocolError("cut")
        return data[:size], data[size:]
    if wire_type == 3:
        while True:
            inner, inner_type, data = take_key(data)
            if inner_type == 4:
                if inner != number:
                    raise ProtocolError("another group's end")
                return b"", data
            _, data = take_value(inner, inner_type, data, levels - 1)
    raise ProtocolError("end of no group")


def decode(body: bytes) -> Fields:
    """The nine fields of a `Frame`, or ProtocolError."""
    found: dict[int, int | bytes] = {}
    while body:
        number, wire_type, body = take_key(body)
        if number <= 9 and wire_type != (2 if number in (4, 8, 9) else 0):
            raise ProtocolError("wrong wire type")
        found[number], body = take_value(number, wire_type, body)
        if number in (8, 9):
            try:
                bytes(found[number]).decode()
            except UnicodeDecodeError:
                raise ProtocolError("not UTF-8") from None

    def integer(number: int, bits: int, signed: bool = False) -> int:
        value = int(found.get(number, 0)) % (1 << bits)
        return value - (1 << bits) if signed and value >> (bits - 1) else value

    def blob(number: int) -> bytes:
        value = found.get(number, b"")
        assert isinstance(value, bytes)
        return value

    return (
        integer(1, 32),
        integer(2, 32, signed=True),
        integer(3, 32),
        blob(4),
        integer(5, 64),
        integer(6, 32, signed=True),
        integer(7, 64),
        blob(8).decode(),
        blob(9).decode(),
    )
