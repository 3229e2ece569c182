"""Answers of upstreams, taken apart and given to clients: what dnspython makes of them, how long, and how many."""

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd._fast.dnscache import STALE, Answer, Cache, key_of
from overlayd._fast.dnsquery import MAX_DATAGRAM, server_cookie
from overlayd.errors import ProtocolError

CLIENT = bytes([10, 200, 1, 9])
HEADER = struct.Struct(">HBBHHHH")


def query(name="www.example.org", type="A", **options):
    return dns.message.make_query(name, type, **options)


def response(asked, *records, authority=(), additional=(), code=0, edns=None, flags=0):
    """records: texts of the form "name ttl type data"."""
    message = dns.message.make_response(asked, recursion_available=True)
    message.set_rcode(code)
    message.flags |= flags
    for section, texts in ((message.answer, records), (message.authority, authority), (message.additional, additional)):
        for text in texts:
            name, ttl, type, data = text.split(" ", 3)
            section.append(dns.rrset.from_text(name, int(ttl), "IN", type, data))
    message.use_edns(**edns) if edns is not None else message.use_edns(-1)
    return message


def cached(message, *, now=0.0, cache=None, asked=None):
    cache = Cache(10, 100_000) if cache is None else cache
    cache.put(key_of((asked or query()).to_wire()), Answer(message.to_wire()), now)
    return cache


def given_by(cache, asked, now=0.0, stream=False):
    said = cache.respond(asked.to_wire(), stream, CLIENT, now)
    if said is None:
        return None
    message = dns.message.from_wire(said)
    assert asked.is_response(message) and message.question[0].name.labels == asked.question[0].name.labels
    return message


A = "www.example.org. 300 A 192.0.2.80"
SOA = "example.org. 900 SOA ns.example.org. nobody.invalid. 1 2 3 4 {}"


# --- What goes back to the client ---


def test_an_answer_counts_down_and_ends():
    cache = cached(
        response(query(), A, "www.example.org. 200 A 192.0.2.81", additional=["x.example.org. 250 A 1.2.3.4"])
    )
    message = given_by(cache, query("wWw.Example.ORG"), 10.9)
    assert [rrset.ttl for rrset in message.answer + message.additional] == [190, 240]
    assert not message.flags & dns.flags.AA and message.flags & dns.flags.RA
    assert given_by(cache, query(), 199.9).answer[0].ttl == 1
    assert given_by(cache, query(), 200.0) is None
    assert (cache.hits, cache.misses) == (2, 1)


@pytest.mark.parametrize("section", ["answer", "authority", "additional"])
def test_the_record_that_ends_first_ends_the_answer(section):
    more = {section: ["sub.example.org. 7 A 192.0.2.1"]} if section != "answer" else {}
    records = [A, "www.example.org. 7 RRSIG A 8 3 7 20300101000000 20200101000000 1 example.org. AAAA"]
    message = response(query(), *(records if section == "answer" else [A]), **more)
    assert Answer(message.to_wire()).lifetime == 7


@pytest.mark.parametrize(
    ("records", "authority", "code", "lifetime"),
    [
        ([A], [], 0, 300),
        (["www.example.org. 999999 A 192.0.2.80"], [], 0, 86400),
        (["www.example.org. 0 A 192.0.2.80"], [], 0, 0),
        (["www.example.org. 60 CNAME x.example.net.", "x.example.net. 30 A 192.0.2.80"], [], 0, 30),
        (["www.example.org. 60 CNAME x.example.net."], [], 0, 0),
        (["www.example.org. 60 CNAME x.example.net."], [SOA.format(40)], 0, 40),
        ([], [SOA.format(120)], 0, 120),
        ([], [SOA.format(120)], 3, 120),
        ([], [SOA.format(9000)], 3, 900),
        ([], [SOA.format(0)], 3, 0),
        ([], [], 0, 0),
        ([], [], 3, 0),
        ([], ["example.org. 600 NS ns.example.org."], 0, 0),
        ([A], [], 2, 0),
        ([], [SOA.format(120)], 5, 0),
    ],
)
def test_how_long_an_answer_may_be_kept(records, authority, code, lifetime):
    assert Answer(response(query(), *records, authority=authority, code=code).to_wire()).lifetime == lifetime


def test_an_answer_is_empty_when_it_says_nothing_and_is_whole():
    nothing = response(query())
    assert Answer(nothing.to_wire()).empty
    nothing.flags |= dns.flags.TC
    assert not Answer(nothing.to_wire()).empty
    assert not Answer(response(query(), A).to_wire()).empty


def test_a_negative_answer_says_how_long_it_is_true():
    cache = cached(response(query(), authority=[SOA.format(100)], code=3))
    message = given_by(cache, query(), 30.0)
    assert (message.rcode(), message.authority[0].ttl) == (3, 70)


def test_a_lifetime_of_the_top_bit_is_none():
    wire = bytearray(response(query(), A).to_wire())
    wire[-10:-6] = b"\x80\0\1\0"
    assert Answer(bytes(wire)).lifetime == 0


def test_edns_ends_here():
    """Of the upstream's OPT record the client gets the code and the extended errors; it gets its own cookie."""
    error = dns.edns.EDEOption(18, "no")
    options = [dns.edns.GenericOption(10, b"12345678abcdefgh"), error, dns.edns.GenericOption(3, b"nsid")]
    upstream = response(query(use_edns=0), A, edns={"edns": 0, "payload": 4096, "options": options})
    answer, cache = Answer(upstream.to_wire()), Cache(1, 1000)
    plain = dns.message.from_wire(cache.give(answer, query().to_wire(), False, CLIENT))
    assert plain.edns == -1 and plain.answer
    asked = query(use_edns=0, want_dnssec=True, options=[dns.edns.GenericOption(10, b"ABCDEFGH")])
    message = dns.message.from_wire(cache.give(answer, asked.to_wire(), False, CLIENT))
    cookie, told = message.options
    assert cookie.to_wire() == b"ABCDEFGH" + server_cookie(bytes(16), b"ABCDEFGH", CLIENT)
    assert told == error and message.payload == MAX_DATAGRAM and message.ednsflags & dns.flags.DO


def test_an_extended_code_comes_through():
    upstream = response(query(use_edns=0), edns={"edns": 0})
    upstream.set_rcode(dns.rcode.BADCOOKIE)
    answer = Answer(upstream.to_wire())
    assert answer.code == dns.rcode.BADCOOKIE
    message = dns.message.from_wire(Cache(1, 1).give(answer, query(use_edns=0).to_wire(), False, CLIENT))
    assert message.rcode() == dns.rcode.BADCOOKIE


def test_records_behind_the_opt_record_are_left_away():
    wire = response(query(), A, additional=["x.example.org. 60 A 192.0.2.1"]).to_wire()
    opt = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)
    at = wire.rindex(b"\1x")
    moved = HEADER.pack(*(HEADER.unpack_from(wire)[:-1]), 2) + wire[12:at] + opt + wire[at:]
    message = dns.message.from_wire(Cache(1, 1).give(Answer(moved), query(use_edns=0).to_wire(), False, CLIENT))
    assert message.answer and not message.additional and message.edns == 0


@pytest.mark.parametrize(
    ("payload", "count", "cut"), [(None, 20, False), (None, 40, True), (1232, 60, False), (4096, 90, True)]
)
def test_a_datagram_carries_what_the_client_and_we_take(payload, count, cut):
    asked = query(use_edns=-1 if payload is None else 0, payload=payload)
    cache = cached(response(query(), *[f"www.example.org. 60 A 192.0.2.{number}" for number in range(count)]))
    message = given_by(cache, asked)
    assert bool(message.flags & dns.flags.TC) == cut and bool(message.answer) != cut
    assert len(given_by(cache, asked, stream=True).answer[0]) == count


def test_a_truncated_answer_is_passed_on_and_not_kept():
    for size in (None, -3):
        wire = response(query(), A, flags=dns.flags.TC).to_wire()[:size]
        answer = Answer(wire)
        assert answer.truncated and answer.lifetime == 0
        assert dns.message.from_wire(Cache(1, 1).give(answer, query().to_wire(), True, CLIENT)).flags & dns.flags.TC


def test_what_is_authenticated_stays_so():
    for flags in (0, dns.flags.AD):
        message = given_by(cached(response(query(), A, flags=flags)), query())
        assert message.flags & dns.flags.AD == flags


def test_a_failure_says_why_to_who_speaks_edns():
    answer = Answer.failure(22, "nobody is there")
    for edns in (-1, 0):
        asked = query(use_edns=edns)
        message = dns.message.from_wire(Cache(1, 1).give(answer, asked.to_wire(), False, CLIENT))
        assert asked.is_response(message) and message.rcode() == dns.rcode.SERVFAIL and message.edns == edns
        assert [(error.code, error.text) for error in message.options] == [(22, "nobody is there")][: edns + 1]
    assert len(Cache(1, 1).give(Answer.failure(0, "x" * 5000), query(use_edns=0).to_wire(), False, b"")) < 512


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([(15, b"\0\6signature"), (15, b"\0\7expired")], 2),
        ([(15, b"\0\6" + b"a" * 100), (15, b"\0\7" + b"b" * 200), (15, b"\0\7")], 1),  # 256 bytes in all
        ([(3, b"ns1"), (15, b"\0"), (15, b"\0\6")], 1),  # another option, and an error without a code
    ],
)
def test_the_errors_of_an_upstream_are_passed_on_as_far_as_there_is_room(options, kept):
    options = [dns.edns.GenericOption(code, data) for code, data in options]
    message = response(query(use_edns=0), A)
    message.use_edns(0, options=options)
    passed = given_by(cached(message), query(use_edns=0)).options
    expected = [each for each in options if each.otype == 15 and len(each.to_wire()) >= 2][:kept]
    assert [each.to_wire() for each in passed] == [each.to_wire() for each in expected]


def test_errors_that_reach_beyond_their_record_are_not_passed_on():
    message = bytearray(response(query(use_edns=0), A, edns={"edns": 0}).to_wire())
    broken = struct.pack(">HHH", 15, 2, 6) + struct.pack(">HH", 15, 9) + b"\0\6"
    message[-2:] = struct.pack(">H", len(broken)) + broken
    (error,) = dns.message.from_wire(
        Cache(1, 1).give(Answer(bytes(message)), query(use_edns=0).to_wire(), False, CLIENT)
    ).options
    assert error.code == 6


# --- Which answers are kept, and for whom ---


def test_questions_that_differ_in_what_is_wanted_have_answers_of_their_own():
    keys = set()
    for rd, ad, cd, dnssec, edns in [
        (1, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
        (1, 1, 0, 0, 0),
        (1, 0, 1, 0, 0),
        (1, 0, 0, 1, 1),
    ]:
        asked = query(use_edns=0 if edns else -1, want_dnssec=bool(dnssec))
        asked.flags = rd * dns.flags.RD | ad * dns.flags.AD | cd * dns.flags.CD
        keys.add(key_of(asked.to_wire()))
    assert len(keys) == 5
    assert key_of(query(use_edns=0).to_wire()) == key_of(query("WWW.example.ORG").to_wire())
    assert key_of(b"") == key_of(query(rdclass="CH").to_wire()) == b""


def test_entries_and_bytes_are_bounded_and_what_is_used_stays():
    cache = Cache(4, 100_000)
    for number in range(4):
        cached(response(query(), A), cache=cache, asked=query(f"n{number}.example.org"))
    assert cache.respond(query("n0.example.org").to_wire(), False, CLIENT, 1.0)
    cached(response(query(), A), cache=cache, asked=query("new.example.org"))
    left = {key[1:3] for key, *_ in cache.describe(0.0)}
    assert len(cache) == 4 and left == {b"n0", b"n2", b"n3", b"ne"}
    tight = Cache(100, 1000)
    for number in range(10):
        cached(response(query(), A), cache=tight, asked=query(f"n{number}.example.org"))
        assert tight.size <= 1000
    assert len(tight) == 2
    huge = response(query(), *[f"www.example.org. 60 A 192.0.2.{number}" for number in range(200)])
    cached(huge, cache=tight)
    assert len(tight) == 2
    assert tight.clear() == 2 and tight.size == len(tight) == 0
    assert len(cached(response(query(), A), cache=Cache(0, 1000))) == 0


def test_a_newer_answer_takes_the_place_of_the_old_one():
    cache = cached(response(query(), A))
    size = cache.size
    cached(response(query(), "www.example.org. 50 A 192.0.2.81"), cache=cache)
    assert str(given_by(cache, query()).answer[0][0]) == "192.0.2.81" and cache.size == size
    cached(response(query(), code=2), cache=cache)
    assert len(cache) == 1, "a failure is no news of the name"
    cached(response(query(), "www.example.org. 0 A 192.0.2.82"), cache=cache)
    assert len(cache) == cache.size == 0


def test_a_stale_answer_is_there_for_a_day():
    cache = cached(response(query(), A))
    key = key_of(query().to_wire())
    assert cache.stale(key, 300.0 + STALE) and cache.stale(b"", 0.0) is None
    answer = cache.stale(key, 301.0)
    message = dns.message.from_wire(cache.give(answer, query(use_edns=0).to_wire(), False, CLIENT, True))
    assert message.answer[0].ttl == 30 and message.options[0].code == 3
    assert cache.stale(key, 301.0 + STALE) is None and len(cache) == 0


def test_a_popular_answer_is_to_be_asked_for_anew_near_its_end_once():
    cache = cached(response(query(), A))
    told = []
    for now in (0.0, 100.0, 269.0, 271.0, 272.0):
        given_by(cache, query(), now)
        told.append(cache.refresh)
    assert told == [False, False, False, True, False]
    unpopular = cached(response(query(), A))
    given_by(unpopular, query(), 299.0)
    assert not unpopular.refresh
    short = cached(response(query(), "www.example.org. 9 A 192.0.2.80"))
    for _ in range(5):
        given_by(short, query(), 8.9)
        assert not short.refresh


# --- What is no answer ---


def test_what_is_no_response():
    message = response(query(), A, authority=[SOA.format(1)], edns={"edns": 0})
    wire = message.to_wire()
    for end in range(len(wire)):
        with pytest.raises(ProtocolError):
            Answer(wire[:end])
    for bad in (query().to_wire(), wire[:4] + b"\0\2" + wire[6:], b"", b"\xff" * 600):
        with pytest.raises(ProtocolError):
            Answer(bad)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
    st.binary(max_size=40),
    st.booleans(),
)
def test_damage_hurts_nobody(damage, cut, noise, stream):
    """What passes is a response to the question, no longer than the client takes, and ends where dnspython can tell."""
    options = [dns.edns.EDEOption(3, "x"), dns.edns.GenericOption(10, b"12345678abcdefgh")]
    records = [f"www.example.org. {60 + number} A 192.0.2.{number}" for number in range(4)]
    wire = bytearray(
        response(query(), *records, authority=[SOA.format(9)], edns={"edns": 0, "options": options}).to_wire()
    )
    for at, byte in damage:
        wire[at % len(wire)] = byte
    message = bytes(wire[: len(wire) - cut if cut < 40 else None]) + noise
    asked = query(use_edns=0, options=[dns.edns.GenericOption(10, b"ABCDEFGH")]).to_wire()
    try:
        answer = Answer(message)
    except ProtocolError:
        return
    said = Cache(1, 1).give(answer, asked, stream, CLIENT)
    assert said[:2] == asked[:2] and len(said) <= (65535 if stream else MAX_DATAGRAM)
    cache = Cache(5, 10_000)
    cache.put(key_of(asked), answer, 0.0)
    assert cache.respond(asked, stream, CLIENT, 0.0) in (None, said)
    cache.respond(bytes(wire), stream, CLIENT, 0.0)
