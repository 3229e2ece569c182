"""Strings of requests: what is taken, what is refused, and that the error names the field and the value."""

from base64 import b64encode
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon import parse
from overlayd.errors import RequestError
from overlayd.model.rows import numeric_endpoint


def networks(text: str, field: str) -> object:
    return parse.networks(text, field, 3)


READERS = [parse.address, parse.network, networks, parse.key, parse.endpoint, parse.dns_name]


@given(st.text(max_size=80), st.sampled_from(READERS))
def test_any_text_is_a_value_or_an_error_that_names_the_field(text, read):
    try:
        read(text, "the_field")
    except RequestError as error:
        assert str(error).startswith("request.the_field: ")


@given(st.ip_addresses())
def test_addresses(address):
    assert parse.address(str(address), "ip") == ((address.version == 6 and address.ipv4_mapped) or address)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::ffff:10.200.1.5", "10.200.1.5"),
        ("0:0:0:0:0:FFFF:0ac8:0105", "10.200.1.5"),
        ("::fffe:10.200.1.5", "::fffe:ac8:105"),
        ("::10.200.1.5", "::ac8:105"),
    ],
)
def test_an_ipv4_address_in_the_place_of_an_ipv6_one_is_itself(text, meant):
    """No packet carries `::ffff:10.200.1.5`: a peer, a name and a route of it would lead nowhere."""
    assert parse.address(text, "ip") == ip_address(meant)
    assert parse.network(text, "cidr") == ip_network(meant)
    assert numeric_endpoint(parse.endpoint(f"[{text}]:5", "endpoint")) == (ip_address(meant), 5)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::ffff:10.200.1.5/112", "10.200.0.0/16"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.200.1.5/128", "10.200.1.5/32"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("::/0", "::/0"),
    ],
)
def test_an_ipv4_network_in_the_place_of_an_ipv6_one_is_itself(text, meant):
    assert parse.network(text, "cidr") == ip_network(meant)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.200.0.0/16", "10.200.0.0/16"),
        ("10.200.7.9/16", "10.200.0.0/16"),
        (" 10.1.2.3 ", "10.1.2.3/32"),
        ("fd00::5/48", "fd00::/48"),
    ],
)
def test_host_bits_are_dropped(text, network):
    assert parse.network(text, "cidr") == ip_network(network)


CIDRS = st.one_of(
    st.ip_addresses().map(str),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(-1, 130)),
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.text("0123456789abcdefx.:/ %+-_\u0663", max_size=20),
)


@given(CIDRS)
def test_what_is_read_quickly_is_what_the_standard_library_reads(text):
    try:
        expected = ip_network(text.strip(), strict=False)
        if expected.version == 6 and expected.prefixlen >= 96 and (first := expected.network_address.ipv4_mapped):
            expected = ip_network((first, expected.prefixlen - 96))
    except ValueError:
        expected = None
    try:
        assert parse.network(text, "cidr") == expected
    except RequestError:
        assert expected is None or "%" in text


def test_lists_of_networks_may_be_empty_and_spaced():
    assert parse.networks("", "allowed_ips", 2) == ()
    assert parse.networks("10.0.0.0/8, fd00::/8", "allowed_ips", 2) == (
        ip_network("10.0.0.0/8"),
        ip_network("fd00::/8"),
    )


def test_lists_of_networks_have_a_limit():
    assert len(parse.networks(",10.0.0.0/8,, fd00::/8,", "allowed_ips", 2)) == 2
    with pytest.raises(RequestError, match=r"^request\.allowed_ips: at most 2 CIDRs, got 3$"):
        parse.networks("10.0.0.0/8,fd00::/8,no", "allowed_ips", 2)


@pytest.mark.parametrize("read", [*READERS, parse.key])
def test_errors_quote_little_of_a_long_value(read):
    with pytest.raises(RequestError) as caught:
        read("\x7f%" * 500, "the_field")
    assert len(str(caught.value)) < 500


@given(st.binary(min_size=32, max_size=32))
def test_keys(key):
    assert parse.key(b64encode(key).decode(), "pubkey") == key


@given(st.binary(max_size=64).filter(lambda key: len(key) != 32))
def test_keys_of_another_length_say_their_length(key):
    with pytest.raises(RequestError, match=f"{len(key)} bytes, a key is 32"):
        parse.key(b64encode(key).decode(), "pubkey")


@pytest.mark.parametrize("text", ["192.0.2.1:51820", "[fd00::1]:51820", "node-7.example:1", "", "a:65535"])
def test_endpoints(text):
    assert parse.endpoint(text, "endpoint") == text


@pytest.mark.parametrize(
    "text",
    [
        *("192.0.2.1", "host:", ":51820", "host:0", "host:65536", "host:-1", "fd00::1:51820", "[fd00::1:5", "[x]:5"),
        pytest.param("host:" + "9" * 5000, id="more digits than int() takes"),
        pytest.param("host:\N{ARABIC-INDIC DIGIT FIVE}", id="another script's digits"),
    ],
)
def test_bad_endpoints(text):
    with pytest.raises(RequestError, match=r"^request\.endpoint: "):
        parse.endpoint(text, "endpoint")


@pytest.mark.parametrize("text", ["Web.Example.", "a", "_srv._tcp.x-1", "a" * 63 + ".b"])
def test_dns_names(text):
    assert parse.dns_name(text, "zone") == text.removesuffix(".").lower()


@pytest.mark.parametrize("text", ["", ".", "a..b", "-a", "a-", "a" * 64, "bücher", "a b", ".".join(["abc"] * 64)])
def test_bad_dns_names(text):
    with pytest.raises(RequestError, match="not a DNS name: at most 253 characters in labels of 1 to 63"):
        parse.dns_name(text, "zone")


def test_an_address_is_not_a_network_of_many():
    assert parse.network("fd00::1", "cidr").network_address == ip_address("fd00::1")


@pytest.mark.parametrize(
    ("read", "text"),
    [(parse.address, "fe80::1%eth0"), (parse.network, "fe80::%eth0/64"), (parse.endpoint, "[fe80::1%eth0]:51820")],
)
def test_a_zone_is_refused(read, text):
    with pytest.raises(RequestError, match="use an address without one"):
        read(text, "field")
