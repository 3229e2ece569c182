"""The table of names and its responses: the same as the oracle's, whatever comes; proper DNS to another reader."""

import struct
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_nametable import Oracle, labels, wire

from overlayd._fast.nametable import MAX_DATAGRAM, MAX_POINTERS, TTL, NameTable, wire_name

# Few labels, so that names meet: at, above and below each other.
LABELS = st.sampled_from([b"a", b"b", b"web", b"A", b"\xc0\x0c", b"x" * 63])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(tuple)
LOWER = NAMES.map(lambda name: tuple(label.lower() for label in name))
ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
TYPES = st.one_of(st.sampled_from([1, 2, 6, 12, 13, 15, 28, 41, 249, 252, 254, 255]), st.integers(0, 65535))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("address"), LOWER, st.none() | ADDRESSES),
        st.tuples(st.just("pointers"), LOWER, st.lists(LOWER, max_size=40).map(tuple)),
        st.tuples(st.just("zone"), LOWER, st.booleans()),
    ),
    max_size=12,
)


def tables(changes):
    """The table after these changes, and the oracle after the same."""
    table, oracle = NameTable(), Oracle()
    for kind, name, value in changes:
        if kind == "address":
            table.set_address(wire(name), value)
            oracle.addresses.pop(name, None)
            if value is not None:
                oracle.addresses[name] = value
        elif kind == "pointers":
            targets = tuple(wire(target) for target in value)
            table.set_pointers(wire(name), targets)
            oracle.pointers.pop(name, None)
            if targets:
                oracle.pointers[name] = targets
        elif value:
            table.add_zone(wire(name))
            oracle.zones.add(name)
        else:
            table.remove_zone(wire(name))
            oracle.zones.discard(name)
    return table, oracle


@st.composite
def opt_records(draw):
    version = draw(st.sampled_from([0, 0, 0, 1, 255]))
    data = draw(st.binary(max_size=20))
    owner = draw(st.sampled_from([b"\0", b"\0", b"\0", b"\xc0\x0c", b"\1a\0"]))
    size, flags = draw(st.sampled_from([0, 512, 700, 1232, 4096, 65535])), draw(st.sampled_from([0, 0x8000, 0xFFFF]))
    return owner + struct.pack(">HHBBHH", 41, size, draw(st.integers(0, 255)), version, flags, len(data)) + data


@st.composite
def queries(draw):
    """Mostly proper ones."""
    name = wire(draw(st.one_of(NAMES, st.just(()), st.lists(LABELS, max_size=9).map(tuple))))
    klass = draw(st.sampled_from([1, 1, 1, 1, 3, 255]))
    flags = draw(st.sampled_from([0, 0x0100, 0x0110, 0x0130, 0x2900, 0x8180, 0x0FFF]))
    more = draw(
        st.lists(st.one_of(opt_records(), st.just(b"\1t\0" + struct.pack(">HHIH", 250, 255, 0, 0))), max_size=2)
    )
    counts = draw(st.sampled_from([(1, 0, 0)] * 6 + [(0, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]))
    head = struct.pack(">6H", draw(st.integers(0, 65535)), flags, *counts, len(more))
    return head + name + struct.pack(">HH", draw(TYPES), klass) + b"".join(more) + draw(st.sampled_from([b"", b"rest"]))


@settings(max_examples=150, deadline=None)
@given(CHANGES, st.lists(queries(), min_size=1, max_size=6))
def test_every_response_is_the_oracles(changes, asked):
    table, oracle = tables(changes)
    for query in asked:
        for stream in (False, True):
            assert table.respond(query, stream) == oracle.respond(query, stream)


@settings(max_examples=150, deadline=None)
@given(CHANGES, st.binary(max_size=80), st.booleans())
def test_bytes_that_are_nothing(changes, noise, stream):
    table, oracle = tables(changes)
    assert table.respond(noise, stream) == oracle.respond(noise, stream)
    query = bytes([1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]) + noise
    assert table.respond(query, stream) == oracle.respond(query, stream)


WEB = (("address", (b"web",), bytes(4)), ("zone", (b"overlay", b"local"), True))
ASKED = dns.message.make_query("web", "A", use_edns=0, payload=4096, want_dnssec=True).to_wire()


def test_every_truncation_and_every_bit_flip():
    table, oracle = tables(WEB)
    for end in range(len(ASKED)):
        assert table.respond(ASKED[:end], False) == oracle.respond(ASKED[:end], False)
    for bit in range(8 * len(ASKED)):
        flipped = bytearray(ASKED)
        flipped[bit // 8] ^= 1 << bit % 8
        assert table.respond(bytes(flipped), False) == oracle.respond(bytes(flipped), False)


@pytest.mark.parametrize(
    "name", [b"\xc0\x0c", b"\1a\xc0\x0c", b"\xc0\xff", b"\x40" + bytes(64), b"\1a" * 127 + b"\1a\0", b"\x3f" * 300]
)
def test_names_that_are_none(name):
    query = struct.pack(">6H", 7, 0, 1, 0, 0, 0) + name + b"\0\1\0\1"
    assert NameTable().respond(query, False) == struct.pack(">6H", 7, 0x8081, 0, 0, 0, 0)


def test_the_longest_name_is_one():
    longest = tuple([b"a"] * 127)
    table, _ = tables([("address", longest, b"\1\2\3\4")])
    response = table.respond(struct.pack(">6H", 7, 0, 1, 0, 0, 0) + wire(longest) + b"\0\1\0\1", False)
    assert response.endswith(b"\1\2\3\4")


def test_pointers_in_other_records_are_not_followed():
    loop = b"\xc0\x1d" + struct.pack(">HHIH", 1, 1, 0, 4) + bytes(4)
    query = struct.pack(">6H", 7, 0, 1, 0, 0, 1) + b"\3web\0\0\1\0\1" + loop
    table, _ = tables(WEB)
    assert table.respond(query, False)[3] & 15 == 0


# --- What dnspython makes of it ---


@pytest.fixture
def table():
    table = NameTable()
    table.add_zone(wire_name("overlay.local"))
    for name in ("web", "web.overlay.local", "db.example.com"):
        table.set_address(wire_name(name), bytes([10, 200, 1, 5]))
    table.set_address(wire_name("six.deep.overlay.local"), ip_address("fd00::6").packed)
    table.set_pointers(
        wire_name("5.1.200.10.in-addr.arpa"), (wire_name("web.overlay.local"), wire_name("db.example.com"))
    )
    return table


def ask(table, name, type, stream=False, **options):
    query = dns.message.make_query(name, type, **options)
    response = table.respond(query.to_wire(), stream)
    assert response is not None, "forwarded"
    message = dns.message.from_wire(response)
    assert query.is_response(message)
    assert response[12 : 12 + len(name)] == query.to_wire()[12 : 12 + len(name)], "in the letters of the question"
    return message


@pytest.mark.parametrize(
    ("name", "type", "code", "answer"),
    [
        ("web", "A", "NOERROR", ["10.200.1.5"]),
        ("WeB.Overlay.LOCAL", "A", "NOERROR", ["10.200.1.5"]),
        ("six.deep.overlay.local", "AAAA", "NOERROR", ["fd00::6"]),
        ("5.1.200.10.in-addr.arpa", "PTR", "NOERROR", ["web.overlay.local.", "db.example.com."]),
        ("web", "AAAA", "NOERROR", []),
        ("db.example.com", "TXT", "NOERROR", []),
        ("deep.overlay.local", "A", "NOERROR", []),
        ("overlay.local", "A", "NOERROR", []),
        ("overlay.local", "SOA", "NOERROR", [f"overlay.local. nobody.invalid. 1 3600 1200 604800 {TTL}"]),
        ("overlay.local", "NS", "NOERROR", ["overlay.local."]),
        ("web", "ANY", "NOERROR", ['"RFC8482" ""']),
        ("db", "A", "NXDOMAIN", []),
        ("nope.overlay.local", "A", "NXDOMAIN", []),
        ("below.web.overlay.local", "A", "NXDOMAIN", []),
    ],
)
def test_what_is_ours(table, name, type, code, answer):
    message = ask(table, name, type)
    assert dns.rcode.to_text(message.rcode()) == code
    assert sorted(str(data) for rrset in message.answer for data in rrset) == sorted(answer)
    assert message.flags & dns.flags.AA and message.flags & dns.flags.RA and message.flags & dns.flags.RD
    if not answer:
        (soa,) = message.authority
        assert soa.rdtype == dns.rdatatype.SOA and soa.ttl == soa[0].minimum == TTL
        assert dns.name.from_text(name).is_subdomain(soa.name)


@pytest.mark.parametrize("name", ["example.org", "example.com", "below.db.example.com", "6.1.200.10.in-addr.arpa", "."])
def test_what_is_forwarded(table, name):
    assert table.respond(dns.message.make_query(name, "A").to_wire(), False) is None


def test_what_a_server_refuses(table):
    assert ask(table, "web", "AXFR").rcode() == dns.rcode.REFUSED
    assert ask(table, "web", "TXT", rdclass="CH").rcode() == dns.rcode.REFUSED
    assert ask(table, "web", "A", use_edns=1).rcode() == dns.rcode.BADVERS
    query = dns.message.make_query("web", "A")
    query.set_opcode(dns.opcode.UPDATE)
    assert table.respond(query.to_wire(), False)[3] & 15 == dns.rcode.NOTIMP


def test_edns_is_answered_with_edns_and_only_then(table):
    assert ask(table, "web", "A").edns == -1
    unknown = dns.edns.GenericOption(65001, b"whatever")
    message = ask(table, "web", "A", use_edns=0, options=[unknown], want_dnssec=True)
    assert (message.edns, message.payload, message.options) == (0, MAX_DATAGRAM, ())
    assert message.ednsflags & dns.flags.DO


def test_a_long_answer_is_cut_for_datagrams_and_whole_in_a_stream(table):
    names = tuple(wire_name(f"{'n' * 60}{number}.overlay.local") for number in range(50))
    table.set_pointers(wire_name("6.1.200.10.in-addr.arpa"), names)
    for options in ({}, {"use_edns": 0, "payload": 65535}):
        message = ask(table, "6.1.200.10.in-addr.arpa", "PTR", **options)
        assert message.flags & dns.flags.TC and not message.answer
    message = ask(table, "6.1.200.10.in-addr.arpa", "PTR", stream=True)
    assert len(message.answer[0]) == MAX_POINTERS and not message.flags & dns.flags.TC


def test_what_goes_leaves_nothing(table):
    table.set_address(wire_name("six.deep.overlay.local"), None)
    assert ask(table, "deep.overlay.local", "A").rcode() == dns.rcode.NXDOMAIN
    table.remove_zone(wire_name("overlay.local"))
    table.remove_zone(wire_name("overlay.local"))
    assert table.respond(dns.message.make_query("nope.overlay.local", "A").to_wire(), False) is None
    assert ask(table, "web.overlay.local", "A").answer


@pytest.mark.parametrize("text", ["a..b", ".a", "a" * 64, ".".join(["abc"] * 64), "é"])
def test_text_that_is_no_name(text):
    with pytest.raises(ValueError):
        wire_name(text)


def test_names_as_bytes():
    assert wire_name("") == wire_name(".") == b"\0"
    assert wire_name("WeB.overlay.local.") == b"\3web\7overlay\5local\0" == wire(labels(wire_name("web.overlay.local")))
