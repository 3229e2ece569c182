"""DNS messages as text, beside dnspython."""

from contextlib import suppress
from ipaddress import ip_address

import dns.edns
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import dns_text

TEXTS = {
    "A": "192.0.2.1",
    "AAAA": "2001:db8::1",
    "NS": "ns.example.org.",
    "CNAME": r"a\.b\032c\@.example.org.",
    "PTR": "web.overlay.local.",
    "DNAME": "example.net.",
    "MX": "10 mail.example.org.",
    "SRV": "1 2 443 www.example.org.",
    "SOA": "ns.example.org. admin.example.org. 1 2 3 4 5",
    "TXT": r'"v=spf1 -all" "a\"b\\c" "" "\195\164"',
    "HINFO": '"RFC8482" ""',
}


def message(*texts: tuple[str, str], code: int = 0) -> dns.message.Message:
    made = dns.message.make_response(dns.message.make_query("www.example.org", "ANY", use_edns=0))
    made.set_rcode(dns.rcode.Rcode(code))
    made.answer = [dns.rrset.from_text("www.example.org.", 300, "IN", type, text) for type, text in texts]
    return made


def test_the_data_of_each_type_reads_as_it_was_written() -> None:
    read = dns_text.read(message(*TEXTS.items()).to_wire())
    assert read.code == "NOERROR" and read.left_out == 0
    assert {record.type: record.data for record in read.answers} == TEXTS
    assert {(record.name, record.ttl) for record in read.answers} == {("www.example.org.", 300)}


def test_types_that_we_do_not_know_are_hexadecimal() -> None:
    other = dns.rrset.from_rdata("x.", 5, dns.rdata.from_text("IN", "TYPE65280", r"\# 3 010203", relativize=False))
    made = message()
    made.answer.append(other)
    assert dns_text.read(made.to_wire()).answers == (dns_text.Record("x.", "TYPE65280", 5, r"\# 3 010203"),)


def test_codes_beyond_four_bits_and_extended_errors() -> None:
    made = message()
    made.use_edns(0, options=[dns.edns.EDEOption(22, "no answer from 192.0.2.1:53"), dns.edns.EDEOption(3)])
    made.set_rcode(dns.rcode.BADVERS)
    read = dns_text.read(made.to_wire())
    assert (read.code, read.error) == ("RCODE16", "no answer from 192.0.2.1:53")
    made.use_edns(0, options=[dns.edns.EDEOption(3)])
    assert dns_text.read(made.to_wire()).error == "extended error 3"


def test_authorities_are_shown_and_the_additional_section_is_not() -> None:
    made = message(code=3)
    made.authority = [dns.rrset.from_text("example.org.", 60, "IN", "SOA", TEXTS["SOA"])]
    made.additional = [dns.rrset.from_text("ns.example.org.", 60, "IN", "A", "192.0.2.1")]
    read = dns_text.read(made.to_wire())
    assert (read.code, read.answers) == ("NXDOMAIN", ())
    assert read.authorities == (dns_text.Record("example.org.", "SOA", 60, TEXTS["SOA"]),)


def test_the_longest_message_makes_no_long_text() -> None:
    name = b"\x3f" + b"\xff" * 63
    question = name * 3 + b"\0" + b"\0\2\0\1"
    record = b"\xc0\x0c\0\2\0\1\0\0\0\5\0\2\xc0\x0c"
    count = (65535 - 12 - len(question)) // len(record)
    read = dns_text.read(b"\0\0\x80\0\0\1" + count.to_bytes(2) + bytes(4) + question + record * count)
    text = sum(len(each.name) + len(each.data) for each in read.answers)
    assert dns_text.MOST_TEXT < text < dns_text.MOST_TEXT + 2000
    assert len(read.answers) + read.left_out == count > 4000


@given(st.binary(max_size=300))
@example(b"\0\0\x80\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
@example(b"\0\0\x80\0\0\0\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\0\0\0")
def test_anything_is_read_or_refused(received: bytes) -> None:
    for made in (received, b"\0\0\x80\0\0\1\0\1\0\0\0\1" + received):
        with suppress(ProtocolError):
            dns_text.read(made)


@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_damaged_data_is_refused_or_shown(type: str, data: st.DataObject) -> None:
    wire = bytearray(message((type, TEXTS[type])).to_wire())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(12, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = dns_text.read(bytes(wire))
    except ProtocolError:
        return
    for record in (*read.answers, *read.authorities):
        assert (record.name + record.type + record.data).isprintable()


@pytest.mark.parametrize(("name", "type", "asked"), [
    ("web", "", ("web.", "A")),
    ("WEB.example.", "aaaa", ("web.example.", "AAAA")),
    (".", "ns", (".", "NS")),
    ("x", "TYPE65", ("x.", "HTTPS")),
    ("x", "type64000", ("x.", "TYPE64000")),
    ("192.0.2.1", "", ("1.2.0.192.in-addr.arpa.", "PTR")),
    ("2001:db8::1", "PTR", (f"{ip_address('2001:db8::1').reverse_pointer}.", "PTR")),
    ("192.0.2.1", "A", ("192.0.2.1.", "A")),
])  # fmt: skip
def test_what_is_asked(name: str, type: str, asked: tuple[str, str]) -> None:
    question, read = dns_text.question(name, type)
    assert (dns_text.name(question), read) == asked
    assert int.from_bytes(question[-4:-2]) == dns.rdatatype.from_text(asked[1])


@pytest.mark.parametrize(("name", "type", "words"), [
    ("", "B", "no type"),
    ("x", "TYPE65536", "no type"),
    ("x", "TYPE", "no type"),
    ("a..b", "A", "label"),
    ("a" * 64, "A", "label"),
    ("ä.example", "A", "xn--"),
    (".".join(["a" * 60] * 5), "A", "longer"),
])  # fmt: skip
def test_what_cannot_be_asked(name: str, type: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dns_text.question(name, type)


HEAD = bytes.fromhex("00008180 0000 0001 0000 0000")  # one record in the answer section


def of_record(name: bytes, type: int, data: bytes) -> bytes:
    return HEAD + name + type.to_bytes(2) + b"\0\1" + bytes(4) + len(data).to_bytes(2) + data


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (b"", "cut short"),
        (b"\3we", "cut short"),
        (b"\x40" + b"x" * 64 + b"\0", "not a DNS name"),  # 0x40: a kind of label that nobody uses
        ((b"\x3f" + b"x" * 63) * 4 + b"\0", "not a DNS name"),  # 257 bytes
        (b"\xc0\x0c", "points to itself"),
    ],
)
def test_names_that_are_none(name: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        dns_text.read(HEAD + name if problem == "cut short" else of_record(name, 1, bytes(4)))


@pytest.mark.parametrize(
    ("type", "data"),
    [
        (2, b"\1a\0\0"),  # NS: a byte behind the name
        (2, b"\1a"),  # its end is missing
        (2, b"\3a"),
        (16, b"\5abc"),  # TXT: a string that is shorter than it says
        (1, b"\1\2\3"),
        (6, b"\0\0" + bytes(19)),
    ],
)
def test_data_that_is_broken_is_hexadecimal(type: int, data: bytes) -> None:
    (record,) = dns_text.read(of_record(b"\0", type, data)).answers
    assert record.data == f"\\# {len(data)} {data.hex()}"


def test_an_extended_error_behind_another_option_and_one_that_is_cut_short() -> None:
    made = message()
    made.use_edns(0, options=[dns.edns.GenericOption(65001, b"x"), dns.edns.EDEOption(22, "late")])
    assert dns_text.read(made.to_wire()).error == "late"
    made.use_edns(0, options=[dns.edns.GenericOption(15, b"\0")])
    assert dns_text.read(made.to_wire()).error == ""
