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

from overlayd._fast.dnsquery import MAX_DATAGRAM, server_cookie, wire_name
from overlayd._fast.nametable import MAX_ADDRESSES, MAX_POINTERS, TTL, NameTable

# Few labels, so that names meet: at, above and below each other.
LABELS = st.sampled_from([b"a", b"b", b"web", b"A", b"localhost", b"\xc0\x0c", b"x" * 63])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(tuple)
LOWER = NAMES.map(lambda name: tuple(label.lower() for label in name))
ADDRESSES = st.sampled_from([bytes([10, 200, 1, last]) for last in range(4)] + [bytes(15) + b"\x05", b"\xfd" * 16])
SETS = st.lists(ADDRESSES, max_size=5, unique=True).map(tuple)
TYPES = st.one_of(st.sampled_from([1, 2, 6, 12, 13, 15, 28, 41, 64, 65, 249, 252, 254, 255]), st.integers(0, 65535))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("addresses"), LOWER, SETS),
        st.tuples(st.just("pointers"), LOWER, st.tuples(ADDRESSES, st.lists(LOWER, max_size=40).map(tuple))),
        st.tuples(st.just("group"), ADDRESSES, st.none() | st.integers(0, 2)),
        st.tuples(st.just("zone"), LOWER, st.booleans()),
    ),
    max_size=12,
)


def tables(changes):
    """The table after these changes, and the oracle after the same."""
    table, oracle = NameTable(), Oracle()
    for kind, name, value in changes:
        if kind == "addresses":
            table.set_addresses(wire(name), value)
            oracle.addresses.pop(name, None)
            if value:
                oracle.addresses[name] = value
        elif kind == "pointers":
            address, targets = value[0], tuple(wire(target) for target in value[1])
            table.set_pointers(wire(name), targets, address)
            oracle.pointers.pop(name, None)
            if targets:
                oracle.pointers[name] = address, targets
        elif kind == "group":
            table.set_group(name, value)
            oracle.groups.pop(name, None)
            if value is not None:
                oracle.groups[name] = value
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
    cookies = st.integers(0, 42).map(lambda size: struct.pack(">HH", 10, size) + bytes(size))
    data = draw(st.one_of(st.binary(max_size=20), cookies, cookies.map(lambda cookie: b"\0\3\0\0" + cookie)))
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
@given(CHANGES, st.lists(queries(), min_size=1, max_size=6), st.just(b"") | ADDRESSES)
def test_every_response_is_the_oracles(changes, asked, client):
    table, oracle = tables(changes)
    cookie = server_cookie(bytes(16), bytes(8), client)
    for query in asked:
        for stream in (False, True):
            assert table.respond(query, stream, client) == oracle.respond(query, stream, client, cookie)


@settings(max_examples=150, deadline=None)
@given(CHANGES, st.binary(max_size=80), st.booleans())
def test_bytes_that_are_nothing(changes, noise, stream):
    table, oracle = tables(changes)
    assert table.respond(noise, stream) == oracle.respond(noise, stream)
    query = bytes([1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]) + noise
    assert table.respond(query, stream) == oracle.respond(query, stream)


WEB = (("addresses", (b"web",), (bytes(4),)), ("zone", (b"overlay", b"local"), True))
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
    table, _ = tables([("addresses", longest, (b"\1\2\3\4",))])
    response = table.respond(struct.pack(">6H", 7, 0, 1, 0, 0, 0) + wire(longest) + b"\0\1\0\1", False)
    assert response.endswith(b"\1\2\3\4")


def test_pointers_in_other_records_are_not_followed():
    loop = b"\xc0\x1d" + struct.pack(">HHIH", 1, 1, 0, 4) + bytes(4)
    query = struct.pack(">6H", 7, 0, 1, 0, 0, 1) + b"\3web\0\0\1\0\1" + loop
    table, _ = tables(WEB)
    assert table.respond(query, False)[3] & 15 == 0


# --- What dnspython makes of it ---


WEB_ADDRESS = bytes([10, 200, 1, 5])


@pytest.fixture
def table():
    table = NameTable()
    table.add_zone(wire_name("overlay.local"))
    for name in ("web", "web.overlay.local", "db.example.com"):
        table.set_addresses(wire_name(name), (WEB_ADDRESS,))
    table.set_addresses(wire_name("six.deep.overlay.local"), (ip_address("fd00::6").packed,))
    names = (wire_name("web.overlay.local"), wire_name("db.example.com"))
    table.set_pointers(wire_name("5.1.200.10.in-addr.arpa"), names, WEB_ADDRESS)
    return table


def ask(table, name, type, stream=False, client=b"", **options):
    query = dns.message.make_query(name, type, **options)
    response = table.respond(query.to_wire(), stream, client)
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
        ("org", "HTTPS", "NXDOMAIN", []),
        ("localhost", "A", "NOERROR", ["127.0.0.1"]),
        ("app.LocalHost", "AAAA", "NOERROR", ["::1"]),
        ("app.localhost", "MX", "NOERROR", []),
        ("localhost", "NS", "NOERROR", []),
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


@pytest.mark.parametrize(
    "name",
    [
        *("example.org", "example.com", "below.db.example.com", "6.1.200.10.in-addr.arpa", "."),
        *("xlocalhost.org", "localhost.org"),
    ],
)
def test_what_is_forwarded(table, name):
    assert table.respond(dns.message.make_query(name, "A").to_wire(), False) is None


@pytest.mark.parametrize("type", ["DS", "DNSKEY", "NS", "SOA", "TXT", "MX", "ANY"])
def test_what_is_asked_of_a_top_level_domain_is_forwarded(table, type):
    """But for addresses: a validating resolver needs it."""
    assert table.respond(dns.message.make_query("com", type).to_wire(), False) is None


def test_what_is_registered_comes_before_localhost(table):
    table.set_addresses(wire_name("app.localhost"), (WEB_ADDRESS,))
    assert [str(data) for data in ask(table, "app.localhost", "A").answer[0]] == ["10.200.1.5"]


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


def cookie(data):
    return dns.edns.GenericOption(10, data)


@pytest.mark.parametrize("server", [b"", b"12345678", b"x" * 32])
def test_a_cookie_is_answered_with_one(table, server):
    """RFC 7873: the client's own back, and behind it the same for the same client each time, whatever it sends."""
    for name, type in (("web", "A"), ("nope.overlay.local", "A"), ("web", "AXFR")):
        message = ask(table, name, type, client=WEB_ADDRESS, use_edns=0, options=[cookie(b"ABCDEFGH" + server)])
        (answer,) = message.options
        assert answer.otype == 10 and answer.to_wire() == b"ABCDEFGH" + server_cookie(
            bytes(16), b"ABCDEFGH", WEB_ADDRESS
        )


def test_a_cookie_is_of_one_client_and_one_server():
    made = {
        server_cookie(secret, client_cookie, client)
        for secret in (bytes(16), b"\1" * 16)
        for client_cookie in (bytes(8), b"\1" * 8)
        for client in (b"", bytes(4), b"\1" * 4, b"\1" * 16)
    }
    assert len(made) == 2 * 2 * 3, "an unknown address counts as 0.0.0.0"
    for arguments in ((b"", bytes(8), b""), (bytes(16), bytes(7), b""), (bytes(16), bytes(8), bytes(17))):
        with pytest.raises(ValueError):
            server_cookie(*arguments)


def test_the_hash_of_a_cookie_is_siphash():
    """The reference implementation's vector for the 24 bytes 0, 1, ... 23."""
    data = bytes(range(24))
    assert server_cookie(bytes(range(16)), data[:8], data[8:]).hex() == "94af49f6c650adb8"


@pytest.mark.parametrize("size", [0, 7, 9, 15, 41])
def test_a_cookie_that_is_none(table, size):
    query = dns.message.make_query("web", "A", use_edns=0, options=[cookie(bytes(size))])
    assert table.respond(query.to_wire(), False)[3] & 15 == dns.rcode.FORMERR


@pytest.mark.parametrize("rest", [b"\0", b"\0\12\0", b"\xfd\xe9\0\4abc"])
def test_options_that_end_in_the_middle_of_one(table, rest):
    """With a sound one before them; RFC 6891 section 6.1.2."""
    query = bytearray(dns.message.make_query("web", "A", use_edns=0).to_wire())
    query[-2:] = struct.pack(">HHH", 4 + len(rest), 65001, 0) + rest
    assert table.respond(bytes(query), False)[3] & 15 == dns.rcode.FORMERR


def addresses(message):
    return [str(data) for rrset in message.answer for data in rrset]


def test_a_name_of_many_addresses(table):
    packed = [bytes([10, 200, 1, last]) for last in (1, 2, 3)]
    table.set_addresses(wire_name("many"), (packed[0], ip_address("fd00::6").packed, *packed[1:]))
    seen = [addresses(ask(table, "many", "A")) for _ in range(6)]
    assert all(sorted(each) == ["10.200.1.1", "10.200.1.2", "10.200.1.3"] for each in seen)
    assert len({each[0] for each in seen}) == 3, "each of them first in turn"
    assert addresses(ask(table, "many", "AAAA")) == ["fd00::6"]
    table.set_addresses(wire_name("many"), tuple(number.to_bytes(4, "big") for number in range(2000)))
    assert ask(table, "many", "A").flags & dns.flags.TC
    seen: set[str] = set()
    for _ in range(4):  # who does not come by TCP gets as many as fit, others each time
        cut = ask(table, "many", "A")
        assert len(cut.answer[0]) == (512 - 22) // 16
        seen |= {each.address for each in cut.answer[0]}
    assert len(seen) > (512 - 22) // 16
    assert len(ask(table, "many", "A", stream=True).answer[0]) == MAX_ADDRESSES
    table.set_addresses(wire_name("many"), tuple(number.to_bytes(16, "big") for number in range(2000)))
    assert len(ask(table, "many", "AAAA", stream=True).answer[0]) == MAX_ADDRESSES


def test_members_of_an_isolation_network_are_known_to_each_other_and_to_the_node(table):
    blue, other, plain, node = (bytes([10, 200, 1, last]) for last in (6, 7, 8, 1))
    for address, group in ((WEB_ADDRESS, 1), (blue, 1), (other, 2), (node, 0)):
        table.set_group(address, group)
    for client, known in (
        (blue, True),
        (WEB_ADDRESS, True),
        (node, True),
        (other, False),
        (plain, False),
        (b"", False),
    ):
        for name, type in (("web", "A"), ("web.overlay.local", "A"), ("5.1.200.10.in-addr.arpa", "PTR")):
            response = table.respond(dns.message.make_query(name, type).to_wire(), False, client)
            if known:
                assert dns.message.from_wire(response).answer
            elif type == "A":
                assert dns.message.from_wire(response).rcode() == dns.rcode.NXDOMAIN
            else:
                assert response is None, "as if it had not been registered"
        assert (table.respond(dns.message.make_query("db.example.com", "A").to_wire(), False, client) is None) != known
    table.set_addresses(wire_name("web"), (WEB_ADDRESS, plain, node))
    assert sorted(addresses(ask(table, "web", "A", client=other))) == ["10.200.1.1", "10.200.1.8"]
    assert len(addresses(ask(table, "web", "A", client=blue))) == 3
    table.set_group(WEB_ADDRESS, None)
    assert len(addresses(ask(table, "web", "A", client=plain))) == 3


def test_a_long_answer_is_cut_for_datagrams_and_whole_in_a_stream(table):
    names = tuple(wire_name(f"{'n' * 60}{number}.overlay.local") for number in range(50))
    table.set_pointers(wire_name("6.1.200.10.in-addr.arpa"), names, bytes([10, 200, 1, 6]))
    for options in ({}, {"use_edns": 0, "payload": 65535}):
        message = ask(table, "6.1.200.10.in-addr.arpa", "PTR", **options)
        assert message.flags & dns.flags.TC and not message.answer
    message = ask(table, "6.1.200.10.in-addr.arpa", "PTR", stream=True)
    assert len(message.answer[0]) == MAX_POINTERS and not message.flags & dns.flags.TC


def test_what_goes_leaves_nothing(table):
    table.set_addresses(wire_name("six.deep.overlay.local"), ())
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
