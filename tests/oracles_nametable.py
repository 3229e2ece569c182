"""The name table, slow and obvious: names are tuples of labels, sections are lists, and nothing is done in place."""

import struct

TTL = 5
MAX_DATAGRAM = 1232
STREAM = 16384
A, NS, SOA, PTR, HINFO, AAAA, OPT, SVCB, HTTPS, ANY = 1, 2, 6, 12, 13, 28, 41, 64, 65, 255
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


def read_cookie(options: bytes) -> bytes:
    """The client's part of the first cookie, b"" without one."""
    cookie = b""
    while options:
        if len(options) < 4:
            raise Malformed
        of, length = struct.unpack(">HH", options[:4])
        data, options = options[4 : 4 + length], options[4 + length :]
        if len(data) < length:
            raise Malformed
        if of == 10 and not cookie:
            if length not in (8, *range(16, 41)):
                raise Malformed
            cookie = data[:8]
    return cookie


class Oracle:
    def __init__(self) -> None:
        self.groups: dict[bytes, int] = {}
        self.turn = 0
        self.addresses: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
        self.pointers: dict[tuple[bytes, ...], tuple[bytes, tuple[bytes, ...]]] = {}  # with the address
        self.zones: set[tuple[bytes, ...]] = set()

    def sees(self, client: bytes, address: bytes) -> bool:
        group, own = self.groups.get(address, 0), self.groups.get(client, -1)
        return group in (0, own) or own == 0

    def respond(self, query: bytes, stream: bool, client: bytes = b"", cookies: bytes = bytes(8)) -> bytes | None:
        """cookies: what the server's part of a cookie is expected to be."""
        if len(query) < 12 or query[2] & 0x80:
            return b""
        id, flags, questions, answers, authorities, additional = struct.unpack(">6H", query[:12])
        flags = flags & 0b0_1111_0_0_1_0_0_0_1_0000 | 0x8080
        if flags & 0x7800:
            return struct.pack(">6H", id, flags | NOTIMP, 0, 0, 0, 0)
        opt, cookie = None, b""
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
                    if at + 10 + length > len(query):
                        raise Malformed
                    cookie = read_cookie(query[at + 10 : at + 10 + length]) if version == 0 else b""
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
            found = self.look_up(labels(query[12:end]), type, client)
            if found is None:
                return None
            code, records, authority = found
            flags |= 0x0400
        given = struct.pack(">HH", 10, 16) + cookie + cookies if cookie else b""
        fixed = (OPT, MAX_DATAGRAM, code >> 4, 0, opt[2] if opt else 0, len(given))
        tail = b"\0" + struct.pack(">HHBBHH", *fixed) + given if opt else b""
        if 12 + len(asked) + len(b"".join(records)) + len(tail) > limit:
            room = limit - 12 - len(asked) - len(tail)
            records, flags = fitting(records, room) if type in (A, AAAA) else [], flags | 0x0200
        counts = (1, len(records), len(authority), 1 if opt else 0)
        head = struct.pack(">6H", id, flags | code & 15, *counts)
        return head + asked + b"".join(records) + b"".join(authority) + tail

    def look_up(
        self, name: tuple[bytes, ...], type: int, client: bytes = b""
    ) -> tuple[int, list[bytes], list[bytes]] | None:
        addresses = [address for address in self.addresses.get(name, ()) if self.sees(client, address)]
        reverse, targets = self.pointers.get(name, (b"", ()))
        has = bool(addresses) or (bool(targets) and self.sees(client, reverse))
        if not has and name[-1:] == (b"localhost",):
            at = 12 + len(wire(name)) - len(wire(name[-1:]))
            loopback = {A: bytes([127, 0, 0, 1]), AAAA: bytes(15) + b"\1"}.get(type)
            if loopback:
                return NOERROR, [record(12, type, loopback)], []
            return NOERROR, [], [soa_record(at, struct.pack(">H", 0xC000 | at))]
        asked = [address for address in addresses if type == {4: A, 16: AAAA}[len(address)]]
        if has and asked:
            self.turn += len(asked) > 1
            first = self.turn % len(asked) if len(asked) > 1 else 0
            return NOERROR, [record(12, type, address) for address in asked[first:] + asked[:first]], []
        if has and targets and type == PTR:
            return NOERROR, [record(12, PTR, target) for target in targets[:32]], []
        inside = [zone for zone in self.zones if name[len(name) - len(zone) :] == zone and len(zone) <= len(name)]
        if inside:
            zone = max(inside, key=len)
        elif has:
            zone = name
        elif len(name) == 1 and type in (A, AAAA, SVCB, HTTPS):
            zone = ()
        else:
            return None
        apex = zone == name
        at = 12 + len(wire(name)) - len(wire(zone))
        here = struct.pack(">H", 0xC000 | at) if zone else b"\0"
        soa = soa_record(at if zone else None, here)
        if type == ANY and (has or apex):
            return NOERROR, [record(12, HINFO, b"\x07RFC8482\0")], []
        if type == SOA and apex:
            return NOERROR, [soa], []
        if type == NS and apex:
            return NOERROR, [record(12, NS, b"\xc0\x0c")], []
        below = [other for other in [*self.addresses, *self.pointers, *self.zones] if other != name]
        there = has or apex or any(other[len(other) - len(name) :] == name for other in below if len(other) > len(name))
        return NOERROR if there else NXDOMAIN, [], [soa]


def fitting(records: list[bytes], room: int) -> list[bytes]:
    """As many of the first ones as there is room for, bytes."""
    return [each for number, each in enumerate(records, 1) if len(b"".join(records[:number])) <= room]


def soa_record(owner: int | None, primary: bytes) -> bytes:
    timers = struct.pack(">5I", 1, 3600, 1200, 604800, TTL)
    return record(owner, SOA, primary + wire((b"nobody", b"invalid")) + timers)


def record(owner: int | None, type: int, data: bytes) -> bytes:
    name = b"\0" if owner is None else struct.pack(">H", 0xC000 | owner)
    return name + struct.pack(">HHIH", type, 1, TTL, len(data)) + data
