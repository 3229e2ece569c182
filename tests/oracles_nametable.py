"""The name table, slow and obvious: names are tuples of labels, sections are lists, and nothing is done in place."""

import struct

TTL = 5
MAX_DATAGRAM = 1232
STREAM = 16384
A, NS, SOA, PTR, HINFO, AAAA, OPT, ANY = 1, 2, 6, 12, 13, 28, 41, 255
NOERROR, FORMERR, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 3, 4, 5, 16


class Malformed(Exception):
    pass


def labels(name: bytes) -> tuple[bytes, ...]:
    """A name of a message without pointers, root excluded."""
    found = []
    while name[0]:
        found.append(name[1 : 1 + name[0]].lower())
        name = name[1 + name[0] :]
    return tuple(found)


def wire(name: tuple[bytes, ...]) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name) + b"\0"


def read_name(message: bytes, at: int, pointers: bool) -> int:
    """Where the name at `at` ends."""
    start = at
    while True:
        if at >= len(message):
            raise Malformed
        length = message[at]
        if length == 0:
            at += 1
            break
        if length >= 0xC0 and pointers:
            return at + 2
        if length > 63:
            raise Malformed
        at += 1 + length
    if not pointers and at - start > 255:
        raise Malformed
    return at


class Oracle:
    def __init__(self) -> None:
        self.addresses: dict[tuple[bytes, ...], bytes] = {}
        self.pointers: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
        self.zones: set[tuple[bytes, ...]] = set()

    def exists(self, name: tuple[bytes, ...]) -> bool:
        """Whether there is anything at or below a name."""
        there = [*self.addresses, *self.pointers, *self.zones]
        return any(other[len(other) - len(name) :] == name for other in there if len(other) >= len(name))

    def respond(self, query: bytes, stream: bool) -> bytes | None:
        if len(query) < 12 or query[2] & 0x80:
            return b""
        id, flags, questions, answers, authorities, additional = struct.unpack(">6H", query[:12])
        flags = flags & 0b0_1111_0_0_1_0_0_0_1_0000 | 0x8080
        if flags & 0x7800:
            return struct.pack(">6H", id, flags | NOTIMP, 0, 0, 0, 0)
        opt = None
        try:
            if (questions, answers, authorities) != (1, 0, 0):
                raise Malformed
            end = read_name(query, 12, False)
            if end + 4 > len(query):
                raise Malformed
            type, klass = struct.unpack(">HH", query[end : end + 4])
            at = end + 4
            for _ in range(additional):
                owner, at = at, read_name(query, at, True)
                if at + 10 > len(query):
                    raise Malformed
                of, size, _, version, more, length = struct.unpack(">HHBBHH", query[at : at + 10])
                if of == OPT:
                    if opt or at != owner + 1 or query[owner]:
                        raise Malformed
                    opt = (size, version, more & 0x8000)
                at += 10 + length
                if at > len(query):
                    raise Malformed
            if type == OPT:
                raise Malformed
        except Malformed:
            return struct.pack(">6H", id, flags | FORMERR, 0, 0, 0, 0)
        limit = STREAM if stream else min(max(opt[0], 512), MAX_DATAGRAM) if opt else 512
        asked = query[12 : end + 4]
        if opt and opt[1]:
            code, records, authority = BADVERS, [], []
        elif klass != 1 or 249 <= type <= 254:
            code, records, authority = REFUSED, [], []
        else:
            found = self.look_up(labels(query[12:end]), type)
            if found is None:
                return None
            code, records, authority = found
            flags |= 0x0400
        tail = b"\0" + struct.pack(">HHBBHH", OPT, MAX_DATAGRAM, code >> 4, 0, opt[2], 0) if opt else b""
        if 12 + len(asked) + len(b"".join(records)) + len(tail) > limit:
            records, flags = [], flags | 0x0200
        counts = (1, len(records), len(authority), 1 if opt else 0)
        head = struct.pack(">6H", id, flags | code & 15, *counts)
        return head + asked + b"".join(records) + b"".join(authority) + tail

    def look_up(self, name: tuple[bytes, ...], type: int) -> tuple[int, list[bytes], list[bytes]] | None:
        address, targets = self.addresses.get(name), self.pointers.get(name, ())
        has = address is not None or bool(targets)
        if address is not None and type == {4: A, 16: AAAA}[len(address)]:
            return NOERROR, [record(12, type, address)], []
        if targets and type == PTR:
            return NOERROR, [record(12, PTR, target) for target in targets[:32]], []
        inside = [zone for zone in self.zones if name[len(name) - len(zone) :] == zone and len(zone) <= len(name)]
        if inside:
            zone = max(inside, key=len)
        elif has:
            zone = name
        elif len(name) == 1:
            zone = ()
        else:
            return None
        apex = zone == name
        at = 12 + len(wire(name)) - len(wire(zone))
        here = struct.pack(">H", 0xC000 | at) if zone else b"\0"
        timers = struct.pack(">5I", 1, 3600, 1200, 604800, TTL)
        soa = record(at if zone else None, SOA, here + wire((b"nobody", b"invalid")) + timers)
        if type == ANY and (has or apex):
            return NOERROR, [record(12, HINFO, b"\x07RFC8482\0")], []
        if type == SOA and apex:
            return NOERROR, [soa], []
        if type == NS and apex:
            return NOERROR, [record(12, NS, b"\xc0\x0c")], []
        return NOERROR if self.exists(name) else NXDOMAIN, [], [soa]


def record(owner: int | None, type: int, data: bytes) -> bytes:
    name = b"\0" if owner is None else struct.pack(">H", 0xC000 | owner)
    return name + struct.pack(">HHIH", type, 1, TTL, len(data)) + data
